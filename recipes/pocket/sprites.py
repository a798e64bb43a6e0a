"""The object pictures of pocket's world: fetched from their packages once, kept as an atlas.

The atlas is committed with the recipe, so that nothing is fetched to retrain the model. `build_atlas` makes it anew
from the pinned packages and is reproducible: same packages, same pixels.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from perfusion.errors import ModelError
from perfusion.files import writing
from perfusion.pocket.vocabulary import NOUNS

logger = logging.getLogger(__name__)

DATA = Path(__file__).parent / "data"
SPRITE_PX = 128
COLUMNS = 12

TRAINING_STYLES = ("fluent3d", "noto", "twemoji")
HELD_OUT_STYLES = ("emojione", "fxemoji")


@dataclass(frozen=True, kw_only=True)
class Package:
    """One picture set: a package at a pinned version, with the checksum of its archive."""

    name: str
    version: str
    sha256: str
    licence: str
    source: str = "npm"
    """Who brings it: `npm` or Debian's `apt`."""


NAMES = Package(name="unicode-emoji-json", version="0.9.0", licence="MIT",
                sha256="ae7efacb55533385bf8767d613dbd36c71226669759d95919a6e9059f5e4c401")  # fmt: skip
"""The names of emoji, by which sets without code points file their pictures."""

