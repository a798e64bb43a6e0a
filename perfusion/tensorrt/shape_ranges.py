"""The sizes an engine is built for, as TensorRT's optimisation profiles.

A shape range gives every named dimension of a graph its smallest, usual and largest size. They are static by default:
the three are one number, and the builder chooses its kernels for exactly that. All shape ranges of a graph are in one
engine and share its weights.

- The UNet sees two rows a picture under guidance, the unconditional one and the prompt's. Batches of 1 and 2 pictures
  are hence 2 and 4 rows; where the bundle draws without guidance by default (turbo, LCM), 1 and 2.
- Text encoders read one prompt a call, and the VAE is built for one picture: its activations are the peak of the
  memory, and pictures decoded one after the other cost no more time. Only decoding is done in tiles.
- Concepts have a fixed number of slots; the unused ones are rows of zeros, which is exact.
- A prompt is read once, or once for each region, and each reading in as many parts as it is long. An engine takes the
  pairs of readings and tokens that it was built for: by default one reading and two, of a prompt of one part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from perfusion.bundle.description import Bundle
from perfusion.errors import RequestError
from perfusion.tensorrt.build import ShapeRange

__all__ = ["ShapeOptions", "check_counts", "check_shapes", "shape_ranges_of"]

MOST_CONCEPTS = 64
MOST_PICTURES = 64
MOST_READINGS = 8


@dataclass(frozen=True, kw_only=True)
class ShapeOptions:
    """What pictures an engine will draw; None is the bundle's own default."""

    batches: Sequence[int] = (1, 2)  # pictures in one call of the UNet
    concepts: int = 4  # slots
    resolution: int | None = None  # width and height of pictures, pixels
    guided: bool | None = None  # with classifier-free guidance
    readings: Sequence[int] = (1, 2)  # of a prompt, one for each region
    tokens: Sequence[int] | None = None  # of one reading; None: those of a prompt of one part
    dynamic: bool = False  # one shape range for all batches and sides from half the resolution on
    tile: int | None = None  # side in latents of the tiles the VAE decodes in; None: whole pictures


def check_counts(options: ShapeOptions) -> None:
    """Refuse batches and slots that no engine is built for, whatever the bundle. Raises `RequestError`."""
    if not options.batches or any(not 1 <= one <= MOST_PICTURES for one in options.batches):
        raise RequestError(
            f"The batches are {list(options.batches)}, expected numbers from 1 to {MOST_PICTURES}."
        )
    if not 1 <= options.concepts <= MOST_CONCEPTS:
        raise RequestError(
            f"There are to be {options.concepts} concept slots, expected 1 to {MOST_CONCEPTS}."
        )


def _check_texts(bundle: Bundle, options: ShapeOptions) -> None:
    """Refuse readings and tokens that no prompt has."""
    if not options.readings or any(not 1 <= count <= MOST_READINGS for count in options.readings):
        raise RequestError(
            f"The readings are {list(options.readings)}, expected numbers from 1 to {MOST_READINGS}."
        )
    if tuple(options.readings) != ShapeOptions.readings and not bundle.has_regions:
        raise RequestError(
            "This bundle is of format version 1, whose UNet reads a prompt once. Export the bundle again for more "
            "readings."
        )
    length = bundle.text_encoder.context_length
    for tokens in options.tokens or ():
        if tokens < length or tokens % length:
            raise RequestError(
                f"The tokens are {tokens}, expected a multiple of {length}: prompts are read in parts of that length."
            )


def check_shapes(bundle: Bundle, options: ShapeOptions) -> None:
    """Refuse sizes no graph of the bundle takes.

    Raises:
        RequestError: with the sizes that would do.
    """
    check_counts(options)
    _check_texts(bundle, options)
    for side in _sides(bundle, options):
        if side <= 0 or side % bundle.size_step:
            nearest = max(bundle.size_step, round(side / bundle.size_step) * bundle.size_step)
            raise RequestError(
                f"The resolution {side} does not fit this bundle: the sides of its pictures are multiples of "
                f"{bundle.size_step} pixels; the nearest is {nearest}."
            )


def shape_ranges_of(graph: str, bundle: Bundle, options: ShapeOptions) -> tuple[ShapeRange, ...]:
    """The shape ranges of one graph of a bundle, smallest first. Raises as `check_shapes`."""
    check_shapes(bundle, options)
    if graph.startswith("text_encoder"):
        return ({"batch": _just(1), "concepts": _just(options.concepts)},)
    width, height = _sides(bundle, options)
    if graph.startswith("vae"):
        if options.tile is not None and graph == "vae_decoder":
            width, height = (min(side, options.tile * bundle.decoder.downscale) for side in (width, height))
        return ({"batch": _just(1), **_picture(width, height, bundle, options)},)
    guided = bundle.is_guided() if options.guided is None else options.guided
    rows = sorted({one * (2 if guided else 1) for one in options.batches})
    fixed = {"concepts": _just(options.concepts), **_latents(width, height, bundle, options)}
    if options.dynamic:
        return ({"batch": (1, rows[0], rows[-1]), **_longest_text(bundle, options), **fixed},)
    return tuple(
        {"batch": _just(count), **text, **fixed} for text in _texts(bundle, options) for count in rows
    )


def _texts(bundle: Bundle, options: ShapeOptions) -> list[ShapeRange]:
    """The pairs of readings and tokens, those of one reading first."""
    tokens = options.tokens or (bundle.text_encoder.context_length,)
    if not bundle.has_regions:
        return [{"tokens": _just(count)} for count in sorted(set(tokens))]
    return [
        {"regions": _just(readings), "tokens": _just(readings * count)}
        for readings in sorted(set(options.readings))
        for count in sorted(set(tokens))
    ]


def _longest_text(bundle: Bundle, options: ShapeOptions) -> ShapeRange:
    """From the smallest of the pairs to the largest, made for the smallest."""
    texts = _texts(bundle, options)
    return {name: (texts[0][name][0], texts[0][name][0], texts[-1][name][2]) for name in texts[0]}


def _sides(bundle: Bundle, options: ShapeOptions) -> tuple[int, int]:
    if options.resolution is not None:
        return options.resolution, options.resolution
    return bundle.defaults.width, bundle.defaults.height


def _latents(
    width: int, height: int, bundle: Bundle, options: ShapeOptions
) -> dict[str, tuple[int, int, int]]:
    """Latents' sides: one size each, or from half of it on."""
    sizes = {"height": height // bundle.decoder.downscale, "width": width // bundle.decoder.downscale}
    if not options.dynamic:
        return {name: _just(size) for name, size in sizes.items()}
    step = bundle.unet.size_multiple
    return {name: (max(step, size // 2 // step * step), size, size) for name, size in sizes.items()}


def _picture(
    width: int, height: int, bundle: Bundle, options: ShapeOptions
) -> dict[str, tuple[int, int, int]]:
    """The VAE's ends: latents' sides, and the pictures' with them."""
    latents = _latents(width, height, bundle, options)
    scale = bundle.decoder.downscale
    pictures = {f"picture_{name}": (a * scale, b * scale, c * scale) for name, (a, b, c) in latents.items()}
    return latents | pictures


def _just(size: int) -> tuple[int, int, int]:
    return size, size, size
