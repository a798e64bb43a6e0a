"""httpx's functions with one TLS context for all, since making one takes longer than most requests here."""

import ssl
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import httpx

_SETTINGS: dict[str, Any] = {"verify": ssl.create_default_context(), "timeout": 60}


def request(method: str, url: str, **options: Any) -> httpx.Response:
    """A request on a connection of its own."""
    return httpx.request(method, url, **_SETTINGS | options)


def stream(method: str, url: str, **options: Any) -> AbstractContextManager[httpx.Response]:
    """A request whose answer is read as it comes."""
    return httpx.stream(method, url, **_SETTINGS | options)


def client(**options: Any) -> httpx.Client:
    """A client that keeps its connections."""
    return httpx.Client(**_SETTINGS | options)


def _method(name: str) -> Callable[..., httpx.Response]:
    def call(url: str, **options: Any) -> httpx.Response:
        return request(name, url, **options)

    return call


get, post, patch, delete, options = (_method(name) for name in ("GET", "POST", "PATCH", "DELETE", "OPTIONS"))
