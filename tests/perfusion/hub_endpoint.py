"""A hub for tests, on loopback: repositories out of a dictionary, as huggingface_hub asks for them and publishes them.

Files that are no text are uploaded through git-lfs's protocol, as the real hub has it for clients without hf_xet.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import yaml

Repositories = dict[str, dict[str, bytes]]
"""By owner/name: the files, by path."""

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secret"
OWNER = "me"
"""Whose the token is."""
LICENCES = ("cc-by-4.0", "cc0-1.0", "openrail", "apache-2.0")


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD of a repository's commit, its list of files and its files; POST and PUT of new ones."""

    repositories: Repositories
    private: set[str]
    requests: list[str]
    stored: dict[str, bytes]
    """What was uploaded and is in no commit yet, by its SHA-256."""
    messages: dict[str, list[str]]
    """Of the commits of each repository."""

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
            siblings = [{"rfilename": name} for name in files]
            facts = {"id": repo, "sha": self._commit(repo), "private": repo in self.private}
            return self._send_json(facts | {"siblings": siblings})
        assert file is not None
        origin = {"X-Repo-Commit": self._commit(repo)}
        if file[3] not in files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"} | origin)
        return self._send(200, files[file[3]], {"ETag": f'"{self._oid(files[file[3]])}"'} | origin)

    do_HEAD = do_GET  # noqa: N815 (the base class looks for this name)

    def do_PUT(self) -> None:
        """One file of git-lfs, under its SHA-256."""
        self.requests.append(f"PUT {self.path}")
        data = self._body()
        assert self.path == f"/lfs/{hashlib.sha256(data).hexdigest()}"
        self.stored[self.path.rpartition("/")[2]] = data
        self._send(200, b"", {})

    def do_POST(self) -> None:
        self.requests.append(f"POST {self.path}")
        body, path = self._body(), self.path.partition("?")[0]
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if not self._knows_token():
            return self._send(401, b"", {"X-Error-Message": "Invalid username or password."})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        match = re.fullmatch(
            r"/(?:api/models/)?(\w[\w.-]*/[\w.-]+?)(?:\.git/info/lfs/objects/batch|/(\w+)/main)", path
        )
        assert match is not None, path
        if match[1].partition("/")[0] != OWNER:
            return self._send(
                403, b"", {"X-Error-Message": f"{self.headers['Authorization']} may not write here."}
            )
        if match[2] == "preupload":
            return self._send_json({"files": [self._upload_mode(file) for file in json.loads(body)["files"]]})
        if match[2] == "commit":
            return self._write(match[1], [json.loads(line) for line in body.splitlines()])
        return self._send_json(
            {"transfer": "basic", "objects": [self._action(file) for file in json.loads(body)["objects"]]}
        )

    def _validate(self, page: str) -> None:
        facts = yaml.safe_load(page.split("---\n")[1])
        if facts["license"] not in LICENCES:
            message = f'"license" must be one of {", ".join(LICENCES)}'
            return self._send(400, json.dumps({"errors": [{"message": message}]}).encode(), {})
        return self._send_json({"errors": [], "warnings": []})

    def _create(self, request: dict[str, Any]) -> None:
        repo = f"{request['organization']}/{request['name']}"
        address = {"url": f"http://{self.headers['Host']}/{repo}"}
        if request["organization"] != OWNER:
            return self._send(
                403, b"", {"X-Error-Message": f"{self.headers['Authorization']} may not write here."}
            )
        if repo in self.repositories:
            return self._send(409, json.dumps(address).encode(), {})
        self.repositories[repo] = {".gitattributes": b"*.safetensors filter=lfs\n"}
        if request.get("visibility") == "private":
            self.private.add(repo)
        return self._send_json(address)

    def _upload_mode(self, file: dict[str, Any]) -> dict[str, Any]:
        text = b"\0" not in base64.b64decode(file["sample"])
        return {"path": file["path"], "uploadMode": "regular" if text else "lfs", "shouldIgnore": False}

    def _action(self, file: dict[str, Any]) -> dict[str, Any]:
        address = f"http://{self.headers['Host']}/lfs/{file['oid']}"
        return {"oid": file["oid"], "size": file["size"], "actions": {"upload": {"href": address}}}

    def _write(self, repo: str, lines: list[dict[str, Any]]) -> None:
        files = self.repositories[repo]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.messages.setdefault(repo, []).append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.stored.pop(value["oid"])
        commit = self._commit(repo)
        self._send_json(
            {"commitUrl": f"http://{self.headers['Host']}/{repo}/commit/{commit}", "commitOid": commit}
        )

    def _commit(self, repo: str) -> str:
        """Of the newest state: another one after each commit."""
        written = len(self.messages.get(repo, ()))
        return hashlib.sha1(f"{repo} {written}".encode()).hexdigest() if written else COMMIT

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _knows_token(self) -> bool:
        return self.headers["Authorization"] == f"Bearer {TOKEN}"

    def _may_read(self, repo: str) -> bool:
        return repo not in self.private or self._knows_token()

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
    """The address of such a hub and the requests that it gets; what is published there goes into `repositories`. A
    private repository wants `TOKEN`, and so does whoever writes."""
    requests: list[str] = []
    content = {
        "repositories": repositories,
        "private": private,
        "requests": requests,
        "stored": {},
        "messages": {},
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (Handler,), content))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()


def run_beside(endpoint: str, home: Path, code: str, content: Any, **env: str) -> tuple[Any, str]:
    """Code in a process of its own, in which huggingface_hub knows this hub alone; what it prints as JSON, and stderr.

    It runs in the folder `home`, where its cache is too, and has `content` as JSON for its argument.
    """
    own = {
        "HF_ENDPOINT": endpoint, "HF_HOME": str(home / "hf"), "PERFUSION_CACHE": str(home / "cache"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(content)],
        cwd=home,
        env={name: value for name, value in os.environ.items() if not name.startswith("HF_")} | own | env,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr
