"""The second edition's object pictures: more drawings, styles and poses of every noun.

`build_drawings` makes the atlas anew from pinned packages; what it leaves out, it leaves out for a reason written here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from perfusion.pocket.vocabulary import NOUNS
from recipes.pocket.sprites import (
    DATA,
    NAMES,
    PACKAGES,
    TRAINING_STYLES,
    Atlas,
    Package,
    codepoints,
    fetch,
    iconify_reader,
    load_atlas,
    rasterise,
    stand_up,
    training_atlas,
    webp_reader,
)

__all__ = ["build_drawings", "wide_atlas"]

EMOJI: dict[str, str] = {
    "cat": "🐈 🐱 🐈‍⬛ 😺 😸 😾", "dog": "🐕 🐶 🦮 🐕‍🦺 🐩", "rabbit": "🐇 🐰", "elephant": "🐘", "turtle": "🐢",
    "owl": "🦉", "penguin": "🐧", "fish": "🐟 🐠 🐡", "teddy bear": "🧸", "robot": "🤖",
    "car": "🚗 🚙 🚘 🚕 🚓 🏎️", "bus": "🚌 🚍 🚎", "boat": "⛵ 🚤 🛥️ ⛴️ 🛶", "house": "🏠 🏡 🛖",
    "tree": "🌳 🌲 🌴 🎄", "cactus": "🌵", "sunflower": "🌻", "mushroom": "🍄 🍄‍🟫", "apple": "🍎 🍏",
    "cake": "🎂 🍰", "teapot": "🫖", "chair": "🪑 💺", "hat": "🎩 👒", "umbrella": "☂️ ☔ ⛱️ 🌂",
}  # fmt: skip
"""Noun → the emoji that picture it, the first edition's own first."""

EMOJI_PACKAGES = {style: PACKAGES[style] for style in TRAINING_STYLES} | {
    "fluentflat": Package(name="@iconify-json/fluent-emoji-flat", version="1.2.6", licence="MIT",
                          sha256="7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175"),
    "notov1": Package(name="@iconify-json/noto-v1", version="1.2.5", licence="Apache-2.0",
                      sha256="2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37"),
}  # fmt: skip

POSE_PACKAGES = tuple(
    Package(name=f"@lobehub/fluent-emoji-anim-{part}", version="1.0.0", licence="MIT", sha256=sha256)
    for part, sha256 in enumerate(
        (
            "4c03ac178c1eabf2e2a16dd498f3cc2b92dc30ec3466ae38fdc497d4774c99ea",
            "e431da8172e394036c330faa77648d6fbbae1fd3b0be95637c4497c9075019c0",
            "3624d0c34c819c1794b74ccf6ae9034adff7c4cb6318dd2a645145f0196feb43",
            "3d4c08f1e321f70808ef4996aba0ab575a9d97b6c56ffffc92cf6161a7836aa3",
        ),
        start=1,
    )
)
POSES: dict[str, tuple[float, ...]] = {
    "🐈": (0.0, 0.3, 0.55, 0.8), "🐈‍⬛": (0.15, 0.4, 0.65, 0.9), "🐱": (0.0, 0.3, 0.65, 0.85), "😺": (0.15, 0.4, 0.9),
    "😸": (0.4, 0.75), "🐕": (0.0, 0.3, 0.5, 0.8), "🐕‍🦺": (0.0, 0.4, 0.8), "🐩": (0.15, 0.4, 0.65),
    "🐶": (0.15, 0.4, 0.65), "🦮": (0.15, 0.4, 0.65), "🐇": (0.15, 0.4, 0.65), "🐰": (0.15, 0.3, 0.65, 0.8),
    "🐘": (0.1, 0.3, 0.5, 0.8), "🐟": (0.15, 0.4, 0.65, 0.9), "🐠": (0.15, 0.4, 0.65), "🐡": (0.15, 0.3, 0.5),
    "🐢": (0.0, 0.15, 0.3), "🐧": (0.0, 0.15, 0.3, 0.5, 0.65, 0.9), "🦉": (0.0, 0.15, 0.3, 0.5, 0.65, 0.9),
    "🧸": (0.0, 0.15, 0.4, 0.65), "🤖": (0.15, 0.4, 0.65), "🛶": (0.15, 0.5), "🎂": (0.3, 0.65), "🌂": (0.4,),
}  # fmt: skip
"""Emoji → the moments of its animation that are poses of their own, as shares of its length. Cars and buses only jolt;
the turtle hides its head after a third."""

STREAMLINE = Package(name="@iconify-json/streamline-emojis", version="1.2.4", licence="CC-BY-4.0",
                     sha256="5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc")  # fmt: skip
