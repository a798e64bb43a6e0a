"""The files of a diffusers folder: settings, weights, tokenizers. Nothing is downloaded and no pickle is opened."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfusion.base.family_settings import clip_tokenizer, is_shipped
from perfusion.errors import ModelError

if TYPE_CHECKING:
    import torch

__all__ = [
    "check_complete",
    "check_finite",
    "first_line",
    "load_scheduler",
    "load_tokenizer",
    "load_weights",
    "quiet_loaders",
    "read_index",
    "read_json",
    "scheduler_class",
]


def read_index(folder: Path) -> dict[str, Any]:
    """model_index.json of a diffusers folder. Raises `ModelError` where there is none."""
    if not folder.exists():
        raise ModelError(f"{folder}: no such folder; expected a diffusers model (with model_index.json).")
    if not (folder / "model_index.json").is_file():
        raise ModelError(f"{folder}: not a diffusers model, it has no model_index.json.")
    return read_json(folder / "model_index.json")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises `ModelError` for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {first_line(error)}.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: expected a JSON object.")
    return content


def load_weights(folder: Path, part: str, kind: str, dtype: torch.dtype) -> Any:
    """One part of a model (``unet``, ``vae``, ``text_encoder`` …) of class ``kind``, its weights as ``dtype``.

    Reads one file or shards, with a variant's name (``.fp16.``) where no plain one is there. Raises `ModelError` for
    weights that are not there, damaged, incomplete or of another shape.
    """
    import diffusers
    import transformers

    of_transformers = part.startswith("text_encoder")
    loader: Any = getattr(transformers if of_transformers else diffusers, kind)
    stem = "model" if of_transformers else "diffusion_pytorch_model"
    variant = _find_weights(folder, part, stem)
    options: dict[str, Any] = {"dtype": dtype} if of_transformers else {"torch_dtype": dtype}
    options |= {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    options["variant"] = variant
    if not of_transformers:  # its default warns where accelerate is not installed
        options["low_cpu_mem_usage"] = find_spec("accelerate") is not None
    try:
        with quiet_loaders():
            model, info = loader.from_pretrained(folder / part, **options)
    except MemoryError:
        raise
    except Exception as error:  # the loaders raise a dozen kinds for a damaged or foreign folder
        raise ModelError(f"{folder}: its {part} cannot be read: {first_line(error)}.") from error
    check_complete(folder, part, sorted(info["missing_keys"]))
    return model


def check_finite(where: Path, part: str, module: torch.nn.Module) -> None:
    """Raise `ModelError` for weights that are no numbers: later they would be blamed on a rate or on packages."""
    import torch

    for name, weight in (*module.named_parameters(), *module.named_buffers()):
        if not weight.is_floating_point() or not weight.numel():
            continue
        if not all(torch.isfinite(bound) for bound in torch.aminmax(weight.detach())):
            raise ModelError(
                f"{where}: the weight {name} of its {part} holds NaN or infinity (read as {weight.dtype}). The file is "
                "damaged, or was merged or rounded wrongly; use another copy of the model."
            )


def check_complete(where: Path, part: str, missing: list[str]) -> None:
    """Raise `ModelError` for tensors that no file held: the loaders fill them with noise and go on."""
    if missing:
        raise ModelError(
            f"{where}: the weights of its {part} miss {len(missing)} tensors, the first {missing[0]}; "
            "the file is incomplete or of another model."
        )


def _find_weights(folder: Path, part: str, stem: str) -> str | None:
    """The variant in the names of a part's weights, None for plain names; all its shards must be there."""
    files = {path.name for path in (folder / part).iterdir()}
    variants: dict[str | None, str] = {}
    for name in sorted(files):  # "model.fp16.safetensors", "model.safetensors.index.fp16.json"
        plain = re.fullmatch(rf"{stem}(?:\.([\w-]+))?\.safetensors", name)
        index = re.fullmatch(rf"{stem}\.safetensors\.index(?:\.([\w-]+))?\.json", name)
        if match := plain or index:
            if re.search(r"-\d{5}-of-\d{5}$", match[1] or ""):  # a shard, which its index stands for
                continue
            variants.setdefault(match[1], name)
    if not variants:
        raise ModelError(f"{folder}: {_no_weights(part, files, stem)}.")
    for variant in (None, "fp16", "bf16", "fp32"):
        if variant in variants:
            _check_shards(folder / part, variants[variant])
            return variant
    if len(variants) > 1:
        raise ModelError(
            f"{folder}: {part}/ has the variants {', '.join(map(str, variants))} and no plain weights. Keep one."
        )
    (variant,) = variants
    _check_shards(folder / part, variants[variant])
    return variant


