"""A1111's text of settings, read back: against what our own pictures say and against texts of other programs."""

import pytest

from perfusion.serving.infotext import parameters_of, settings_like

AUTOMATIC = """a photo of a cat, <lora:x:0.5>
in two lines
Negative prompt: blurry,
 dark
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 42, Size: 512x768, Model hash: 0123456789, \
Model: v1-5, Lora hashes: "x: 0123, y: 4567", Version: v1.10.1"""


def test_the_text_of_the_web_ui_is_read_with_its_quotes_and_lines():
    fields = parameters_of(AUTOMATIC)
    assert fields["Prompt"] == "a photo of a cat, <lora:x:0.5>\nin two lines"
    assert fields["Negative prompt"] == "blurry,\n dark"
    assert fields["Lora hashes"] == "x: 0123, y: 4567" and fields["Model"] == "v1-5"


def test_what_can_be_drawn_with_has_our_names():
    assert settings_like(AUTOMATIC) == {
        "prompt": "a photo of a cat, <lora:x:0.5>\nin two lines", "negative_prompt": "blurry,\n dark",
        "num_inference_steps": 20, "guidance_scale": 7.5, "seed": 42, "width": 512, "height": 768,
        "scheduler": "dpmpp_2m_karras",
    }  # fmt: skip


@pytest.mark.parametrize(
    "text", ["", "a cat", "a cat\nSteps: 3", "Negative prompt: x", "Steps: a, Seed: b, Size: c"]
)
def test_texts_without_settings_are_prompts(text):
    assert "num_inference_steps" not in settings_like(text)
