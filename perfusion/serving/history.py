"""What was drawn: jobs and pictures in SQLite, the pictures' files beside it, bounded by size and age.

A file is whole on the disk before its row is written, and a row is gone before its file is. Whenever the process is
killed, the next start removes files without a row and rows without a file, and says of jobs that were under way that
they were stopped. Favourites do not expire.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfusion.errors import PerfusionError
from perfusion.files import writing
from perfusion.locking import lock

__all__ = ["Bounds", "History", "StoredPicture"]

DAY = 24 * 3600.0
_FORMAT = 1
_DATABASE, _FOLDER, _LOCK = "history.sqlite3", "pictures", "history.lock"
_STOPPED = "The server was stopped before this was done. Ask for it again."
_MOST_WORDS = 32  # of a search; SQLite takes no expression of a thousand
_SOON = 0.9  # of the size: from here on the oldest pictures are said to expire
_TABLES = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, client TEXT NOT NULL, created REAL NOT NULL, state TEXT NOT NULL, error TEXT,
    settings TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS pictures (
    id TEXT PRIMARY KEY, job TEXT NOT NULL, client TEXT NOT NULL, number INTEGER NOT NULL, created REAL NOT NULL,
    prompt TEXT NOT NULL, settings TEXT NOT NULL, bytes INTEGER NOT NULL, favourite INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX IF NOT EXISTS pictures_by_age ON pictures (client, created);
"""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How much is remembered."""

    size: int = 2 << 30  # bytes of pictures that are no favourites
    days: float = 30.0


@dataclass(frozen=True, kw_only=True)
class StoredPicture:
    """A picture's row."""

    id: str
    job: str
    created: float
    prompt: str
    settings: dict[str, Any]
    size: int  # bytes of its file
    is_favourite: bool
    expires: float | None  # when it is removed for its age; None: never
    expires_soon: bool  # whether it is among those that go next for lack of room


