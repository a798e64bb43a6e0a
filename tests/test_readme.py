"""What the README says can be typed, and what it says was measured."""

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest

from perfusion.runtime import Runtime

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True)
    for kind, block in BLOCKS
    if not kind
    for line in block.splitlines()
    if line.startswith(".venv/bin/perfusion-")
]


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


def test_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


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


def test_measured_numbers_of_the_readme_are_those_of_the_records() -> None:
    """Each cell `12.3 s` of the table is some number of a record, rounded as written."""
    table = README.split("## Measured")[1].split("\n## ")[0]
    benchmarks = (
        "swap", "startup", "draw", "train", "lora", "step", "batch", "footprint", "export", "export-sdxl",
        "concept-cost",
    )  # fmt: skip
    known = [float(value) for name in benchmarks for value in numbers(name).values()]
    cells = re.findall(r"([\d.]+) (?:ms|s|MB|GB|×|kB)", table)
    assert len(cells) >= 15, "the table is empty"
    for cell in cells:
        decimals = len(cell.partition(".")[2])
        assert any(
            round(value * scale, decimals) == float(cell) for value in known for scale in (1, 0.001)
        ), f"{cell} is in no record"


def test_shares_that_the_readme_and_the_model_page_give_are_those_of_the_records() -> None:
    quality, subjects = (
        json.loads(next((ROOT / "benchmarks" / "records").glob(f"{name}-*.json")).read_text())["rows"]
        for name in ("quality", "subjects")
    )
    takes = sum(bool(row["takes"]) for row in subjects)
    page = (ROOT / "docs" / "pocket.md").read_text(encoding="utf-8")
    for row in quality[:4]:
        assert f"{row['percent']} %" in README
        assert f"| {row['percent']} % |" in page
        assert row["percent"] >= row["bar"]
    words = ("six", "seven", "eight", "nine", "ten", "eleven", "twelve")
    assert f"it learns {words[takes - 6]}" in README
    assert f"**{takes} of {len(subjects)} do**" in page


def test_the_comparison_of_the_readme_is_that_of_the_record() -> None:
    from benchmarks.evaluation.methods import METHODS

    (path,) = (ROOT / "benchmarks" / "records").glob("evaluation-*.json")
    rows = json.loads(path.read_text())["rows"]
    (trainings,) = (row for row in rows if row["what"] == "trainings")
    names = {method.title: method.name for method in METHODS}
    section = README.split("## Compared")[1].split("\n## ")[0]
    cells = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(cells) == len(METHODS) - sum(method.group == "ablation" for method in METHODS) - 1
    assert "no setting of a method of up to ten times its bytes lies above it" in " ".join(section.split())
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
