"""The embedded model, as its page shows it."""

import re
from pathlib import Path

import numpy as np

from perfusion.embedded import model_path
from perfusion.pocket.vocabulary import COLOURS, NOUNS, PLACES
from recipes.pocket.language import COUNTS, PATTERNS, SIZES, relation_phrases
from recipes.pocket.layouts import RELATIONS

PAGE = Path(__file__).parents[2] / "docs" / "pocket.md"


def test_the_snippet_of_the_page_draws():
    snippet = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert snippet is not None
    names: dict[str, object] = {}
    exec(snippet[1].replace("num_inference_steps=20", "num_inference_steps=1"), names)
    assert np.asarray(names["picture"]).shape == (128, 128, 3)


def test_the_page_names_every_word_of_the_world():
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    phrases = [phrase for phrases in PLACES.values() for phrase in phrases]
    for word in [*NOUNS, *COLOURS, *phrases, *COUNTS.values(), *SIZES, *PATTERNS, *relations()]:
        assert re.search(rf"[ :(]{re.escape(word)}[,;.)]", page), word


def relations() -> set[str]:
    """The words between two things."""
    said = [phrase for relation in RELATIONS for phrase in relation_phrases(relation, "A", "B")]
    return {phrase[2:-2] for phrase in said if phrase.endswith((" A", " B"))}


def test_a_pipeline_opened_without_a_word_of_precision_draws():
    """transformers opens its part in the precision that its config names, diffusers the others in float32."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(model_path())
    picture = pipeline("a red apple", width=128, height=128, num_inference_steps=1, output_type="np").images[
        0
    ]
    assert np.isfinite(picture).all()
