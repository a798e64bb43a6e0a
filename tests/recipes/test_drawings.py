"""The second edition's object pictures: nothing of the held-out subjects among them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perfusion.pocket.vocabulary import NOUNS
from recipes.pocket.drawings import CLIPART, EMOJI_PACKAGES, POSE_PACKAGES, STREAMLINE, wide_atlas
from recipes.pocket.sprites import DATA, PACKAGES, Atlas, held_out_atlas, stand_up, training_atlas
from recipes.pocket.subjects import SUBJECTS, only

NEAR = 0.9
"""Correlation above which two pictures count as one drawing."""
MAKERS_HELD_OUT = ("emojione", "fxemoji", "emojitwo", "joypixels")


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    return wide_atlas()


@pytest.fixture(scope="module")
def subjects() -> np.ndarray:
    return np.concatenate([only(held_out_atlas(), s.noun, s.style).pixels for s in SUBJECTS])


def signatures(tiles: np.ndarray) -> np.ndarray:
    """Edges and outline of each picture, scaled to fill 24 pixels, in unit length. (n, 3 · 24²).

    Blind to hue, place and size, sensitive to form.
    """
    rows = []
    for tile in tiles:
        upright = Image.fromarray(stand_up(Image.fromarray(tile))).convert("RGBa")
        small = np.asarray(upright.resize((24, 24), Image.Resampling.BOX), float)
        grey, alpha = small[..., :3].mean(-1) / 255, small[..., 3] / 255
        grey = grey + 0.5 * (1 - alpha)
        parts = [np.abs(np.gradient(grey, axis=0)), np.abs(np.gradient(grey, axis=1)), 0.3 * alpha]
        rows.append(np.concatenate([(part - part.mean()).ravel() for part in parts]))
    stacked = np.stack(rows)
    return np.asarray(stacked / np.linalg.norm(stacked, axis=1, keepdims=True))


def nearest(tiles: np.ndarray, references: np.ndarray) -> np.ndarray:
    """For each tile the highest correlation with a reference, mirrored or not. (n,)."""
    both = np.concatenate([references, references[:, :, ::-1]])
    return np.asarray((signatures(tiles) @ signatures(both).T).max(1))


def test_a_recoloured_mirrored_shrunk_copy_of_any_subject_would_be_noticed(subjects: np.ndarray) -> None:
    """Otherwise the next test could not fail."""
    copies = []
    for tile in subjects[:, :, ::-1]:
        picture = Image.fromarray(np.concatenate([tile[..., [2, 0, 1]], tile[..., 3:]], -1))
        smaller = picture.resize((122, 122), Image.Resampling.LANCZOS)
        canvas = Image.new("RGBA", (128, 128))
        canvas.paste(smaller, (3, 5))
        copies.append(np.asarray(canvas))
    assert nearest(np.stack(copies), subjects).min() > NEAR


def test_no_training_picture_is_nearly_a_held_out_subject(atlas: Atlas, subjects: np.ndarray) -> None:
    likeness = nearest(atlas.pixels, subjects)
    close = {f"{atlas.drawings[i]}: {likeness[i]:.2f}" for i in np.flatnonzero(likeness > NEAR)}
    assert close == set()


def test_no_set_by_the_makers_of_the_held_out_ones_enters_training(atlas: Atlas) -> None:
    packages = [*EMOJI_PACKAGES.values(), *POSE_PACKAGES, STREAMLINE, CLIPART]
    assert not [p.name for p in packages for maker in MAKERS_HELD_OUT if maker in p.name]
    assert not {p.sha256 for p in packages} & {PACKAGES[s].sha256 for s in ("emojione", "fxemoji")}
    assert not set(atlas.styles) & set(held_out_atlas().styles)


def test_every_package_names_an_open_licence_and_stands_in_the_notice() -> None:
    notice = (Path(__file__).parents[2] / "NOTICE").read_text()
    for package in [*EMOJI_PACKAGES.values(), *POSE_PACKAGES, STREAMLINE, CLIPART]:
        assert package.licence in ("MIT", "Apache-2.0", "CC-BY-4.0", "public domain"), package.name
        assert package.name.removesuffix("-2").removesuffix("-3").removesuffix("-4") in notice, package.name


def test_wider_atlas_begins_with_the_first_edition_and_widens_every_noun(atlas: Atlas) -> None:
    first = training_atlas()
    assert np.array_equal(atlas.pixels[: len(first.pixels)], first.pixels)
    assert set(atlas.nouns) == set(NOUNS)
    for noun in NOUNS:
        drawings = {d for n, d in zip(atlas.nouns, atlas.drawings, strict=True) if n == noun}
        assert len(drawings) >= 5, noun
    assert len(atlas.pixels) == len(atlas.drawings) > 500
    assert (atlas.pixels[..., 3] > 128).mean((1, 2)).min() > 0.05, "a tile is nearly empty"


def test_poses_of_a_drawing_show_one_noun_in_one_style(atlas: Atlas) -> None:
    meanings: dict[str, set[tuple[str, str]]] = {}
    for drawing, noun, style in zip(atlas.drawings, atlas.nouns, atlas.styles, strict=True):
        meanings.setdefault(drawing, set()).add((noun, style))
    assert {len(meaning) for meaning in meanings.values()} == {1}


def test_atlas_stays_small_enough_to_be_committed() -> None:
    assert (DATA / "sprites2.webp").stat().st_size < 4_000_000
