"""The page: files that come with the package, and nothing that was uploaded."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from perfusion.serving.answers import StatusError

__all__ = ["studio_routes"]

_FOLDER = Path(__file__).parent / "studio"
_INDEX = _FOLDER / "index.html"
_ASK_AGAIN = {
    "Cache-Control": "no-cache"
}  # kept, but asked for again: a newer version of the package has newer files
_KINDS = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
"""Said here, since Windows' registry may say others, and a browser runs no script of another kind."""


def studio_routes() -> list[BaseRoute]:
    """The page at `/` and its files below `/studio/`."""

    async def index(request: Request) -> Response:
        if not _INDEX.is_file():
            raise StatusError(404, "This install has no page. The API is there: see docs/serving.md.")
        return FileResponse(_INDEX, headers=_ASK_AGAIN)

    return [Route("/", index), Mount("/studio", _Files(directory=_FOLDER, check_dir=False))]


class _Files(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        answer = await super().get_response(path, scope)
        answer.headers.update(_ASK_AGAIN)
        if kind := _KINDS.get(Path(path).suffix):
            answer.headers["Content-Type"] = f"{kind}; charset=utf-8"
        return answer
