"""The room Draw: from words to pictures, and back from a picture to its settings."""

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from perfusion.runtime import Runtime
from perfusion.runtime.picture_settings import read_settings, save, settings_of
from tests.perfusion.serving.studio.conftest import drawn_after

expect = pytest.importorskip("playwright.sync_api").expect
pytestmark = pytest.mark.browser


def fetch(page, address):
    """A file of the server, with the page's own rights."""
    text = page.evaluate(
        """async (address) => {
          const bytes = new Uint8Array(await (await fetch(address)).arrayBuffer());
          return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
        }""",
        address,
    )
    return base64.b64decode(text)


def test_a_concept_is_offered_at_the_sign_and_drawn_as_the_runtime_draws_it(page, draw):
    prompt = page.get_by_label("What is to be drawn")
    page.get_by_role("button", name="Put <pink-cake> into the prompt").wait_for()
    prompt.press_sequentially("a <")
    offers = page.get_by_role("listbox", name="Concepts").get_by_role("option")
    assert offers.all_inner_texts() == ["<gold-hat>\nhat", "<pink-cake>\ncake", "<school-bus>\nbus"]
    prompt.press("ArrowDown")
    assert offers.nth(1).get_attribute("aria-selected") == "true"
    assert prompt.get_attribute("aria-activedescendant") == offers.nth(1).get_attribute("id")
    prompt.press("Enter")
    assert prompt.input_value() == "a <pink-cake> "
    assert page.locator(".prompt-back mark").all_inner_texts() == ["<pink-cake>"]
    picture = Image.open(io.BytesIO(fetch(page, draw(page, "a <pink-cake> on a beach", Seed=5))))
    with Runtime(threads=1) as runtime:
        runtime.load_concept("pink-cake")
        expected = runtime.generate("a <pink-cake> on a beach", seed=5, num_inference_steps=4)
    assert np.abs(np.asarray(picture, int) - np.asarray(expected, int)).max() <= 1


def test_sliders_change_the_concept_of_this_picture_alone(page, draw):
    page.get_by_label("What is to be drawn").fill("a <pink-cake>")
    panel = page.locator(".concept-panel")
    panel.locator("summary").click()
    panel.get_by_label("Bias").fill("0.5")
    panel.get_by_label("Start").fill("0.2")
    assert panel.locator("summary .tag").inner_text() == "2 settings changed"
    settings = read_settings(io.BytesIO(fetch(page, draw(page, "a <pink-cake>"))))
    assert settings is not None
    assert (settings["concepts"]["<pink-cake>"]["bias"], settings["concepts"]["<pink-cake>"]["start"]) == (
        0.5,
        0.2,
    )
    panel.get_by_role("button", name="Usual settings").click()
    assert panel.locator("summary .tag").inner_text() == "usual settings"


def test_previews_come_while_it_is_drawn_and_one_of_two_is_cancelled(page):
    page.get_by_label("What is to be drawn").fill("a red cat")
    page.get_by_text("Negative prompt, steps, guidance").click()
    page.get_by_label("Steps", exact=True).fill("300")
    draw = page.get_by_role("button", name="Draw", exact=True)
    draw.click()
    page.locator(".tile.has-preview img[src^='data:image']").wait_for()
    assert "Step " in page.locator(".stage .state").inner_text()
    draw.click()
    expect(page.locator(".frame-cancel")).to_have_count(2)
    page.locator(".frame-cancel").first.click()
    expect(page.locator(".filmstrip li.cancelled")).to_have_count(1)
    expect(page.locator(".filmstrip li.drawing")).to_have_count(1)
    page.locator(".frame-cancel").click()
    expect(page.locator(".filmstrip li.cancelled")).to_have_count(2)


def test_a_dropped_picture_of_ours_gives_its_settings_back(page, drop, tmp_path):
    options = {"num_inference_steps": 7, "guidance_scale": 2.5, "scheduler": "euler_karras", "width": 160, "height": 96,
               "negative_prompt": "blue", "concept_settings": {"<gold-hat>": {"bias": 0.6}}}  # fmt: skip
    with Runtime(threads=1) as runtime:
        runtime.load_concept("gold-hat")
        settings = settings_of(runtime, "a <gold-hat>", 77, **options)
    save(Image.new("RGB", (160, 96)), tmp_path / "ours.png", settings)
    drop(page.locator(".room-draw"), tmp_path / "ours.png")
    page.get_by_text("The settings are in the form.").first.wait_for()
    assert page.get_by_label("What is to be drawn").input_value() == "a <gold-hat>"
    labels = ("Seed", "Steps", "Guidance", "Scheduler", "Width", "Height", "What is not to be in the picture")
    shown = [page.get_by_label(label, exact=True).input_value() for label in labels]
    assert shown == ["77", "7", "2.5", "euler_karras", "160", "96", "blue"]
    assert page.locator(".concept-panel summary .tag").inner_text() == "1 setting changed"


def test_a_dropped_picture_of_a1111_gives_its_settings_back(page, drop, tmp_path):
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    lines = ["a cat, <lora:gold-hat:0.8>", "Negative prompt: rain", "Steps: 9, Sampler: DPM++ 2M Karras, "]
    lines[-1] += 'CFG scale: 4, Seed: 31, Size: 128x160, Model: "x, y"'
    chunks.add_text("parameters", "\n".join(lines))
    Image.new("RGB", (128, 160)).save(tmp_path / "theirs.png", pnginfo=chunks)
    drop(page.locator(".room-draw"), tmp_path / "theirs.png")
    page.get_by_text("The settings are in the form.").first.wait_for()
    assert "<gold-hat>" in page.get_by_label("What is to be drawn").input_value()
    expect(page.get_by_label("Scheduler", exact=True)).to_have_value("dpmpp_2m_karras")
    shown = [
        page.get_by_label(label, exact=True).input_value()
        for label in ("Seed", "Steps", "Scheduler", "Height")
    ]
    assert shown == ["31", "9", "dpmpp_2m_karras", "160"]


