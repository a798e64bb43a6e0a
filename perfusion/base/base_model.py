"""A base model as training and export see it: a Stable Diffusion folder or file, opened and checked.

Any folder that diffusers saves for Stable Diffusion 1.x, 2.x or XL will do, and a single-file checkpoint with a
folder that holds its settings. Weights are read from safetensors only: a pickle can run code. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from perfusion.base.attention import Layer, layer_table
from perfusion.base.checkpoint_facts import CheckpointFacts, checkpoint_facts
from perfusion.base.encoding import Encodings, encode, encode_prompts, token_embedding
from perfusion.base.families import check_pipeline, check_unet_config, family_of, parts_of
from perfusion.base.loading import (
    check_finite,
    load_scheduler,
    load_tokenizer,
    load_weights,
    read_index,
    read_json,
    scheduler_class,
)
from perfusion.base.single_file import find_config, load_single_file
from perfusion.errors import ModelError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

__all__ = [
    "FAMILY_FILE",
    "BaseModel",
    "encode",
    "family_of",
    "fingerprint",
    "guidance_embedding",
    "load_base",
    "token_embedding",
]

logger = logging.getLogger(__name__)

FAMILY_FILE = "perfusion.json"
"""Beside model_index.json, for models that are not Stable Diffusion's: those are told apart by their shapes.

