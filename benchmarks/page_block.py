"""The part of a page that a command writes from records, between that command and an end in comments."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PageBlock"]


@dataclass(frozen=True, kw_only=True)
class PageBlock:
    """Where it stands, and what belongs there."""

    page: Path
    command: str
    """The module that writes it, as `python -m` takes it."""
    text: Callable[[], str]

    def in_page(self, page: str) -> str:
        """What a page says there now."""
        match = self._place.search(page)
        assert match is not None, f"docs/{self.page.name} has no place for the records"
        return match.group()

    def main(self) -> None:
        """Print the block, or with --write put it into the page."""
        if "--write" in sys.argv[1:]:
            page = self.page.read_text(encoding="utf-8")
            self.page.write_text(self._place.sub(lambda _: self.text(), page), encoding="utf-8", newline="\n")
        else:
            print(self.text())

    @property
    def _place(self) -> re.Pattern[str]:
        opening = re.escape(f"<!-- python -m {self.command} --write -->\n")
        return re.compile(rf"(?<={opening}).*?(?=<!-- end -->)", re.DOTALL)
