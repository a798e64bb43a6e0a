"""A second model with its tokenizer from a folder of the user's, as transformers saves it. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from perfusion.base.loading import first_line, quiet_loaders, read_json
from perfusion.errors import ModelError

__all__ = ["check_local", "load_local"]


def check_local(folder: Path, kind: str, example: str) -> None:
    """Look at what can be seen without reading the weights, for refusing a folder before the work begins.

    Args:
        kind: what config.json must say as model_type.
        example: a published model that would do, for the messages.

    Raises:
        ModelError: there is no such folder, something is missing in it, or it is another model's.
    """
    expected = (
        "expected a folder with config.json, model.safetensors and the tokenizer's files, such as a copy of "
        f"{example}"
    )
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder; {expected}.")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: no config.json; {expected}.")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder}: no *.safetensors (a pickle such as pytorch_model.bin can run code and is not read); {expected}."
        )
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise ModelError(f"{folder}: no vocabulary, tokenizer.json or vocab.json; {expected}.")
    model_type = read_json(folder / "config.json").get("model_type")
    if model_type != kind:
        raise ModelError(f"{folder}: a model of the type {model_type!r}, expected {kind!r}; {expected}.")


def load_local(folder: Path, class_name: str, kind: str, example: str) -> tuple[Any, Any]:
    """A frozen model in evaluation mode, float32, and its tokenizer.

    Args:
        folder: config.json, model.safetensors, the tokenizer's files.
        class_name: the model's class in transformers.
        kind, example: see `check_local`.

    Raises:
        ModelError: there is no such folder, something is missing in it, or it is another model's.
    """
    import transformers

    check_local(folder, kind, example)
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    try:
        with quiet_loaders():
            model, info = getattr(transformers, class_name).from_pretrained(
                folder, dtype=torch.float32, **options
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the loaders raise a dozen kinds for a damaged or foreign folder
        raise ModelError(f"{folder}: cannot be read as {class_name}: {first_line(error)}.") from error
    if info["missing_keys"]:  # the loader fills such tensors with noise and goes on
        missing = sorted(info["missing_keys"])
        raise ModelError(
            f"{folder}: its weights miss {len(missing)} tensors, the first {missing[0]}; copy the model again."
        )
    return model.requires_grad_(False).eval(), tokenizer
