"""A base model as training and export see it: a Stable Diffusion folder or file, opened and checked.

Any folder that diffusers saves for Stable Diffusion 1.x, 2.x or XL will do, and a single-file checkpoint with a
folder that holds its settings, or those of its family. Weights are read from safetensors only: a pickle can run code.
Nothing is downloaded.
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
from perfusion.base.clip_skip import skip_layers
from perfusion.base.distillation import Distillation, find_distillation
from perfusion.base.encoding import Encodings, encode, encode_prompts, token_embedding
from perfusion.base.families import check_pipeline, family_of, parts_of
from perfusion.base.family_settings import family_settings
from perfusion.base.loading import (
    check_finite,
    load_scheduler,
    load_tokenizer,
    load_weights,
    read_index,
    scheduler_class,
)
from perfusion.base.lora import LoRAFile, fuse_lora
from perfusion.base.model_options import ModelOptions
from perfusion.base.part_checks import check_configs, check_parts
from perfusion.base.single_file import load_single_file
from perfusion.base.usual_drawing import (
    DEFAULT_GUIDANCE_SCALE,
    DEFAULT_LR_VALUES,
    DEFAULT_STEPS,
    LEARNED_VALUES,
    read_own,
    usual_drawing,
)
from perfusion.base.vae_file import load_vae
from perfusion.errors import ModelError
from perfusion.hub import local_lora, local_model, local_settings, local_vae

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

__all__ = [
    "BaseModel",
    "encode",
    "family_of",
    "fingerprint",
    "guidance_embedding",
    "load_base",
    "token_embedding",
]

logger = logging.getLogger(__name__)

_NEED_SIGNAL = ("PNDMScheduler", "HeunDiscreteScheduler")
"""Schedulers of diffusers that divide by the signal, of which a last timestep of pure noise has none."""


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
    """The settings of its scheduler, without the class."""
    layers: tuple[Layer, ...]
    fingerprint: str
    folder: Path
    """Where it came from: a folder, or a single file."""
    source: Path | None = None
    """The folder of its settings (model_index.json and the parts'): `folder`, but for a single file."""
    guidance_scale: float = DEFAULT_GUIDANCE_SCALE
    num_inference_steps: int = DEFAULT_STEPS
    lr_values: float = DEFAULT_LR_VALUES
    """The learning rate of a concept's values: the more attention a word's thing gets, the smaller."""
    values: str = LEARNED_VALUES[0]
    """What is learned of them: each layer's for itself, or one `encoding` for all layers."""
    scheduler_class: str = "DDIMScheduler"
    """What diffusers calls its scheduler."""
    skipped_layers: int = 0
    """How many of the text encoder's last layers were taken off, see `perfusion.base.clip_skip`."""
    loras: tuple[LoRAFile, ...] = ()
    """What was added to its weights."""

    def __post_init__(self) -> None:
        check_parts(self)

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
    options: ModelOptions | None = None,
) -> BaseModel:
    """Open a diffusers folder of Stable Diffusion 1.x, 2.x or XL, or with None the embedded pocket model.

    Args:
        folder: a folder, or a single-file checkpoint (.safetensors) in the original layout.
        dtype: weights stored as anything else become this.
        config: for a single file, the folder of a diffusers model of the same architecture; its weights are not read.
            None: the published settings of its family, which ship with this package.
        unet_dtype: for the UNet, by far the largest part; None: as the others.
        options: what the caller knows better than the files.

    Raises:
        ModelError: it is no such model, misses a part, or its parts do not fit each other.
    """
    if folder is None:
        from perfusion.embedded import model_path

        folder = model_path()
    folder, options = local_model(folder), _local(options or ModelOptions())
    single = folder.is_file()
    if config is not None and not single:
        raise ModelError(
            f"{folder}: a folder has its own settings; --config goes with a single-file checkpoint."
        )
    facts = checkpoint_facts(folder, needs_vae=options.vae is None) if single else None
    source = _settings_of(folder, facts, config, options)
    index = read_index(source)
    check_pipeline(source, index)
    names = parts_of(index)
    encoders = [name for name in names if name.startswith("text_encoder")]
    if facts and (facts.kind == "sdxl") != (len(encoders) == 2):
        raise ModelError(
            f"{folder}: a {facts.kind} checkpoint, and {source} is {index.get('_class_name')}; expected the folder of "
            "a model of the same architecture."
        )
    check_configs(source, text_encoders=len(encoders))
    tokenizers = tuple(load_tokenizer(source, name) for name in names if name.startswith("tokenizer"))
    kinds = {name: kind for name, kind in names.items() if kind is not None}
    dtypes = dict.fromkeys(kinds, dtype) | {"unet": unet_dtype or dtype}
    parts = {} if options.vae is None else {"vae": load_vae(options.vae, source, dtype)}
    kinds = {name: kind for name, kind in kinds.items() if name not in parts}
    if single:
        parts |= load_single_file(folder, source, kinds, dtypes)
    else:
        parts |= {name: load_weights(folder, name, kind, dtypes[name]) for name, kind in kinds.items()}
    for name, part in parts.items():
        part.requires_grad_(False).eval()
        check_finite(folder, name, part)
    distillation = find_distillation([lora.path for lora in options.loras], options.distilled)
    for lora in options.loras:
        fuse_lora(lora, {name: part for name, part in parts.items() if name != "vae"})
    base = _assemble(folder, source, parts, encoders, tokenizers, options)
    base = _with_noise(base, facts, options, told=config is not None)
    return _drawn_as(base if distillation is None else _distilled(base, distillation), options)


