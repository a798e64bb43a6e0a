"""Building a bundle's engines while the bundle, the disk or another process do something else."""

import os
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from perfusion.errors import BundleError, PerfusionError
from perfusion.tensorrt import engines
from perfusion.tensorrt.engine_store import find_engine
from perfusion.tensorrt.engines import build_engines

TRT = SimpleNamespace(__version__="1.7.1")


@pytest.fixture
def during(monkeypatch, built):
    """Sets what happens while an engine is being built by nobody; lists what was built."""
    seen = SimpleNamespace(happens=lambda: None, graphs=[])

    def build(trt, graph, **_):
        seen.graphs.append(graph.name)
        seen.happens()
        return built

    monkeypatch.setattr(engines, "build_engine", build)
    return seen


def test_a_graph_that_changes_while_its_engine_is_built_has_no_engine(toy, text_job, settings, during):
    """Its key would be of the graph there was, and the plan of either."""
    during.happens = lambda: (toy / text_job.file).write_bytes(b"exported anew")
    with pytest.raises(BundleError, match=r"text_encoder\.onnx does not have the checksum"):
        build_engines(TRT, toy, [text_job], settings)
    assert not list((toy / "engines").rglob("*.engine"))


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system lets no program choose its cores"
)
def test_a_build_and_its_threads_keep_to_the_cores_it_may_use(toy, text_job, settings, during):
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("there is one core")
    seen = []

    def look():
        thread = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
        thread.start()
        thread.join()

    during.happens = look
    (outcome,) = build_engines(TRT, toy, [text_job], replace(settings, cores=1))
    assert seen == [{max(allowed)}]
    assert os.sched_getaffinity(0) == allowed
    assert "cores" not in outcome.engine.key.options  # another number of them builds the same engine
    (again,) = build_engines(TRT, toy, [text_job], settings)
    assert not again.built

    def fail():
        raise OSError("no space")

    outcome.engine.file.unlink()
    during.happens = fail
    with pytest.raises(OSError, match="no space"):
        build_engines(TRT, toy, [text_job], replace(settings, cores=1))
    assert os.sched_getaffinity(0) == allowed


def test_engines_that_are_there_are_enough_where_nothing_can_be_written(
    toy, text_job, settings, during, monkeypatch
):
    (made,) = build_engines(TRT, toy, [text_job], settings)

    def refused(path):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("perfusion.tensorrt.engine_store.lock", refused)
    (found,) = build_engines(TRT, toy, [text_job], settings)
    assert (found.engine, found.built) == (made.engine, False)
    made.engine.file.unlink()
    with pytest.raises(PerfusionError, match=r"cannot be written: read-only file system\. Copy the bundle"):
        build_engines(TRT, toy, [text_job], settings)


def test_what_another_process_built_meanwhile_is_taken(toy, text_job, settings, during, monkeypatch):
    """It was not there at the first look, and is at the second, with the lock held."""
    build_engines(TRT, toy, [text_job], settings)
    looks: list[int] = []

    def late(*arguments):
        looks.append(1)
        none = SimpleNamespace(engine=None, reasons=())
        return none if len(looks) == 1 else find_engine(*arguments)

    monkeypatch.setattr(engines, "find_engine", late)
    (outcome,) = build_engines(TRT, toy, [text_job], settings)
    assert not outcome.built
    assert len(looks) == 2
    assert len(during.graphs) == 1
