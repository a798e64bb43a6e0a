"""What the README says can be typed, and the numbers that it and docs/measured.md give."""

import importlib
import itertools
import json
import re
import shlex
from pathlib import Path

import pytest

from perfusion.runtime import Runtime

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MEASURED = (ROOT / "docs" / "measured.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True)
    for kind, block in BLOCKS
    if not kind
    for line in block.splitlines()
    if line.startswith(".venv/bin/perfusion-")
]


def test_the_readme_is_a_screen_and_a_half() -> None:
    assert len(README.splitlines()) <= 80


def test_every_system_is_told_the_same_installation() -> None:
    assert '\n.venv/bin/pip install ".[cpu]"\n' in README
    assert '`.venv\\Scripts\\pip install ".[cpu]"`' in README
    assert "perfusion-edge[" not in README, "there is no such entry in any index yet"


def test_the_readme_has_commands_and_code_to_try() -> None:
    assert len(COMMANDS) >= 4
    assert [kind for kind, _ in BLOCKS].count("python") == 1


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: Path(command[0]).name)
def test_commands_of_the_readme_are_understood(command: list[str]) -> None:
    name = Path(command[0]).name.removeprefix("perfusion-")
    module = importlib.import_module(f"perfusion.commands.{name}")
    module._parser().parse_args(command[1:])  # SystemExit for a word it does not know


def test_first_command_of_the_readme_draws_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    from perfusion.commands.generate import main

    monkeypatch.chdir(tmp_path)
    assert main([*COMMANDS[0][1:], "--steps", "2", "--quiet"]) == 0
    with Image.open(tmp_path / "cake.png") as picture:
        assert picture.size == (128, 128)


def test_code_of_the_readme_runs_and_the_last_line_has_an_effect() -> None:
    (code,) = (block for kind, block in BLOCKS if kind == "python")
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    runtime, picture = names["runtime"], names["picture"]
    assert isinstance(runtime, Runtime)
    again = runtime.generate("a photo of a <pink-cake> on a beach", seed=0)
    assert again.tobytes() != picture.tobytes()  # type: ignore[attr-defined]


PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / ".github").rglob("*.md")]


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_the_pages_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def typed(page: Path) -> list[list[str]]:
    """The command lines of a page that can be typed as they stand."""
    text = re.sub(r"\\\n *", " ", page.read_text(encoding="utf-8"))
    lines = re.findall(r"^ *(?:\.venv/bin/)?(perfusion-\w+ .*)$", text, re.MULTILINE)
    words = [shlex.split(line, comments=True) for line in lines if "..." not in line and "[" not in line]
    return [list(itertools.takewhile(lambda word: not word.startswith((">", "|")), line)) for line in words]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_the_pages_are_understood(page: Path) -> None:
    for name, *arguments in [] if page.name == "CHANGELOG.md" else typed(page):
        module = importlib.import_module(f"perfusion.commands.{name.removeprefix('perfusion-')}")
        if hasattr(module, "_parser"):  # serve's and fleet's are made of several
            module._parser().parse_args(arguments)  # SystemExit for a word it does not know


def test_a_board_is_given_what_was_made_for_it_before() -> None:
    """The way to a board in its order: no command reads a bundle that none before it has written."""
    bundles: set[str] = set()
    for name, *arguments in typed(ROOT / "docs" / "jetson.md"):
        options = dict(itertools.pairwise(arguments))
        if "--bundle" in options:
            assert options["--bundle"] in bundles, f"{name} {shlex.join(arguments)}"
        if name == "perfusion-export":
            bundles.add(options["--output"])
    assert bundles


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_the_pages_name_are_there(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        return  # it tells of files as they were called then
    named = re.findall(
        r"`((?:perfusion|export|runtime|devices|tests|recipes|benchmarks|examples|docs)/[\w./-]+)`",
        page.read_text(encoding="utf-8").split("## Rooms to come")[0],
    )
    for name in named:
        assert (ROOT / name).exists(), name


def test_every_picture_of_the_documentation_is_shown_somewhere() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for path in (ROOT / "docs" / "pictures").iterdir():
        # the evaluation keeps a table of drawings for each method and shows some of them
        assert path.name.startswith("evaluation-") or f"pictures/{path.name})" in text, path.name


def test_the_index_of_the_documentation_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "docs").glob("*.md"):
        assert path.name == "README.md" or f"]({path.name})" in index, path.name


def numbers(benchmark: str) -> dict[str, float]:
    """Every number of a benchmark's records, as the README may write it: two or three significant digits."""
    records = [json.loads(path.read_text()) for path in (ROOT / "benchmarks" / "records").glob("*.json")]
    (record,) = (record for record in records if record["benchmark"] == benchmark)
    return {
        f"{number} {key}": value
        for number, row in enumerate(record["rows"])
        for key, value in row.items()
        if isinstance(value, int | float)
    }


@pytest.mark.parametrize(
    "table, least",
    [
        (README.split("## Numbers")[1].split("\n## ")[0], 7),
        (MEASURED.split("## Measured")[1].split("\n## ")[0], 15),
    ],
    ids=["README", "measured"],
)
def test_measured_numbers_are_those_of_the_records(table: str, least: int) -> None:
    """Each cell `12.3 s` of a table is some number of a record, rounded as written."""
    benchmarks = (
        "swap", "startup", "draw", "train", "lora", "step", "batch", "footprint", "export", "export-sdxl",
        "concept-cost", "studio_page",
    )  # fmt: skip
    known = [float(value) for name in benchmarks for value in numbers(name).values()]
    cells = re.findall(r"([\d.]+) (?:ms|s|MB|GB|×|kB)", table)
    assert len(cells) >= least, "the table is empty"
    for cell in cells:
        decimals = len(cell.partition(".")[2])
        assert any(
            round(value * scale, decimals) == float(cell) for value in known for scale in (1, 0.001)
        ), f"{cell} is in no record"


