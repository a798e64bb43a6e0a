"""Who may ask: the name that was called, the page that calls, and the key."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from perfusion.errors import RequestError

__all__ = ["LOOPBACK", "Access"]

LOOPBACK = frozenset(("127.0.0.1", "localhost", "::1"))
OPEN_PATHS = frozenset(("/healthz", "/readyz"))


@dataclass(frozen=True, kw_only=True)
class Access:
    """The rules of one server.

    `key`: what Bearer and Basic (as the password) must give; None where only this machine can ask. `hosts`: the names
    by which the server may be called; another name is a foreign site's that leads here (DNS rebinding).
    """

    key: str | None = None
    hosts: Collection[str] = LOOPBACK

    @classmethod
    def of(cls, host: str, key: str | None, allowed_hosts: Collection[str] = ()) -> Access:
        """The rules for an address to listen at.

        Raises:
            RequestError: other machines could ask, and there is no key.
        """
        if host not in LOOPBACK and not key:
            raise RequestError(
                f"The host {host} can be reached by other machines, and there is no key. Give a key in a file "
                "(--key-file), or leave --host out."
            )
        return cls(
            key=key or None, hosts=LOOPBACK | {host.lower()} | {name.lower() for name in allowed_hosts}
        )

    def refusal(self, path: str, headers: Headers) -> tuple[int, str] | None:
        """The status and the sentence with which a request is refused; None where it may pass."""
        if _name(f"//{headers.get('host', '')}") not in self.hosts:
            return 403, "The Host of this request is not this server's. Start it with --allowed-host NAME."
        origin = headers.get("origin")
        if origin is not None and _name(origin) not in self.hosts:
            return 403, "This request comes from a page of another site, which may not ask this server."
        if self.key is None or path in OPEN_PATHS or self._has_key(headers.get("authorization", "")):
            return None
        return 401, "The key is missing or wrong. Send it as a Bearer token, or as the password of Basic."

    def _has_key(self, authorization: str) -> bool:
        """Whether a header holds the key; the time it takes does not tell how much of it."""
        scheme, _, value = authorization.partition(" ")
        secret = value.strip().encode()
        if scheme.lower() == "basic":
            try:
                secret = base64.b64decode(secret, validate=True).partition(b":")[2]
            except (binascii.Error, ValueError):
                return False
        elif scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(secret, (self.key or "").encode())


def _name(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None
