"""Commands that are printed can be pasted."""

import ast
import re
import shlex

import pytest

from perfusion.shell import quoted
from tests.rooms import FOLDERS, ROOT, python_files

WORDS = ["perfusion-export", "--bundle", "/home/a b/it's", "", "plain"]


def test_a_posix_shell_reads_the_words_back(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    assert shlex.split(quoted(*WORDS)) == WORDS


@pytest.mark.parametrize(
    ("word", "text"),
    [
        (r"C:\cats", r"C:\cats"),
        (r"C:\my cats", r'"C:\my cats"'),
        ("C:\\my cats\\", '"C:\\my cats\\\\"'),  # a backslash before the closing quote would escape it
        ("it's", "it's"),
    ],
)
def test_on_windows_only_double_quotes_are_used(monkeypatch, word, text):
    monkeypatch.setattr("sys.platform", "win32")
    assert quoted("run", word) == f"run {text}"


COMMAND = re.compile(r"(?:pip3? (?:un)?install|perfusion-[a-z]+|python3?|py) [^\n]*")
"""A command line in a page or in a message, from its program to the end of the line."""
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / ".github").rglob("*.md")]


def code_of(page):
    """A page's code: blocks between fences, indented ones, and what stands between backticks."""
    for block in re.findall(r"^```\w*\n(.*?)^```", page, re.M | re.S):
        yield from block.splitlines()
    yield from re.findall(r"^    .*$", page, re.M)
    yield from re.findall(r"`([^`\n]+)`", page)


def advice_of(module):
    """The commands in the sentences of a module, from `pip install` on or with an option of ours."""
    for node in ast.walk(ast.parse(module)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(
                r"pip3? (?:un)?install [^\n]*|perfusion-[a-z]+[^\n]* --\w+ '[^\n]*", node.value
            )


def test_commands_in_the_pages_have_no_single_quotes_which_cmd_exe_does_not_know():
    commands = [
        (page.name, command)
        for page in PAGES
        for code in code_of(page.read_text(encoding="utf-8"))
        for command in COMMAND.findall(code)
    ]
    assert len(commands) > 50
    assert [command for command in commands if "'" in command[1]] == []


def test_commands_in_messages_have_no_single_quotes_either():
    paths = [path for folder in (*FOLDERS, "examples") for path in python_files(ROOT / folder)]
    commands = [
        (path.name, command) for path in paths for command in advice_of(path.read_text(encoding="utf-8"))
    ]
    assert len(commands) > 5
    assert [command for command in commands if re.search(r" '(?!cuda|cpu)", command[1])] == []


def test_the_search_for_quotes_sees_them():
    page = "Run `pip install 'perfusion-edge[cpu]'`.\n\n    perfusion-sweep --prompt 'a cat'\n"
    assert [code for code in code_of(page) if COMMAND.search(code) and "'" in code] == [
        "    perfusion-sweep --prompt 'a cat'",
        "pip install 'perfusion-edge[cpu]'",
    ]
    assert list(advice_of("say(f\"{x}: pip install 'perfusion-edge[cpu]'\")"))
