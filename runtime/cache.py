"""What is worth keeping between pictures, as much as fits."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any, Generic, TypeVar

__all__ = ["Cache"]

Value = TypeVar("Value")


class Cache(Generic[Value]):
    """Values by their keys; those not asked for the longest go first.

    A key holds all that its value depends on, so nothing in here is ever out of date.
    """

    def __init__(self, most_bytes: int, size_of: Callable[[Value], int]) -> None:
        self._most, self._size_of = most_bytes, size_of
        self._kept: OrderedDict[Hashable, Value] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def size(self) -> int:
        """Bytes of what is kept."""
        return self._bytes

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """What is kept under a key, or made now. A value too large to be kept is made every time."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        value = make()
        size = self._size_of(value)
        with self._lock:
            if key not in self._kept and size <= self._most:
                self._kept[key] = value
                self._bytes += size
            while self._bytes > self._most:
                self._bytes -= self._size_of(self._kept.popitem(last=False)[1])
        return value

    def drop(self, unwanted: Callable[[Any], bool]) -> None:
        """Forget what is kept under the keys that are `unwanted`."""
        with self._lock:
            for key in [key for key in self._kept if unwanted(key)]:
                self._bytes -= self._size_of(self._kept.pop(key))

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0
