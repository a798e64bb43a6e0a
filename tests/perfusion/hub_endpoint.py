"""A hub for tests, on loopback: repositories out of a dictionary, as huggingface_hub asks for them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

Repositories = dict[str, dict[str, bytes]]
"""By owner/name: the files, by path."""

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD of a repository's commit, its list of files and its files."""

    repositories: Repositories
    private: set[str]
    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        api = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(?:/(revision|tree)/([^/?]+))?", path)
        file = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path)
        match = api or file
        repo = match[1] if match else ""
        if repo not in self.repositories or not self._may_read(repo):
            return self._send(401 if match else 404, b"", {"X-Error-Code": "RepoNotFound"})
        files = self.repositories[repo]
        if api and api[2] == "tree":
            return self._send_json([self._entry(name, data) for name, data in sorted(files.items())])
        if api:
            return self._send_json(
                {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
            )
        assert file is not None
        if file[3] not in files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        return self._send(
            200, files[file[3]], {"X-Repo-Commit": COMMIT, "ETag": f'"{self._oid(files[file[3]])}"'}
        )

    do_HEAD = do_GET  # noqa: N815 (the base class looks for this name)

    def _may_read(self, repo: str) -> bool:
        return repo not in self.private or self.headers["Authorization"] == "Bearer hf_secret"

    @staticmethod
    def _oid(data: bytes) -> str:
        return hashlib.sha1(data).hexdigest()

    def _entry(self, name: str, data: bytes) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": len(data), "oid": self._oid(data)}

    def _send_json(self, content: Any) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the requests are kept for the tests."""


@contextmanager
def serving(repositories: Repositories, private: set[str]) -> Iterator[tuple[str, list[str]]]:
    """The address of such a hub and the requests that it gets; a private repository wants the token hf_secret."""
    requests: list[str] = []
    content = {"repositories": repositories, "private": private, "requests": requests}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (Handler,), content))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
