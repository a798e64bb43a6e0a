"""Who may ask: the name that was called, the page that calls, and the key."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import cookie_parser

from perfusion.errors import RequestError

__all__ = ["COOKIE", "LOOPBACK", "Access", "Refusal"]

LOOPBACK = frozenset(("127.0.0.1", "localhost", "::1"))
COOKIE = "perfusion"
COOKIE_SECONDS = 30 * 24 * 3600
OPEN_PATHS = frozenset(("/healthz", "/readyz", "/", "/api/login"))
OPEN_FOLDERS = ("/studio/",)
"""What needs no key: the page itself holds nothing, and logs in."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a request is refused."""

    status: int
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Access:
    """The rules of one server.

    `keys`: what Bearer and Basic (as the password) must give; empty where only this machine can ask. Clients are told
    apart by their keys. `hosts`: the names by which the server may be called; another name is a foreign site's that
    leads here (DNS rebinding). An address of numbers cannot be. `origins`: pages of other sites that may ask.
    """

    keys: Sequence[str] = ()
    hosts: Collection[str] = LOOPBACK
    origins: Collection[str] = ()

    @classmethod
    def of(
        cls,
        host: str,
        keys: Sequence[str] = (),
        allowed_hosts: Collection[str] = (),
        origins: Collection[str] = (),
    ) -> Access:
        """The rules for an address to listen at.

        Raises:
            RequestError: other machines could ask, and there is no key.
        """
        if host not in LOOPBACK and not keys:
            raise RequestError(
                f"The host {host} can be reached by other machines, and there is no key. Give a key in a file "
                "(--key-file), or leave --host out."
            )
        return cls(
            keys=tuple(keys),
            hosts=LOOPBACK | {host.lower()} | {name.lower() for name in allowed_hosts},
            origins=frozenset(origin.rstrip("/").lower() for origin in origins),
        )

    def refusal(self, path: str, headers: Headers) -> Refusal | None:
        """Why a request is refused; None where it may pass."""
        host = headers.get("host", "")
        if not self._is_ours(_name(f"//{host}")):
            return Refusal(
                status=403,
                sentence="The Host of this request is not this server's. Start it with --allowed-host NAME.",
            )
        if self._is_foreign(path, headers):
            return Refusal(
                status=403,
                sentence="This request comes from a page of another site, which may not ask this server.",
            )
        if not self.keys or path in OPEN_PATHS or path.startswith(OPEN_FOLDERS) or self.owner(headers):
            return None
        return Refusal(
            status=401,
            sentence="The key is missing or wrong. Send it as a Bearer token, or as the password of Basic.",
        )

    def owner(self, headers: Headers) -> str | None:
        """Who holds the key or the cookie of a request; None without a right one."""
        secret = _secret(headers.get("authorization", ""))
        if secret is not None:
            return self.owner_of(secret)
        return self._owner_of_cookie(cookie_parser(headers.get("cookie", "")).get(COOKIE, ""))

    def owner_of(self, secret: bytes) -> str | None:
        """Who holds a key. All are compared, and the time it takes does not tell how much of one is right."""
        matches = [key for key in self.keys if hmac.compare_digest(secret, key.encode())]
        return _owner(matches[0]) if matches else None

    def cookie(self, key: str) -> str:
        """What a page holds in place of the key: its owner, until when, and a mark that only this key makes."""
        words = f"{_owner(key)}.{int(time.time()) + COOKIE_SECONDS}"
        return f"{words}.{_mark(key, words)}"

    def _owner_of_cookie(self, cookie: str) -> str | None:
        words, _, mark = cookie.rpartition(".")
        owner, _, ends = words.partition(".")
        for key in self.keys:
            right = hmac.compare_digest(_mark(key, words).encode(), mark.encode())
            if right and owner == _owner(key) and float(ends) > time.time():
                return owner
        return None

    def _is_ours(self, name: str | None) -> bool:
        return name is not None and (name in self.hosts or _is_address(name))

    def _is_foreign(self, path: str, headers: Headers) -> bool:
        """Whether a page of another site asks; a browser says so. To come here by a link is no question."""
        origin = headers.get("origin")
        if origin is not None:
            return not self.allows(origin) and _place(origin) != headers.get("host", "").lower()
        if headers.get("sec-fetch-site", "none") not in ("cross-site", "same-site"):
            return False
        return not (path == "/" and headers.get("sec-fetch-mode") == "navigate")

    def allows(self, origin: str) -> bool:
        """Whether pages of another site were let in."""
        return origin.lower() in self.origins


def _secret(authorization: str) -> bytes | None:
    """What a header gives as the key; None without such a header."""
    scheme, _, value = authorization.partition(" ")
    secret = value.strip().encode()
    if scheme.lower() == "bearer":
        return secret
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(secret, validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""


def _owner(key: str) -> str:
    """A name for the holder of a key, from which the key cannot be told."""
    return hashlib.sha256(b"owner of " + key.encode()).hexdigest()[:16]


def _mark(key: str, words: str) -> str:
    return hmac.new(key.encode(), words.encode(), hashlib.sha256).hexdigest()


def _name(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def _place(origin: str) -> str:
    """An origin's name and port, as Host gives them."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
