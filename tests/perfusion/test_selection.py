"""Choosing a step: by arithmetic that can be done by hand, with judges that can be understood."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perfusion.concept import Concept
from perfusion.errors import TrainingError
from perfusion.training.selection import PROMPTS, Selection, cut_to_mask, score_snapshots, select


def test_score_is_the_harmonic_mean_of_both_brought_to_zero_and_one() -> None:
    selection = select({100: 0.2, 200: 0.5, 300: 0.6}, {100: 0.30, 200: 0.27, 300: 0.20})
    assert [score.step for score in selection.scores] == [100, 200, 300]
    image, text = 0.75, 0.7  # (0.5 − 0.2) / 0.4 and (0.27 − 0.20) / 0.10
    assert selection.scores[1].score == pytest.approx(2 / (1 / image + 1 / text))
    assert [score.score for score in selection.scores][::2] == [0, 0]
    assert selection.best.step == 200
    assert [score.chosen for score in selection.scores] == [False, True, False]


def test_choice_does_not_depend_on_order_or_on_the_scale_of_a_judge() -> None:
    image, text = {3: 0.7, 1: 0.1, 2: 0.6}, {2: 0.25, 3: 0.1, 1: 0.3}
    expected = select(image, text)
    scaled = select({s: 5 * v + 1 for s, v in image.items()}, {s: v / 9 for s, v in text.items()})
    assert expected.best.step == scaled.best.step == 2
    assert [s.score for s in scaled.scores] == pytest.approx([s.score for s in expected.scores])


@pytest.mark.parametrize(
    ("image", "text", "best"),
    [
        ([0.3], [0.2], 1),  # a single step
        ([0.3, 0.3, 0.3], [0.1, 0.3, 0.2], 2),  # one judge says nothing: the other decides
        ([0.1, 0.4, 0.3], [0.2, 0.2, 0.2], 2),
        ([0.3, 0.3, 0.3], [0.2, 0.2, 0.2], 1),  # neither says anything: the earliest
        ([0.5, 0.9], [0.3, 0.2], 1),  # each is worst in something: by the cosines themselves, 0.375 and 0.327
        ([0.5, 0.9], [0.3, 0.29], 2),
        ([-0.5, -0.2], [-0.1, -0.3], 1),  # nothing positive to tell them apart: the earlier
    ],
)
def test_ties_and_constant_scores_have_an_answer(image, text, best) -> None:
    steps = range(1, len(image) + 1)
    selection = select(dict(zip(steps, image, strict=True)), dict(zip(steps, text, strict=True)))
    assert selection.best.step == best
    assert sum(score.chosen for score in selection.scores) == 1


@pytest.mark.parametrize(
    ("image", "text", "message"),
    [
        ({}, {}, "expected the same steps, at least one"),
        ({1: 0.5}, {2: 0.5}, "expected the same steps"),
        ({1: 0.5, 2: float("nan")}, {1: 0.5, 2: 0.5}, "the image similarity of step 2 is nan"),
        ({1: 0.5}, {1: float("inf")}, "the text similarity of step 1 is inf"),
    ],
)
def test_what_cannot_be_compared_is_refused(image, text, message) -> None:
    with pytest.raises(TrainingError, match=message):
        select(image, text)


def test_selection_can_be_printed_and_stored() -> None:
    selection = select({100: 0.2, 200: 0.5, 300: 0.6}, {100: 0.3, 200: 0.27, 300: 0.2})
    lines = selection.table().splitlines()
    assert [line.endswith("*") for line in lines] == [False, False, True, False]
    assert lines[2].split()[:3] == ["200", "0.500", "0.270"]
    assert json.loads(selection.to_json())[1]["chosen"] is True
    assert Selection.from_json(selection.to_json()) == selection


# --- with pictures


COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "cat": (0, 0, 1)}


class ColourJudge:
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

    judge, reports = ColourJudge(), []
    selection = score_snapshots(
        snapshots, drawing, judge, [plain(0, 0, 255)], prompts=("a red {}", "a green {}"), seeds=(0, 1),
        report=lambda done, total: reports.append((done, total)),
    )  # fmt: skip
    assert selection.best.step == 200
    assert selection.scores[2].image == pytest.approx(1)
    assert asked[:4] == [("a red <cat>", 0), ("a red <cat>", 1), ("a green <cat>", 0), ("a green <cat>", 1)]
    assert set(judge.read) == {"a red cat", "a green cat"}
    assert reports == [(1, 3), (2, 3), (3, 3)]
    mixed = np.array([127, 0, 128]) / np.linalg.norm([127, 0, 128])
    assert selection.scores[1].text == pytest.approx(mixed @ np.array([1, 0, 1]) / 2**0.5, abs=5e-3)


def test_validation_prompts_have_a_gap_and_drawings_are_counted(snapshots) -> None:
    with pytest.raises(
        TrainingError, match=r"the validation prompt 'a red cat' was given, expected .* a gap"
    ):
        score_snapshots(snapshots, draw, ColourJudge(), [plain(0, 0, 9)], prompts=["a red cat"])
    with pytest.raises(TrainingError, match="an empty list was given"):
        score_snapshots(snapshots, draw, ColourJudge(), [])
    with pytest.raises(TrainingError, match="1 pictures were drawn for 2 prompts"):
        score_snapshots(
            snapshots, lambda *_: [plain(0, 0, 9)], ColourJudge(), [plain(0, 0, 9)], prompts=["red {}"]
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
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from perfusion.pocket.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(["a", "cat", "dog", "red"], context_length=12)
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 12, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 16, "patch_size": 4,
    }  # fmt: skip
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

    from perfusion.training.clip_scorer import ClipScorer

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
    from perfusion.training.clip_scorer import ClipScorer

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
