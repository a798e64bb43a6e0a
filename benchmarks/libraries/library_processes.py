"""The first result of a fresh process by each library, and the memory that it takes: code for `python -c`.

Each begins its clock before the library is imported, and prints one line of JSON.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import ROOT

__all__ = ["FIRST_PICTURE", "FIRST_STEP", "FIRST_TORCH_STEP", "STABLE_DIFFUSION_CPP", "run_alone"]

_BEGIN = """
import json, resource, sys, time
sys.path.insert(0, ".")
began = time.perf_counter()
facts = {}
def peak_mb():
    peak = open("/proc/self/status").read().split("VmHWM:")[1].split()[0]  # ru_maxrss begins with the parent's
    return round(int(peak) * 1024 / 1e6)
"""

FIRST_PICTURE = """
from perfusion.runtime import Runtime
runtime = Runtime(provider=sys.argv[1], threads=int(sys.argv[2]))
runtime.load_concept("school-bus")
runtime.generate("a photo of a <school-bus> on a beach", seed=0)
"""

# Arguments: the library, threads, the graph, its inputs as npz, "kept" where what was compiled is to be stored.
FIRST_STEP = """
from pathlib import Path
import numpy as np
from benchmarks.libraries.library_graphs import open_graph
if sys.argv[1] == "openvino":
    import openvino
    openvino.Core().available_devices
arrays = dict(np.load(sys.argv[4]))
facts["library_mb"] = peak_mb()
graph = open_graph(sys.argv[1], Path(sys.argv[3]), tuple(arrays), int(sys.argv[2]), cached="kept" in sys.argv)
graph.run(**arrays)
"""

# Arguments: the library's name, threads, the folder that `prepare` wrote, the inputs.
FIRST_TORCH_STEP = """
from pathlib import Path
import numpy as np
import torch
from benchmarks.libraries.torch_unet import load_unet
torch.set_num_threads(int(sys.argv[2]))
unet = load_unet(Path(sys.argv[3]))
arrays = np.load(sys.argv[4])
with torch.inference_mode():
    unet(*(torch.from_numpy(arrays[name]) for name in ("sample", "timestep", "encoder_hidden_states")))
"""

# Arguments: the precision, threads, the folder of diffusers, how many steps, the picture's sides. stable-diffusion.cpp
# draws whole pictures only, and calls back after each step. It computes the two rows of guidance one after the other.
# The first step pays for what is set up once.
STABLE_DIFFUSION_CPP = """
import statistics
import stable_diffusion_cpp
marks, count, side = [], int(sys.argv[4]), int(sys.argv[5])
def note(step, steps, seconds):
    if steps == count:  # else it counts tensors
        marks.append(time.perf_counter())
model = stable_diffusion_cpp.StableDiffusion(
    model_path=sys.argv[3], wtype=sys.argv[1], n_threads=int(sys.argv[2]), vae_decode_only=True, verbose=False,
)
model.generate_image(
    prompt="a cat on a beach", width=side, height=side, sample_steps=count, cfg_scale=7.0, seed=0,
    sample_method="euler", progress_callback=note,
)
steps = [after - before for before, after in zip(marks, marks[1:])][1:]
flags = stable_diffusion_cpp.sd_get_system_info().decode().split("Info:")[1].split("|")
facts["step_seconds"] = round(statistics.median(steps), 4)
facts["steps"] = len(steps)
facts["built_for"] = [flag.split("=")[0].strip() for flag in flags if flag.strip().endswith("= 1")]
"""

_TELL = """
usage = resource.getrusage(resource.RUSAGE_SELF)
facts |= {"seconds": round(time.perf_counter() - began, 2), "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2)}
print(json.dumps(facts | {"peak_memory_mb": peak_mb()}))
"""


def run_alone(script: str, arguments: Sequence[object], cache: Path) -> dict[str, Any]:
    """What a script's fresh process tells, with what it compiles in a cache of its own."""
    process = subprocess.run(
        [sys.executable, "-c", _BEGIN + script + _TELL, *map(str, arguments)],
        cwd=ROOT, env={**os.environ, "PERFUSION_CACHE": str(cache)}, stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    facts: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return facts
