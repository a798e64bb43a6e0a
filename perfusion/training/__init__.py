"""Training of concepts on a frozen base model. Needs torch; nothing here is needed to draw with a concept.

from perfusion.training import TrainingConfig, train_concept
concept = train_concept("pictures/", TrainingConfig(superclass="cat"))
concept.save("cat.safetensors")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perfusion.training.config import TrainingConfig
    from perfusion.training.trainer import TrainingResult, train, train_concept

__all__ = ["TrainingConfig", "TrainingResult", "train", "train_concept"]


def __getattr__(name: str) -> Any:
    # looked up on first use: importing torch takes seconds, and `--help` comes through here
    if name == "TrainingConfig":
        from perfusion.training.config import TrainingConfig

        return TrainingConfig
    if name in ("TrainingResult", "train", "train_concept"):
        from importlib import import_module

        return getattr(import_module("perfusion.training.trainer"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
