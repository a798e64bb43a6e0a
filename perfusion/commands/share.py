"""perfusion-share: publish a concept on the hub, with its page, a picture card and drawings of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from perfusion.commands import parser, run
from perfusion.errors import RequestError

if TYPE_CHECKING:
    from perfusion.sharing import Repository, Standing

__all__ = ["main"]

_NAME = "perfusion-share"


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `perfusion-share --help`."""
    return run(_NAME, lambda: _share(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    command = parser(
        _NAME,
        "Publish a concept on the hub: its file, the same as a picture card, drawings of it, and a page that says "
        "what it is and how it is loaded. Shows what would be published and asks first.",
    )
    add = command.add_argument
    add("concept", type=Path, metavar="CONCEPT", help="a concept file or a card")
    add("--to", required=True, metavar="OWNER/NAME", help="where it goes; made if it is not there")
    add(
        "--license", metavar="ID",
        help="what others may do with it: cc-by-4.0, cc0-1.0, openrail, ... (asked for if missing)",
    )  # fmt: skip
    add(
        "--base-model", metavar="OWNER/NAME",
        help="the model that it was trained on, as the hub calls it (default: what the concept says)",
    )  # fmt: skip
    add(
        "--gallery", type=Path, action="append", default=[], metavar="PATH",
        help="a drawing of it, a sweep's --grid or its --work folder (can be repeated)",
    )  # fmt: skip
    add(
        "--picture",
        type=Path,
        metavar="FILE",
        help="what the card shows (default: the gallery's first picture)",
    )
    add("--private", action="store_true", help="for you alone, where it is made anew")
    add("--message", metavar="TEXT", help="of the commit")
    add("--yes", action="store_true", help="publish without asking")
    add(
        "--output",
        type=Path,
        metavar="DIR",
        help="write what would be published into a folder, and send nothing",
    )
    return command


def _share(args: argparse.Namespace) -> int:
    from perfusion.sharing.repository import check_names

    check_names(args.to, args.license, args.base_model)
    if args.output:
        return _write(args, _repository(args))
    from perfusion.sharing import publish, standing_of

    standing = standing_of(args.to)  # first, since it refuses those who are not logged in
    repository = _repository(args)
    if not (args.yes and args.quiet):
        _tell(_plan(args, repository, standing))
    if not args.yes and _answer("Publish it? [y/N] ", "--yes").lower() not in ("y", "yes"):
        _tell(["Nothing was published."])
        return 1
    print(publish(repository, private=args.private, message=args.message))
    return 0


def _repository(args: argparse.Namespace) -> Repository:
    from perfusion.concept.concept_file import Concept
    from perfusion.sharing import read_gallery, repository_of

    concept = Concept.load(args.concept)
    gallery = read_gallery(args.gallery, concept)
    licence = args.license or _answer(
        "Licence of the concept, by the hub's word for it, such as cc-by-4.0 or openrail: ", "--license"
    )
    if not licence:
        raise RequestError("A concept is shared under a licence. Give one with --license, such as cc-by-4.0.")
    return repository_of(
        args.concept,
        args.to,
        licence=licence,
        base_model=args.base_model,
        gallery=gallery,
        picture=args.picture,
    )


def _plan(args: argparse.Namespace, repository: Repository, standing: Standing | None) -> list[str]:
    """What will be published where, for whoever is asked."""
    total = sum(map(len, repository.files.values()))
    if standing is None:
        place = f"a new {'private' if args.private else 'public'} repository"
    else:
        place = f"a {'private' if standing.private else 'public'} repository that is there"
    replaced = set(standing.replaced(repository)) if standing else set()
    others = standing.other_concepts(repository) if standing else ()
    lines = [
        f"{repository.token} goes to {repository.name}, {place}: {len(repository.files)} files, {total:,} bytes"
    ]
    lines += [
        f"  {path}, {len(data):,} bytes{', replaces the one there' if path in replaced else ''}"
        for path, data in repository.files.items()
    ]
    if others:
        lines.append(
            f"  {', '.join(others)} stays there too, so that the name alone will not tell which concept is meant"
        )
    return lines


def _write(args: argparse.Namespace, repository: Repository) -> int:
    """The files as they would be published."""
    from perfusion.files import writing

    folder: Path = args.output
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RequestError(f"{folder} is there already, expected a new folder or an empty one for --output.")
    for path, data in repository.files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with writing(target) as file:
            file.write(data)
    print(folder)
    return 0


def _answer(question: str, option: str) -> str:
    """A line from the terminal, or from whatever stands in its place."""
    print(question, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline() if sys.stdin else ""
    if not line:
        print(file=sys.stderr)
        raise RequestError(f"Nothing was published: nobody answers here. Give {option}.")
    return line.strip()


def _tell(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
