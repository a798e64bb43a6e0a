"""A base model as training and export see it: a Stable Diffusion folder, opened and checked.

Any folder that diffusers saves for Stable Diffusion 1.x or 2.x will do. Weights are read from safetensors
only: a pickle can run code. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from perfusion.attention import Layer, layer_table
from perfusion.errors import ModelError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

__all__ = ["FAMILY_FILE", "BaseModel", "encode", "fingerprint", "load_base", "token_embedding"]

FAMILY_FILE = "perfusion.json"
"""Beside model_index.json, for models that are not Stable Diffusion's: those are told apart by their width.

``{"family": "pocket", "guidance_scale": 3.0, "num_inference_steps": 20}``; the last two may be missing.
"""

DEFAULT_GUIDANCE_SCALE = 5.0
DEFAULT_STEPS = 20

_FAMILY_BY_TEXT_DIM = {768: "sd15", 1024: "sd21"}

_COMPONENTS = {
    "unet": "UNet2DConditionModel",
    "text_encoder": "CLIPTextModel",
    "vae": "AutoencoderKL",
    "tokenizer": None,
    "scheduler": None,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class BaseModel:
    """The parts of one text-to-image model, in evaluation mode and with gradients off."""

    family: str
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    vae: AutoencoderKL
    scheduler: Mapping[str, Any]
    layers: tuple[Layer, ...]
    fingerprint: str
    folder: Path
    guidance_scale: float = DEFAULT_GUIDANCE_SCALE
    num_inference_steps: int = DEFAULT_STEPS

    def __post_init__(self) -> None:
        text_dim = self.unet.config.cross_attention_dim
        hidden = self.text_encoder.config.hidden_size
        if text_dim != hidden:
            raise ModelError(
                f"{self.folder}: the text encoder gives {hidden} numbers a token and the UNet reads "
                f"{text_dim}; they must be of one model"
            )
        highest = max(self.tokenizer.get_vocab().values())
        if highest >= self.vocab_size:
            raise ModelError(
                f"{self.folder}: the tokenizer gives ids up to {highest} and the text encoder has "
                f"{self.vocab_size} words; they must be of one model"
            )
        latents = self.vae.config.latent_channels
        channels = (self.unet.config.in_channels, self.unet.config.out_channels)
        if channels != (latents, latents):
            raise ModelError(
                f"{self.folder}: the UNet has {channels[0]} input and {channels[1]} output channels where "
                f"the VAE has {latents}; inpainting and other conditioned UNets are not supported"
            )

    @property
    def text_dim(self) -> int:
        return int(self.unet.config.cross_attention_dim)

    @property
    def vocab_size(self) -> int:
        return int(self.text_encoder.config.vocab_size)

    @property
    def context_length(self) -> int:
        return int(self.text_encoder.config.max_position_embeddings)


def load_base(folder: Path | None, dtype: torch.dtype = torch.float32) -> BaseModel:
    """Open a diffusers folder of Stable Diffusion 1.x or 2.x, or with None the embedded pocket model.

    Weights stored as float16 become ``dtype``. Raises `ModelError` for a folder that is no such model, that
    misses a part or whose parts do not fit each other.
    """
    if folder is None:
        from perfusion.pocket import model_path

        folder = model_path()
    folder = Path(folder)
    index = _read_index(folder)
    _check_architecture(folder, index)
    unet, text_encoder, vae = (_load_weights(folder, part, dtype) for part in ("unet", "text_encoder", "vae"))
    _check_unet(folder, unet)
    own = _read_own(folder)
    return BaseModel(
        family=_family(folder, unet, own),
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=_load_tokenizer(folder),
        vae=vae,
        scheduler=_load_scheduler(folder),
        layers=layer_table(unet),
        fingerprint=fingerprint(unet, text_encoder.config.vocab_size, text_encoder.config.hidden_size),
        folder=folder,
        guidance_scale=own.get("guidance_scale", DEFAULT_GUIDANCE_SCALE),
        num_inference_steps=own.get("num_inference_steps", DEFAULT_STEPS),
    )


def _read_own(folder: Path) -> dict[str, Any]:
    """The content of perfusion.json, checked; empty where there is none."""
    path = folder / FAMILY_FILE
    if not path.exists():
        return {}
    own = _read_json(path)
    for name, kind, expected in (
        ("family", str, "a word"),
        ("guidance_scale", (int, float), "a number"),
        ("num_inference_steps", int, "a whole number above 0"),
    ):
        if name in own and (not isinstance(own[name], kind) or not own[name]):
            raise ModelError(f"{path}: {name} is {own[name]!r}, expected {expected}")
    if "family" not in own:
        raise ModelError(f'{path}: it names no family, expected {{"family": "<name>"}}')
    return own


def _family(folder: Path, unet: UNet2DConditionModel, own: Mapping[str, Any]) -> str:
    """The name that concept files and bundles carry: what perfusion.json says, or told by the width."""
    if own:
        return str(own["family"])
    text_dim = unet.config.cross_attention_dim
    if text_dim not in _FAMILY_BY_TEXT_DIM:
        widths = " or ".join(f"{dim} ({name})" for dim, name in _FAMILY_BY_TEXT_DIM.items())
        raise ModelError(
            f"{folder}: its UNet reads encodings of {text_dim} numbers, expected {widths}; for a model of "
            f'your own put {{"family": "<name>"}} into {FAMILY_FILE} beside model_index.json'
        )
    return _FAMILY_BY_TEXT_DIM[text_dim]


def fingerprint(unet: UNet2DConditionModel, vocab_size: int, hidden_size: int) -> str:
    """sha256 over what a concept depends on: the key and value projections, and the token table's shape.

    All to_k and to_v weights in layer order as little-endian float16, then ``<vocab_size>x<hidden_size>``.
    Float16 because that is how models are shipped: the same model in either precision has one fingerprint.
    """
    digest = hashlib.sha256()
    for layer in layer_table(unet):
        attention = unet.get_submodule(layer.name)
        for projection in (attention.to_k, attention.to_v):
            weight = projection.weight.detach().to("cpu", torch.float16).contiguous()
            digest.update(weight.numpy().astype("<f2", copy=False).tobytes())
    digest.update(f"{vocab_size}x{hidden_size}".encode("ascii"))
    return digest.hexdigest()


def token_embedding(text_encoder: CLIPTextModel) -> torch.nn.Embedding:
    """The table of word embeddings, (vocab_size, hidden)."""
    table: torch.nn.Embedding = _text_model(text_encoder).embeddings.token_embedding
    return table


def encode(
    text_encoder: CLIPTextModel, input_ids: Tensor, concept_embeddings: Tensor | None = None
) -> Tensor:
    """Hidden states after the final LayerNorm, (batch, tokens, hidden), of ids (batch, tokens) int64.

    An id of ``vocab_size`` or more stands for a row of ``concept_embeddings`` (concepts, hidden), counted
    from there. Differentiable in ``concept_embeddings``; the text encoder itself may be frozen. Written out
    from its parts because the model's own forward takes ids only, and pools at the highest id in older
    configurations, which would be ours.
    """
    model = _text_model(text_encoder)
    hidden = _embed(model.embeddings.token_embedding, input_ids, concept_embeddings)
    tokens = input_ids.shape[1]
    hidden = hidden + model.embeddings.position_embedding.weight[:tokens]
    # causal: a token sees itself and what stands before it
    mask = torch.full((tokens, tokens), float("-inf"), dtype=hidden.dtype, device=hidden.device).triu(1)
    for layer in model.encoder.layers:
        hidden = layer(hidden, attention_mask=mask[None, None])
    normed: Tensor = model.final_layer_norm(hidden)
    return normed


def _embed(table: torch.nn.Embedding, input_ids: Tensor, concept_embeddings: Tensor | None) -> Tensor:
    if concept_embeddings is None:
        words: Tensor = table(input_ids)
        return words
    vocab_size = table.num_embeddings
    is_concept = input_ids >= vocab_size
    words = table(torch.where(is_concept, torch.zeros_like(input_ids), input_ids))
    # row 0 is a zero that no concept id reaches: with no concepts the table would be empty, and every runtime
    # refuses to gather from an empty table, even where nothing is taken
    padded = torch.cat([concept_embeddings.new_zeros(1, concept_embeddings.shape[1]), concept_embeddings])
    rows = torch.where(is_concept, input_ids - vocab_size + 1, torch.zeros_like(input_ids))
    concepts = torch.nn.functional.embedding(rows, padded).to(words.dtype)
    return torch.where(is_concept[..., None], concepts, words)


def _text_model(text_encoder: CLIPTextModel) -> Any:
    """Before transformers 5 the parts sat one level deeper."""
    return getattr(text_encoder, "text_model", text_encoder)


def _read_index(folder: Path) -> dict[str, Any]:
    if not folder.exists():
        raise ModelError(f"{folder}: no such folder; expected a diffusers model (with model_index.json)")
    if folder.is_file():
        raise ModelError(
            f"{folder}: a file, expected the folder of a diffusers model; convert it with diffusers"
        )
    if not (folder / "model_index.json").is_file():
        raise ModelError(f"{folder}: not a diffusers model, it has no model_index.json")
    return _read_json(folder / "model_index.json")


def _check_architecture(folder: Path, index: Mapping[str, Any]) -> None:
    if _class_of(index, "transformer"):
        raise ModelError(
            f"{folder}: {index.get('_class_name')} has a transformer in place of a UNet, with no fixed keys "
            "and values of the text for a concept to edit; use a Stable Diffusion 1.x or 2.x model"
        )
    if _class_of(index, "text_encoder_2"):
        raise ModelError(
            f"{folder}: {index.get('_class_name')} has two text encoders, which is not supported yet; "
            "use a Stable Diffusion 1.x or 2.x model"
        )
    for part, expected in _COMPONENTS.items():
        found = _class_of(index, part)
        if found is None or not (folder / part).is_dir():
            raise ModelError(
                f"{folder}: the model has no {part}; expected a complete Stable Diffusion folder with "
                f"{', '.join(_COMPONENTS)}"
            )
        if expected is not None and found != expected:
            raise ModelError(f"{folder}: its {part} is a {found}, expected {expected}")


def _class_of(index: Mapping[str, Any], part: str) -> str | None:
    """The class a part is an instance of: the index lists [package, class], or nulls for a part left out."""
    entry = index.get(part)
    return str(entry[1]) if isinstance(entry, list) and len(entry) == 2 and entry[1] else None


def _check_unet(folder: Path, unet: UNet2DConditionModel) -> None:
    """Extra conditions would have to be fed, and the graph has no input for them."""
    for key in ("class_embed_type", "addition_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim"):
        if unet.config.get(key) is not None:
            raise ModelError(f"{folder}: its UNet has {key} = {unet.config[key]!r}, which is not supported")


def _load_weights(folder: Path, part: str, dtype: torch.dtype) -> Any:
    import diffusers
    import transformers

    of_transformers = part == "text_encoder"
    loader: Any = getattr(transformers if of_transformers else diffusers, str(_COMPONENTS[part]))
    if not any((folder / part).glob("*.safetensors")):
        raise ModelError(
            f"{folder}: no *.safetensors in {part}/; expected weights in that format (a pickle can run code); "
            "save the model again with safe_serialization=True"
        )
    options: dict[str, Any] = {"dtype": dtype} if of_transformers else {"torch_dtype": dtype}
    options |= {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    if not of_transformers:  # its default warns where accelerate is not installed
        options["low_cpu_mem_usage"] = find_spec("accelerate") is not None
    try:
        with _no_loading_bar():
            model, info = loader.from_pretrained(folder / part, **options)
    except MemoryError:
        raise
    except Exception as error:  # the loaders raise a dozen kinds for a damaged or foreign folder
        raise ModelError(f"{folder}: its {part} cannot be read: {_first_line(error)}") from error
    if info["missing_keys"]:  # the loaders fill such tensors with noise and go on
        missing = sorted(info["missing_keys"])
        raise ModelError(
            f"{folder}: the weights of its {part} miss {len(missing)} tensors, the first {missing[0]}; "
            "the file is incomplete or of another model"
        )
    model.requires_grad_(False)
    return model.eval()


@contextmanager
def _no_loading_bar() -> Iterator[None]:
    """A bar of transformers' own has no place between a command's lines, nor in a library."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _load_tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    if not any((folder / "tokenizer" / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        # the loader would make a tokenizer of three tokens
        raise ModelError(f"{folder}: no vocabulary in tokenizer/, expected tokenizer.json, or vocab.json")
    try:
        return CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except Exception as error:
        raise ModelError(f"{folder}: its tokenizer cannot be read: {_first_line(error)}") from error


def _load_scheduler(folder: Path) -> dict[str, Any]:
    """The scheduler's settings with the defaults of its class filled in: a file may leave them out."""
    import diffusers

    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        raise ModelError(f"{folder}: the model has no scheduler/scheduler_config.json")
    config = _read_json(path)
    kind = getattr(diffusers, str(config.get("_class_name")), None)
    if kind is None or not hasattr(kind, "from_config"):
        raise ModelError(f"{path}: unknown scheduler {config.get('_class_name')!r}")
    return {key: value for key, value in kind.from_config(config).config.items() if not key.startswith("_")}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: expected a JSON object")
    return content


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
