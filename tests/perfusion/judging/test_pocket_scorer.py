"""The scorer as it ships: read without torch, equal to what was trained, right about pictures whose truth is known."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from perfusion.embedded import scorer_path
from perfusion.errors import ModelError
from perfusion.judging.pocket_scorer import NOUN_NAMES, SCORER_FILE, PocketScorer
from perfusion.pocket.vocabulary import words
from recipes.pocket.editions import EDITIONS, JUDGED
from recipes.pocket.scorer import Scorer, build_scorer
from recipes.pocket.scorer_files import save_scorer
from recipes.pocket.subjects import SUBJECTS, compose
from recipes.pocket.tokenizer import build_tokenizer
from recipes.pocket.world import Scene

EXAMPLES = Path(__file__).parents[3] / "examples" / "subjects"


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scorer, Path]:
    tokenizer = build_tokenizer(words())
    scorer = build_scorer(tokenizer, seed=3).eval()
    folder = tmp_path_factory.mktemp("scorer")
    save_scorer(scorer, tokenizer, folder, {"noun": 0.04})
    return scorer, folder


@pytest.fixture(scope="module")
def scenes() -> tuple[list[Scene], list[Image.Image]]:
    """Ninety-six scenes that no training drew: their backgrounds have a seed of their own."""
    rng, world = random.Random(99), EDITIONS[2].world(backdrops=4, seed=99)
    described = [world.sample(rng, JUDGED) for _ in range(96)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        pictures = (world.render(described)[0] * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return described, [Image.fromarray(np.ascontiguousarray(picture)) for picture in pictures]


def test_saved_scorer_says_what_the_trained_one_says(
    untrained: tuple[Scorer, Path], scenes: tuple[list[Scene], list[Image.Image]]
) -> None:
    scorer, folder = untrained
    pictures = scenes[1][:3]
    verdict = PocketScorer(folder)(pictures)
    tensor = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2)
    with torch.no_grad():
        answers = scorer.answer(tensor.float() / 127.5 - 1)
    np.testing.assert_allclose(verdict.embeddings, answers.embeddings.numpy(), atol=1e-5)
    np.testing.assert_allclose(verdict.nouns, answers.nouns.numpy(), atol=1e-4)
    np.testing.assert_allclose(verdict.scene, answers.scene.numpy(), atol=1e-4)
    np.testing.assert_allclose(verdict.where, answers.where.numpy(), atol=1e-5)
    assert verdict.best_nouns(0)[0] == NOUN_NAMES[int(answers.nouns[0].argmax())]


def test_saved_text_graph_gives_the_text_towers_embeddings(untrained: tuple[Scorer, Path]) -> None:
    from perfusion.runtime.compute.onnx_graph import OnnxGraph

    scorer, folder = untrained
    tokenizer = build_tokenizer(words())
    ids = tokenizer(
        ["a cat", "two red apples on a wooden table"], padding="max_length", return_tensors="pt"
    ).input_ids
    found = OnnxGraph(folder / "text.onnx", ["input_ids"], "embeddings", "cpu")(input_ids=ids.numpy())
    with torch.no_grad():
        np.testing.assert_allclose(found, scorer.embed_text(ids).numpy(), atol=1e-5)


def test_pictures_of_any_size_and_mode_are_judged(untrained: tuple[Scorer, Path]) -> None:
    verdict = PocketScorer(untrained[1])([Image.new("L", (40, 300)), Image.new("RGBA", (128, 128))])
    assert len(verdict.place) == 2
    assert all(1 <= count <= 3 for count in verdict.count)


def test_folder_without_a_scorer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no scorer: it has no"):
        PocketScorer(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        (json.dumps({"format": "other"}), "not the file of a scorer of version 1"),
        (json.dumps({"format": "perfusion-scorer", "format_version": 1, "nouns": ["cat"]}), "other words"),
    ],
)
def test_damaged_or_foreign_scorer_is_refused(
    untrained: tuple[Scorer, Path], tmp_path: Path, content: str, message: str
) -> None:
    folder = tmp_path / "scorer"
    shutil.copytree(untrained[1], folder)
    (folder / SCORER_FILE).write_text(content)
    with pytest.raises(ModelError, match=message):
        PocketScorer(folder)


def test_shipped_scorer_is_small_and_reports_its_accuracies() -> None:
    scorer = PocketScorer()
    assert sum(path.stat().st_size for path in scorer_path().iterdir()) <= 6_000_000
    assert set(scorer.accuracies) >= {"noun", "pair", "side", "place", "colour", "count", "scene"}


def test_shipped_scorer_is_right_about_scenes_whose_truth_is_known(
    scenes: tuple[list[Scene], list[Image.Image]],
) -> None:
    described, pictures = scenes
    verdict = PocketScorer()(pictures)
    places = [found == scene.place for found, scene in zip(verdict.place, described, strict=True)]
    single = [row for row, scene in enumerate(described) if len(scene.nouns) == 1]
    nouns = [verdict.best_nouns(row)[0] == described[row].nouns[0] for row in single]
    counts = [verdict.count[row] == len(described[row].items) for row in single]
    middles = [(row, list(scene.middles().items())) for row, scene in enumerate(described)]
    ordered = [
        (told[0] < told[1]) == (first[1] < second[1])
        for row, (first, second) in ((row, pair) for row, pair in middles if len(pair) == 2)
        if abs(first[1] - second[1]) > 0.1
        for told in [[verdict.where[row, NOUN_NAMES.index(noun)] for noun, _ in (first, second)]]
    ]
    assert len(single) > 40 and len(ordered) > 10
    assert np.mean(places) >= 0.95
    assert np.mean(nouns) >= 0.9
    assert np.mean(counts) >= 0.95
    assert np.mean(ordered) >= 0.9
    assert (verdict.scene > 0).mean() >= 0.95


def test_scorer_that_leaves_an_answer_out_is_refused(untrained: tuple[Scorer, Path], tmp_path: Path) -> None:
    """As that of the first edition, which did not tell where things stand."""
    folder = shutil.copytree(untrained[1], tmp_path / "scorer")
    graph = onnx.load(folder / "image.onnx")
    (where,) = (output for output in graph.graph.output if output.name == "where")
    graph.graph.output.remove(where)
    onnx.save(graph, folder / "image.onnx")
    with pytest.raises(ModelError, match=r"image\.onnx does not give where: it is another scorer's"):
        PocketScorer(folder)


def test_shipped_scorer_knows_noise_from_a_scene() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (8, 128, 128, 3)).astype(np.uint8)
    assert (PocketScorer()([Image.fromarray(picture) for picture in noise]).scene < 0).all()


def test_twelve_subjects_over_eight_superclasses_lie_in_the_examples() -> None:
    assert len(SUBJECTS) >= 12
    assert len({subject.noun for subject in SUBJECTS}) >= 8
    assert sorted(path.name for path in EXAMPLES.iterdir()) == sorted(subject.name for subject in SUBJECTS)
    for subject in SUBJECTS:
        for folder in (EXAMPLES / subject.name, EXAMPLES / subject.name / "masks"):
            assert sorted(path.name for path in folder.glob("*.png")) == [f"{n}.png" for n in range(1, 6)]


def test_committed_pictures_of_a_subject_are_what_its_recipe_composes() -> None:
    subject = SUBJECTS[0]
    for number, (picture, mask) in enumerate(zip(*compose(subject.noun, subject.style), strict=True), 1):
        for made, name in ((picture, f"{number}.png"), (mask, f"masks/{number}.png")):
            committed = np.asarray(Image.open(EXAMPLES / subject.name / name), np.int16)
            assert np.abs(np.asarray(made, np.int16) - committed).max() <= 2, name
