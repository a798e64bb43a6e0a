"""The page in a real browser, over a server of its own: perfusion-serve as a process, with the embedded model."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
_PATIENCE = 300_000  # milliseconds for what a machine does that is busy with other tests
_NAMES = (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "brave-browser",
    "microsoft-edge",
)  # fmt: skip


def browser_path() -> str | None:
    """The browser to drive: that of the variable PERFUSION_BROWSER, or the first one on the path."""
    named = os.environ.get("PERFUSION_BROWSER")
    return named or next((path for name in _NAMES if (path := shutil.which(name))), None)


@pytest.fixture(scope="session")
def browser():
    """A browser without windows."""
    path = browser_path()
    if path is None:
        pytest.skip("no browser: install Chromium, or name one in PERFUSION_BROWSER")
    playwright = pytest.importorskip("playwright.sync_api")
    playwright.expect.set_options(timeout=_PATIENCE)
    with playwright.sync_playwright() as driver:
        # no sandbox for root, which is who tests run as in containers; the page is our own
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Server:
    """A server's process. `folder` outlives it, so that it can be started again with what it had."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder, self.arguments = folder, arguments
        with socket.create_server(("127.0.0.1", 0)) as place:
            self.port = place.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [sys.executable, "-m", "perfusion.commands.serve", "--quiet", "--threads", "1"]
        command += ["--port", str(self.port), "--data", str(self.folder), *self.arguments]
        self.process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
        ends = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{self.address}/readyz", timeout=5).close()
                return
            except OSError:
                assert self.process.poll() is None, "the server ended"
                assert time.monotonic() < ends, "the server does not answer"
                time.sleep(0.1)

    def kill(self) -> None:
        """End it as a crash would."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """End it as Ctrl-C does."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@pytest.fixture(scope="session")
def start_server(tmp_path_factory):
    """Starts servers; each has a folder of its own."""
    servers = []

    def start(*arguments):
        servers.append(Server(tmp_path_factory.mktemp("studio"), *arguments))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def studio(browser, start_server):
    """A server for the tests that leave it as they found it; none is started where there is no browser."""
    return start_server()


@pytest.fixture
def open_page(browser):
    """Opens the page of a server; at the end no script of it has failed."""
    contexts, faults = [], []

    def open_page(server, room="draw", *, wait=True, **options):
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 860}} | options))
        contexts.append(context)
        context.set_default_timeout(_PATIENCE)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "console",
            lambda line: faults.append(line.text) if "Content Security Policy" in line.text else None,
        )
        page.goto(f"{server.address}/#{room}")
        if wait:
            page.locator(f".room-{room}").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture
def page(open_page, studio):
    return open_page(studio)


DROP = """([target, files]) => {
  const data = new DataTransfer();
  for (const [name, type, text] of files) {
    data.items.add(new File([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))], name, { type }));
  }
  for (const kind of ["dragenter", "dragover", "drop"]) {
    target.dispatchEvent(new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer: data }));
  }
}"""


@pytest.fixture
def drop():
    """Drops files on an element: drop(locator, path, ...)."""
    import base64

    def drop(locator, *paths):
        files = [(path.name, "", base64.b64encode(path.read_bytes()).decode()) for path in map(Path, paths)]
        locator.evaluate(f"(target, files) => ({DROP})([target, files])", files)

    return drop


@pytest.fixture
def draw():
    """Draws with the page's form, and gives the address of the first picture."""

    def draw(page, prompt, steps=4, **labels):
        page.get_by_label("What is to be drawn").fill(prompt)
        page.get_by_text("Negative prompt, steps, guidance").locator("..").evaluate(
            "details => details.open = true"
        )
        page.get_by_label("Steps", exact=True).fill(str(steps))
        for label, value in labels.items():
            page.get_by_label(label, exact=True).fill(str(value))
        before = page.locator(".stage-large").get_attribute("data-job") or ""
        page.get_by_role("button", name="Draw", exact=True).click()
        return drawn_after(page, before)

    return draw


@pytest.fixture
def check_axe():
    """Fails where axe finds a fault in the page as it is now, or where it is wider than the screen."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()

    def check_axe(page, state):
        page.evaluate("Promise.all(document.getAnimations().map(({ finished }) => finished.catch(() => {})))")
        violations = axe.run(page).response["violations"]
        faults = [(each["id"], [node["html"] for node in each["nodes"]]) for each in violations]
        assert faults == [], state
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), state

    return check_axe


def drawn_after(page, job: str) -> str:
    """The address of the first picture of the job that follows another one on the stage."""
    picture = page.locator(f".stage-large[data-state=done]:not([data-job='{job}']) .tile img").first
    picture.wait_for()
    return picture.get_attribute("src")
