"""Commands that are printed can be pasted."""

import shlex

import pytest

from perfusion.shell import quoted

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
