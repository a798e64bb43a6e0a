"""Hundreds of pictures with concepts coming and going: memory stays flat, and each picture is what a fresh process
draws."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfusion.errors import RequestError
from perfusion.runtime import Runtime

ROOT = Path(__file__).parents[2]
TOY_BUNDLE = ROOT / "tests" / "data" / "toy_bundle"
TOKENS = ("<cat>", "<dog>", "<bus>")
FLAT = 1.5  # MB by which the memory of the last pictures may differ from that of the first
SUBJECTS = ("a photo of {}", "{} on a beach", "a cat", "{} and {}")


def resident_mb():
    """The memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def step(runtime, rng, files):
    """Swap something, then say what to draw: the prompt and its options."""
    for _ in range(rng.randrange(3)):
        token = rng.choice(TOKENS)
        if token in runtime.concepts and rng.random() < 0.7:
            runtime.unload_concept(token)
        elif token not in runtime.concepts:
            runtime.load_concept(rng.choice(files), token=token)
        else:
            runtime.set_concept(token, bias=rng.choice((0.1, 0.4)), strength=rng.choice((0.0, 0.5, 1.0)))
    subject = rng.choice(SUBJECTS)
    loaded = [*runtime.concepts, "cat", "dog"]
    prompt = subject.format(*rng.sample(loaded, subject.count("{}")))
    side = rng.choice((24, 32, 32, 40))
    return prompt, {
        "seed": rng.randrange(3), "width": side, "height": 32, "num_inference_steps": rng.choice((1, 2)),
        "guidance_scale": rng.choice((1.0, 3.0)), "scheduler": rng.choice(("ddim", "euler")),
        "lock": rng.choice((None, "local", "global")),
    }  # fmt: skip


def soak(files, count, kept):
    """Draw `count` pictures; the memory after each, and for those in `kept` all that is needed to draw them anew."""
    rng, memory, records = random.Random(0), [], []
    with Runtime(TOY_BUNDLE, provider="cpu", threads=1) as runtime:
        for number in range(count):
            prompt, options = step(runtime, rng, files)
            picture = runtime.generate(prompt, **options)
            memory.append(resident_mb())
            if number in kept:
                state = {
                    token: [concept_file(runtime, token, files), settings(runtime, token)]
                    for token in runtime.concepts
                }
                records.append(
                    {
                        "prompt": prompt,
                        "options": options,
                        "concepts": state,
                        "picture": picture.tobytes().hex(),
                    }
                )
    return memory, records


def concept_file(runtime, token, files):
    """Which file a loaded concept came from: its values say."""
    from perfusion import Concept

    values = runtime.concepts[token].target_values
    return next(path for path in files if np.array_equal(Concept.load(path).target_values, values))


def settings(runtime, token):
    found = runtime.set_concept(token)
    return {"bias": found.bias, "temperature": found.temperature, "strength": found.strength}


def redraw(record):
    """The picture of a record, in a runtime that has drawn nothing before."""
    with Runtime(TOY_BUNDLE, provider="cpu", threads=1) as runtime:
        for token, (path, values) in record["concepts"].items():
            runtime.load_concept(path, token=token, **values)
        return runtime.generate(record["prompt"], **record["options"]).tobytes().hex()


WORKER = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("test_soak", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(json.dumps(getattr(module, sys.argv[2])(*json.loads(sys.stdin.read()))))
"""


def elsewhere(function, *arguments):
    """A function of this file in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", WORKER, __file__, function], input=json.dumps(arguments), cwd=ROOT, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def files(tmp_path, make_concept):
    paths = []
    for seed in range(4):
        paths.append(str(tmp_path / f"{seed}.safetensors"))
        make_concept(seed, rows=1 + seed % 2).save(paths[-1])
    return paths


linux = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="the memory is read as Linux tells it"
)


@linux
def test_thirty_pictures_with_swaps_are_what_fresh_processes_draw(files):
    _, records = elsewhere("soak", files, 30, [4, 29])
    assert any(record["concepts"] for record in records)
    for record in records:
        assert redraw(record) == record["picture"]


@linux
@pytest.mark.slow
def test_memory_is_flat_over_five_hundred_pictures_with_swaps(files):
    memory, records = elsewhere("soak", files, 500, [50, 250, 499])
    early, late = np.median(memory[100:200]), np.median(memory[400:])
    print(f"{early:.1f} MB, at the end {late:.1f} MB, at most {max(memory):.1f} MB")
    assert late - early < FLAT
    for record in records:
        assert elsewhere("redraw", record) == record["picture"]


@linux
@pytest.mark.slow
def test_opening_and_closing_runtimes_keeps_memory_flat(files):
    memory = elsewhere("reopen", files, 60)
    assert np.median(memory[45:]) - np.median(memory[20:30]) < FLAT


def reopen(files, count):
    """The memory after each of `count` runtimes that were opened, used and closed."""
    memory = []
    for number in range(count):
        with Runtime(TOY_BUNDLE, provider="cpu", threads=1) as runtime:
            concept = runtime.load_concept(files[number % len(files)])
            runtime.generate(f"a {concept.token}", num_inference_steps=1)
        memory.append(resident_mb())
    return memory


@linux
def test_the_measure_of_memory_would_see_a_leak():
    assert elsewhere("leak", 20_000_000) > FLAT  # so large a block is always new memory


def leak(count):
    """How many MB the memory grows by when `count` numbers of four bytes are kept."""
    before = resident_mb()
    kept = np.ones(count, np.float32)
    after = resident_mb()
    del kept
    return after - before


def test_a_runtime_survives_what_it_refuses(files):
    """A refused request leaves nothing behind: the next picture is as if it had not been asked for."""
    with Runtime(TOY_BUNDLE, provider="cpu", threads=1) as runtime:
        expected = runtime.generate("a cat", seed=1, num_inference_steps=1).tobytes()
        refused: tuple[dict[str, Any], ...] = (
            {"width": 33},
            {"scheduler": "none"},
            {"guidance_scale": float("nan")},
            {"seed": -1},
        )
        for options in refused:
            with pytest.raises(RequestError):
                runtime.generate("a cat", **{"seed": 1, "num_inference_steps": 1, **options})
            assert runtime.generate("a cat", seed=1, num_inference_steps=1).tobytes() == expected
