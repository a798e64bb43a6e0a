"""docs/pocket.md on the front of the second edition: its numbers are those of the record."""

import json

from benchmarks.record import ROOT

PAGE = " ".join((ROOT / "docs" / "pocket.md").read_text("utf-8").split())


def test_the_page_gives_the_points_of_the_record() -> None:
    (record,) = (ROOT / "benchmarks" / "records").glob("front-*.json")
    rows = json.loads(record.read_text("utf-8"))["rows"]
    points = {(row["what"], row["setting"]): row for row in rows if "setting" in row}

    def share(what: str, setting: str) -> str:
        return f"{100 * points[what, setting]['both'][0]:.0f} %"

    def place(setting: str) -> tuple[str, str]:
        row = points["prompts", setting]
        return f"{row['image'][0]:.2f}", f"{row['text'][0]:.2f}"

    most = max((key for key in points if key[0] == "prompts"), key=lambda key: points[key]["image"][0])
    assert most[1] == "global 0.4"
    for words, setting in (
        ("The most alike (global lock, bias 0.4) has {} and keeps {};", "global 0.4"),
        ("global lock with bias 0.9 has {} and keeps {};", "global 0.9"),
        ("local lock with strength 0.75 has {} and keeps {}.", "local 0.75, strength 0.75"),
    ):
        assert words.format(*place(setting)) in PAGE
    assert f"{share('prompts', 'local 0.75')} of the pictures with the shipped setting" in PAGE
    assert f"and in {share('prompts', 'local 0.75, strength 0.75')} with strength 0.75" in PAGE
    assert f"both in {share('pairs', 'local 0.75, strength 0.8, start 0.15')} (" in PAGE