def _no_weights(part: str, files: set[str], stem: str) -> str:
    expected = f"no {stem}.safetensors in {part}/"
    pickles = sorted(name for name in files if name.endswith((".bin", ".ckpt", ".pt", ".pth")))
    if pickles:
        return (
            f"{expected}, only {pickles[0]}; expected *.safetensors in {part}/ (a pickle can run code); load the "
            "model with diffusers where you trust it and save it again with safe_serialization=True"
        )
    others = sorted(name for name in files if name.endswith(".safetensors"))
    if others:
        return f"{expected}, but {others[0]}; rename it, or save the model again with diffusers"
    return f"{expected}; the copy of the model is incomplete"


def _check_shards(folder: Path, name: str) -> None:
    if not name.endswith(".json"):
        return
    weight_map = read_json(folder / name).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ModelError(f"{folder / name}: it lists no weights; the copy of the model is damaged.")
    missing = sorted({str(file) for file in weight_map.values()} - {path.name for path in folder.iterdir()})
    if missing:
        raise ModelError(
            f"{folder}: {len(missing)} of the files that {name} lists are not there, the first {missing[0]}; "
            "the copy of the model is incomplete."
        )


@contextmanager
def quiet_loaders() -> Iterator[None]:
    """A bar of the loaders' own has no place between a command's lines, nor in a library."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    shown = [logging for logging in (of_transformers, of_diffusers) if logging.is_progress_bar_enabled()]
    for logging in shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        for logging in shown:
            logging.enable_progress_bar()


def load_tokenizer(folder: Path, part: str = "tokenizer") -> Any:
    """The tokenizer of a model. Raises `ModelError` where it has no vocabulary."""
    from transformers import CLIPTokenizer

    if is_shipped(folder):
        return clip_tokenizer(folder / part)
    if not any((folder / part / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        # the loader would make a tokenizer of three tokens
        raise ModelError(f"{folder}: no vocabulary in {part}/, expected tokenizer.json, or vocab.json.")
    try:
        return CLIPTokenizer.from_pretrained(folder / part, local_files_only=True)
    except Exception as error:
        raise ModelError(f"{folder}: its {part} cannot be read: {first_line(error)}.") from error


def load_scheduler(folder: Path) -> dict[str, Any]:
    """The scheduler's settings as diffusers' pipeline of the folder has them, without the class.

    A file may leave settings out: the defaults of the class are filled in. And the pipeline of Stable Diffusion 1 and 2
    repairs two that early files lack or have wrong; those of SDXL and of consistency models do not.
    """
    import diffusers

    path, name = folder / "scheduler" / "scheduler_config.json", scheduler_class(folder)
    kind = getattr(diffusers, name, None)
    if kind is None or not hasattr(kind, "from_config"):
        raise ModelError(f"{path}: unknown scheduler {name!r}.")
    try:
        filled = kind.from_config(read_json(path)).config
    except Exception as error:  # classes that need libraries of their own, and each refuses in its own way
        raise ModelError(
            f"{path}: its {name} cannot be made: {first_line(error)}; name another scheduler there, "
            "such as DDIMScheduler, with the same betas and prediction_type."
        ) from error
    settings = {key: value for key, value in filled.items() if not key.startswith("_")}
    repairs = _REPAIRS if read_index(folder).get("_class_name") in _REPAIRING else {}
    return settings | {key: value for key, value in repairs.items() if key in settings}


_REPAIRING = tuple(f"StableDiffusion{kind}Pipeline" for kind in ("", "Img2Img", "PAG", "PAGImg2Img"))
_REPAIRS = {"steps_offset": 1, "clip_sample": False}


def scheduler_class(folder: Path) -> str:
    """The name of the scheduler's class in diffusers.

    model_index.json has the say, as in diffusers; scheduler_config.json is asked where it has none. Raises `ModelError`
    where the folder has no scheduler.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        raise ModelError(f"{folder}: the model has no scheduler/scheduler_config.json.")
    entry = read_index(folder).get("scheduler")
    if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str):
        return entry[1]
    return str(read_json(path).get("_class_name"))


def first_line(error: Exception) -> str:
    """What an error of a library says, on one line without its stop, and without the library's advice: to read what
    can run code, to go on with random weights, or to set what our callers cannot."""
    lines = str(error).strip().splitlines()
    sentences = re.split(r"(?<=[.;!])\s+", lines[0]) if lines else []
    facts = " ".join(sentence for sentence in sentences if not _ADVICE.search(sentence))
    return facts.rstrip(".;") or type(error).__name__


_ADVICE = re.compile(
    r"weights_only|trust_remote_code|allow_pickle|use_safetensors|from_pt|from_tf|low_cpu_mem_usage|device_map|"
    r"ignore_mismatched_sizes|safe_globals|force_download|local_files_only|\blogin\b|huggingface\.co|"
    r"github\.com"
)
