"""What A1111's fields say of drawing over a picture: how it is resized, where it is drawn, and how its edge is blended.

After A1111's own order (modules/processing.py and modules/masking.py): the mask is blurred, with `inpaint_full_res` the
surroundings of its light places alone are drawn at the whole size, and the result is laid over the original through
the blurred mask, so that what was kept has its very pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perfusion.picture_input import as_rgb, mask_of
from perfusion.serving.answers import StatusError
from perfusion.serving.body_fields import flag_of, number_of, whole_of

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Inpainting", "resized"]

_BLUR, _MOST_BLUR = 4.0, 64.0
_FILL, _ORIGINAL = 0, 1
_CROP = 1
_FILL_BLURS = (
    (256, 1),
    (64, 1),
    (16, 2),
    (4, 4),
    (2, 2),
    (0, 1),
)  # A1111's: radius, and how often it is laid over

Box = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Inpainting:
    """A picture with the mask of what is drawn anew, and what is drawn of it."""

    original: Image
    blurred: Image  # the mask for laying over
    box: Box | None  # of the original, that is drawn; None: all
    image: Image  # what is drawn over
    mask: Image

    @classmethod
    def of(cls, fields: Mapping[str, Any], picture: Image, mask: Image, size: tuple[int, int]) -> Inpainting:
        """What an img2img with a mask asks for; `size` is that of the drawing.

        Raises:
            StatusError: a field that cannot be served.
        """
        from PIL import ImageChops, ImageFilter

        original, mask = as_rgb(picture), mask_of(mask).resize(picture.size)
        if flag_of(fields, "inpainting_mask_invert"):
            mask = ImageChops.invert(mask)
        blurred = mask.filter(ImageFilter.GaussianBlur(_within(fields, "mask_blur", _BLUR, _MOST_BLUR)))
        bounds = blurred.getbbox() if flag_of(fields, "inpaint_full_res", True) else None
        if bounds is None:
            original, mask, blurred = (resized(fields, each, size) for each in (original, mask, blurred))
            box, image = None, original
        else:
            padding = round(_within(fields, "inpaint_full_res_padding", 0, max(original.size)))
            box = _box_around(bounds, padding, size, original.size)
            image, mask = original.crop(box).resize(size), mask.crop(box).resize(size)
        if _fill_of(fields) == _FILL:
            image = _filled(image, mask)
        return cls(original=original, blurred=blurred, box=box, image=image, mask=mask)

    def laid_over(self, drawing: Image) -> Image:
        """A drawing in its place of the original."""
        if self.box is not None:
            x, y, right, bottom = self.box
            whole = self.original.copy()
            whole.paste(drawing.resize((right - x, bottom - y)), (x, y))
            drawing = whole
        return _composite(drawing.resize(self.original.size), self.original, self.blurred)


def resized(fields: Mapping[str, Any], picture: Image, size: tuple[int, int]) -> Image:
    """A picture at the size of the drawing, as `resize_mode` says.

    Raises:
        StatusError: a mode that cannot be served.
    """
    from PIL import ImageOps

    mode = whole_of(fields, "resize_mode", 0)
    if mode not in (0, _CROP):
        raise StatusError(
            400,
            f"The field resize_mode is {mode}, expected 0 (stretch the picture) or 1 (cut it to the size). Others are "
            "not done here.",
            field="resize_mode",
        )
    return ImageOps.fit(picture, size) if mode == _CROP else picture.resize(size)


def _fill_of(fields: Mapping[str, Any]) -> int:
    fill = whole_of(fields, "inpainting_fill", _FILL)
    if fill not in (_FILL, _ORIGINAL):
        raise StatusError(
            400,
            f"The field inpainting_fill is {fill}, expected 0 (the colours around) or 1 (the original). Noise and "
            "nothing are not done here.",
            field="inpainting_fill",
        )
    return fill


def _within(fields: Mapping[str, Any], name: str, default: float, most: float) -> float:
    value = number_of(fields, name, default) or 0.0
    if not 0 <= value <= most:
        raise StatusError(400, f"The field {name} is {value:g}, expected 0 to {most:g}.", field=name)
    return value


def _box_around(bounds: Box, padding: int, size: tuple[int, int], most: tuple[int, int]) -> Box:
    """Bounds with a padding, in the shape of a size as far as the picture reaches."""
    left, top = max(0, bounds[0] - padding), max(0, bounds[1] - padding)
    right, bottom = min(most[0], bounds[2] + padding), min(most[1], bounds[3] + padding)
    shape = size[0] / size[1]
    width = max(right - left, round((bottom - top) * shape))
    height = max(bottom - top, round((right - left) / shape))
    left, right = _stretch(left, right, width, most[0])
    top, bottom = _stretch(top, bottom, height, most[1])
    return left, top, right, bottom


def _stretch(start: int, end: int, length: int, most: int) -> tuple[int, int]:
    """A stretch of at least a length about the middle of another, within 0 to most."""
    length = min(most, max(length, end - start))
    start = min(max(0, start - (length - (end - start)) // 2), most - length)
    return start, start + length


def _filled(picture: Image, mask: Image) -> Image:
    """A picture with the colours around in the light places of the mask."""
    from PIL import Image, ImageChops, ImageFilter

    known = Image.new("RGBA", picture.size)
    known.paste(picture, mask=ImageChops.invert(mask))
    premultiplied = known.convert("RGBa")
    filled = Image.new("RGBA", picture.size)
    for radius, times in _FILL_BLURS:
        blurred = premultiplied.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(times):
            filled.alpha_composite(blurred)
    return filled.convert("RGB")


def _composite(drawing: Image, original: Image, mask: Image) -> Image:
    from PIL import Image

    return Image.composite(drawing, original, mask)
