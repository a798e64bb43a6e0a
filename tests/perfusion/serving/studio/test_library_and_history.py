"""The rooms Concepts, History, Device and Explore."""

import shutil

import pytest
from PIL import Image

from perfusion.concept.concept_file import Concept
from perfusion.embedded import bundle_path
from tests.perfusion.serving.studio.conftest import ROOT, drawn_after

expect = pytest.importorskip("playwright.sync_api").expect
pytestmark = pytest.mark.browser

CAKES = sorted((ROOT / "examples" / "subjects" / "pink-cake").glob("*.png"))
SAMPLES = bundle_path() / "concepts"


def card(page, word):
    """A concept's card in the room Concepts."""
    return page.locator(".concept-card").filter(has=page.get_by_role("heading", name=word, exact=True))


def test_a_concept_is_dropped_renamed_deleted_and_brought_back(open_page, studio, drop, tmp_path):
    page = open_page(studio, "concepts")
    expect(page.locator(".concept-card")).to_have_count(3)
    shutil.copy(SAMPLES / "pink-cake.safetensors", tmp_path / "birthday.safetensors")
    drop(page.locator(".room-concepts"), tmp_path / "birthday.safetensors")
    card(page, "<birthday>").get_by_role("button", name="Rename").click()
    page.get_by_role("dialog").get_by_label("Name").fill("gold-hat")
    page.get_by_role("button", name="Save").click()
    page.get_by_role("alert").filter(has_text="There is a concept 'gold-hat'").wait_for()
    page.get_by_role("dialog").get_by_label("Name").fill("party")
    page.get_by_role("button", name="Save").click()
    card(page, "<party>").get_by_role("button", name="Delete").click()
    expect(page.locator(".concept-card")).to_have_count(3)
    page.locator(".notice", has_text="<party> is deleted").get_by_role("button", name="Undo").click()
    card(page, "<party>").wait_for()
    card(page, "<party>").get_by_role("button", name="Delete").click()
    expect(page.locator(".concept-card")).to_have_count(3)
    page.goto(f"{studio.address}/#draw")
    expect(page.locator(".draw-panel .chip")).to_have_count(3)


def test_what_is_no_concept_is_refused_where_it_was_dropped(open_page, studio, drop, tmp_path):
    page = open_page(studio, "concepts")
    Image.new("RGB", (16, 16)).save(tmp_path / "holiday.png")
    drop(page.locator(".room-concepts"), tmp_path / "holiday.png")
    page.get_by_role("alert").filter(has_text="holiday.png: This picture carries no concept").wait_for()


def test_a_card_from_one_studio_is_a_concept_in_another(
    open_page, studio, start_server, drop, draw, tmp_path
):
    page = open_page(studio, "concepts")
    with page.expect_download() as download:
        card(page, "<school-bus>").get_by_role("link", name="Card").click()
    download.value.save_as(tmp_path / "yellow.png")
    with Image.open(tmp_path / "yellow.png") as picture:
        assert picture.size == (256, 256)
    other = start_server("--library", str(tmp_path / "library"))
    friend = open_page(other, "concepts")
    friend.get_by_role("heading", name="No concepts yet").wait_for()
    drop(friend.locator(".room-concepts"), tmp_path / "yellow.png")
    card(friend, "<yellow>").get_by_role("button", name="Draw with it").click()
    assert "<yellow>" in friend.get_by_label("What is to be drawn").input_value()
    draw(friend, "a <yellow> in the snow")
    ours = Concept.load(tmp_path / "library" / "yellow.png")
    assert (ours.direction == Concept.load(SAMPLES / "school-bus.safetensors").direction).all()