class History:
    """The pictures of all clients; each sees his own. For several threads at once."""

    def __init__(self, folder: Path, bounds: Bounds | None = None) -> None:
        """Open a folder, or make it.

        Raises:
            PerfusionError: another server has it, or it cannot be written.
        """
        self._folder, self._bounds = folder, bounds or Bounds()
        self._pictures = folder / _FOLDER
        self._lock = threading.Lock()
        try:
            self._pictures.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._holder = lock(folder / _LOCK)
            self._holder.__enter__()
            self._database = sqlite3.connect(
                folder / _DATABASE, check_same_thread=False, isolation_level=None
            )
            self._database.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;" + _TABLES)
        except (OSError, sqlite3.Error) as error:
            raise PerfusionError(
                f"The history in {folder} cannot be opened: {error}. Choose another folder with --data."
            ) from error
        self._repair()
        self.expire()

    def close(self) -> None:
        """Nothing is written afterwards."""
        with self._lock:
            self._database.close()
        self._holder.__exit__(None, None, None)

    def begin(self, job: str, client: str, created: float, settings: dict[str, Any]) -> None:
        """Note a job that was accepted."""
        with self._writing() as rows:
            rows.execute(
                "INSERT INTO jobs VALUES (?, ?, ?, 'drawing', NULL, ?)",
                (job, client, created, json.dumps(settings)),
            )

    def end(self, job: str, state: str, error: str | None) -> None:
        """Note how a job has ended."""
        with self._writing() as rows:
            rows.execute("UPDATE jobs SET state = ?, error = ? WHERE id = ?", (state, error, job))
        self.expire()

    def add(self, job: str, client: str, number: int, data: bytes, settings: dict[str, Any]) -> str:
        """Keep a picture's file; its name from now on."""
        picture = secrets.token_hex(12)
        with writing(self._path(picture)) as file:
            file.write(data)
        with self._writing() as rows:
            rows.execute(
                "INSERT INTO pictures VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0)",
                (
                    picture,
                    job,
                    client,
                    number,
                    time.time(),
                    settings["prompt"],
                    json.dumps(settings),
                    len(data),
                ),
            )
        return picture

    def jobs(self, client: str, limit: int = 100) -> list[dict[str, Any]]:
        """A client's jobs, the newest first, with the names of their pictures."""
        with self._lock:
            rows = self._database.execute(
                "SELECT id, state, error, created, settings FROM jobs WHERE client = ? ORDER BY created DESC LIMIT ?",
                (client, limit),
            ).fetchall()
            jobs = []
            for number, state, error, created, settings in rows:
                pictures = self._database.execute(
                    "SELECT id FROM pictures WHERE job = ? ORDER BY number", (number,)
                ).fetchall()
                jobs.append(
                    {"id": number, "state": state, "error": error, "created": created,
                     "settings": json.loads(settings), "pictures": [row[0] for row in pictures]}
                )  # fmt: skip
        return jobs

    def pictures(
        self,
        client: str,
        *,
        search: str = "",
        favourite: bool | None = None,
        before: float | None = None,
        limit: int = 100,
    ) -> list[StoredPicture]:
        """A client's pictures, the newest first: whose prompt holds all words of `search`, made before a time."""
        conditions, values = ["client = ?"], list[Any]([client])
        for word in search.split()[:_MOST_WORDS]:
            conditions.append("instr(lower(prompt), lower(?))")
            values.append(word)
        if favourite is not None:
            conditions.append("favourite = ?")
            values.append(int(favourite))
        if before is not None:
            conditions.append("created < ?")
            values.append(before)
        return self._select(f"{' AND '.join(conditions)} ORDER BY created DESC LIMIT ?", (*values, limit))

    def picture(self, client: str, number: str) -> StoredPicture | None:
        """A client's own picture of a name; None where there is none."""
        rows = self._select("client = ? AND id = ?", (client, number))
        return rows[0] if rows else None

    def file(self, picture: StoredPicture) -> Path:
        """Where a picture's file lies."""
        return self._path(picture.id)

    def files(self, client: str, job: str) -> dict[int, Path]:
        """Where the pictures of a client's job lie, by their number."""
        with self._lock:
            rows = self._database.execute(
                "SELECT number, id FROM pictures WHERE client = ? AND job = ?", (client, job)
            ).fetchall()
        return {number: self._path(picture) for number, picture in rows}

    def mark(self, picture: StoredPicture, is_favourite: bool) -> None:
        """Make it a favourite, or one no more."""
        with self._writing() as rows:
            rows.execute("UPDATE pictures SET favourite = ? WHERE id = ?", (int(is_favourite), picture.id))

    def remove(self, picture: StoredPicture) -> None:
        """Forget a picture, and its file."""
        self._remove([picture.id])

    def expire(self, now: float | None = None) -> None:
        """Remove what is too old or has no room; jobs without pictures go by age too."""
        oldest = (time.time() if now is None else now) - self._bounds.days * DAY
        with self._lock:
            gone = [
                row[0]
                for row in self._database.execute(
                    "SELECT id FROM (SELECT id, created, sum(bytes) OVER (ORDER BY created DESC) AS total "
                    "FROM pictures WHERE favourite = 0) WHERE created < ? OR total > ?",
                    (oldest, self._bounds.size),
                )
            ]
        self._remove(gone)
        with self._writing() as rows:
            rows.execute(
                "DELETE FROM jobs WHERE created < ? AND state != 'drawing' AND id NOT IN (SELECT job FROM pictures)",
                (oldest,),
            )

    def _select(self, condition: str, values: tuple[Any, ...]) -> list[StoredPicture]:
        with self._lock:
            rows = self._database.execute(
                "SELECT id, job, created, prompt, settings, bytes, favourite, (favourite = 0 AND coalesce((SELECT "
                "sum(bytes) FROM pictures AS other WHERE other.favourite = 0 AND other.created >= pictures.created), 0)"
                " > ?)"
                f" FROM pictures WHERE {condition}",
                (self._bounds.size * _SOON, *values),
            ).fetchall()
        return [
            StoredPicture(
                id=number, job=job, created=created, prompt=prompt, settings=json.loads(settings), size=size,
                is_favourite=bool(favourite), expires=None if favourite else created + self._bounds.days * DAY,
                expires_soon=bool(soon),
            )
            for number, job, created, prompt, settings, size, favourite, soon in rows
        ]  # fmt: skip

    def _remove(self, pictures: list[str]) -> None:
        with self._writing() as rows:
            rows.executemany("DELETE FROM pictures WHERE id = ?", [(picture,) for picture in pictures])
        for picture in pictures:
            self._path(picture).unlink(missing_ok=True)

    def _repair(self) -> None:
        """Make rows and files agree again after a process that was killed."""
        with self._writing() as rows:
            rows.execute("UPDATE jobs SET state = 'failed', error = ? WHERE state = 'drawing'", (_STOPPED,))
            known = {row[0] for row in rows.execute("SELECT id FROM pictures")}
            present = {path.stem for path in self._pictures.glob("*.png")}
            rows.executemany("DELETE FROM pictures WHERE id = ?", [(picture,) for picture in known - present])
        for path in self._pictures.iterdir():
            if path.suffix != ".png" or path.stem not in known:
                path.unlink(missing_ok=True)

    def _path(self, picture: str) -> Path:
        return self._pictures / f"{picture}.png"

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it is written or nothing."""
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")
