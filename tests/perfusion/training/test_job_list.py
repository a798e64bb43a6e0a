"""Lists of trainings: what a row means, and what is refused before anything is trained."""

import argparse
from pathlib import Path

import pytest
from PIL import Image

from perfusion.errors import TrainingError
from perfusion.training.job_list import read_job_list
from perfusion.training.training_options import add_training_options


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two folders of pictures beside a list."""
    for name in ("red", "blue"):
        (tmp_path / "mugs" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), name).save(tmp_path / "mugs" / name / "1.png")
    return tmp_path


def jobs_of(folder: Path, text: str, name: str = "list.csv", defaults: argparse.Namespace | None = None):
    (folder / name).write_text(text, "utf-8")
    return read_job_list(folder / name, folder / "out", defaults)


def defaults(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_training_options(parser)
    return parser.parse_args(words)


def test_columns_are_options_and_paths_are_relative_to_the_list(folder: Path) -> None:
    first, second = jobs_of(
        folder,
        "images,superclass,token,steps,flip,no-keys,masks,scorer\n"
        'mugs/red,teapot,<red-mug>,30,no,yes,mugs/red,mugs\n\nmugs/blue,"teddy bear",,,,,none,\n',
    )
    assert (first.images, first.output) == (folder / "mugs/red", folder / "out" / "red-mug.safetensors")
    assert (first.config.token, first.config.steps, first.config.flip, first.keys) == (
        "<red-mug>",
        30,
        False,
        False,
    )
    assert (first.config.masks, first.config.scorer) == (folder / "mugs/red", folder / "mugs")
    assert second.output == folder / "out" / "blue.safetensors"
    assert (second.config.token, second.config.steps, second.keys) == ("<teddy-bear>", 400, True)
    assert second.config.masks == "none"


def test_the_command_lines_options_hold_where_a_row_says_nothing(folder: Path) -> None:
    text = "images,superclass,steps,no-keys\nmugs/red,teapot,7,false\nmugs/blue,teapot,,\n"
    usual = defaults("--steps", "50", "--no-keys", "--model", "here", "--seed", "3")
    first, second = jobs_of(folder, text, defaults=usual)
    assert (first.config.steps, first.keys) == (7, True)
    assert (second.config.steps, second.keys) == (50, False)
    assert {job.config.seed for job in (first, second)} == {3}
    assert {job.model for job in (first, second)} == {Path("here")}, "as it was typed, not beside the list"


def test_a_list_of_json_lines_says_the_same(folder: Path) -> None:
    text = (
        '{"images": "mugs/red", "superclass": "teapot", "token": "<red>", "steps": 7, "flip": false}\n\n'
        '{"images": "mugs/blue", "superclass": "teapot", "output": "sub/blue.png", "token": null}\n'
    )
    first, second = jobs_of(folder, text, "list.jsonl")
    assert (first.config.steps, first.config.flip) == (7, False)
    assert second.output == folder / "out" / "sub" / "blue.png"


def test_semicolons_and_a_byte_order_mark_are_what_spreadsheets_write(folder: Path) -> None:
    (job,) = jobs_of(folder, "\ufeffimages;superclass\nmugs/red;teapot\n")
    assert job.config.superclass == "teapot"


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_cells_are_parted_as_the_first_line_with_words_is(folder: Path, separator: str) -> None:
    rows = [[], ["images", "superclass", "steps"], ["mugs/red", "teapot", "30"]]
    (job,) = jobs_of(folder, "\r\n".join(separator.join(cells) for cells in rows))
    assert (job.images, job.config.steps) == (folder / "mugs/red", 30)


def test_concepts_that_share_a_token_are_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    jobs_of(folder, "images,superclass,token\nmugs/red,teapot,<a>\nmugs/blue,teapot,<b>\n")
    assert not caplog.records
    jobs_of(folder, "images,superclass\nmugs/red,teapot\nmugs/blue,teapot\n")
    (record,) = caplog.records
    assert "lines 2, 3 all have the token <teapot>" in record.getMessage()


def test_the_words_of_another_model_are_not_asked_for_here(folder: Path) -> None:
    (job,) = jobs_of(folder, "images,superclass,model\nmugs/red,kitten,mugs\n")
    assert (job.config.superclass, job.model) == ("kitten", folder / "mugs")


def test_the_numbers_of_spreadsheets_are_read(folder: Path) -> None:
    """Where a column has empty cells, pandas writes 300.0, and a German spreadsheet 300,0."""
    first, second = jobs_of(
        folder, "images;superclass;steps\nmugs/red;teapot;300.0\nmugs/blue;teapot;300,0\n"
    )
    assert (first.config.steps, second.config.steps) == (300, 300)


def test_the_losses_of_each_row_have_a_file_of_its_own(folder: Path) -> None:
    text = "images,superclass\nmugs/red,teapot\nmugs/blue,teapot\n"
    first, second = jobs_of(folder, text, defaults=defaults("--log-losses", "csv"))
    assert first.losses_path == folder / "out" / "red.losses.csv"
    assert second.written[-1] == folder / "out" / "blue.losses.csv"
    (job,) = jobs_of(folder, "images,superclass,log-losses\nmugs/red,teapot,tensorboard\n")
    assert job.losses_path == folder / "out" / "red.losses"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("images,superclass,stepz\nmugs/red,teapot,3\n", "line 1: the column 'stepz' .* Did you mean steps"),
        ("images,superclass,jobs\nmugs/red,teapot,3\n", "the column 'jobs' is no option"),
        ("images,superclass,resume\nmugs/red,teapot,yes\n", "the column 'resume' is no option"),
        ("images\nmugs/red\n", "line 2: there is no superclass, which every row needs"),
        ("images,superclass\nmugs/red,teapot\nmugs/green,teapot\n", "line 3: .*green is not there"),
        ("images,superclass,steps\nmugs/red,teapot,many\n", "line 2: Argument --steps: 'many' is no whole number"),
        ("images,superclass,steps\nmugs/red,teapot,0\n", "line 2: The option steps is 0"),
        ("images,superclass,flip\nmugs/red,teapot,maybe\n", "flip is 'maybe', expected true or false"),
        ("images,superclass,token\nmugs/red,teapot,mug\n", "line 2: The token is 'mug', expected a word in angle"),
        ("images,superclass\nmugs/red,teapot,extra\n", "line 2: 3 cells for 2 columns"),
        ("images,superclass,token\nmugs/red,teapot,<a>\nmugs/blue,teapot,<A>\n", "line 3: writes .* as line 2 does"),
        ("images,superclass,output\nmugs/red,teapot,../a\n", "expected a name in the folder of --output"),
        ("images,superclass,output\nmugs/red,teapot,/a\n", "expected a name in the folder of --output"),
        ("images,superclass,token\nmugs/red,teapot,<a/b>\n", "Add an output"),
        ("images,superclass,masks\nmugs/red,teapot,mugs/mask\n", "line 2: The column masks is .*mask, and nothing is"),
        ("images,superclass,scorer\nmugs/red,teapot,clip\n", "line 2: The column scorer is .*clip, and nothing is"),
        ("images,superclass\nmugs/red,teapot\nmugs/blue,kitten\n", "line 3: .*never seen 'kitten'; did you mean cat"),
        ("images,images,superclass\nmugs/red,mugs/blue,teapot\n", "line 1: the column images comes twice"),
        ("mugs/red,teapot\nmugs/blue,teapot\n", "line 1: the column 'mugs/red' .* first line names its columns"),
        ('images,superclass\n"mugs/red,teapot\nmugs/blue,teapot\n', "a quote that opens is not closed"),
        ("images,superclass\n", "has no rows"),
    ],
)  # fmt: skip
def test_what_a_list_cannot_say_is_refused_by_its_line(folder: Path, text: str, sentence: str) -> None:
    with pytest.raises(TrainingError, match=sentence):
        jobs_of(folder, text)


def test_other_files_are_no_lists(folder: Path) -> None:
    with pytest.raises(TrainingError, match=r"does not end in \.csv or \.jsonl"):
        jobs_of(folder, "images\n", "list.xlsx")
    with pytest.raises(TrainingError, match="cannot be read as a list"):
        read_job_list(folder / "nothing.csv", folder)
    (folder / "list.csv").write_bytes("images,superclass\nmugs/red,théière\n".encode("latin-1"))
    with pytest.raises(TrainingError, match="save it as CSV UTF-8"):
        read_job_list(folder / "list.csv", folder)
    with pytest.raises(TrainingError, match="line 1: expected an object of JSON"):
        jobs_of(folder, "[1]\n", "list.jsonl")
