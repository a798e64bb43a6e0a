"""Settings measured over HTTP, with a scorer that sees the mean colour of a picture."""

import io
import itertools
import json
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from PIL import Image

from perfusion.judging.scales import similarities
from perfusion.serving import front_routes
from perfusion.serving.answers import StatusError
from perfusion.sweep.front import points_of
from perfusion.sweep.ranges import Setting
from tests.perfusion.serving.conftest import wait_for

BIASES = (0.4, 0.6, 0.8)


class ColourScorer:
    """Embeds a picture as its mean colour; every text is white."""

    def embed_pictures(self, pictures):
        means = np.array(
            [np.asarray(picture.convert("RGB"), np.float64).mean((0, 1)) + 1 for picture in pictures]
        )
        return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)

    def embed_texts(self, texts):
        return np.full((len(texts), 3), 3**-0.5, np.float32)


@pytest.fixture
def judged(monkeypatch):
    """Puts the scorer in the judge's place, with probes that believe every picture."""

    class Believes:
        share = 1.0

    monkeypatch.setattr(
        front_routes.Judge, "open", lambda judge: (ColourScorer(), lambda *arguments: Believes())
    )


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server.address, timeout=60) as client:
        yield client


def draw(client, settings, count=2):
    """Pictures of `<cat>` with some settings."""
    order = {
        "prompt": "a <cat>", "seed": 3, "count": count, "num_inference_steps": 2,
        "concept_settings": {"<cat>": settings},
    }  # fmt: skip
    job = client.post("/api/jobs", json=order).json()["id"]
    state = wait_for(
        lambda: (facts := client.get(f"/api/jobs/{job}").json())["state"] == "done" and facts, 60
    )
    return state["pictures"]


def opened(client, addresses):
    return [Image.open(io.BytesIO(client.get(address).content)).convert("RGB") for address in addresses]


def subject():
    picture, stream = Image.new("RGB", (20, 20), "red"), io.BytesIO()
    picture.save(stream, "PNG")
    return picture, {"subject": ("red.png", stream.getvalue())}


def ask(client, pictures, files, **fields):
    return client.post(
        "/api/fronts", data={"concept": "<cat>", "pictures": json.dumps(pictures)} | fields, files=files
    )


def test_the_points_are_those_of_a_sweep_with_the_same_pictures(client, judged):
    drawn = {bias: draw(client, {"bias": bias}) for bias in BIASES}
    plain = draw(client, {"strength": 0})
    red, files = subject()
    points = ask(client, [*itertools.chain(*drawn.values()), *plain], files).json()["points"]
    scorer = ColourScorer()
    texts, target = scorer.embed_texts(["a cat"] * 2), scorer.embed_pictures([red])
    origin = scorer.embed_pictures(opened(client, plain))
    usual = {name: value for name, value in points[0]["settings"].items() if name != "bias"}
    measured = {
        Setting(**usual, bias=bias): similarities(
            scorer.embed_pictures(opened(client, addresses)), origin, target, texts
        )
        for bias, addresses in drawn.items()
    }
    expected = points_of(measured, dict.fromkeys(measured, 1.0))
    for point, own in zip(points, expected, strict=True):
        assert point["settings"]["bias"] == own.setting.bias
        assert (point["image"], point["text"]) == pytest.approx((own.image, own.text), abs=1e-6)
        assert (point["on_front"], point["recommended"]) == (own.on_front, own.recommended)


def test_what_cannot_be_measured_is_said(client, judged):
    drawn, plain, (_, files) = draw(client, {"bias": 0.5}, 1), draw(client, {"strength": 0}, 1), subject()
    refused = [
        (400, "subject", ask(client, [*drawn, *plain], {"other": ("x", b"x")})),
        (400, "pictures", ask(client, drawn, files)),
        (400, "pictures", ask(client, "no list", files)),
        (404, "pictures", ask(client, [*drawn, "/api/pictures/none"], files)),
        (404, "name", ask(client, [*drawn, *plain], files, concept="<dog>")),
    ]
    for status, field, answer in refused:
        assert (answer.status_code, answer.json()["error"]["field"]) == (status, field), answer.text


def test_a_base_model_that_nobody_judges_is_named():
    library = SimpleNamespace(runtime=SimpleNamespace(bundle=SimpleNamespace(base="sd15")))
    with pytest.raises(StatusError, match=r"Nobody judges the pictures of sd15 here.*--scorer DIR"):
        front_routes.Judge(library).open()