def test_as_many_subjects_take_as_the_model_page_says() -> None:
    (path,) = (ROOT / "benchmarks" / "records").glob("subjects-*.json")
    subjects = json.loads(path.read_text())["rows"]
    takes = sum(bool(row["takes"]) for row in subjects)
    page = (ROOT / "docs" / "pocket.md").read_text(encoding="utf-8")
    assert f"**{takes} of {len(subjects)} do**" in page


def test_the_comparison_is_that_of_the_record() -> None:
    from benchmarks.evaluation.methods import METHODS

    (path,) = (ROOT / "benchmarks" / "records").glob("evaluation-*.json")
    rows = json.loads(path.read_text())["rows"]
    (trainings,) = (row for row in rows if row["what"] == "trainings")
    names = {method.title: method.name for method in METHODS}
    section = MEASURED.split("## Compared")[1].split("\n## ")[0]
    cells = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(cells) == len(METHODS) - sum(method.group == "ablation" for method in METHODS) - 1
    assert "No method of up to ten times its size beats Perfusion" in " ".join(section.split())
    small = [row for row in rows if row["what"] == "front" and row["counts"]]
    assert small and "above" not in {row["stands"] for row in small}
    for title, *written in cells:
        first = next(row for row in rows if row["what"] == "prompts" and row["method"] == names[title])
        assert written == [
            f"{trainings[names[title]]['bytes']:,.0f}", f"{first['image'][0]:.2f}", f"{first['text'][0]:.2f}",
            f"{100 * first['both'][0]:.0f} %", f"{first['drift'][0]:.0f}",
        ]  # fmt: skip
        assert {"twelve": 12, "eight": 8}[section.split(" held-out subjects")[0].split()[-1].lower()] == len(
            first["subjects"]
        )


def test_file_sizes_of_the_format_page_are_those_that_were_written() -> None:
    (path,) = (ROOT / "benchmarks" / "records").glob("concept_files-*.json")
    written = {row["bytes"] for row in json.loads(path.read_text())["rows"]}
    table = (ROOT / "docs" / "format.md").read_text(encoding="utf-8").split("Beside what else")[1]
    sizes = [int(cell.replace(",", "")) for cell in re.findall(r"\| (\d[\d,]+)", table.split("\n## ")[0])]
    assert len(sizes) == 14
    assert set(sizes) <= written


def test_times_of_readings_on_the_method_page_are_those_of_the_record() -> None:
    (path,) = (ROOT / "benchmarks" / "records").glob("region_step-*.json")
    rows = json.loads(path.read_text())["rows"]
    ratios = {(row["model"], row["what"]): row["ratio"] for row in rows if "ratio" in row}
    page = (ROOT / "docs" / "method.md").read_text(encoding="utf-8").split("## Regions")[-1]
    assert len(ratios) == 6
    for key, ratio in ratios.items():
        assert f"{ratio:.2f} ×" in page, key
    apart = [row["rmse_of_255"] for row in rows if "rmse_of_255" in row]
    assert f"by {min(apart):.0f} to {max(apart):.0f} of 255" in page
    assert ratios["pocket", "one reading over format 1"] <= 1.02
    assert ratios["sd15", "two readings over one"] <= 1.05


def test_what_the_page_of_training_says_of_verdicts_is_that_of_the_record() -> None:
    from perfusion.judging.verdict import SURE

    (path,) = (ROOT / "benchmarks" / "records").glob("verdicts-*.json")
    rows = json.loads(path.read_text())["rows"]
    seeds = [row for row in rows if row.get("what") == "seed"]
    agree = [row["agree"] for row in seeds]
    assert [row["subjects"] for row in seeds] == [12, 12, 12]
    assert min(agree) >= 11
    assert not any(row["wrongly_learned"] for row in seeds)
    shares = [row["noun"] for row in rows if "noun" in row]
    assert not any(0.34 < share < SURE for share in shares)  # so the border has room on both sides
    page = " ".join((ROOT / "docs" / "training.md").read_text(encoding="utf-8").split())
    assert f"agreed on {agree[0]}, {agree[1]} and {agree[2]} of 12" in page


def test_so_many_captions_as_ours_leave_every_gate_where_more_would_put_it() -> None:
    from perfusion.training.captions import CAPTIONS

    (path,) = (ROOT / "benchmarks" / "records").glob("second_moment-*.json")
    rows = json.loads(path.read_text())["rows"]
    wide = {row["captions"]: row for row in rows if row.get("encoder", "").startswith("768")}
    trained = [row for row in rows if row["what"] == "concept"]
    most = max(row["captions"] for row in trained)
    assert wide[CAPTIONS]["changed_percent"] <= 0.02
    assert wide[CAPTIONS]["mean_change"] <= 2 * wide[20_000]["mean_change"]
    gains = {
        is_all: [row["gain"] for row in trained if (row["captions"] == most) is is_all]
        for is_all in (True, False)
    }
    assert len(gains[True]) == len(gains[False]) == 3
    page = " ".join((ROOT / "docs" / "training.md").read_text(encoding="utf-8").split())
    assert f"{wide[CAPTIONS]['changed_percent']} % of the gates" in page
    assert f"{wide[2000]['changed_percent']} % with 2,000" in page
    assert all(f"{sum(gains[is_all]) / 3:.3f}" in page for is_all in gains)
