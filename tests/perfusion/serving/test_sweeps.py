"""Grids over HTTP: each cell is the picture that the runtime draws with the cell's settings."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.perfusion.serving import http
from tests.perfusion.serving.conftest import wait_for

PATH = "/api/sweeps"
SWEEP = {
    "concept": "cat", "prompts": ["a <cat>", "a <cat> at night"], "seeds": [3, 4],
    "across": {"setting": "bias", "values": [0.5, 0.9]}, "down": {"setting": "lock", "values": ["local", "global"]},
    "num_inference_steps": 2, "exact": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def client(server):
    with http.client(base_url=server.address) as client:
        yield client


def ended(client, sweep):
    def facts():
        now = client.get(f"{PATH}/{sweep['id']}").json()
        return now if now["state"] in ("done", "failed", "cancelled") else None

    return wait_for(facts)


def test_each_cell_is_the_picture_of_its_settings(server, client):
    answer = client.post(PATH, json=SWEEP)
    assert answer.status_code == 202 and answer.headers["Location"] == f"{PATH}/{answer.json()['id']}"
    sweep = ended(client, answer.json())
    assert sweep["state"] == "done" and sweep["step"] == sweep["total"] == 32
    assert len(sweep["cells"]) == 16 and len({json.dumps(cell) for cell in sweep["cells"]}) == 16
    runtime = server.runtime
    for number in (0, 3, 5, 15):
        cell = sweep["cells"][number]
        expected = runtime.generate(
            cell["prompt"], seed=cell["seed"], num_inference_steps=2, lock=cell["settings"]["lock"],
            concept_settings={"<cat>": {"bias": cell["settings"]["bias"]}},
        )  # fmt: skip
        picture = Image.open(io.BytesIO(client.get(cell["picture"]).content))
        assert np.array_equal(np.asarray(picture), np.asarray(expected))
        assert cell["settings"]["bias"] == (0.5, 0.9)[cell["column"]]
        assert cell["settings"]["lock"] == ("local", "global")[cell["row"]]
    sheet = Image.open(io.BytesIO(client.get(f"{PATH}/{sweep['id']}/sheet").content))
    assert sheet.width > 2 * 32 and sheet.height > 8 * 32
    assert sweep["id"] in [each["id"] for each in client.get(PATH).json()]
    refused = client.delete(f"{PATH}/{sweep['id']}")
    assert refused.status_code == 409


def test_one_axis_a_range_and_a_seed_by_chance_that_all_cells_share(client):
    fields = {"concept": "<cat>", "prompt": "a <cat>", "across": {"setting": "strength", "values": "0:1:3"}}
    sweep = ended(client, client.post(PATH, json=fields | {"num_inference_steps": 1}).json())
    assert [cell["settings"] for cell in sweep["cells"]] == [
        {"strength": 0},
        {"strength": 0.5},
        {"strength": 1},
    ]
    assert len({cell["seed"] for cell in sweep["cells"]}) == 1 and sweep["down"] is None


def test_a_sweep_is_watched_and_stopped(client, server):
    sweep = client.post(PATH, json=SWEEP | {"num_inference_steps": 1000}).json()
    assert client.get(f"{PATH}/{sweep['id']}/sheet").status_code == 404
    names = []
    with client.stream("GET", f"{PATH}/{sweep['id']}/events") as answer:
        for line in answer.iter_lines():
            names += [line.removeprefix("event: ")] if line.startswith("event: ") else []
            if names.count("preview") == 2:
                client.delete(f"{PATH}/{sweep['id']}")
    assert names[0] == "state" and names[-1] == "done"
    assert ended(client, sweep)["state"] == "cancelled"
    wait_for(lambda: not server.runtime.queue.waiting and not server.runtime.queue.drawing)


def values(setting, numbers):
    return {"setting": setting, "values": numbers}


@pytest.mark.parametrize(
    "fields, field",
    [
        ({"concept": "dog"}, "name"),
        ({"prompts": []}, "prompts"),
        ({"prompts": ["a dog"]}, "prompts"),
        ({"prompts": "a <cat>"}, "prompts"),
        ({"prompts": ["a <cat>"] * 9}, "prompts"),
        ({"seeds": "1"}, "seeds"),
        ({"seeds": [0.5]}, "seeds"),
        ({"across": values("color", [1])}, "across"),
        ({"across": {"setting": "bias"}}, "across"),
        ({"across": values("bias", "1:2")}, "across"),
        ({"across": [1]}, "across"),
        ({"across": values("strength", [0.5, 2])}, None),
        ({"across": values("bias", [[1]])}, None),
        ({"down": values("lock", ["x"])}, None),
        ({"down": values("bias", [1])}, "down"),
        ({"across": values("bias", "0:1:99")}, "across"),
        ({"across": values("bias", "0:1:60")}, "across"),
        ({"width": 31}, None),
    ],
)
def test_what_is_no_sweep_is_refused_and_nothing_is_drawn(client, fields, field):
    before = len(client.get(PATH).json())
    answer = client.post(PATH, json=SWEEP | fields)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["field"] == field and answer.json()["error"]["message"].endswith(".")
    assert len(client.get(PATH).json()) == before


def test_a_sweep_is_its_owner_s_own(locked):
    mine, other = ({"Authorization": f"Bearer {key}"} for key in locked.parts.access.keys)
    sweep = http.post(locked.address + PATH, json=SWEEP, headers=mine).json()
    for path in ("", "/events", "/sheet"):
        assert http.get(f"{locked.address}{PATH}/{sweep['id']}{path}", headers=other).status_code == 404
    assert http.delete(f"{locked.address}{PATH}/{sweep['id']}", headers=other).status_code == 404
    assert http.get(locked.address + PATH, headers=other).json() == []
    http.delete(f"{locked.address}{PATH}/{sweep['id']}", headers=mine)
