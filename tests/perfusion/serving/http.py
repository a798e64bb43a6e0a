"""httpx's functions with one TLS context for all, since making one takes longer than most requests here."""

import ssl
from functools import partial

import httpx

_CONTEXT = ssl.create_default_context()

get, post, patch, delete, options, request, stream = (
    partial(function, verify=_CONTEXT, timeout=60)
    for function in (
        httpx.get,
        httpx.post,
        httpx.patch,
        httpx.delete,
        httpx.options,
        httpx.request,
        httpx.stream,
    )
)


def client(**options):
    """A client that keeps its connections."""
    return httpx.Client(**{"verify": _CONTEXT, "timeout": 60} | options)