STREAMLINE_NAMES: dict[str, str] = {
    "cat": "cat cat-face cat-face-with-wry-smile grinning-cat-face pouting-cat-face", "dog": "dog dog-face poodle",
    "rabbit": "rabbit rabbit-face", "elephant": "elephant", "turtle": "turtle", "penguin": "penguin-1 penguin-2",
    "fish": "tropical-fish blowfish", "robot": "robot-face-1 robot-face-2 robot-face-3",
    "car": "automobile oncoming-taxi taxi", "boat": "sailboat speedboat", "house": "house-with-garden",
    "tree": "palm-tree christmas-tree", "cactus": "cactus-1 cactus-2", "sunflower": "sunflower-1 sunflower-2",
    "mushroom": "mushroom", "apple": "red-apple", "cake": "birthday-cake-1 shortcake-1 shortcake-2",
    "hat": "womans-hat", "umbrella": "umbrella umbrella-with-rain-drops closed-umbrella",
}  # fmt: skip
"""Noun → icons of the set. Its bus is left out: a yellow school bus is a held-out subject."""

CLIPART = Package(name="openclipart-png", version="1:0.18+dfsg-19", licence="public domain", source="apt",
                  sha256="f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02")  # fmt: skip
CLIPART_FOLDER = "usr/share/openclipart/png"
CLIPART_FILES: dict[str, tuple[str, str]] = {
    "cat": ("animals/mammals", "cartoon_cat_gerald_g._01 housecats/gatto_cat_architetto_fra_01 "
            "housecats/gatto_cat_architetto_fra_02 housecats/gatto_cat_architetto_fra_03 "
            "housecats/gatto_cat_architetto_fra_04"),
    "dog": ("animals/mammals", "dog_01_drawn_with_strai_01 dog_03_drawn_with_strai_01 dog_04_drawn_with_strai_01 "
            "dog_05_drawn_with_strai_01 dog_06_drawn_with_strai_01 dogs/beagle_copper_ganson "
            "dogs/bobi_architetto_francesc_01 dogs/bored_dog_01"),
    "rabbit": ("animals/mammals", "coniglio_architetto_fran_01"),
    "elephant": (".", "animals/mammals/elefante01_architetto_fr_01 animals/mammals/elefante02_architetto_fr_01 "
                 "unsorted/elefante_in_corsa unsorted/elefantone"),
    "turtle": ("animals", "turtle_jurgen_gaeremyn_01"),
    "owl": ("animals/birds", "gufo_civetta_architetto__01"),
    "penguin": (".", "animals/birds/baby_tux_01 animals/birds/emperor_penguin_ralf_ste_01 "
                "animals/birds/new_penguin_charles_mcco_01 animals/birds/penguin/plush_tux_anita_01 "
                "animals/birds/penguin/tux_clemente_01 unsorted/Pinguino1 unsorted/Pinguino2 unsorted/Pinguino4"),
    "fish": (".", "animals/fish/altum_angelfish_01 animals/fish/bofish_massimo_aiello_r animals/fish/brown_fish_01 "
             "animals/fish/clown_loach_01 animals/fish/giraffe_cichlid_01 "
             "animals/fish/pescetto_arancione_archi_01 animals/fish/yellow_gourami_01 unsorted/pescetto"),
    "teddy bear": ("recreation/toys", "simple_teddy_bear_gerald_01 simple_teddy_bear_with__01 "
                   "stylized_teddy_bear_gera_01 stylized_teddy_bear_wit_01 teddybear_jarno_vasamaa_"),
    "robot": ("recreation/toys", "robot_ganson"),
    "car": (".", "recreation/holiday/sportcar_sergio_luiz_ara_01 transportation/car_jamin_ellis_ "
            "transportation/formula_one_car_gerald_g_01 transportation/skoda_car_alejandro_teja_ "
            "transportation/vehicles/car"),
    "bus": ("transportation", "bus1_jarno_vasamaa_01 bus2_jarno_vasamaa_01"),
    "boat": ("transportation/boating", "boat_jarno_vasamaa1 boat_jarno_vasamaa_ sailboat_illustration"),
    "house": ("buildings/homes", "home0 home1 home12 home14 home2 home3 home4 home6 home9 house "
              "house_christoph_brill_01 house_juliane_krug_01 my_house_01 small_house_01 "
              "casa_verde_architetto_fr_01 casa_dei_sogni_architett_01"),
    "tree": (".", "food/fruit/tree_whit_fruits_01 plants/fall_coloured_tree_geral_01 plants/flowers/cartoon_tree_01 "
             "plants/trees/christmas_tree_mo_01 plants/trees/evergreen/plain_tree_01 "
             "plants/trees/evergreen/simple_evergreen_with_highlights_01 plants/trees/evergreen/tree "
             "plants/albero_architetto_france_01"),
    "mushroom": ("plants", "mushroom mushroom_benji_park_ toadstool_daniel_steele_r"),
    "apple": ("food", "apple_bitten_dan_gerhard_01 fruit/an_apple_01 fruit/another_apple_01 fruit/apple "
              "fruit/apple_martin_schmidt-li_01r fruit/cartoon_apple_k_yager_01"),
    "cake": ("food/desserts", "birthday_cake cake1_jarno_vasamaa_01 cake_etienne_bersac_r "
             "flat_cake_jean-victor_ba_01 torta_architetto_frances_01"),
    "teapot": ("food/beverages", "teapot_ganson"),
    "chair": ("buildings/furniture", "poltrona_ufficio_archite_01 sedia_in_legno_architett_01"),
    "hat": ("people/clothing", "adventurer_hat_nicu_bucu_01 winter_hat_nathan_eady_01 hats/aussie_hat_01 "
            "hats/hat_-_clothing_nicu_bucu_01 hats/hat_-_clothing_nicu_bucu_03 hats/hat_-_clothing_nicu_bucu_04 "
            "hats/hat_-_clothing_nicu_bucu_05 hats/pimp_hat_james_birkett_01 hats/purple_hat_nicu_buculei_01 "
            "hats/tophat_benji_park_01"),
    "umbrella": ("recreation/holiday", "canada_umbrella_ganson"),
}  # fmt: skip
"""Noun → a folder and files in it. A pink cake and an umbrella of many colours are left out: both are held out."""

