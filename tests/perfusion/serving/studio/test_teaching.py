"""The whole way: photos are taught, the concept is drawn, its card makes it a concept elsewhere."""

import pytest

from tests.perfusion.serving.studio.conftest import ROOT

expect = pytest.importorskip("playwright.sync_api").expect
pytestmark = pytest.mark.browser

PHOTOS = sorted((ROOT / "examples" / "subjects" / "tuxedo-cat").glob("*.png"))


def test_photos_become_a_word_a_picture_and_a_card_for_a_friend(
    open_page, start_server, drop, draw, tmp_path
):
    pytest.importorskip("diffusers", exc_type=ImportError)
    page = open_page(start_server(), "teach")
    page.get_by_role("button", name="Teach", exact=True).click()
    page.get_by_role("alert").filter(has_text="Add at least one photo").wait_for()
    drop(page.locator(".room-teach"), *PHOTOS[:2])
    expect(page.locator(".photo")).to_have_count(2)
    page.get_by_label("Name").fill("my cat")
    page.get_by_label("What kind of thing it is").fill("cat")
    page.get_by_role("button", name="Teach", exact=True).click()
    page.get_by_role("alert").filter(has_text="Give it a name").wait_for()
    page.get_by_label("Name").fill("my-cat")
    page.get_by_text("Options", exact=True).click()
    page.get_by_label("Steps").fill("10")
    page.get_by_role("button", name="Teach", exact=True).click()
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


def test_what_is_no_photo_is_said(open_page, studio, drop, tmp_path):
    page = open_page(studio, "teach")
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    drop(page.locator(".room-teach"), tmp_path / "IMG_1.HEIC")
    page.get_by_role("alert").filter(has_text="A HEIC photo has to be saved as JPEG first").wait_for()