PACKAGES = {
    "fluent3d": Package(name="@lobehub/fluent-emoji-3d", version="1.1.0", licence="MIT",
                        sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"),
    "noto": Package(name="@iconify-json/noto", version="1.2.9", licence="Apache-2.0",
                    sha256="3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
    "twemoji": Package(name="@iconify-json/twemoji", version="1.2.5", licence="CC-BY-4.0",
                       sha256="19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7"),
    "emojione": Package(name="@iconify-json/emojione", version="1.2.3", licence="CC-BY-4.0",
                        sha256="26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e"),
    "fxemoji": Package(name="@iconify-json/fxemoji", version="1.2.2", licence="Apache-2.0",
                       sha256="f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Atlas:
    """Object pictures with their nouns and drawing styles.

    `pixels` is (sprites, 128, 128, 4) uint8, RGBA, the object's base at the bottom, its longer side filling the tile.
    """

    pixels: np.ndarray
    nouns: tuple[str, ...]
    styles: tuple[str, ...]
    drawings: tuple[str, ...] = ()
    """What each picture is a pose of, where a drawing has several poses; otherwise empty."""

    def save(self, path: Path, *, quality: int | None = None) -> None:
        """Write a WebP of the tiles and, beside it, a JSON table of what they show.

        Args:
            path: ends in `.webp`; the table ends in `.json`.
            quality: of the colours, up to 100; lossless without. Outlines stay exact.
        """
        count = len(self.pixels)
        rows = -(-count // COLUMNS)
        sheet = np.zeros((rows * SPRITE_PX, COLUMNS * SPRITE_PX, 4), np.uint8)
        for index, tile in enumerate(self.pixels):
            top, left = index // COLUMNS * SPRITE_PX, index % COLUMNS * SPRITE_PX
            sheet[top : top + SPRITE_PX, left : left + SPRITE_PX] = tile
        with writing(path) as file:
            Image.fromarray(sheet).save(
                file, "WEBP", lossless=quality is None, quality=quality or 80, method=6, exact=False
            )
        table = [{"noun": noun, "style": style} for noun, style in zip(self.nouns, self.styles, strict=True)]
        for row, drawing in zip(table, self.drawings, strict=False):
            row["drawing"] = drawing
        with writing(path.with_suffix(".json")) as file:
            file.write((json.dumps(table, indent=0) + "\n").encode())


def load_atlas(path: Path) -> Atlas:
    """Read an atlas written by `Atlas.save`."""
    table = json.loads(path.with_suffix(".json").read_text())
    sheet = np.asarray(Image.open(path).convert("RGBA"))
    tiles = [
        sheet[top : top + SPRITE_PX, left : left + SPRITE_PX]
        for top in range(0, sheet.shape[0], SPRITE_PX)
        for left in range(0, sheet.shape[1], SPRITE_PX)
    ]
    return Atlas(
        pixels=np.stack(tiles[: len(table)]),
        nouns=tuple(row["noun"] for row in table),
        styles=tuple(row["style"] for row in table),
        drawings=tuple(row["drawing"] for row in table if "drawing" in row),
    )


def training_atlas() -> Atlas:
    """The pictures that the embedded model is trained on."""
    return load_atlas(DATA / "sprites.webp")


def held_out_atlas() -> Atlas:
    """The same objects in drawing styles that the model never sees: subjects for personal concepts."""
    return load_atlas(DATA / "held_out.webp")


def fetch(package: Package, folder: Path) -> Path:
    """Bring the package's archive into `folder`, check it, and unpack it. Returns the unpacked folder.

    Raises:
        ModelError: no package manager, no such package, or another checksum.
    """
    target = folder / f"{package.name.rsplit('/', 1)[-1]}-{package.version.replace(':', '.')}"
    if target.is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        archive = _download(package, Path(temporary))
        checksum = hashlib.sha256(archive.read_bytes()).hexdigest()
        if checksum != package.sha256:
            raise ModelError(
                f"{archive.name} has sha256 {checksum}, expected {package.sha256}; the package was changed."
            )
        unpacked = Path(temporary) / "unpacked"
        if package.source == "apt":
            subprocess.run(["dpkg-deb", "-x", archive, unpacked], check=True)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(unpacked, filter="data")
        unpacked.rename(target)  # a folder of the final name is complete
    return target


DOWNLOADS = {
    "npm": (("npm", "pack", "--silent", "{name}@{version}"), "Install Node.js"),
    "apt": (("apt-get", "download", "{name}={version}"), "It comes with Debian and Ubuntu"),
}
"""Package manager → the command that downloads an archive into the present folder, and where to get it."""


def _download(package: Package, folder: Path) -> Path:
    """The package's archive, downloaded into an empty folder."""
    command, remedy = DOWNLOADS[package.source]
    program = shutil.which(command[0])
    if program is None:
        raise ModelError(
            f"{command[0]} was not found; it brings the object pictures. {remedy}, or use the committed atlas."
        )
    arguments = [part.format(name=package.name, version=package.version) for part in command[1:]]
    run = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    archives = list(folder.iterdir())
    if run.returncode or not archives:
        reason = run.stderr.strip()[-300:]
        raise ModelError(f"{command[0]} could not fetch {package.name} {package.version}: {reason}")
    return archives[0]


def codepoints(emoji: str) -> list[str]:
    """The names under which sets file an emoji: its code points in hex, with and without the variation selector."""
    full = "-".join(f"{ord(letter):x}" for letter in emoji)
    return [full, full.replace("-fe0f", "")]


def webp_reader(folder: Path) -> Callable[[str], Image.Image | None]:
    """Reads one emoji's picture from a package of WebP files named by code point."""

    def read(emoji: str) -> Image.Image | None:
        """Its picture, RGBA; None where the package has none."""
        for name in codepoints(emoji):
            path = folder / "package" / "assets" / f"{name}.webp"
            if path.exists():
                return Image.open(path).convert("RGBA")
        return None

    return read


def iconify_reader(folder: Path, names: Path) -> Callable[[str], Image.Image | None]:
    """Reads one emoji's picture from an Iconify package: SVG bodies in one JSON file, rasterised at 256 px.

    `names` is the unpacked NAMES package. Sets file an emoji by code point or by its name, spelled with or without
    hyphens.
    """
    icons = json.loads((folder / "package" / "icons.json").read_text())
    by_code = json.loads((folder / "package" / "chars.json").read_text())
    emoji_names = json.loads((names / "package" / "data-by-emoji.json").read_text())
    aliases = {alias: entry["parent"] for alias, entry in icons.get("aliases", {}).items()}

    def find(emoji: str) -> str | None:
        slug = emoji_names[emoji]["slug"].replace("_", "-")
        candidates = [by_code[code] for code in codepoints(emoji) if code in by_code]
        candidates += [slug, slug.replace("-", ""), f"{slug}-face", f"{slug}building"]
        for name in candidates:
            while name in aliases:
                name = aliases[name]
            if name in icons["icons"]:
                return name
        return None

    def read(emoji: str) -> Image.Image | None:
        """Its picture, RGBA, 256 pixels wide; None where the package has none."""
        name = find(emoji)
        return None if name is None else rasterise(icons, name)

    return read


def rasterise(icons: dict[str, Any], name: str) -> Image.Image:
    """An icon of an Iconify set by its name, RGBA, 256 pixels wide. `icons` is the content of `icons.json`."""
    import resvg_py

    icon = icons["icons"][name]
    width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}">{icon["body"]}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=2 * SPRITE_PX, height=2 * SPRITE_PX)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def stand_up(picture: Image.Image) -> np.ndarray:
    """Crop to the object, scale its longer side to the tile, set its base on the bottom. (128, 128, 4) uint8."""
    box = picture.getchannel("A").point(lambda alpha: 255 if alpha > 40 else 0).getbbox()
    if box is None:
        raise ModelError("an object picture is empty")
    crop = picture.crop(box)
    scale = (SPRITE_PX - 4) / max(crop.size)
    crop = crop.resize(
        (max(1, round(crop.width * scale)), max(1, round(crop.height * scale))), Image.Resampling.LANCZOS
    )
    tile = Image.new("RGBA", (SPRITE_PX, SPRITE_PX))
    tile.paste(crop, ((SPRITE_PX - crop.width) // 2, SPRITE_PX - 2 - crop.height))
    return np.asarray(tile)


def build_atlas(styles: Sequence[str], sources: Path) -> Atlas:
    """An atlas of every noun in every one of `styles` that has it; packages are fetched into `sources`."""
    tiles, nouns, drawn = [], [], []
    for style in styles:
        folder = fetch(PACKAGES[style], sources)
        read = webp_reader(folder) if style == "fluent3d" else iconify_reader(folder, fetch(NAMES, sources))
        for noun, emoji in NOUNS.items():
            picture = read(emoji)
            if picture is None:
                logger.warning("%s has no picture of %s", style, noun)
                continue
            tiles.append(stand_up(picture))
            nouns.append(noun)
            drawn.append(style)
    return Atlas(pixels=np.stack(tiles), nouns=tuple(nouns), styles=tuple(drawn))
