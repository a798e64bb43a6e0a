"""Files that people take for a concept: a model, a LoRA, a textual inversion, each told by its tensors' names."""

import re

from perfusion.errors import ConceptError

__all__ = ["refuse_mistaken"]

_MOST_HEADER = 1 << 24  # of a checkpoint with thousands of tensors: some 300 kB
_KINDS = (
    (
        rb'"(?:model\.diffusion_model|cond_stage_model|conditioner\.embedders|first_stage_model)\.',
        "This is a base model as one file, expected a concept. Give it to perfusion-train or perfusion-export with "
        "--model.",
    ),
    (
        rb'"(?:lora_unet_|lora_te\d?_)|\.(?:lora_A|lora_B|lora_down|lora_up)\.',
        "This is a LoRA, expected a concept. A LoRA is added to a base model: perfusion-export --lora.",
    ),
    (
        rb'"(?:emb_params|clip_[lg])"\s*:',
        "This is a textual inversion, expected a concept. Give it to perfusion-generate with --embedding, or make a "
        "concept of it: perfusion-convert --textual-inversion.",
    ),
    (
        rb'"(?:down_blocks|mid_block|up_blocks)\.\d*',
        "This is a part of a diffusers model, expected a concept. Give the model's folder to perfusion-train or "
        "perfusion-export with --model.",
    ),
)  # fmt: skip


def refuse_mistaken(data: bytes) -> None:
    """Say what a safetensors file is that is known to be something else; nothing of other bytes.

    Args:
        data: the file, or its beginning with the header.

    Raises:
        ConceptError: it is one of these.
    """
    length = int.from_bytes(data[:8], "little")
    header = bytes(data[8 : 8 + min(length, _MOST_HEADER)])
    if header[:1] != b"{":
        return
    for pattern, sentence in _KINDS:
        if re.search(pattern, header):
            raise ConceptError(sentence)
