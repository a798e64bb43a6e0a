"""perfusion-serve's options, read as perfusion-generate reads the same ones."""

import pytest

from perfusion.commands.serve import main


@pytest.fixture
def opened(monkeypatch):
    """The options that the runtime was opened with; it is never opened."""
    options = {}

    def refuse(bundle, **given):
        options.update(given)
        raise KeyboardInterrupt

    monkeypatch.setattr("perfusion.runtime.Runtime", refuse)
    return options


@pytest.mark.parametrize("text, memory", [("4", 4.0), ("0.5", 0.5), ("low", "low"), ("auto", "auto")])
def test_memory_is_a_number_or_a_word(opened, tmp_path, text, memory):
    main(["--memory", text, "--threads", "2", "--data", str(tmp_path), "--port", "0"])
    assert (opened["memory"], opened["threads"]) == (memory, 2)


@pytest.mark.parametrize("arguments", [["--threads", "0"], ["--memory", "much"]])
def test_what_is_no_number_is_a_wrong_command_line(opened, arguments, capsys):
    assert main(arguments) == 2
    assert not opened
    assert arguments[1] in capsys.readouterr().err
