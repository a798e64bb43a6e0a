"""The server's own routes: jobs, pictures, concepts, inspection, the device."""

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from perfusion.concept.concept_file import Concept
from perfusion.runtime.picture_settings import read_settings
from tests.perfusion.serving import http
from tests.perfusion.serving.conftest import wait_for

STEPS = {"num_inference_steps": 2}


@pytest.fixture(scope="module")
def client(server):
    with http.client(base_url=server.address) as client:
        yield client


def finished(client, job) -> dict[str, Any]:
    def look():
        state = client.get(f"/api/jobs/{job['id']}").json()
        return state if state["state"] in ("done", "failed", "cancelled") else None

    return wait_for(look)


def submit(client, **fields):
    answer = client.post("/api/jobs", json={"prompt": "a <cat>"} | STEPS | fields)
    assert answer.status_code == 202, answer.text
    return answer.json()


def test_a_job_is_drawn_as_the_runtime_draws_and_lies_in_the_history(server, client):
    state = finished(client, submit(client, seed=3, count=2, exact=True, scheduler="euler"))
    assert state["state"] == "done" and len(state["pictures"]) == 2
    expected = server.runtime.generate("a <cat>", seed=[3, 4], scheduler="euler", **STEPS)
    for address, picture in zip(state["pictures"], expected, strict=True):
        answer = client.get(address)
        assert answer.headers["content-type"] == "image/png"
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), np.asarray(picture))
    settings = read_settings(io.BytesIO(answer.content))
    assert (
        settings is not None
        and settings["prompt"] == "a <cat>"
        and settings["seed"] == 4
        and settings["exact"]
    )
    assert state["id"] in [job["id"] for job in client.get("/api/jobs").json()]