def test_pictures_are_searched_marked_used_and_deleted(open_page, start_server, draw):
    server = start_server()
    page = open_page(server, "history")
    page.get_by_role("heading", name="No pictures yet").wait_for()
    page.goto(f"{server.address}/#draw")
    for prompt in ("a green bus", "a red bus", "a red mug"):
        draw(page, prompt, steps=2, Seed=12)
    page.goto(f"{server.address}/#history")
    pictures = page.locator(".gallery li")
    expect(pictures).to_have_count(3)
    page.get_by_label("Search in prompts").fill("red")
    expect(pictures).to_have_count(2)
    page.get_by_role("button", name="Favourite: a red bus").click()
    page.get_by_label("Favourites only").check()
    expect(pictures).to_have_count(1)
    page.get_by_label("Search in prompts").fill("purple")
    page.get_by_role("heading", name="Nothing found").wait_for()
    page.get_by_label("Search in prompts").fill("")
    page.reload()
    page.get_by_label("Favourites only").check()
    expect(pictures).to_have_count(1)
    pictures.locator(".tile").click()
    page.get_by_role("dialog").get_by_text("12", exact=True).wait_for()
    page.get_by_role("dialog").get_by_role("button", name="Use these settings").click()
    expect(page.get_by_label("What is to be drawn")).to_have_value("a red bus")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("12")
    page.goto(f"{server.address}/#history")
    page.get_by_label("Favourites only").uncheck()
    page.locator(".gallery .tile[title='a green bus']").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(pictures).to_have_count(2)


def test_more_like_this_draws_four_over_the_picture(page, draw):
    draw(page, "a red mug", steps=3, Seed=2)
    job = page.locator(".stage-large").get_attribute("data-job")
    page.locator(".stage").get_by_role("button", name="More like this").click()
    drawn_after(page, job)
    expect(page.locator(".stage-large .tile img")).to_have_count(4)


def test_the_device_says_what_draws_why_and_what_does_not_fit(open_page, studio):
    page = open_page(studio, "device")
    page.locator(".big-fact", has_text="cpu").wait_for()
    page.get_by_text("onnxruntime on the processor").wait_for()
    page.get_by_text("Fits", exact=True).wait_for()
    page.get_by_label("Width").fill("8192")
    page.get_by_label("Height").fill("8192")
    page.get_by_label("At once").fill("64")
    page.get_by_label("At once").press("Tab")
    page.get_by_text("Does not fit", exact=True).wait_for()


def test_a_cell_of_the_grid_becomes_the_concept_s_usual_setting(open_page, start_server):
    server = start_server()
    page = open_page(server, "explore")
    page.get_by_label("Concept", exact=True).select_option("<gold-hat>")
    across, down = page.get_by_role("group", name="Across"), page.get_by_role("group", name="Down")
    across.get_by_label("Cells").fill("2")
    down.get_by_label("Setting").select_option("")
    page.get_by_label("Second prompt, if you like").fill("a cat")
    page.get_by_role("button", name="Draw the grid").click()
    page.get_by_role("alert").filter(has_text="does not name <gold-hat>").wait_for()
    page.get_by_label("Second prompt, if you like").fill("")
    page.get_by_role("button", name="Draw the grid").click()
    page.get_by_role("button", name="Bias 0.50, make this the usual setting").click()
    page.get_by_role("button", name="Make it usual").click()
    expect(page.locator(".cell.usual")).to_have_count(1)
    page.goto(f"{server.address}/#concepts")
    expect(card(page, "<gold-hat>")).to_contain_text("Bias 0.50")


def test_settings_are_measured_against_photos_and_the_recommended_one_is_marked(
    open_page, start_server, drop, check_axe
):
    page = open_page(start_server(), "explore")
    page.get_by_label("Concept", exact=True).select_option("<pink-cake>")
    across, down = page.get_by_role("group", name="Across"), page.get_by_role("group", name="Down")
    across.get_by_label("Cells").fill("3")
    down.get_by_label("Setting").select_option("")
    page.get_by_label("Seed", exact=True).fill("6")
    page.get_by_text("Which settings are best?").click()
    drop(page.locator(".explore details"), *CAKES[:3])
    expect(page.locator(".thumbs li")).to_have_count(3)
    page.get_by_role("button", name="Leave photo 3 out").click()
    page.get_by_role("button", name="Draw the grid").click()
    page.get_by_role("heading", name="Likeness and faith").wait_for()
    expect(page.locator(".plot-dot")).to_have_count(3)
    assert page.locator(".cell.on-front").count() >= 1
    check_axe(page, "a front")
    sentence = page.locator(".front-plot .muted").inner_text()
    if page.locator(".cell.recommended").count():
        bias = page.locator(".cell.recommended").get_attribute("aria-label").partition(",")[0]
        assert sentence == f"Recommended: {bias}."
    else:
        assert sentence.startswith("None is recommended")
