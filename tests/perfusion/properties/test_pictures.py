"""Property 15 on pictures: as the bias rises they resemble the subject less and their prompts more."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SUBJECTS = Path(__file__).parents[3] / "examples" / "subjects"
NOUNS = {"gold-hat": "hat", "pink-cake": "cake", "school-bus": "bus"}
SCENES = (
    "a photo of a {} on a beach", "a {} in the snow", "a photo of a {} in a forest", "a {} in front of a brick wall",
    "a {} at night", "a photo of the {} on grass",
)  # fmt: skip
BIASES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@pytest.mark.property(number=15)
@pytest.mark.slow  # 144 pictures
def test_likeness_falls_and_faith_to_the_prompt_rises_with_the_bias_on_average():
    """Likeness along the axis from the base's own drawings to the subject: plain nearness counts how surely a bus is a
    bus. The mean over the shipped samples; one of them alone may disagree (docs/method.md has the numbers)."""
    likeness, faith = np.mean([scores_of(name, noun) for name, noun in NOUNS.items()], axis=0).T
    assert rank_correlation(likeness, BIASES) <= -0.7, likeness
    assert rank_correlation(faith, BIASES) >= 0.9, faith
    assert likeness[0] - likeness[-1] > 0.01


def scores_of(name: str, noun: str) -> np.ndarray:
    """(biases, 2): how far along to the subject, and the cosine to the prompt with the noun in the concept's place."""
    from perfusion.embedded import scorer_path
    from perfusion.judging.pocket_scorer import PocketScorer
    from perfusion.judging.scorer import OnnxScorer
    from perfusion.runtime import Runtime

    scorer, reader = PocketScorer(threads=1), OnnxScorer(scorer_path(), threads=1)
    named = [scene.format(noun) for scene in SCENES]
    subject = scorer([Image.open(path) for path in sorted((SUBJECTS / name).glob("*.png"))]).embeddings.mean(
        0
    )
    texts = reader.embed_texts(named)
    with Runtime(threads=1) as runtime:
        concept = runtime.load_concept(name)

        def drawn(prompts, first_seed):
            return [
                runtime.generate(prompt, seed=first_seed + at, num_inference_steps=10)
                for at, prompt in enumerate(prompts)
            ]

        base = scorer(drawn(named, 1000)).embeddings.mean(0)
        axis = (subject - base) / np.linalg.norm(subject - base)
        scores = []
        for bias in BIASES:
            runtime.set_concept(concept.token, bias=bias)
            pictures = drawn([scene.format(concept.token) for scene in SCENES], 0)
            further = (scorer(pictures).embeddings - base) @ axis
            scores.append((further.mean(), (reader.embed_pictures(pictures) * texts).sum(1).mean()))
    return np.array(scores)


def rank_correlation(first, second) -> float:
    """Spearman's, without ties."""
    ranks = np.array([np.argsort(np.argsort(values)) for values in (first, second)], np.float64)
    one, other = (values - values.mean() for values in ranks)
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))
