"""perfusion-studio opens its page once it can be loaded."""

import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from perfusion.commands import studio


class Server(HTTPServer):
    """Its state of being ready is a test's to set."""

    ready = False


@pytest.fixture
def server():
    """A server that is not ready until `ready` is set."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            ready = self.path == "/readyz" and getattr(self.server, "ready", False)
            self.send_response(200 if ready else 503)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_page_is_opened_as_soon_as_the_server_is_ready_and_not_before(monkeypatch, server):
    opened: list[str] = []

    def open_page(address):
        opened.append(address)
        return True

    monkeypatch.setattr("webbrowser.open", open_page)
    address = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=studio._open_page, args=(address,))
    thread.start()
    time.sleep(0.5)
    assert not opened
    server.ready = True
    thread.join(20)
    assert opened == [address]


def test_where_there_is_no_browser_the_address_is_told(monkeypatch, capsys, server):
    monkeypatch.setattr("webbrowser.open", lambda address: False)
    server.ready = True
    address = f"http://127.0.0.1:{server.server_port}/"
    studio._open_page(address)
    assert f"open {address} yourself" in capsys.readouterr().err


@pytest.mark.parametrize("arguments, address", [
    (["--host", "0.0.0.0", "--port", "99"], "http://127.0.0.1:99/"),
    (["--host", "::1", "--port", "99"], "http://[::1]:99/"),
    (["--tls-cert", "c.pem", "--tls-key", "k.pem"], "https://127.0.0.1:8188/"),
    (["--no-browser"], None),
])  # fmt: skip
def test_the_browser_is_sent_to_this_machine_s_own_address(monkeypatch, arguments, address):
    calls: list[str] = []
    addresses: list[str] = []

    def serve(args, name):
        calls.append(name)
        time.sleep(0.2)
        return 0

    monkeypatch.setattr(studio, "_open_page", addresses.append)
    monkeypatch.setattr(studio, "serve", serve)
    assert studio.main(arguments) == 0
    assert calls == ["perfusion-studio"]
    assert addresses == ([address] if address else [])
