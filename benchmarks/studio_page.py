"""python benchmarks/studio_page.py: what the page of perfusion-studio loads, how soon it is painted, and what axe says.

Every room with pictures in it, in a real browser, light, dark and on a phone's screen of 360 pixels. --pictures DIR
keeps a picture of each, as docs/studio.md shows them. It needs Chromium or a kin of it, and the extra `test`.
"""

import argparse
import io
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

from benchmarks.record import write_record
from tests.perfusion.serving.studio.conftest import Server, browser_path

ROOMS = ("draw", "teach", "explore", "concepts", "history", "device")
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1280, "height": 800}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 800}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True},
}
PROMPTS = (
    "a photo of a <school-bus> in the snow", "a photo of a <gold-hat> on the grass",
    "a photo of a <pink-cake> in a forest", "a photo of a <pink-cake> on a beach",
)  # fmt: skip
PAINTS = 5
SUBJECTS = Path(__file__).parents[1] / "examples" / "subjects"
PHOTOS, LESSON = SUBJECTS / "tuxedo-cat", SUBJECTS / "pink-mushroom"
QUALITY = 72  # of the pictures that are kept, WebP
PATIENCE = 560_000  # milliseconds


def main() -> int:
    """Measure, print and record."""
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--pictures", type=Path, metavar="DIR", help="keep a picture of every room here")
    given.add_argument(
        "--steps", type=int, default=400, help="of the lesson that is shown (default: %(default)s)"
    )
    given.add_argument("--short", action="store_true", help="no record")
    args = given.parse_args()
    if browser_path() is None:
        print("skipped: there is no browser on this machine")
        return 0
    with opened() as (browser, server):
        fill(browser, server, args.steps)
        row = {"what": "page", **loading(browser, server)}
        rows = [row, *(looked_at(browser, server, look, args.pictures) for look in LOOKS)]
    print(*rows, sep="\n")
    if not args.short:
        print(write_record("studio_page", rows))
    return int(any(row.get("violations") or row.get("too_wide") for row in rows))


@contextmanager
def opened() -> Iterator[tuple[Any, Server]]:
    """A browser, and a server with an empty folder."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=browser_path(), args=["--no-sandbox", "--disable-gpu"]
        )
        server = Server(Path(folder))
        try:
            yield browser, server
        finally:
            server.stop()
            browser.close()


def new_page(browser: Any, **options: Any) -> Any:
    """A page that waits long for a busy machine."""
    page = browser.new_page(**options)
    page.set_default_timeout(PATIENCE)
    return page


def fill(browser: Any, server: Server, steps: int) -> None:
    """Draw and teach what the rooms show."""
    page = new_page(browser)
    page.goto(f"{server.address}/#draw")
    for number, prompt in enumerate(PROMPTS):
        page.get_by_label("What is to be drawn").fill(prompt)
        page.get_by_label("Seed", exact=True).fill(str(3 + number))
        page.get_by_role("button", name="Draw", exact=True).click()
        page.locator(".filmstrip li.done").nth(number).wait_for()
    page.goto(f"{server.address}/#teach")
    page.locator(".teach input[type=file]").first.set_input_files(sorted(LESSON.glob("*.png"))[:5])
    page.get_by_label("Name").fill("my-mushroom")
    page.get_by_label("What kind of thing it is").fill("mushroom")
    page.get_by_text("Options", exact=True).click()
    page.get_by_label("Steps").fill(str(steps))
    page.get_by_role("button", name="Teach", exact=True).click()
    page.get_by_role("button", name="Draw with <my-mushroom>").wait_for()
    page.close()


def loading(browser: Any, server: Server) -> dict[str, Any]:
    """Bytes and files until the page can be used, and when it was painted first."""
    paints, entries = [], []
    for _ in range(PAINTS):
        page = new_page(browser)
        page.goto(f"{server.address}/#draw")
        page.get_by_role("button", name="Put <pink-cake> into the prompt").wait_for()
        paints.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
        entries = page.evaluate(
            "[...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]"
            ".filter(({ name }) => !name.includes('/api/')).map(({ encodedBodySize }) => encodedBodySize)"
        )
        page.close()
    return {
        "bytes": sum(entries),
        "files": len(entries),
        "first_paint_ms": round(statistics.median(paints)),
    }


def looked_at(browser: Any, server: Server, look: str, pictures: Path | None) -> dict[str, Any]:
    """What axe finds in the rooms, and which are wider than the screen."""
    from axe_playwright_python.sync_playwright import Axe

    page = new_page(browser, **LOOKS[look])
    violations, wide = 0, []
    for room in ROOMS:
        page.goto(f"{server.address}/#{room}")
        page.locator(f".room-{room}").wait_for()
        prepare(page, room, look)
        page.wait_for_load_state("networkidle")
        if pictures is not None:
            keep(page, pictures / f"studio-{room}-{look}.webp")
        violations += len(Axe().run(page).response["violations"])
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            wide.append(room)
    page.close()
    return {"what": look, "rooms": len(ROOMS), "violations": violations, "too_wide": wide}


def keep(page: Any, path: Path) -> None:
    """A picture of the page, small enough for a repository."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        picture.convert("RGB").save(path, "WEBP", quality=QUALITY, method=6)


def prepare(page: Any, room: str, look: str) -> None:
    """Put something into a room that is empty at first."""
    if room == "draw":
        page.get_by_label("What is to be drawn").fill(PROMPTS[-1])
        page.locator(".stage-large[data-state=done]").wait_for()
        if look == "light":
            page.locator(".concept-panel summary").first.click()
    elif room == "teach":
        page.locator(".teach input[type=file]").first.set_input_files(sorted(PHOTOS.glob("*.png"))[:5])
        page.locator(".photo").nth(4).wait_for()
        page.get_by_label("Name").fill("my-cat")
        page.get_by_label("What kind of thing it is").fill("cat")
        page.get_by_text("The bright part was found").wait_for()
        page.locator(".sheet img").wait_for()
    elif room == "explore":
        page.get_by_label("Concept", exact=True).select_option("<my-mushroom>")
        page.get_by_label("Seed", exact=True).fill("6")
        page.get_by_text("Which settings are best?").click()
        page.get_by_text("Compare with the photos").wait_for()
        page.get_by_label("Pictures a cell").select_option("1")
        if look != "light":  # smaller, since it takes a while
            page.get_by_role("group", name="Down").get_by_label("Setting").select_option("")
            page.get_by_role("group", name="Across").get_by_label("Cells").fill("3")
        page.get_by_role("button", name="Draw the grid").click()
        page.get_by_role("heading", name="Likeness and faith").wait_for()
        if look == "phone":
            page.locator(".grids").scroll_into_view_if_needed()
    elif room == "concepts":
        page.locator(".concept-face img").nth(3).wait_for()


if __name__ == "__main__":
    raise SystemExit(main())
