"""The whole way: photos are taught, the concept is drawn, its card makes it a concept elsewhere."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.perfusion.serving.studio.conftest import ROOT

expect = pytest.importorskip("playwright.sync_api").expect
pytestmark = pytest.mark.browser

PHOTOS = sorted((ROOT / "examples" / "subjects" / "tuxedo-cat").glob("*.png"))


def paint(page, canvas, *, across=0.5):
    """A stroke from top to bottom."""
    canvas.scroll_into_view_if_needed()
    area = canvas.bounding_box()
    page.mouse.move(area["x"] + area["width"] * across, area["y"] + 2)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] * across, area["y"] + area["height"] - 2, steps=5)
    page.mouse.up()


def masks_of(server):
    """The masks that came with the newest lesson, as numbers from 0 to 255."""
    folder = max((server.folder / "trainings").iterdir(), key=lambda path: path.stat().st_mtime)
    return [
        np.array(Image.open(io.BytesIO(path.read_bytes()))) for path in sorted((folder / "masks").iterdir())
    ]


def offer(page, drop):
    """Two photos with their name and their kind, after what is missing was said."""
    page.get_by_role("button", name="Teach", exact=True).click()
    page.get_by_role("alert").filter(has_text="Add at least one photo").wait_for()
    drop(page.locator(".room-teach"), *PHOTOS[:2])
    expect(page.locator(".photo")).to_have_count(2)
    page.get_by_label("Name").fill("my cat")
    page.get_by_label("What kind of thing it is").fill("cat")
    page.get_by_role("button", name="Teach", exact=True).click()
    page.get_by_role("alert").filter(has_text="Give it a name").wait_for()
    page.get_by_label("Name").fill("my-cat")


def test_photos_become_a_word_a_picture_and_a_card_for_a_friend(
    open_page, start_server, drop, draw, check_axe, tmp_path
):
    pytest.importorskip("diffusers", exc_type=ImportError)
    server = start_server()
    page = open_page(server, "teach")
    offer(page, drop)
    page.get_by_role("button", name="Correct what counts of photo 2").click()
    brush = page.get_by_label("The part of the photo that counts")
    page.get_by_role("button", name="Nothing painted").click()
    page.get_by_label("Brush", exact=True).fill("0.4")
    paint(page, brush, across=0.25)
    check_axe(page, "a mask that is corrected")
    page.get_by_role("button", name="Take it so").click()
    page.get_by_text("corrected", exact=True).wait_for()
    page.get_by_text("Options", exact=True).click()
    page.get_by_label("Steps").fill("60")
    page.get_by_role("button", name="Teach", exact=True).click()
    page.get_by_text("Loss 0.").wait_for()
    page.get_by_alt_text("Drawn after step 50").wait_for()
    found, painted = masks_of(server)
    assert 0.02 < (found > 127).mean() < 0.95
    side = painted.shape[1]
    assert painted[:, side // 4].min() == 255 and painted[:, 3 * side // 4].max() == 0
    page.get_by_role("button", name="Draw with <my-cat>").wait_for()
    page.locator(".verdict .tag").wait_for()
    check_axe(page, "a lesson that is over")
    page.get_by_alt_text("What <my-cat> was learned from").wait_for()
    page.get_by_role("button", name="Draw with <my-cat>").click()
    draw(page, "a photo of <my-cat> on a beach", steps=2)
    page.get_by_role("link", name="Concepts").click()
    card = page.locator(".concept-card").filter(has=page.get_by_role("heading", name="<my-cat>", exact=True))
    with page.expect_download() as download:
        card.get_by_role("link", name="Card").click()
    download.value.save_as(tmp_path / "my-cat.png")
    friend = open_page(start_server("--library", str(tmp_path / "library"), "--no-training"), "concepts")
    drop(friend.locator(".room-concepts"), tmp_path / "my-cat.png")
    friend.get_by_role("heading", name="<my-cat>").wait_for()
    friend.get_by_role("link", name="Teach").click()
    friend.get_by_text("Teaching is switched off on this server.").wait_for()
    page.get_by_role("link", name="Teach").click()
    page.get_by_role("button", name="Throw away").click()
    page.locator(".notice", has_text="<my-cat> is deleted").get_by_role("button", name="Undo").click()
    page.get_by_text("What you teach appears here").wait_for()
    page.get_by_role("link", name="Concepts").click()
    card.wait_for()


def test_a_lesson_goes_on_when_the_server_was_killed_and_after_it_was_stopped(open_page, start_server, drop):
    pytest.importorskip("diffusers", exc_type=ImportError)
    server = start_server()
    page = open_page(server, "teach")
    drop(page.locator(".room-teach"), PHOTOS[0])
    page.get_by_label("Name").fill("tom")
    page.get_by_label("What kind of thing it is").fill("cat")
    page.get_by_text("Options", exact=True).click()
    page.get_by_label("Steps").fill("3000")
    page.get_by_role("button", name="Teach", exact=True).click()
    page.get_by_alt_text("Drawn after step 50").wait_for()
    server.kill()
    page.locator(".banner").wait_for()
    server.start()
    page.locator(".banner").wait_for(state="hidden")
    page.get_by_alt_text("Drawn after step 100").wait_for()
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_text("Stopped", exact=True).wait_for()
    page.get_by_role("button", name="Go on").click()
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_role("button", name="Throw away").click()
    page.get_by_text("What you teach appears here").wait_for()


def test_a_large_photo_is_turned_as_it_was_held_and_reduced_before_it_is_sent(
    open_page, studio, drop, tmp_path
):
    page = open_page(studio, "teach")
    held = Image.new("RGB", (7300, 5500), "blue")  # 40 megapixels, the camera turned by a quarter
    held.paste("red", (0, 0, 3650, 5500))
    exif = Image.Exif()
    exif[0x0112] = 6  # the left of the file is above
    held.save(tmp_path / "phone.jpg", exif=exif, quality=30)
    drop(page.locator(".room-teach"), tmp_path / "phone.jpg")
    page.locator(".photo canvas").wait_for()
    top, bottom = page.locator(".photo canvas").evaluate(
        "(canvas) => [40, 280].map((y) => [...canvas.getContext('2d').getImageData(160, y, 1, 1).data])"
    )
    assert top[0] > 200 > 60 > top[2] and bottom[2] > 200 > 60 > bottom[0]
    page.get_by_label("Name").fill("large")
    page.get_by_label("What kind of thing it is").fill("cat")
    page.get_by_role("button", name="Teach", exact=True).click()
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_role("button", name="Throw away").wait_for()
    (photo,) = (studio.folder / "trainings").glob("*/photos/1.png")
    assert photo.stat().st_size < 4_000_000
    with Image.open(photo) as sent:
        assert sent.size == (1024, 1024)
    page.get_by_role("button", name="Throw away").click()
    page.get_by_text("What you teach appears here").wait_for()


def test_a_heic_photo_that_the_browser_cannot_read_is_read_by_the_server(open_page, studio, drop, tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    Image.new("RGB", (400, 300), "green").save(tmp_path / "IMG_2.HEIC", "HEIF")
    page = open_page(studio, "teach")
    drop(page.locator(".room-teach"), tmp_path / "IMG_2.HEIC")
    page.locator(".photo").wait_for()


def test_a_word_is_looked_up_as_it_is_typed_and_what_may_be_meant_is_taken_with_a_key(
    open_page, studio, drop
):
    page = open_page(studio, "teach")
    kind = page.get_by_label("What kind of thing it is")
    kind.press_sequentially("kitten")
    page.get_by_role("status").filter(has_text="has never seen 'kitten'").wait_for()
    assert kind.get_attribute("aria-invalid") == "true"
    page.get_by_role("button", name="Take cat").press("Enter")
    page.get_by_text("The model knows cat.").wait_for()
    assert (kind.input_value(), kind.get_attribute("aria-invalid")) == ("cat", None)
    kind.fill("zebra")
    page.get_by_label("Name").fill("stripes")
    drop(page.locator(".room-teach"), PHOTOS[0])
    page.locator(".photo").wait_for()
    page.get_by_role("button", name="Teach", exact=True).click()
    page.get_by_role("alert").filter(has_text="has never seen 'zebra'").wait_for()
    assert page.evaluate("document.activeElement.placeholder") == "cat"


@pytest.mark.parametrize("width", [1280, 400])
def test_a_lookup_that_answers_while_the_button_is_pressed_does_not_move_it(open_page, studio, drop, width):
    page = open_page(studio, "teach", viewport={"width": width, "height": 1400})
    lookups = []
    page.route("**/api/superclass**", lambda route: lookups.append(route))
    drop(page.locator(".room-teach"), PHOTOS[0])
    page.locator(".photo").wait_for()
    page.get_by_label("Name").fill("bat")
    page.get_by_label("What kind of thing it is").fill("cat")
    button = page.get_by_role("button", name="Teach", exact=True)
    page.wait_for_timeout(500)
    assert len(lookups) == 1
    before = button.bounding_box()
    lookups[0].continue_()
    page.get_by_text("The model knows cat.").wait_for()
    assert button.bounding_box() == before


def test_what_is_no_photo_is_said(open_page, studio, drop, tmp_path):
    page = open_page(studio, "teach")
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    drop(page.locator(".room-teach"), tmp_path / "IMG_1.HEIC")
    page.get_by_role("alert").filter(has_text="IMG_1.HEIC cannot be read").wait_for()
