"""Whether a picture is drawn with classifier-free guidance: one rule for drawing, planning and building engines."""

__all__ = ["is_guided"]


def is_guided(guidance_scale: float, *, reads_scale: bool) -> bool:
    """Whether an unconditional row is computed beside each picture's own.

    A scale of 1 or less is no guidance, as in diffusers. A UNet that was distilled with its guidance (LCM)
    `reads_scale` itself and needs no second row.
    """
    return guidance_scale > 1 and not reads_scale
