"""Choosing a step: by arithmetic that can be done by hand, with scorers that can be understood."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from perfusion.concept.concept_file import Concept
from perfusion.errors import TrainingError
from perfusion.judging.selection import PROMPTS, cut_to_mask, score_snapshots, select


def sure(values: dict[int, float]) -> dict[int, list[float]]:
    """Two pictures a step that agree, so that chance has no part in any difference."""
    return {step: [value, value] for step, value in values.items()}


def test_score_is_the_harmonic_mean_of_both_brought_to_zero_and_one() -> None:
    selection = select(sure({100: 0.2, 200: 0.5, 300: 0.6}), sure({100: 0.30, 200: 0.27, 300: 0.20}))
    assert [score.step for score in selection.scores] == [100, 200, 300]
    image, text = 0.75, 0.7  # (0.5 − 0.2) / 0.4 and (0.27 − 0.20) / 0.10
    assert selection.scores[1].score == pytest.approx(2 / (1 / image + 1 / text))
    assert [score.score for score in selection.scores][::2] == [0, 0]
    assert selection.best.step == 200
    assert [score.chosen for score in selection.scores] == [False, True, False]
    assert selection.why == "the snapshot of step 200 scores 0.72 ± 0.00 more than the last, and is taken"


def test_choice_does_not_depend_on_order_or_on_the_scale_of_a_scorer() -> None:
    image, text = sure({3: 0.7, 1: 0.1, 2: 0.6}), sure({2: 0.25, 3: 0.1, 1: 0.3})
    expected = select(image, text)
    scaled = select(
        {step: [5 * value + 1 for value in row] for step, row in image.items()},
        {step: [value / 9 for value in row] for step, row in text.items()},
    )
    assert expected.best.step == scaled.best.step == 2
    assert [s.score for s in scaled.scores] == pytest.approx([s.score for s in expected.scores])


@pytest.mark.parametrize(
    ("image", "text", "best"),
    [
        ([0.3], [0.2], 1),  # a single step
        ([0.3, 0.3, 0.3], [0.1, 0.3, 0.2], 2),  # one scorer says nothing: the other decides
        ([0.1, 0.4, 0.3], [0.2, 0.2, 0.2], 2),
        ([0.3, 0.3, 0.3], [0.2, 0.2, 0.2], 3),  # neither says anything: the last
        ([0.5, 0.9], [0.3, 0.2], 2),  # each is worst in something: the last
        ([0.1, 0.4, 0.4, 0.3], [0.2, 0.2, 0.2, 0.2], 3),  # of equals the later
        ([-0.5, -0.2, -0.3], [-0.3, -0.1, -0.3], 2),
    ],
)
def test_ties_and_constant_scores_have_an_answer(image, text, best) -> None:
    steps = range(1, len(image) + 1)
    selection = select(sure(dict(zip(steps, image, strict=True))), sure(dict(zip(steps, text, strict=True))))
    assert selection.best.step == best
    assert sum(score.chosen for score in selection.scores) == 1


def pictures_of(means: Sequence[float], noise: float, seed: int, count: int = 12) -> dict[int, list[float]]:
    """Similarities of `count` pictures a step: each picture is hard or easy at all steps alike, and noisy besides."""
    rng = np.random.default_rng(seed)
    hardness = rng.normal(0, 0.1, count)
    return {
        100 * (at + 1): (mean + hardness + rng.normal(0, noise, count)).tolist()
        for at, mean in enumerate(means)
    }


def chosen(image: Sequence[float], text: Sequence[float], noise: float) -> list[int]:
    """The choices of 200 trainings whose true similarities are these."""
    return [
        select(pictures_of(image, noise, seed), pictures_of(text, noise, 1000 + seed)).best.step
        for seed in range(200)
    ]


def test_snapshots_that_differ_by_chance_leave_the_last_one() -> None:
    choices = chosen([0.64] * 6, [0.77] * 6, noise=0.04)
    assert choices.count(600) >= 185, "chance would choose it 33 times"
    alone = select(sure(dict.fromkeys((1, 2), 0.5)), sure(dict.fromkeys((1, 2), 0.5)))
    assert alone.why == "the snapshots differ by no more than chance, so the last one is taken"
    one_picture = select({1: [0.9], 2: [0.1]}, {1: [0.9], 2: [0.1]})
    assert one_picture.best.step == 2, "of one picture nobody knows how much chance does"


def test_overtraining_is_seen_through_the_same_noise() -> None:
    image, text = [0.60, 0.64, 0.66, 0.67, 0.675, 0.68], [0.78, 0.775, 0.77, 0.755, 0.74, 0.72]
    choices = chosen(image, text, noise=0.03)
    assert sum(step in (200, 300, 400) for step in choices) >= 170, "five choices in six"


def test_a_gain_within_its_own_error_is_not_taken() -> None:
    """Steps 2 and 3 are told apart from step 1; between them one picture of four decides."""
    image = {1: [0.1] * 4, 2: [0.5, 0.5, 0.5, 0.62], 3: [0.51, 0.52, 0.51, 0.50]}
    text = sure({1: 0.2, 2: 0.2, 3: 0.2})
    selection = select(image, {step: row * 2 for step, row in text.items()})
    assert selection.scores[1].score > selection.scores[2].score
    assert selection.best.step == 3
    assert "which chance may have done, so the last one is taken" in selection.why


def test_the_error_of_a_gain_is_that_of_many_repetitions() -> None:
    """The delta method against drawing the pictures again and again."""
    image, text, count = (0.60, 0.66, 0.68), (0.78, 0.76, 0.72), 400
    gains, told = [], []
    for seed in range(300):
        selection = select(pictures_of(image, 0.03, seed, count), pictures_of(text, 0.03, 5000 + seed, count))
        gains.append(selection.scores[1].score)  # the last one is worst in its text: zero
        told.append(float(selection.why.split("±")[1].split()[0]))
    assert np.mean(told) == pytest.approx(np.std(gains), rel=0.35)


@pytest.mark.parametrize(
    ("image", "text", "message"),
    [
        ({}, {}, "expected one or more steps"),
        ({1: [0.5]}, {2: [0.5]}, "The text similarities are of 1 steps .* expected 1 steps with the same"),
        ({1: [0.5], 2: [0.5, 0.4]}, {1: [0.5], 2: [0.5]}, r"of 2 steps with \[1, 2\] pictures"),
        ({1: [0.5]}, {1: [0.5, 0.5]}, "1 pictures a step have an image similarity and 2 a text"),
        ({1: [0.5], 2: [float("nan")]}, {1: [0.5], 2: [0.5]}, "The image similarity of step 2 is nan"),
        ({1: [0.5]}, {1: [float("inf")]}, "The text similarity of step 1 is inf"),
    ],
)
def test_what_cannot_be_compared_is_refused(image, text, message) -> None:
    with pytest.raises(TrainingError, match=message):
        select(image, text)


def test_selection_can_be_printed_and_told_to_programs() -> None:
    selection = select(sure({100: 0.2, 200: 0.5, 300: 0.6}), sure({100: 0.3, 200: 0.27, 300: 0.2}))
    lines = selection.table().splitlines()
    assert [line.endswith("*") for line in lines] == [False, False, True, False]
    assert lines[2].split()[:3] == ["200", "0.500", "0.270"]
    assert json.loads(selection.to_json())[1]["chosen"] is True


# --- with pictures


COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "cat": (0, 0, 1)}


class ColourScorer:
    """Pictures and texts as colours: a picture's mean colour, a text's named one. Remembers what it read."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def embed_pictures(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        means = np.stack([np.asarray(picture.convert("RGB"), float).mean((0, 1)) for picture in pictures])
        return (means / np.linalg.norm(means, axis=-1, keepdims=True)).astype(np.float32)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        self.read += texts
        named = np.array(
            [np.sum([colour for word, colour in COLOURS.items() if word in text], 0) for text in texts]
        )
        return (named / np.linalg.norm(named, axis=-1, keepdims=True)).astype(np.float32)


