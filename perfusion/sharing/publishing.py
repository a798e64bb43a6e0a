"""The upload of a repository, by huggingface_hub: one commit, with the token it knows and never shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from perfusion.errors import HubError
from perfusion.sharing.repository import Repository

__all__ = ["Standing", "publish", "standing_of"]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What the hub has under a name before something is published."""

    private: bool
    files: tuple[str, ...]

    def replaced(self, repository: Repository) -> tuple[str, ...]:
        """The files that would be written over."""
        return tuple(name for name in self.files if name in repository.files)

    def other_concepts(self, repository: Repository) -> tuple[str, ...]:
        """Files at its top that may be concepts too, so that the repository's name would not tell which is meant."""
        concepts = (name for name in self.files if "/" not in name and name.endswith(".safetensors"))
        return tuple(name for name in concepts if name not in repository.files)


def standing_of(name: str) -> Standing | None:
    """What the hub has under `owner/name` now; None where there is nothing.

    Raises:
        HubError: nobody is logged in, or the hub gives no answer.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    with _asking(name) as api:
        try:
            info = api.repo_info(name)
        except RepositoryNotFoundError:
            return None
    return Standing(private=bool(info.private), files=tuple(file.rfilename for file in info.siblings or ()))


def publish(repository: Repository, *, private: bool = False, message: str | None = None) -> str:
    """Publish a repository in one commit, and make it first where it is not there; its address on the hub.

    A repository that is there keeps its other files, and stays as private as it is.

    Raises:
        HubError: nobody is logged in, the name is not theirs, or the hub gives no answer.
    """
    from huggingface_hub import CommitOperationAdd

    additions = [
        CommitOperationAdd(path_in_repo=path, path_or_fileobj=data) for path, data in repository.files.items()
    ]
    with _asking(repository.name) as api:
        address = api.create_repo(repository.name, private=private, exist_ok=True)
        api.create_commit(
            repository.name, additions, commit_message=message or f"Share the concept {repository.token}"
        )
    return str(address)


@contextmanager
def _asking(name: str) -> Iterator[Any]:
    """The hub's client, its errors as one sentence that does not hold the token."""
    try:
        from huggingface_hub import HfApi, errors, get_token
    except ModuleNotFoundError as error:
        raise HubError("Sharing needs the package huggingface_hub. Install perfusion-edge[hub].") from error
    token = get_token()
    if token is None:
        raise HubError(
            f"{name}: nobody is logged in to the hub. Run hf auth login, or set HF_TOKEN to a token that may write."
        )
    try:
        yield HfApi(token=token)
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        reply = (str(error.server_message or error).strip().splitlines() or ["nothing"])[0].rstrip(".")
        what = {
            401: "The hub does not know your token. Run hf auth login",
            403: "Your token may not write there. Choose a name of your own, or a token with the right to write",
        }.get(status, f"The hub answers {status}: {reply.replace(token, '…')}")
        raise HubError(f"{name}: {what}.") from None  # the error's own text may hold the request
    except Exception as error:  # of whatever it transports by, or of the page's facts
        reply = " ".join(str(error).split()).rstrip(".").replace(token, "…")
        raise HubError(f"{name}: The hub cannot be reached or refuses it: {reply}.") from None
