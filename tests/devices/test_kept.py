"""Graphs that a benchmark keeps between its runs."""

import pytest

from benchmarks.models.kept import kept


@pytest.fixture
def exporter(tmp_path):
    """Counts its calls; `source` is what it is made from."""

    class Exporter:
        source = tmp_path / "exporter.py"
        calls = 0

        def __call__(self, folder):
            self.calls += 1
            (folder / "unet.onnx").write_text(f"export {self.calls}")

        def keep(self, make=None):
            return kept("sd15", make or self, [self.source], tmp_path / "graphs")

    made = Exporter()
    made.source.write_text("first")
    return made


def test_what_was_exported_is_taken_again(exporter):
    assert exporter.keep() == exporter.keep()
    assert exporter.calls == 1


def test_a_changed_exporter_exports_again_and_its_older_graphs_go(exporter):
    old = exporter.keep()
    exporter.source.write_text("second")
    new = exporter.keep()
    assert (new / "unet.onnx").read_text() == "export 2"
    assert not old.exists()


def test_an_export_that_failed_has_left_nothing(exporter):
    def fail(folder):
        exporter(folder)
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        exporter.keep(fail)
    assert (exporter.keep() / "unet.onnx").read_text() == "export 2"


def test_a_model_next_to_it_is_left_alone(exporter, tmp_path):
    other = kept("sd21", exporter, [exporter.source], tmp_path / "graphs")
    exporter.keep()
    assert other.exists()
