"""A process that builds the toy bundle's text encoder with a builder that only takes time: `build_worker.py BUNDLE`.

slow=SECONDS    how long a build takes
stop=building   stay in the middle of the build, to be killed there
stop=writing    stay in the middle of writing the plan
"""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from perfusion.bundle.reader import read_bundle
from perfusion.files import writing
from perfusion.tensorrt import engine_store as cache
from perfusion.tensorrt import engines
from perfusion.tensorrt.build import BuildOptions, Built
from perfusion.tensorrt.jobs import engine_jobs
from perfusion.tensorrt.shape_ranges import ShapeOptions

bundle = Path(sys.argv[1])
given = dict(argument.split("=") for argument in sys.argv[2:])
waited: list[str] = []


def stay(moment):
    (bundle / f"stopped-{moment}").touch()
    time.sleep(60)


def build(*_, **__):
    time.sleep(float(given.get("slow", 0)))
    if given.get("stop") == "building":
        stay("building")
    return Built(engine=memoryview(b"plan" * 1000), inputs={}, outputs={}, timing=None)


def half_written(path, mode="wb"):
    with writing(path, mode) as file:
        file.write(b"half of it")
        file.flush()
        stay("writing")
    raise AssertionError


mock.patch.object(engines, "build_engine", build).start()
if given.get("stop") == "writing":
    mock.patch.object(cache, "writing", half_written).start()
jobs = [job for job in engine_jobs(read_bundle(bundle), ShapeOptions()) if job.graph == "text_encoder"]
(outcome,) = engines.build_engines(
    SimpleNamespace(__version__="1.7.1"),
    bundle,
    jobs,
    engines.EngineSettings(flavour="trt-rtx", target="sm89", precision="fp32", options=BuildOptions()),
    progress=lambda graph, phase, done, total: waited.append(phase) if "waiting" in phase else None,
)
print(json.dumps({"built": outcome.built, "sha256": outcome.engine.sha256, "waited": bool(waited)}))
