"""The server as real clients see it: openai, webuiapi and httpx over a socket of this machine."""

import json
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest

from perfusion.errors import RequestError
from perfusion.serving.access import Access
from perfusion.serving.rates import Limits
from tests.perfusion.serving.conftest import picture_of


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_the_openai_package_draws_what_the_runtime_draws(server, kind):
    address, runtime = server.address, server.runtime
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
        answer = client.images.generate(
            prompt="a <cat>", n=2, output_format=kind,
            extra_body={"seed": 5, "num_inference_steps": 2, "concepts": {"<cat>": {"strength": 0.5}}},
        )  # fmt: skip
        assert [model.id for model in client.models.list()] == ["pocket"]
    settings = {"<cat>": {"strength": 0.5}}
    expected = runtime.generate("a <cat>", seed=[5, 6], num_inference_steps=2, concept_settings=settings)
    for item, picture in zip(answer.data, expected, strict=True):
        drawn = picture_of(item.b64_json)
        assert drawn.format == kind.upper()
        if kind == "png":
            assert np.abs(np.asarray(drawn, int) - np.asarray(picture, int)).max() <= 1
    assert answer.size == "32x32"


def test_the_openai_package_gets_its_own_errors(server, locked):
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none") as client:
        for fields in ({"size": "7x7"}, {"output_format": "gif"}, {"extra_body": {"seed": "x"}}, {"n": 11}):
            with pytest.raises(openai.BadRequestError):
                client.images.generate(**({"prompt": "a cat"} | fields))
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("gpt")
    with (
        openai.OpenAI(base_url=f"{locked.address}/v1", api_key="wrong") as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()
    with openai.OpenAI(base_url=f"{locked.address}/v1", api_key="open sesame") as client:
        client.models.list()


def test_the_webuiapi_package_draws_and_lists(server):
    import webuiapi

    address, runtime = server.address, server.runtime
    api = webuiapi.WebUIApi(baseurl=f"{address}/sdapi/v1")
    answer = api.txt2img(
        prompt="a <cat>", seed=3, steps=2, width=32, height=32, cfg_scale=2.0, sampler_name="Euler"
    )
    expected = runtime.generate(
        "a <cat>", seed=3, num_inference_steps=2, guidance_scale=2.0, scheduler="euler"
    )
    assert np.abs(np.asarray(answer.image, int) - np.asarray(expected, int)).max() <= 1
    assert answer.info["all_seeds"] == [3]
    assert [lora["name"] for lora in api.get_loras()] == ["cat"]
    assert "Euler a" in [sampler["name"] for sampler in api.get_samplers()]
    assert api.get_progress()["state"]["job_count"] == 0
    api.interrupt()


def test_errors_of_the_webui_dialect_are_its_own_objects(server):
    answer = httpx.post(f"{server.address}/sdapi/v1/txt2img", json={"width": 7})
    assert answer.status_code == 400
    assert set(answer.json()) == {"error", "detail", "body", "errors"}


def test_a_page_of_another_site_and_a_foreign_name_are_refused(server):
    url = f"{server.address}/v1/models"
    assert httpx.get(url, headers={"Origin": "https://evil.example"}).status_code == 403
    assert httpx.get(url, headers={"Host": "evil.example"}).status_code == 403
    assert httpx.get(url, headers={"Origin": server.address}).status_code == 200


def test_the_key_opens_by_bearer_and_by_basic_and_health_is_open(locked):
    assert httpx.get(f"{locked.address}/healthz").text == "ok"
    for path in ("/metrics", "/v1/models", "/sdapi/v1/options"):
        refused = httpx.get(f"{locked.address}{path}")
        assert refused.status_code == 401 and "WWW-Authenticate" in refused.headers
        assert httpx.get(f"{locked.address}{path}", auth=("anyone", "open sesame")).status_code == 200
        assert httpx.get(f"{locked.address}{path}", auth=("anyone", "open")).status_code == 401


def test_another_machine_is_let_in_with_a_key_alone():
    with pytest.raises(RequestError, match="there is no key"):
        Access.of("0.0.0.0")
    assert Access.of("0.0.0.0", ["key"]).keys == ("key",)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b"[" * 100_000, b'{"prompt": 3}', b'{"prompt": "a", "n": 1e999}']
)
def test_rubbish_is_a_400_and_no_traceback(server, body):
    answer = httpx.post(f"{server.address}/v1/images/generations", content=body)
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_body_that_is_too_large_is_refused(serve):
    address = serve(limits=Limits(body_bytes=100)).address
    answer = httpx.post(f"{address}/v1/images/generations", json={"prompt": "a" * 200})
    assert answer.status_code == 413


def test_a_full_queue_is_429_with_a_time_to_try_again(serve):
    address = serve(queue_size=1).address
    answer = httpx.post(f"{address}/v1/images/generations", json={"prompt": "a cat", "n": 10}, timeout=60)
    assert answer.status_code == 429
    assert int(answer.headers["Retry-After"]) > 0


def test_a_client_that_goes_away_leaves_no_job_behind(server):
    address, runtime = server.address, server.runtime
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{address}/v1/images/generations", timeout=0.3,
            json={"prompt": "a cat", "num_inference_steps": 1000, "n": 4},
        )  # fmt: skip
    for _ in range(500):
        if not runtime.queue.drawing and not runtime.queue.waiting:
            return
        time.sleep(0.01)
    pytest.fail("the jobs are still there")


def test_metrics_count_calls(server):
    httpx.post(
        f"{server.address}/v1/images/generations",
        json={"prompt": "a cat", "num_inference_steps": 1},
        timeout=60,
    )
    assert 'perfusion_unet_calls_total{pictures="1"' in httpx.get(f"{server.address}/metrics").text


def test_the_info_of_txt2img_is_a_text_of_json(server):
    answer = httpx.post(
        f"{server.address}/sdapi/v1/txt2img",
        json={"steps": 1, "width": 32, "height": 32, "n_iter": 2},
        timeout=60,
    ).json()
    assert len(json.loads(answer["info"])["all_seeds"]) == len(answer["images"]) == 2


PAGE = (Path(__file__).parents[3] / "docs" / "serving.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S) for line in block.splitlines()]


@pytest.mark.parametrize("line", LINES)
def test_the_examples_of_the_page_run(server, line):
    if shutil.which("curl") is None:
        pytest.skip("this machine has no curl")
    command = shlex.split(line.replace("http://127.0.0.1:8188", server.address))
    answer = subprocess.run([*command, "--fail", "--max-time", "60"], capture_output=True, check=True)
    assert answer.stdout
