"""The page of the package index: README.md with links that lead somewhere there. All else is in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup

FOLDER = Path(__file__).parent
PICTURE = re.compile(r"!\[[^\]]*\]\((?!http)[^)]+\)\n\n(\*[^*]+\*\n\n)?")
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!http)([^)#]*)(#[^)]*)?\)")


def source_address(pyproject: str) -> str:
    """The repository's address, `Source` of [project.urls]; "" as long as there is none."""
    address = re.search(r'^Source = "(https://[^"]+?)/?"$', pyproject, re.M)
    return address[1] if address else ""


def index_page(readme: str, source: str) -> str:
    """README.md with its links into the repository made absolute.

    Without an address they become plain text, and pictures go with the captions below them.
    """
    if not source:
        return LINK.sub(r"\2", PICTURE.sub("", readme))

    def absolute(link: re.Match[str]) -> str:
        mark, text, path, anchor = link.groups("")
        return f"{mark}[{text}]({source}/{'raw' if mark else 'blob'}/HEAD/{path or 'README.md'}{anchor})"

    return LINK.sub(absolute, readme)


setup(
    long_description=index_page(
        (FOLDER / "README.md").read_text(encoding="utf-8"),
        source_address((FOLDER / "pyproject.toml").read_text(encoding="utf-8")),
    ),
    long_description_content_type="text/markdown",
)