def events_of(client, job):
    with client.stream("GET", f"/api/jobs/{job['id']}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        name = None
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line[7:]
            if line.startswith("data: "):
                yield name, json.loads(line[6:])


def test_events_tell_states_previews_and_the_end(client):
    events = list(events_of(client, submit(client, num_inference_steps=60)))
    assert events[-1][0] == "done" and events[-1][1]["state"] == "done"
    previews = [data for name, data in events if name == "preview"]
    assert previews and previews[0]["total"] == 60
    kind, _, data = previews[0]["picture"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (32, 32)


def test_a_job_is_cancelled_once(client):
    job = submit(client, num_inference_steps=1000)
    assert client.delete(f"/api/jobs/{job['id']}").status_code == 200
    assert finished(client, job)["state"] == "cancelled"
    assert client.delete(f"/api/jobs/{job['id']}").status_code == 409


@pytest.mark.parametrize(
    "fields, field",
    [
        ({"prompt": ""}, "prompt"),
        ({"seed": "many"}, "seed"),
        ({"image": "http://example.org/cat.png"}, "image"),
        ({"image": base64.b64encode(b"no picture").decode()}, "image"),
        ({"regions": 3}, "regions"),
    ],
)
def test_a_field_that_is_wrong_is_named(client, fields, field):
    answer = client.post("/api/jobs", json={"prompt": "a cat"} | fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["field"] == field


def test_a_picture_is_drawn_over_another(server, client):
    stream = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(stream, "PNG")
    encoded = base64.b64encode(stream.getvalue()).decode()
    for image in (encoded, f"data:image/png;base64,{encoded}"):
        state = finished(client, submit(client, image=image, image_strength=0.5, seed=1, exact=True))
        answer = client.get(state["pictures"][0])
        expected = server.runtime.generate(
            "a <cat>", seed=1, image=Image.new("RGB", (32, 32), "red"), image_strength=0.5, **STEPS
        )
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), np.asarray(expected))


def test_the_history_is_searched_marked_and_cleared(client):
    state = finished(client, submit(client, prompt="a violet <cat>"))
    (picture,) = client.get("/api/pictures", params={"search": "VIOLET cat"}).json()
    assert picture["url"] == state["pictures"][0] and picture["expires"] > picture["created"]
    marked = client.patch(picture["url"], json={"favourite": True}).json()
    assert marked["favourite"] and marked["expires"] is None
    favourites = client.get("/api/pictures", params={"favourite": "true"}).json()
    assert [each["id"] for each in favourites] == [picture["id"]]
    assert client.delete(picture["url"]).status_code == 204
    assert client.get(picture["url"]).status_code == 404


def test_a_concept_comes_is_used_changed_renamed_deleted_and_comes_back(client, toy_concept):
    data = toy_concept(token="<dog-token>", seed=4).to_bytes()
    answer = client.post("/api/concepts", files={"file": ("dog.safetensors", data)})
    assert answer.status_code == 201
    known = answer.json()
    assert known["word"] == "<dog>" and known["token"] == "<dog-token>" and known["fits"]
    assert client.post("/api/concepts", files={"file": ("dog.safetensors", data)}).status_code == 409
    state = finished(client, submit(client, prompt="a <dog-token>"))
    assert state["settings"]["prompt"] == "a <dog>"
    changed = client.patch("/api/concepts/dog", json={"settings": {"bias": 0.5}, "name": "hound"}).json()
    assert changed["name"] == "hound" and changed["settings"]["bias"] == 0.5
    assert client.get("/api/concepts/dog/file").status_code == 404
    file = client.get("/api/concepts/hound/file")
    assert file.content == data and file.headers["content-type"] == "application/octet-stream"
    card = client.get("/api/concepts/hound/card")
    assert Concept.from_bytes(card.content).token == "<dog-token>"
    undo = client.delete("/api/concepts/hound").json()["undo"]
    assert "hound" not in [known["name"] for known in client.get("/api/concepts").json()]
    again = client.post(f"/api/concepts/undo/{undo}").json()
    assert again["name"] == "hound" and again["settings"]["bias"] == 0.5
    assert client.delete("/api/concepts/hound").status_code == 200


def test_an_alias_of_two_concepts_is_refused_with_both_names(serve, toy_concept):
    files = {
        "tom.safetensors": toy_concept(token="<kitty>"),
        "felix.safetensors": toy_concept(token="<kitty>"),
    }
    address = serve(files=files).address
    answer = http.post(f"{address}/api/jobs", json={"prompt": "a <kitty>"})
    assert answer.status_code == 400
    assert "<felix> or <tom>" in answer.json()["error"]["message"]


def test_a_card_is_kept_with_a_picture_made_anew(client, toy_concept, tmp_path):
    drawing = Image.new("RGB", (300, 200), "blue")
    toy_concept(token="<bird>").save(tmp_path / "bird.png", picture=drawing)
    answer = client.post(
        "/api/concepts",
        files={"file": ("x.png", (tmp_path / "bird.png").read_bytes())},
        data={"name": "bird"},
    )
    assert answer.status_code == 201 and answer.json()["picture"]
    thumbnail = Image.open(io.BytesIO(client.get("/api/concepts/bird/picture").content))
    assert thumbnail.size == (256, 171)


def test_a_concept_without_a_picture_is_drawn_for_its_face_and_its_card(client, server):
    drawn = Image.open(io.BytesIO(client.get("/api/concepts/cat/picture").content))
    expected = server.runtime.generate("a photo of a <cat> on the grass", seed=0)
    assert np.abs(np.asarray(drawn, int) - np.asarray(expected, int)).max() <= 1
    carried = Image.open(io.BytesIO(client.get("/api/concepts/cat/card").content))
    assert min(carried.size) >= 256
    facts = client.post("/api/inspect", files={"file": client.get("/api/concepts/bird/card").content}).json()
    assert facts["kind"] == "card" and facts["concept"]["token"] == "<bird>"
    client.delete("/api/concepts/bird")


def test_inspect_tells_what_a_picture_was_drawn_with_and_what_is_missing(client):
    state = finished(client, submit(client))
    data = client.get(state["pictures"][0]).content
    facts = client.post("/api/inspect", files={"file": data}).json()
    assert facts["settings"]["prompt"] == "a <cat>" and facts["words"] == {"<cat>": "<cat>"}
    assert facts["missing"] == []
    assert client.post("/api/inspect", files={"file": b"rubbish"}).status_code == 400


def test_the_device_and_a_plan_are_told(server, client):
    facts = client.get("/api/device").json()
    assert facts["provider"] == "cpu" and facts["bundle"]["base"] == server.runtime.bundle.base
    plan = client.get("/api/plan", params={"width": 64, "height": 64, "batch": 2}).json()
    assert plan["fits"] and plan["needed"] < plan["free"] and plan["sentence"].endswith(".")
    assert client.get("/api/plan", params={"width": 7}).status_code == 400


def test_a_page_signs_in_with_the_key_and_has_a_cookie(locked):
    with http.client(base_url=locked.address) as client:
        assert client.get("/api/jobs").status_code == 401
        assert client.post("/api/login", json={"key": "wrong"}).status_code == 401
        answer = client.post("/api/login", json={"key": "open sesame"})
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "sesame" not in cookie
        assert client.get("/api/jobs").status_code == 200
        client.post("/api/logout")
        assert client.get("/api/jobs").status_code == 401