QUALITY = 90
Drawing = tuple[str, str, str, Image.Image]
"""Noun, style, the name that poses of one drawing share, and the picture."""


def wide_atlas() -> Atlas:
    """The pictures of the second edition: the first edition's own, then those that it adds."""
    first, more = training_atlas(), load_atlas(DATA / "sprites2.webp")
    own = tuple(f"{style}/{NOUNS[noun]}" for noun, style in zip(first.nouns, first.styles, strict=True))
    return Atlas(
        pixels=np.concatenate([first.pixels, more.pixels]),
        nouns=first.nouns + more.nouns,
        styles=first.styles + more.styles,
        drawings=own + more.drawings,
    )


def build_drawings(sources: Path) -> Atlas:
    """The pictures that the second edition adds; packages (1 GB in all) are fetched into `sources`."""
    rows = [*emoji_drawings(sources), *poses(sources), *streamline(sources), *clipart(sources)]
    nouns, styles, drawings, pictures = zip(*rows, strict=True)
    tiles = np.stack([stand_up(picture) for picture in pictures])
    return Atlas(pixels=tiles, nouns=nouns, styles=styles, drawings=drawings)


def emoji_drawings(sources: Path) -> Iterator[Drawing]:
    """Every emoji of EMOJI in every set that has it, without those of the first edition's atlas."""
    names = fetch(NAMES, sources)
    for style, package in EMOJI_PACKAGES.items():
        folder = fetch(package, sources)
        read = webp_reader(folder) if style == "fluent3d" else iconify_reader(folder, names)
        for noun, emoji in _entries(EMOJI):
            known = style in TRAINING_STYLES and emoji == NOUNS[noun]
            picture = None if known else read(emoji)
            if picture is not None:
                yield noun, style, f"{style}/{emoji}", picture


def poses(sources: Path) -> Iterator[Drawing]:
    """Frames of the animated set that are poses of their own; they share the drawing of the still picture."""
    folders = [fetch(package, sources) / "package" / "assets" for package in POSE_PACKAGES]
    for noun, emoji in _entries(EMOJI):
        paths = [folder / f"{name}.webp" for folder in folders for name in codepoints(emoji)]
        for path in [path for path in paths if path.exists()][:1]:
            film = Image.open(path)
            for moment in POSES.get(emoji, ()):
                film.seek(int(moment * film.n_frames))  # type: ignore[attr-defined]
                yield noun, "fluent3d", f"fluent3d/{emoji}", film.convert("RGBA")


def streamline(sources: Path) -> Iterator[Drawing]:
    """Icons of the Streamline set: flat colours within a dark line."""
    icons = json.loads((fetch(STREAMLINE, sources) / "package" / "icons.json").read_text())
    for noun, name in _entries(STREAMLINE_NAMES):
        yield noun, "streamline", f"streamline/{name}", rasterise(icons, name)


def clipart(sources: Path) -> Iterator[Drawing]:
    """Pictures of the Open Clip Art Library: every one by another hand."""
    root = fetch(CLIPART, sources) / CLIPART_FOLDER
    for noun, (folder, files) in CLIPART_FILES.items():
        for name in files.split():
            picture = Image.open(root / folder / f"{name}.png")
            picture.thumbnail((512, 512))
            yield noun, "clipart", f"clipart/{Path(name).name}", picture.convert("RGBA")


def _entries(table: dict[str, str]) -> Iterator[tuple[str, str]]:
    return ((noun, entry) for noun, entries in table.items() for entry in entries.split())