def plain(*colour: int) -> Image.Image:
    return Image.new("RGB", (8, 8), colour)


@pytest.fixture
def snapshots(make_concept) -> dict[int, Concept]:
    return {
        step: make_concept(token="<cat>", superclass="cat", training={"steps": str(step)})
        for step in (300, 100, 200)
    }


def draw(concept: Concept, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
    """The longer it was trained, the more of the training pictures' blue and the less of what the prompt says."""
    blue = {"100": 0, "200": 128, "300": 255}[concept.training["steps"]]
    return [
        plain((255 - blue) * ("red" in prompt), (255 - blue) * ("green" in prompt), blue + seed)
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]


def test_steps_are_drawn_and_judged_by_the_training_pictures_and_by_the_prompts(snapshots) -> None:
    """The middle one shows both the concept's blue and the prompt's colour."""
    asked: list[tuple[str, int]] = []

    def drawing(concept: Concept, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        asked.extend(zip(prompts, seeds, strict=True))
        return draw(concept, prompts, seeds)

    scorer, reports = ColourScorer(), []
    selection = score_snapshots(
        snapshots, drawing, scorer, [plain(0, 0, 255)], prompts=("a red {}", "a green {}"), seeds=(0, 1),
        report=lambda done, total: reports.append((done, total)),
    )  # fmt: skip
    assert selection.best.step == 200
    assert selection.scores[2].image == pytest.approx(1)
    assert asked[:4] == [("a red <cat>", 0), ("a red <cat>", 1), ("a green <cat>", 0), ("a green <cat>", 1)]
    assert set(scorer.read) == {"a red cat", "a green cat"}
    assert reports == [(1, 3), (2, 3), (3, 3)]
    mixed = np.array([127, 0, 128]) / np.linalg.norm([127, 0, 128])
    assert selection.scores[1].text == pytest.approx(mixed @ np.array([1, 0, 1]) / 2**0.5, abs=5e-3)


def test_validation_prompts_have_a_gap_and_drawings_are_counted(snapshots) -> None:
    with pytest.raises(
        TrainingError, match=r"The validation prompt 'a red cat' was given, expected .* a gap"
    ):
        score_snapshots(snapshots, draw, ColourScorer(), [plain(0, 0, 9)], prompts=["a red cat"])
    with pytest.raises(TrainingError, match="An empty list was given"):
        score_snapshots(snapshots, draw, ColourScorer(), [])
    with pytest.raises(TrainingError, match="1 pictures were drawn for 2 prompts"):
        score_snapshots(
            snapshots, lambda *_: [plain(0, 0, 9)], ColourScorer(), [plain(0, 0, 9)], prompts=["red {}"]
        )
    assert all("{}" in prompt for prompt in PROMPTS)


def test_a_picture_is_cut_to_its_object() -> None:
    picture, mask = Image.new("RGB", (40, 30)), Image.new("L", (40, 30))
    assert cut_to_mask(picture, None) is picture
    assert cut_to_mask(picture, mask) is picture
    mask.paste(100, (0, 0, 40, 30))  # a faint mask is no object
    mask.paste(255, (10, 5, 30, 15))
    assert cut_to_mask(picture, mask).size == (24, 14)
    mask.paste(255, (0, 0, 40, 30))
    assert cut_to_mask(picture, mask).size == (40, 30)


# --- CLIP


@pytest.fixture(scope="module")
def clip_folder(
    tiny_clip: tuple[Any, dict[str, Any], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    import torch
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer, text, vision = tiny_clip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    path = tmp_path_factory.mktemp("clip") / "model"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    sizes = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    CLIPImageProcessorPil(**sizes).save_pretrained(path)
    return path


def test_clip_embeddings_are_those_of_transformers_own_processor_and_model(clip_folder: Path) -> None:
    import torch
    from transformers import AutoTokenizer, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from perfusion.judging.clip_scorer import ClipScorer

    noise = np.random.default_rng(0).integers(0, 255, (2, 24, 40, 3), np.uint8)
    pictures = [Image.fromarray(array) for array in noise]
    pixels = CLIPImageProcessorPil.from_pretrained(clip_folder)(pictures, return_tensors="pt").pixel_values
    words = AutoTokenizer.from_pretrained(clip_folder)(
        ["a cat", "a red dog"], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        output = CLIPModel.from_pretrained(clip_folder).eval()(pixel_values=pixels, **words)
    scorer = ClipScorer(clip_folder)
    np.testing.assert_allclose(scorer.embed_pictures(pictures), output.image_embeds.numpy(), atol=2e-3)
    np.testing.assert_allclose(
        scorer.embed_texts(["a cat", "a red dog"]), output.text_embeds.numpy(), atol=1e-4
    )
    assert scorer.embed_texts(["cat " * 40]).shape == (1, 8)


def test_a_folder_that_is_no_clip_model_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    from perfusion.errors import ModelError
    from perfusion.judging.clip_scorer import ClipScorer

    with pytest.raises(
        ModelError, match=r"no such folder; expected a folder .* openai/clip-vit-base-patch32"
    ):
        ClipScorer(tmp_path / "nothing")
    for path in clip_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"12345")
    with pytest.raises(ModelError, match="cannot be read as CLIP"):
        ClipScorer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="no vocabulary"):
        ClipScorer(tmp_path)