def _drawn_as(base: BaseModel, options: ModelOptions) -> BaseModel:
    """The model with the steps and the guidance that the caller wants, where any are wanted."""
    steps = base.num_inference_steps if options.steps is None else options.steps
    scale = base.guidance_scale if options.guidance_scale is None else options.guidance_scale
    return replace(base, num_inference_steps=steps, guidance_scale=scale)


def _distilled(base: BaseModel, distillation: Distillation) -> BaseModel:
    """The model with the scheduler, steps and guidance that its distillation asks for."""
    logger.info(
        "%s: drawn as %s, with %s in %d steps",
        base.folder,
        distillation.name,
        distillation.scheduler_class,
        distillation.steps,
    )
    return replace(
        base,
        scheduler={**base.scheduler, **distillation.settings},
        scheduler_class=distillation.scheduler_class,
        guidance_scale=distillation.guidance_scale,
        num_inference_steps=distillation.steps,
    )


def _local(options: ModelOptions) -> ModelOptions:
    """The same with every id on the hub replaced by a path."""
    loras = tuple(replace(lora, path=local_lora(lora.path)) for lora in options.loras)
    return replace(options, vae=options.vae and local_vae(options.vae), loras=loras)


def _settings_of(
    folder: Path, facts: CheckpointFacts | None, config: Path | None, options: ModelOptions
) -> Path:
    """The folder of a model's settings: its own, or for a single file the caller's or its family's."""
    if facts is None:
        return folder
    return (
        local_settings(config)
        if config
        else family_settings(folder, facts.kind, options.prediction or facts.prediction)
    )


def _with_noise(
    base: BaseModel, facts: CheckpointFacts | None, options: ModelOptions, *, told: bool
) -> BaseModel:
    """The model with the scheduler settings that its file, and above it the caller, know better than the folder.

    Args:
        told: the user named the folder of settings, and hears where the file says otherwise.
    """
    stated = facts.scheduler_settings() if facts else {}
    differing = [name for name, value in stated.items() if base.scheduler.get(name) != value]
    if differing and told:
        words = ", ".join(f"{name} is {stated[name]}" for name in differing)
        logger.warning(
            "%s says of itself that %s, unlike %s; the file is believed", base.folder, words, base.source
        )
    stated |= options.scheduler_settings()
    kind = base.scheduler_class
    if stated.get("rescale_betas_zero_snr") and kind in _NEED_SIGNAL:
        kind = "DDIMScheduler"
    return replace(base, scheduler={**base.scheduler, **stated}, scheduler_class=kind)


def _assemble(
    folder: Path,
    source: Path,
    parts: Mapping[str, Any],
    encoders: list[str],
    tokenizers: tuple[Any, ...],
    options: ModelOptions,
) -> BaseModel:
    """The opened parts of a model from `folder`, its settings from `source`, as one."""
    own, scheduler = read_own(source), load_scheduler(source)
    unet, text_encoders = parts["unet"], tuple(parts[name] for name in encoders)
    skipped = skip_layers(folder, text_encoders, options.clip_skip)
    tables = [(encoder.config.vocab_size, encoder.config.hidden_size) for encoder in text_encoders]
    scale, steps = usual_drawing(unet, source)
    return BaseModel(
        family=str(own["family"]) if own else family_of(unet, folder),
        unet=unet,
        text_encoders=text_encoders,
        tokenizers=tokenizers,
        vae=parts["vae"],
        scheduler=scheduler,
        scheduler_class=scheduler_class(source),
        layers=layer_table(unet),
        fingerprint=fingerprint(unet, *tables[0], *tables[1:], skipped_layers=skipped),
        folder=folder,
        source=source,
        guidance_scale=own.get("guidance_scale", scale),
        num_inference_steps=own.get("num_inference_steps", steps),
        lr_values=own.get("lr_values", DEFAULT_LR_VALUES),
        values=own.get("values", LEARNED_VALUES[0]),
        skipped_layers=skipped,
        loras=options.loras,
    )


def fingerprint(
    unet: UNet2DConditionModel,
    vocab_size: int,
    hidden_size: int,
    *further: tuple[int, int],
    skipped_layers: int = 0,
) -> str:
    """sha256 over what a concept depends on: the key and value projections, and the shapes of the token tables.

    All to_k and to_v weights in layer order as little-endian float16, then ``<vocab_size>x<hidden_size>``, and for a
    second text encoder ``+<vocab_size>x<hidden_size>``, and where last layers of the text encoder are skipped
    ``-<layers>``, since a concept's word is learned through the others. Float16 because that is how models are
    shipped: the same model in either precision has one fingerprint.
    """
    digest = hashlib.sha256()
    for layer in layer_table(unet):
        attention = unet.get_submodule(layer.name)
        for projection in (attention.to_k, attention.to_v):
            weight = projection.weight.detach().to("cpu", torch.float16).contiguous()
            digest.update(weight.numpy().astype("<f2", copy=False).tobytes())
    tables = ((vocab_size, hidden_size), *further)
    digest.update("+".join(f"{words}x{size}" for words, size in tables).encode("ascii"))
    if skipped_layers:
        digest.update(f"-{skipped_layers}".encode("ascii"))
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
