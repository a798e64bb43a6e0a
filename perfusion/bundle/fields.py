"""Reading values out of bundle.json: each of the expected kind, or a sentence that names it."""

import math
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, NoReturn

from perfusion.errors import BundleError

__all__ = ["Fields"]

_MOST = 2**53  # larger numbers stand for nothing here, and for whole ones JSON readers disagree
_MOST_NAME = 255  # bytes; file systems answer longer names with errors of their own
_MOST_TEXT = 255  # characters; texts are names, and stand in messages
_AGAIN = "Export the bundle again, or take an undamaged copy."


class Fields:
    """One JSON object and the place it stands at, for the messages."""

    def __init__(self, values: Any, where: str) -> None:
        self.where = where
        if not isinstance(values, dict):
            raise BundleError(f"{where} is {_show(values)}, expected an object. {_AGAIN}")
        self._values: Mapping[str, Any] = values

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def names(self) -> list[str]:
        """The keys, in the file's order."""
        return list(self._values)

    def text(self, name: str, *, default: str | None = None) -> str:
        if default is not None and name not in self._values:
            return default
        value = self._get(name)
        if not isinstance(value, str) or not 0 < len(value) <= _MOST_TEXT:
            self._refuse(name, value, f"a text of 1 to {_MOST_TEXT} characters")
        return value

    def whole(self, name: str, *, least: int = 0) -> int:
        value = self._get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _MOST:
            self._refuse(name, value, f"a whole number from {least} on")
        return value

    def number(self, name: str, *, above: float = -math.inf) -> float:
        value = self._get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._refuse(name, value, "a number")
        if not -_MOST <= value <= _MOST or not value > above:  # NaN too
            self._refuse(name, value, "a finite number" + (f" above {above:g}" if above > -math.inf else ""))
        return float(value)

    def numbers(self, name: str, count: int) -> list[float]:
        """A list of `count` numbers."""
        value = self._get(name)
        if not isinstance(value, list) or len(value) != count:
            self._refuse(name, value, f"a list of {count} numbers")
        inner = Fields({f"{name}[{index}]": one for index, one in enumerate(value)}, self.where)
        return [inner.number(f"{name}[{index}]") for index in range(count)]

    def table(self, name: str, *, rows: int, columns: int) -> list[list[float]]:
        """A list of `rows` lists of `columns` numbers."""
        value = self._get(name)
        if not isinstance(value, list) or len(value) != rows:
            self._refuse(name, value, f"a list of {rows} lists of {columns} numbers")
        inner = Fields({f"{name}[{index}]": one for index, one in enumerate(value)}, self.where)
        return [inner.numbers(f"{name}[{index}]", columns) for index in range(rows)]

    def truth(self, name: str, *, default: bool | None = None) -> bool:
        if default is not None and name not in self._values:
            return default
        value = self._get(name)
        if not isinstance(value, bool):
            self._refuse(name, value, "true or false")
        return value

    def is_set(self, name: str) -> bool:
        """Whether an option is there and not false, null or empty."""
        return bool(self._values.get(name))

    def inner(self, name: str) -> "Fields":
        return Fields(self._get(name), f"{self.where}: {name!r}")

    def inners(self, name: str) -> list["Fields"]:
        """A list of objects that is not empty."""
        value = self._get(name)
        if not isinstance(value, list) or not value:
            self._refuse(name, value, "a list of objects")
        return [Fields(one, f"{self.where}: {name!r}[{index}]") for index, one in enumerate(value)]

    def file(self, name: str) -> str:
        """A file of the bundle, named relative to its folder."""
        return self.checked_file(self.text(name))

    def checked_file(self, name: str) -> str:
        """`name` itself, when it cannot lead out of the bundle's folder."""
        path = PurePosixPath(name)
        inside = not path.is_absolute() and ".." not in path.parts and str(path) == name != "."
        inside = inside and len(name.encode("utf-8", "surrogatepass")) <= _MOST_NAME
        if not inside or "\\" in name or ":" in name:  # separators and drives of Windows
            raise BundleError(
                f"{self.where} names the file {_show(name)}, expected a path inside the bundle's folder. {_AGAIN}"
            )
        return name

    def _get(self, name: str) -> Any:
        if name not in self._values:
            raise BundleError(f"{self.where} has no {name!r}. {_AGAIN}")
        return self._values[name]

    def _refuse(self, name: str, value: Any, expected: str) -> NoReturn:
        raise BundleError(f"{self.where}: {name!r} is {_show(value)}, expected {expected}. {_AGAIN}")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
