"""The sample concepts that lie beside the embedded model, trained for it as a user would train them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from recipes.pocket.subjects import SUBJECTS

__all__ = ["SAMPLES", "train_samples"]

SAMPLES = ("pink-cake", "gold-hat", "school-bus")
STEPS = 100
"""Of each training; the best of its snapshots is kept, with the strength that suits it."""
BY_EYE = {"school-bus": 0.6}
"""Strengths that were chosen by eye instead: the probe sees a bus at full strength, and the eye a stack of boards."""
PICTURES = Path(__file__).resolve().parents[2] / "examples" / "subjects"


def train_samples(model: Path, names: Sequence[str] = SAMPLES, steps: int = STEPS) -> list[Path]:
    """Train the named subjects of `examples/subjects`; each is saved as soon as it is done.

    Args:
        model: the folder of the model, in whose `concepts` they are written.
        names: of subjects, as `recipes.pocket.subjects` has them.
        steps: of each training.

    Returns:
        The files.
    """
    from perfusion.base.base_model import load_base
    from perfusion.training import TrainingConfig, train

    base, files, known = load_base(model), [], {subject.name: subject for subject in SUBJECTS}
    for subject in (known[name] for name in names):
        pictures = PICTURES / subject.name
        config = TrainingConfig(
            superclass=subject.noun, token=subject.token, masks=pictures / "masks", steps=steps
        )
        files.append(model / "concepts" / f"{subject.name}.safetensors")
        concept = train(pictures, config, model=base, trial=True).concept
        replace(concept, strength=BY_EYE.get(subject.name, concept.strength)).save(files[-1])
    return files