def test_a_picture_without_settings_is_refused_in_a_sentence(page, drop, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    drop(page.locator(".room-draw"), tmp_path / "plain.png")
    page.locator(".notice.bad", has_text="plain.png carries no settings").wait_for()


def test_again_gives_the_same_picture_and_another_seed_another_one(page, draw):
    first = fetch(page, draw(page, "a green bus", Seed=9))
    pictures = []
    for action in ("Again", "Other seed"):
        job = page.locator(".stage-large").get_attribute("data-job")
        page.locator(".stage").get_by_role("button", name=action).click()
        pictures.append(fetch(page, drawn_after(page, job)))
    assert pictures[0] == first
    assert pictures[1] != first


def test_boxes_are_dragged_moved_by_keys_and_sent(page, draw):
    page.get_by_label("What is to be drawn").fill("a <pink-cake> and a <gold-hat> on a table")
    page.get_by_text("Place: where each concept stands").click()
    canvas = page.locator(".place-canvas")
    canvas.scroll_into_view_if_needed()
    area = canvas.bounding_box()
    page.mouse.move(area["x"] + area["width"] * 0.05, area["y"] + area["height"] * 0.2)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] * 0.45, area["y"] + area["height"] * 0.8, steps=4)
    page.mouse.up()
    page.get_by_role("button", name="Place <gold-hat>").click()
    box = page.locator(".box[data-word='<gold-hat>']")
    box.focus()
    box.press("ArrowUp")
    box.press("Shift+ArrowLeft")
    settings = read_settings(
        io.BytesIO(fetch(page, draw(page, page.get_by_label("What is to be drawn").input_value())))
    )
    assert settings is not None
    (cake, hat) = settings["regions"]
    assert cake["word"] == "<pink-cake>"
    assert np.allclose(cake["box"], [0.05, 0.2, 0.45, 0.8], atol=0.02)
    assert np.allclose(hat["box"], [0.5, 0.08, 0.98, 0.88], atol=0.002)
    page.locator(".box[data-word='<pink-cake>']").press("Delete")
    assert page.locator(".box").count() == 1


def test_only_the_painted_part_of_a_picture_is_drawn_anew(page, draw):
    first = np.asarray(Image.open(io.BytesIO(fetch(page, draw(page, "a red mug", Seed=4)))), int)
    page.locator(".stage").get_by_role("button", name="Draw over it").click()
    mask = page.get_by_label("The part that is drawn anew; paint it with the pointer")
    mask.scroll_into_view_if_needed()
    area = mask.bounding_box()
    page.get_by_label("Brush", exact=True).fill("0.3")
    page.mouse.move(area["x"] + area["width"] * 0.85, area["y"] + 2)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] * 0.85, area["y"] + area["height"] - 2, steps=5)
    page.mouse.up()
    page.get_by_label("How much is drawn anew").fill("1")
    second = np.asarray(Image.open(io.BytesIO(fetch(page, draw(page, "a green tree at night", Seed=8)))), int)
    difference = np.abs(second - first).mean(axis=(0, 2))
    assert 3 * difference[:64].mean() < difference[-32:].mean()


def test_a_mask_is_painted_taken_back_and_turned_round_by_keyboard(page, draw):
    draw(page, "a red mug", Seed=4)
    page.locator(".stage").get_by_role("button", name="Draw over it").click()
    mask = page.get_by_label("The part that is drawn anew")
    painted = """(canvas) => {
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      let count = 0;
      for (let place = 3; place < data.length; place += 4) count += data[place] > 127;
      return count / canvas.width / canvas.height;
    }"""
    mask.press("Space")
    once = mask.evaluate(painted)
    assert 0.005 < once < 0.03
    for _ in range(6):
        mask.press("ArrowRight")
    mask.press("Space")
    assert mask.evaluate(painted) == pytest.approx(2 * once, rel=0.1)
    mask.press("Control+z")
    assert mask.evaluate(painted) == once
    page.get_by_role("button", name="Other way round").click()
    assert mask.evaluate(painted) == pytest.approx(1 - once, abs=0.01)
    page.get_by_role("button", name="Nothing painted").click()
    assert mask.evaluate(painted) == 0


def test_an_empty_prompt_and_a_size_that_cannot_be_are_said_where_they_happen(page):
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_role("alert").filter(has_text="The prompt is empty").wait_for()
    assert page.get_by_label("What is to be drawn").get_attribute("aria-invalid") == "true"
    assert page.evaluate("document.activeElement.tagName") == "TEXTAREA"
    page.get_by_label("What is to be drawn").fill("a cat")
    page.get_by_label("Size", exact=True).select_option("other")
    page.get_by_label("Width").fill("100")
    page.get_by_label("Width").press("Tab")
    page.locator(".draw-panel .help.failure", has_text="100").wait_for()


def test_an_answer_about_an_earlier_size_says_nothing_of_the_present_one(page):
    earlier: list[Any] = []
    page.route("**/api/plan?*", lambda route: earlier.append(route) if not earlier else route.continue_())
    page.get_by_label("Size", exact=True).select_option("other")
    page.get_by_label("Width").fill("100")
    page.get_by_label("Width").press("Tab")
    said = page.locator(".draw-panel .help.failure", has_text="100")
    said.wait_for()
    with page.expect_response("**/api/plan?*"):
        earlier[0].continue_()
    page.evaluate("new Promise((done) => setTimeout(done, 100))")
    assert said.is_visible()
