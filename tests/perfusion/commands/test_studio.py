"""perfusion-studio opens its page once it can be loaded."""

import socket
import threading
import time

from perfusion.commands import studio


def test_the_page_is_opened_as_soon_as_the_server_listens_and_not_before(monkeypatch):
    opened: list[str] = []

    def open_page(address):
        opened.append(address)
        return True

    monkeypatch.setattr("webbrowser.open", open_page)
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
        thread = threading.Thread(target=studio._open_page, args=("127.0.0.1", port))
        thread.start()
        time.sleep(0.3)
        assert not opened
        place.listen()
        thread.join(10)
    assert opened == [f"http://127.0.0.1:{port}/"]


def test_where_there_is_no_browser_the_address_is_told(monkeypatch, capsys):
    monkeypatch.setattr("webbrowser.open", lambda address: False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        studio._open_page("127.0.0.1", port)
    assert f"open http://127.0.0.1:{port}/ yourself" in capsys.readouterr().err


def test_a_server_for_all_addresses_is_opened_at_this_machine_s_own(monkeypatch):
    calls: list[object] = []

    def serve(args, name):
        calls.append(name)
        return 0

    monkeypatch.setattr(studio, "_open_page", lambda host, port: calls.append((host, port)))
    monkeypatch.setattr(studio, "serve", serve)
    assert studio.main(["--host", "0.0.0.0", "--port", "99", "--no-browser"]) == 0
    assert studio.main(["--host", "0.0.0.0", "--port", "99"]) == 0
    while len(calls) < 3:
        time.sleep(0.01)
    assert sorted(map(str, calls)) == ["('127.0.0.1', 99)", "perfusion-studio", "perfusion-studio"]
