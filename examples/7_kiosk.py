# .venv/bin/python examples/7_kiosk.py concepts/ pictures/ [--bundle BUNDLE] [--every SECONDS]
"""A program for a board that runs for weeks: it draws what lies in a folder of concepts, a picture every minute.

A concept file that is dropped into the folder is drawn from the next picture on, and one that is taken out is
forgotten. `pictures/now.png` is a whole picture at any time. Ctrl-C and systemd's SIGTERM end it.
"""

import argparse
import itertools
import logging
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

from perfusion.errors import PerfusionError
from perfusion.runtime import Runtime
from perfusion.runtime.picture_settings import save, settings_of

PLACES = ("on a beach", "in the snow", "on a wooden table", "in a forest", "on a street", "at night")

logger = logging.getLogger("kiosk")


class Library:
    """The concepts of a folder, loaded as they come and go."""

    def __init__(self, runtime: Runtime, folder: Path) -> None:
        self._runtime, self._folder = runtime, folder
        self._tokens: dict[tuple[Path, int], str | None] = {}
        """By file and its time; None: it cannot be loaded."""

    def follow(self) -> list[str]:
        """Load what is new in the folder, forget what is gone, and give the words that prompts may have now."""
        files = set[tuple[Path, int]]()
        for path in self._folder.glob("*.safetensors"):
            with suppress(OSError):  # it is gone again
                files.add((path, path.stat().st_mtime_ns))
        for file in self._tokens.keys() - files:
            if token := self._tokens.pop(file):
                self._runtime.unload_concept(token)
        for file in sorted(files - self._tokens.keys()):
            self._tokens[file] = self._load(file[0])
        return sorted(token for token in self._tokens.values() if token)

    def _load(self, path: Path) -> str | None:
        try:
            return self._runtime.load_concept(path).token
        except PerfusionError as error:  # broken, for another model, or its word is taken: told once
            logger.warning("%s is left out: %s", path.name, error)
            return None


def draw(runtime: Runtime, tokens: list[str], seed: int, output: Path) -> None:
    """Draw one of the concepts somewhere. What goes wrong is told, and the next picture may succeed."""
    prompt = f"a photo of a {random.choice(tokens or ['cake'])} {random.choice(PLACES)}"
    try:
        save(runtime.generate(prompt, seed=seed), output, settings_of(runtime, prompt, seed))
        logger.info("%s: %s", output, prompt)
    except PerfusionError as error:  # a full disk, or too little memory for this moment
        logger.error("%s: %s", prompt, error)


def main(args: argparse.Namespace) -> None:
    """Draw until somebody ends it."""
    args.pictures.mkdir(parents=True, exist_ok=True)
    with Runtime(args.bundle) as runtime:
        library = Library(runtime, args.concepts)
        for seed in itertools.count():
            draw(runtime, library.follow(), seed, args.pictures / "now.png")
            time.sleep(args.every)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("concepts", type=Path, help="folder of concept files; it may be empty")
    parser.add_argument("pictures", type=Path, help="folder to write now.png to")
    parser.add_argument("--bundle", help="default: the embedded model's")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two pictures (60)")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the runtime closes on the way out
    with suppress(KeyboardInterrupt):
        main(parser.parse_args())
