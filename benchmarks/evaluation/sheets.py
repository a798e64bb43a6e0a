"""Sheets of pictures, nothing selected: the first seed of every prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from benchmarks.evaluation.drawing import drawing_path, read_drawings
from benchmarks.evaluation.methods import Method, Setting
from benchmarks.evaluation.plan import pictures_of, subject_named
from benchmarks.evaluation.units import Context
from perfusion.files import writing

__all__ = ["method_sheet", "overview_sheet", "save_sheet"]

SIDE, LARGE, GAP, HEAD, COLOURS = 64, 96, 2, 16, 192


def method_sheet(context: Context, method: Method, subjects: Sequence[str], setting: Setting) -> Image.Image:
    """A row for each subject: one of its own pictures, then every prompt."""
    rows = [[_own(context, name), *_drawn(context, method.name, name, setting).values()] for name in subjects]
    titles = [prompt.colour or prompt.other or prompt.place for prompt in context.plan.prompts]
    return _grid(rows, ["itself", *titles])


def overview_sheet(
    context: Context, methods: Sequence[Method], subjects: Sequence[str], prompt: int
) -> Image.Image:
    """A row for each subject, a column for each method, all of one prompt and its first seed."""
    rows = []
    for name in subjects:
        base = _drawn(context, "base-runtime", subject_named(name).noun, Setting())[prompt]
        made = [_drawn(context, one.name, name, one.settings(context.plan)[0])[prompt] for one in methods]
        rows.append([_own(context, name), base, *made])
    return _grid(rows, ["itself", "base", *(method.name for method in methods)], LARGE)


def save_sheet(path: Path, sheet: Image.Image) -> None:
    """As a PNG of few colours, which is a third of the size."""
    with writing(path) as file:
        sheet.quantize(COLOURS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)


def _drawn(context: Context, name: str, whom: str, setting: Setting) -> dict[int, Image.Image]:
    """The first picture of every prompt, by its number."""
    drawings = read_drawings(context.work / drawing_path(name, whom, "prompts"))
    pictures: dict[int, Image.Image] = {}
    for picture, row in zip(drawings.pictures, drawings.rows, strict=True):
        if setting.drew(row):
            pictures.setdefault(int(row["prompt"]), Image.fromarray(picture))
    return pictures


def _own(context: Context, name: str) -> Image.Image:
    return Image.open(pictures_of(context.work, subject_named(name)) / "1.png").convert("RGB")


def _grid(rows: Sequence[Sequence[Image.Image]], titles: Sequence[str], side: int = SIDE) -> Image.Image:
    step, font = side + GAP, ImageFont.load_default(11)
    sheet = Image.new("RGB", (len(titles) * step + GAP, len(rows) * step + GAP + HEAD), "white")
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        pen.text((GAP + column * step, 1), title, fill="black", font=font)
        for row, pictures in enumerate(rows):
            small = pictures[column].resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(small, (GAP + column * step, HEAD + GAP + row * step))
    return sheet
