"""The parts of a diffusers pipeline that concepts need, and why some pipelines cannot take any."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfusion.base.attention import ConceptAttnProcessor, key_projections, layer_table
from perfusion.base.base_model import fingerprint
from perfusion.base.encoding import token_embedding
from perfusion.base.families import family_of
from perfusion.base.loading import read_json
from perfusion.base.usual_drawing import FAMILY_FILE
from perfusion.concept.bank import BaseTraits
from perfusion.diffusers.placeholders import Reader
from perfusion.errors import ModelError

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

__all__ = ["base_of", "check_processors", "check_same_parts", "readers_of", "unet_of"]

_EXPECTED = "expected a pipeline of Stable Diffusion 1.x, 2.x or XL"

_REPLACEABLE = {"AttnProcessor", "AttnProcessor2_0", "SlicedAttnProcessor", "XFormersAttnProcessor"}
"""Processors that compute nothing but attention, each in its way; ours computes the same."""


def unet_of(pipeline: Any) -> UNet2DConditionModel:
    """The pipeline's UNet.

    Raises:
        ModelError: there is none that concepts could go into, or they are in it already.
    """
    from diffusers import UNet2DConditionModel

    name, unet = type(pipeline).__name__, getattr(pipeline, "unet", None)
    if getattr(pipeline, "transformer", None) is not None:
        raise ModelError(
            f"{name} has a transformer in place of a UNet, with no fixed keys and values of the text for a concept to "
            f"edit; {_EXPECTED}"
        )
    if hasattr(unet, "_orig_mod") or getattr(unet, "_compiled_call_impl", None) is not None:
        raise ModelError(f"The UNet of {name} is compiled. Apply the concepts first, then compile it.")
    if not isinstance(unet, UNet2DConditionModel) or not hasattr(pipeline, "encode_prompt"):
        raise ModelError(
            f"{name} has {'no UNet' if unet is None else type(unet).__name__}"
            f"{'' if hasattr(pipeline, 'encode_prompt') else ' and no encode_prompt'}; {_EXPECTED}"
        )
    if any(parameter.is_meta for parameter in unet.parameters()):
        raise ModelError(
            f"The weights of the UNet of {name} are offloaded. Apply the concepts first, then call "
            "enable_sequential_cpu_offload; enable_model_cpu_offload may come before or after."
        )
    check_processors(unet, applied=False)
    return unet


def check_processors(unet: Any, *, applied: bool) -> None:
    """Refuse attention layers whose processors are not those that this side of `apply` expects.

    Raises:
        ModelError: before, processors that do more than attention, or ours; afterwards, any that are not ours.
    """
    for layer in layer_table(unet):
        attention = unet.get_submodule(layer.name)
        kind = type(attention.processor).__name__
        ours = isinstance(attention.processor, ConceptAttnProcessor)
        if applied and not ours:
            raise ModelError(
                f"Attention layer {layer.name} has got a {kind} since the concepts were applied, so they would have no "
                "effect. Remove them, and apply them again after such changes."
            )
        if ours and not applied:
            raise ModelError(
                "This UNet has concepts already. Load more with the handle that `apply` returned, tell it about "
                "another pipeline with `also`, or remove them first."
            )
        if not ours and (kind not in _REPLACEABLE or getattr(attention, "fused_projections", False)):
            what = "fused projections" if kind in _REPLACEABLE else f"a {kind}"
            raise ModelError(
                f"Attention layer {layer.name} has {what}, expected one of {', '.join(sorted(_REPLACEABLE))}. Take out "
                "what put it there (IP-Adapter, fuse_qkv_projections, ...) before you apply concepts."
            )


def readers_of(pipeline: Any) -> tuple[Reader, ...]:
    """The tokenizers with their text encoders, one pair or two.

    Raises:
        ModelError: one of them is missing, or of another kind.
    """
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    readers = []
    for suffix in ("", "_2"):
        if suffix and not hasattr(pipeline, "text_encoder_2"):
            continue
        tokenizer = getattr(pipeline, "tokenizer" + suffix, None)
        text_encoder = getattr(pipeline, "text_encoder" + suffix, None)
        if tokenizer is None or not isinstance(text_encoder, CLIPTextModel | CLIPTextModelWithProjection):
            kind = None if text_encoder is None else type(text_encoder).__name__
            raise ModelError(
                f"{type(pipeline).__name__} has {kind} as text_encoder{suffix} and "
                f"{None if tokenizer is None else type(tokenizer).__name__} as tokenizer{suffix}, expected a CLIP text "
                f"encoder and its tokenizer; {_EXPECTED}"
            )
        readers.append(Reader(name="tokenizer" + suffix, tokenizer=tokenizer, text_encoder=text_encoder))
    return tuple(readers)


def base_of(pipeline: Any, unet: UNet2DConditionModel, readers: Sequence[Reader]) -> BaseTraits:
    """What concepts are held against.

    Raises:
        ModelError: the UNet does not read what the text encoders give, or perfusion.json beside it is broken.
    """
    configs = [reader.text_encoder.config for reader in readers]
    hidden = [int(config.hidden_size) for config in configs]
    text_dim = unet.config.cross_attention_dim
    if text_dim != sum(hidden):
        raise ModelError(
            f"The text encoders give {sum(hidden)} numbers a token and the UNet reads {text_dim}; {_EXPECTED}"
        )
    layers = layer_table(unet)
    words = [token_embedding(reader.text_encoder) for reader in readers]
    tables = [(table.num_embeddings, table.embedding_dim) for table in words]
    return BaseTraits(
        noun="pipeline",
        family=_family(pipeline, unet),
        fingerprint=fingerprint(unet, *tables[0], *tables[1:]),
        text_dim=text_dim,
        hidden_sizes=tuple(hidden),
        key_width=sum(layer.key_dim for layer in layers),
        value_width=sum(layer.value_dim for layer in layers),
        key_projections=lambda: key_projections(unet).float().cpu().numpy(),
        family_is_certain=False,
    )


def check_same_parts(pipeline: Any, unet: Any, readers: Sequence[Reader]) -> None:
    """Refuse a pipeline that is not made around this very UNet with these text encoders."""
    parts = [("unet", unet)]
    for reader in readers:
        parts += [
            (reader.name, reader.tokenizer),
            (reader.name.replace("tokenizer", "text_encoder"), reader.text_encoder),
        ]
    for name, part in parts:
        if getattr(pipeline, name, None) is not part:
            raise ModelError(
                f"The {name} of {type(pipeline).__name__} is not the one that the concepts were applied to. Make the "
                "pipeline with from_pipe, or apply the concepts to it."
            )


def _family(pipeline: Any, unet: UNet2DConditionModel) -> str:
    """What the folder says that the pipeline was loaded from, or told by the UNet's shapes."""
    own = Path(str(pipeline.config.get("_name_or_path") or "")) / FAMILY_FILE
    if own.is_file() and isinstance(family := read_json(own).get("family"), str):
        return family
    try:
        return family_of(unet)
    except ModelError:
        return "of no known family"