``{"family": "pocket", "guidance_scale": 3.0, "num_inference_steps": 20}``; the last two may be missing.
"""

DEFAULT_GUIDANCE_SCALE, DEFAULT_STEPS = 5.0, 20
CONSISTENCY_GUIDANCE_SCALE, CONSISTENCY_STEPS = 8.5, 4
"""Of models that were distilled with their guidance (LCM): diffusers' own defaults, amid the scales they learned."""
TURBO_GUIDANCE_SCALE, TURBO_STEPS = 1.0, 4
"""Of models that were distilled to a few steps without guidance (ADD, arXiv 2311.17042): 1 is off."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BaseModel:
    """The parts of one text-to-image model, in evaluation mode and with gradients off.

    Stable Diffusion 1.x and 2.x have one text encoder and tokenizer; XL has two, which split every text alike.
    """

    family: str
    unet: UNet2DConditionModel
    text_encoders: tuple[CLIPTextModel, ...]
    tokenizers: tuple[CLIPTokenizer, ...]
    vae: AutoencoderKL
    scheduler: Mapping[str, Any]
    layers: tuple[Layer, ...]
    fingerprint: str
    folder: Path
    """Where it came from: a folder, or a single file."""
    source: Path | None = None
    """The folder of its settings (model_index.json and the parts'): `folder`, but for a single file."""
    guidance_scale: float = DEFAULT_GUIDANCE_SCALE
    num_inference_steps: int = DEFAULT_STEPS

    def __post_init__(self) -> None:
        _check_widths(self)
        _check_words(self)
        _check_latents(self)

    @property
    def text_encoder(self) -> CLIPTextModel:
        """The first text encoder."""
        return self.text_encoders[0]

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """The first tokenizer."""
        return self.tokenizers[0]

    @property
    def parts(self) -> tuple[Any, ...]:
        """Everything that has weights: UNet, text encoders, VAE."""
        return (self.unet, *self.text_encoders, self.vae)

    @property
    def text_dim(self) -> int:
        """Numbers of a token's encoding, all text encoders together."""
        return int(self.unet.config.cross_attention_dim)

    @property
    def vocab_size(self) -> int:
        """Words of the first text encoder; ids from here on are a concept's, see `encode`."""
        return self.vocab_sizes[0]

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        """Words of each text encoder."""
        return tuple(int(encoder.config.vocab_size) for encoder in self.text_encoders)

    @property
    def hidden_sizes(self) -> tuple[int, ...]:
        """Numbers of a word embedding of each text encoder."""
        return tuple(int(encoder.config.hidden_size) for encoder in self.text_encoders)

    @property
    def context_length(self) -> int:
        """Tokens of a prompt."""
        return min(int(encoder.config.max_position_embeddings) for encoder in self.text_encoders)

    @property
    def resolution(self) -> int:
        """Width and height in pixels of the pictures that the UNet was made for."""
        return int(self.unet.config.sample_size) * self.downscale

    @property
    def downscale(self) -> int:
        """Pixels a latent stands for, along each side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def encode(
        self,
        input_ids: Sequence[Tensor],
        concept_embeddings: Sequence[Tensor] | None = None,
        *,
        pooled: bool = True,
    ) -> Encodings:
        """What the UNet reads of prompts, see `perfusion.base.encoding.encode_prompts`."""
        end = self.tokenizers[-1].eos_token_id
        return encode_prompts(
            self.text_encoders, input_ids, concept_embeddings, eos_token_id=end, pooled=pooled
        )

    def unet_conditions(
        self, pooled: Tensor | None, batch: int, *, size: tuple[int, int] | None = None
    ) -> dict[str, Any]:
        """What the UNet must be told besides noise, timestep and encodings, as its keyword arguments; often nothing.

        Args:
            pooled: (batch, pooled_dim) of the prompts, for models with two text encoders.
            size: height and width of the picture in pixels; None: the model's own resolution.
        """
        conditions: dict[str, Any] = {}
        if len(self.text_encoders) == 2:
            if pooled is None:
                raise ModelError(
                    f"{self.folder}: a model with two text encoders needs the pooled output too."
                )
            height, width = size or (self.resolution, self.resolution)
            # original size, corner of the crop, target size: a picture that was neither shrunk nor cut
            time_ids = pooled.new_tensor([[height, width, 0, 0, height, width]]).expand(batch, -1)
            conditions["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": time_ids}
        dim = self.unet.config.time_cond_proj_dim
        if dim is not None:
            embedding = guidance_embedding(self.guidance_scale, int(dim)).expand(batch, -1)
            weight = next(self.unet.parameters())
            conditions["timestep_cond"] = embedding.to(weight.device, weight.dtype)
        return conditions


def load_base(
    folder: Path | None,
    dtype: torch.dtype = torch.float32,
    *,
    config: Path | None = None,
    unet_dtype: torch.dtype | None = None,
) -> BaseModel:
    """Open a diffusers folder of Stable Diffusion 1.x, 2.x or XL, or with None the embedded pocket model.

    Args:
        folder: a folder, or a single-file checkpoint (.safetensors) in the original layout.
        dtype: weights stored as anything else become this.
        config: for a single file, the folder of a diffusers model of the same architecture; its weights are not read.
            None: the usual one, where it is on this machine already.
        unet_dtype: for the UNet, by far the largest part; None: as the others.

    Raises:
        ModelError: it is no such model, misses a part, or its parts do not fit each other.
    """
    if folder is None:
        from perfusion.embedded import model_path

        folder = model_path()
    folder = Path(folder)
    single = folder.is_file()
    if config is not None and not single:
        raise ModelError(
            f"{folder}: a folder has its own settings; --config goes with a single-file checkpoint."
        )
    facts = checkpoint_facts(folder) if single else None
    kind = facts.kind if facts else None
    source = Path(config or find_config(folder, kind)) if kind else folder
    index = read_index(source)
    check_pipeline(source, index)
    names = parts_of(index)
    encoders = [name for name in names if name.startswith("text_encoder")]
    if kind and (kind == "sdxl") != (len(encoders) == 2):
        raise ModelError(
            f"{folder}: a {kind} checkpoint, and {source} is {index.get('_class_name')}; expected the folder of a "
            "model of the same architecture."
        )
    _check_configs(source, text_encoders=len(encoders))
    tokenizers = {name: load_tokenizer(source, name) for name in names if name.startswith("tokenizer")}
    if single:
        parts = load_single_file(folder, source, index, tokenizers, dtype, unet_dtype or dtype)
    else:
        kinds = {name: kind for name, kind in names.items() if kind is not None}
        dtypes = {"unet": unet_dtype or dtype}
        parts = {
            name: load_weights(folder, name, kind, dtypes.get(name, dtype)) for name, kind in kinds.items()
        }
    for name, part in parts.items():
        part.requires_grad_(False).eval()
        check_finite(folder, name, part)
    base = _assemble(folder, source, parts, encoders, tuple(tokenizers.values()))
    return base if facts is None else _with_facts(base, facts, told=config is not None)


def _with_facts(base: BaseModel, facts: CheckpointFacts, *, told: bool) -> BaseModel:
    """The model with the scheduler settings that its file knows better than the settings of another model.

    Args:
        told: the user named those settings, and hears of it.
    """
    stated = facts.scheduler_settings()
    differing = [name for name, value in stated.items() if base.scheduler.get(name) != value]
    if differing and told:
        words = ", ".join(f"{name} is {stated[name]}" for name in differing)
        logger.warning(
            "%s says of itself that %s, unlike %s; the file is believed", base.folder, words, base.source
        )
    return replace(base, scheduler={**base.scheduler, **stated})


def _assemble(
    folder: Path, source: Path, parts: Mapping[str, Any], encoders: list[str], tokenizers: tuple[Any, ...]
) -> BaseModel:
    """The opened parts of a model from `folder`, its settings from `source`, as one."""
    own, scheduler = _read_own(source), load_scheduler(source)
    unet, text_encoders = parts["unet"], tuple(parts[name] for name in encoders)
    tables = [(encoder.config.vocab_size, encoder.config.hidden_size) for encoder in text_encoders]
    scale, steps = _usual_drawing(unet, source)
    return BaseModel(
        family=str(own["family"]) if own else family_of(unet, folder),
        unet=unet,
        text_encoders=text_encoders,
        tokenizers=tokenizers,
        vae=parts["vae"],
        scheduler=scheduler,
        layers=layer_table(unet),
        fingerprint=fingerprint(unet, *tables[0], *tables[1:]),
        folder=folder,
        source=source,
        guidance_scale=own.get("guidance_scale", scale),
        num_inference_steps=own.get("num_inference_steps", steps),
    )


def fingerprint(
    unet: UNet2DConditionModel, vocab_size: int, hidden_size: int, *further: tuple[int, int]
) -> str:
    """sha256 over what a concept depends on: the key and value projections, and the shapes of the token tables.

    All to_k and to_v weights in layer order as little-endian float16, then ``<vocab_size>x<hidden_size>``, and for a
    second text encoder ``+<vocab_size>x<hidden_size>``. Float16 because that is how models are shipped: the same model
    in either precision has one fingerprint.
    """
    digest = hashlib.sha256()
    for layer in layer_table(unet):
        attention = unet.get_submodule(layer.name)
        for projection in (attention.to_k, attention.to_v):
            weight = projection.weight.detach().to("cpu", torch.float16).contiguous()
            digest.update(weight.numpy().astype("<f2", copy=False).tobytes())
    tables = ((vocab_size, hidden_size), *further)
    digest.update("+".join(f"{words}x{size}" for words, size in tables).encode("ascii"))
    return digest.hexdigest()


def guidance_embedding(guidance_scale: float, dim: int) -> Tensor:
    """What a UNet that was distilled with its guidance reads of the scale: sines and cosines, (1, dim) float32.

    Of ω = scale − 1, which is how diffusers' pipelines count it ("On Distillation of Guided Diffusion Models", arXiv
    2210.03142; "Latent Consistency Models", arXiv 2310.04378).
    """
    half = dim // 2
    frequencies = torch.exp(
        torch.arange(half, dtype=torch.float32) * -(torch.tensor(10000.0).log() / (half - 1))
    )
    angles = 1000.0 * torch.tensor(guidance_scale - 1.0) * frequencies
    embedding = torch.cat([angles.sin(), angles.cos()])
    return torch.nn.functional.pad(embedding, (0, dim % 2))[None]


def _usual_drawing(unet: UNet2DConditionModel, source: Path) -> tuple[float, int]:
    """The guidance scale and the steps that suit a model which does not say so itself."""
    if unet.config.time_cond_proj_dim is not None:
        return CONSISTENCY_GUIDANCE_SCALE, CONSISTENCY_STEPS
    settings = read_json(source / "scheduler" / "scheduler_config.json")
    # nothing else in a turbo model tells: its timesteps begin at the last one, and each step adds noise anew
    trailing = settings.get("timestep_spacing") == "trailing"
    if trailing and scheduler_class(source) == "EulerAncestralDiscreteScheduler":
        return TURBO_GUIDANCE_SCALE, TURBO_STEPS
    return DEFAULT_GUIDANCE_SCALE, DEFAULT_STEPS


def _read_own(folder: Path) -> dict[str, Any]:
    """The content of perfusion.json, checked; empty where there is none."""
    path = folder / FAMILY_FILE
    if not path.exists():
        return {}
    own = read_json(path)
    for name, kind, expected in (
        ("family", str, "a word"),
        ("guidance_scale", (int, float), "a number"),
        ("num_inference_steps", int, "a whole number above 0"),
    ):
        if name in own and (not isinstance(own[name], kind) or not own[name]):
            raise ModelError(f"{path}: {name} is {own[name]!r}, expected {expected}.")
    if "family" not in own:
        raise ModelError(f'{path}: it names no family, expected {{"family": "<name>"}}.')
    return own


def _check_configs(source: Path, *, text_encoders: int) -> None:
    """What the settings alone can tell, before gigabytes of weights are read."""
    unet, vae = (read_json(source / part / "config.json") for part in ("unet", "vae"))
    for name in ("shift_factor", "latents_mean"):
        if vae.get(name):
            raise ModelError(
                f"{source}: its VAE shifts the latents ({name}), expected a scaling factor only."
            )
    channels = vae.get("latent_channels", 4)
    check_unet_config(source, unet, text_encoders=text_encoders, latent_channels=channels)


def _check_widths(base: BaseModel) -> None:
    hidden = sum(base.hidden_sizes)
    if base.text_dim != hidden:
        raise ModelError(
            f"{base.folder}: the text encoder gives {hidden} numbers a token and the UNet reads "
            f"{base.text_dim}; they must be of one model."
        )
    if len(base.text_encoders) == 2:
        config, pooled = base.unet.config, int(base.text_encoders[1].config.projection_dim)
        width = config.projection_class_embeddings_input_dim
        # five sizes in place of six is the refiner's way: it takes an aesthetic score for the target's two
        if width != pooled + 6 * config.addition_time_embed_dim:
            raise ModelError(
                f"{base.folder}: its UNet reads {width} numbers beside the timestep, expected the pooled {pooled} and "
                f"six sizes of {config.addition_time_embed_dim}; the refiner and other such models are not supported."
            )


def _check_words(base: BaseModel) -> None:
    for tokenizer, vocab_size in zip(base.tokenizers, base.vocab_sizes, strict=True):
        highest = max(tokenizer.get_vocab().values())
        if highest >= vocab_size:
            raise ModelError(
                f"{base.folder}: the tokenizer gives ids up to {highest} and the text encoder has "
                f"{vocab_size} words; they must be of one model."
            )
    first, *others = (tokenizer.get_vocab() for tokenizer in base.tokenizers)
    if any(other != first for other in others):
        raise ModelError(
            f"{base.folder}: its two tokenizers have different words, so that a word may have no one place in both "
            "prompts; expected SDXL's, which split every text alike."
        )


def _check_latents(base: BaseModel) -> None:
    latents = base.vae.config.latent_channels
    channels = (base.unet.config.in_channels, base.unet.config.out_channels)
    if channels != (latents, latents):
        raise ModelError(
            f"{base.folder}: the UNet has {channels[0]} input and {channels[1]} output channels where "
            f"the VAE has {latents}; inpainting and other conditioned UNets are not supported."
        )
