"""The server as real clients see it: openai, webuiapi and httpx over a socket of this machine."""

import base64
import io
import json
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from perfusion.errors import RequestError
from perfusion.serving.access import Access
from perfusion.serving.rates import Limits
from tests.perfusion.serving import http
from tests.perfusion.serving.conftest import picture_of, wait_for


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
    places = (32 // runtime.bundle.decoder.downscale) ** 2
    words = len(runtime.explain("a <cat>").tokens) - 2
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (words, 2 * places)
    assert answer.usage.total_tokens == words + 2 * places


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
    (lora,) = api.get_loras()
    assert (lora["name"], lora["metadata"]["preferred weight"]) == ("cat", 1)
    assert "Euler a" in [sampler["name"] for sampler in api.get_samplers()]
    assert api.get_progress()["state"]["job_count"] == 0
    api.interrupt()


def test_errors_of_the_webui_dialect_are_its_own_objects(server):
    answer = http.post(f"{server.address}/sdapi/v1/txt2img", json={"width": 7})
    assert answer.status_code == 400
    assert set(answer.json()) == {"error", "detail", "body", "errors"}


def test_a_page_of_another_site_and_a_foreign_name_are_refused(server):
    url = f"{server.address}/v1/models"
    assert http.get(url, headers={"Origin": "https://evil.example"}).status_code == 403
    assert http.get(url, headers={"Host": "evil.example"}).status_code == 403
    assert http.get(url, headers={"Origin": server.address}).status_code == 200


def test_the_key_opens_by_bearer_and_by_basic_and_health_is_open(locked):
    assert http.get(f"{locked.address}/healthz").text == "ok"
    for path in ("/metrics", "/v1/models", "/sdapi/v1/options"):
        refused = http.get(f"{locked.address}{path}")
        assert refused.status_code == 401 and "WWW-Authenticate" in refused.headers
        assert http.get(f"{locked.address}{path}", auth=("anyone", "open sesame")).status_code == 200
        assert http.get(f"{locked.address}{path}", auth=("anyone", "open")).status_code == 401


def test_another_machine_is_let_in_with_a_key_alone():
    with pytest.raises(RequestError, match="there is no key"):
        Access.of("0.0.0.0")
    assert Access.of("0.0.0.0", ["key"]).keys == ("key",)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b"[" * 100_000, b'{"prompt": 3}', b'{"prompt": "a", "n": 1e999}']
)
def test_rubbish_is_a_400_and_no_traceback(server, body):
    answer = http.post(f"{server.address}/v1/images/generations", content=body)
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_body_that_is_too_large_is_refused(serve):
    address = serve(limits=Limits(body_bytes=100)).address
    answer = http.post(f"{address}/v1/images/generations", json={"prompt": "a" * 200})
    assert answer.status_code == 413


def test_a_full_queue_is_429_with_a_time_to_try_again(serve):
    address = serve(queue_size=1).address
    answer = http.post(f"{address}/v1/images/generations", json={"prompt": "a cat", "n": 10})
    assert answer.status_code == 429
    assert int(answer.headers["Retry-After"]) > 0


def test_a_client_that_goes_away_leaves_no_job_behind(server):
    address, runtime = server.address, server.runtime
    with pytest.raises(httpx.ReadTimeout):
        http.post(
            f"{address}/v1/images/generations", timeout=0.3,
            json={"prompt": "a cat", "num_inference_steps": 1000, "n": 4},
        )  # fmt: skip
    for _ in range(500):
        if not runtime.queue.drawing and not runtime.queue.waiting:
            return
        time.sleep(0.01)
    pytest.fail("the jobs are still there")


def test_metrics_count_calls(server):
    http.post(
        f"{server.address}/v1/images/generations",
        json={"prompt": "a cat", "num_inference_steps": 1},
    )
    lines = http.get(f"{server.address}/metrics").text.splitlines()
    calls = [line for line in lines if line.startswith("perfusion_unet_calls_total{")]
    alone = [line for line in calls if 'pictures="1"' in line]
    assert sum(float(line.split()[-1]) for line in alone) >= 1


def test_the_info_of_txt2img_is_a_text_of_json(server):
    answer = http.post(
        f"{server.address}/sdapi/v1/txt2img",
        json={"steps": 1, "width": 32, "height": 32, "n_iter": 2},
    ).json()
    assert len(json.loads(answer["info"])["all_seeds"]) == len(answer["images"]) == 2


PAGE = (Path(__file__).parents[3] / "docs" / "serving.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S) for line in block.splitlines()]


@pytest.mark.parametrize("line", LINES)
def test_the_examples_of_the_page_run(server, tmp_path, line):
    if shutil.which("curl") is None:
        pytest.skip("this machine has no curl")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "card.png")
    command = line.replace("http://127.0.0.1:8188", server.address).replace(
        "curl ", "curl --fail --max-time 60 ", 1
    )
    answer = subprocess.run(["bash", "-c", command], capture_output=True, check=True, cwd=tmp_path)
    assert answer.stdout


# --- retries of the package openai


def test_the_openai_package_draws_once_what_cannot_be_drawn(server, monkeypatch):
    calls = []

    def broken(*args, **options):
        calls.append(args)
        raise RuntimeError("a fault of our own")

    monkeypatch.setattr(type(server.runtime), "submit", broken)
    with (
        openai.OpenAI(base_url=f"{server.address}/v1", api_key="none") as client,
        pytest.raises(openai.InternalServerError, match="its log says more"),
    ):
        client.images.generate(prompt="a cat")
    assert len(calls) == 1


@pytest.mark.slow  # it waits as long as the server says
def test_the_openai_package_asks_again_where_the_queue_was_full(serve):
    server = serve(queue_size=1)
    job = {"prompt": "a cat", "num_inference_steps": 1000, "count": 1}
    jobs = [http.post(f"{server.address}/api/jobs", json=job).json()["id"]]
    wait_for(lambda: server.runtime.queue.drawing)
    for _ in range(20):  # as many as are drawn at once, and one that waits
        answer = http.post(f"{server.address}/api/jobs", json=job)
        if answer.status_code == 429:
            break
        jobs.append(answer.json()["id"])
        time.sleep(0.2)
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none") as client:
        with pytest.raises(openai.RateLimitError):
            client.with_options(max_retries=0).images.generate(prompt="a cat")
        threading.Timer(
            1, lambda: [http.delete(f"{server.address}/api/jobs/{each}") for each in jobs]
        ).start()
        drawing = client.images.generate(prompt="a cat", extra_body={"num_inference_steps": 1})
    assert len(drawing.data or []) == 1


# --- more of both dialects


def png(picture):
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    stream.seek(0)
    stream.name = "picture.png"
    return stream


RED = Image.new("RGB", (32, 32), "red")


def half_transparent():
    mask = Image.new("RGBA", (32, 32), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 16, 32))
    return mask


def light_half():
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (0, 0, 16, 32))
    return mask


def difference(picture, other):
    return np.abs(np.asarray(picture, int) - np.asarray(other, int)).max()


def test_the_openai_package_edits_where_its_mask_is_transparent(server):
    options = {"seed": 1, "num_inference_steps": 2, "concepts": {"<cat>": {"strength": 0.5}}}
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none") as client:
        answer = client.images.edit(
            image=png(RED), mask=png(half_transparent()), prompt="a <cat>", extra_body=options
        )
        with pytest.raises(openai.BadRequestError, match="no transparent place"):
            client.images.edit(image=png(RED), mask=png(RED), prompt="a <cat>")
        with pytest.raises(openai.BadRequestError, match="draws over one"):
            client.images.edit(image=[png(RED), png(RED)], prompt="a <cat>")
    expected = server.runtime.generate(
        "a <cat>", seed=1, num_inference_steps=2, image=RED, mask=light_half(),
        concept_settings={"<cat>": {"strength": 0.5}},
    )  # fmt: skip
    (drawing,) = answer.data or []
    assert answer.usage is not None
    assert answer.usage.input_tokens_details.image_tokens == answer.usage.output_tokens > 0
    assert difference(picture_of(drawing.b64_json), expected) <= 1


def test_edits_take_json_with_data_urls_and_fetch_nothing(server):
    url = "data:image/png;base64," + base64.b64encode(png(RED).read()).decode()
    address = f"{server.address}/v1/images/edits"
    fields = {"prompt": "a cat", "num_inference_steps": 1, "image_strength": 1.0}
    answer = http.post(address, json=fields | {"images": [{"image_url": url}]})
    assert answer.status_code == 200
    for foreign in ("http://127.0.0.1:1/x.png", "file:///etc/passwd", "data:text/html;base64,AAAA"):
        answer = http.post(address, json=fields | {"images": [{"image_url": foreign}]})
        assert answer.status_code == 400 and answer.json()["error"]["param"] in ("images", "image")


def test_the_openai_package_streams_pictures_on_their_way(server):
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none") as client:
        stream = client.images.generate(
            prompt="a <cat>", stream=True, partial_images=3, output_format="webp", size="64x64",
            extra_body={"seed": 2, "num_inference_steps": 8},
        )  # fmt: skip
        events = list(stream)
    assert [event.type for event in events] == ["image_generation.partial_image"] * 3 + [
        "image_generation.completed"
    ]
    assert [getattr(event, "partial_image_index", None) for event in events] == [0, 1, 2, None]
    assert {picture_of(event.b64_json).format for event in events} == {"WEBP"}
    assert {picture_of(event.b64_json).size for event in events} == {(64, 64)}
    edits = {"image": png(RED), "prompt": "a cat", "stream": True, "extra_body": {"num_inference_steps": 2}}
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none") as client:
        (completed,) = client.images.edit(**edits)
    assert completed.type == "image_edit.completed"


def test_a_stream_that_nobody_reads_any_more_is_cancelled(server):
    fields = {"prompt": "a cat", "stream": True, "partial_images": 1, "num_inference_steps": 1000}
    with http.stream("POST", f"{server.address}/v1/images/generations", json=fields) as answer:
        assert answer.status_code == 200
        wait_for(lambda: server.runtime.queue.drawing)
    wait_for(lambda: not server.runtime.queue.drawing and not server.runtime.queue.waiting)


def test_webuiapi_draws_over_pictures_and_reads_what_they_carry(server):
    import webuiapi

    api = webuiapi.WebUIApi(baseurl=f"{server.address}/sdapi/v1")
    answer = api.img2img(
        images=[RED], mask_image=light_half(), prompt="a <cat>", seed=3, steps=2, width=32, height=32,
        cfg_scale=2.0, sampler_name="Euler", denoising_strength=1.0, mask_blur=0, inpainting_fill=1,
    )  # fmt: skip
    expected = server.runtime.generate(
        "a <cat>", seed=3, num_inference_steps=2, guidance_scale=2.0, scheduler="euler", image=RED,
        mask=light_half(), image_strength=1.0,
    )  # fmt: skip
    kept = Image.composite(expected, RED, light_half())
    assert difference(answer.image, kept) <= 1
    assert answer.parameters["init_images"] is None
    info = api.png_info(answer.image)
    assert info.parameters["Seed"] == "3" and info.parameters["Prompt"] == "a <cat>"
    assert info.info == answer.info["infotexts"][0]
    refused = http.post(f"{server.address}/sdapi/v1/img2img", json={})
    assert refused.status_code == 404 and "init image" in refused.json()["detail"]


def test_webuiapi_interrupts_its_own_pictures_alone_and_gets_them_as_far_as_they_came(locked):
    long = {"prompt": "a <cat>", "steps": 1000, "width": 32, "height": 32, "batch_size": 2}
    mine, other = (http.client(auth=("me", key)) for key in locked.parts.access.keys)
    with mine, other:
        check_interrupts(locked, long, mine, other)


def check_interrupts(locked, long, mine, other):
    address, answers = f"{locked.address}/sdapi/v1", []

    def draw(client, fields):
        answers.append((client, client.post(f"{address}/txt2img", json=fields).json()))

    threads = [threading.Thread(target=draw, args=(client, long)) for client in (mine, other)]
    for thread in threads:
        thread.start()
    state = wait_for(lambda: (now := mine.get(f"{address}/progress").json())["current_image"] and now)
    assert 0 < state["progress"] < 1 and state["state"]["job_count"] == 1
    assert picture_of(state["current_image"]).size == (32, 32)
    mine.post(f"{address}/interrupt")
    threads[0].join()
    ((client, answer),) = answers
    assert client is mine and len(answer["images"]) == 2
    assert mine.get(f"{address}/progress").json()["state"]["job_count"] == 0
    assert other.get(f"{address}/progress").json()["state"]["job_count"] == 1
    other.post(f"{address}/interrupt")
    threads[1].join()


def test_skip_gives_up_one_picture_and_draws_the_next(server):
    address = f"{server.address}/sdapi/v1"
    fields = {"prompt": "a <cat>", "steps": 100, "width": 32, "height": 32, "n_iter": 2}
    answers = []
    thread = threading.Thread(target=lambda: answers.append(http.post(f"{address}/txt2img", json=fields)))
    thread.start()
    wait_for(lambda: http.get(f"{address}/progress").json()["state"]["sampling_step"])
    http.post(f"{address}/skip")
    thread.join()
    assert len(answers[0].json()["images"]) == 2
    assert not server.runtime.queue.drawing


def test_options_are_remembered_for_each_client_and_another_model_is_refused(locked):
    import webuiapi

    address = f"{locked.address}/sdapi/v1"
    key, another = locked.parts.access.keys
    api = webuiapi.WebUIApi(baseurl=address, username="me", password=key)
    model = api.get_options()["sd_model_checkpoint"]
    api.set_options({"sd_model_checkpoint": model, "samples_format": "webp"})
    assert api.get_options()["samples_format"] == "webp"
    answer = api.txt2img(prompt="a cat", steps=1, width=32, height=32)
    assert answer.image.format == "WEBP"
    assert http.get(f"{address}/options", auth=("", another)).json()["samples_format"] == "png"
    with pytest.raises(RuntimeError, match="There is no model"):
        api._to_api_result(
            http.post(f"{address}/options", auth=("", key), json={"sd_model_checkpoint": "v1-5"})
        )


SILLYTAVERN = {
    "prompt": "a <cat>", "negative_prompt": "", "sampler_name": "Euler a", "scheduler": "Automatic", "steps": 2,
    "cfg_scale": 7, "width": 32, "height": 32, "restore_faces": False, "enable_hr": False, "hr_upscaler": "Latent",
    "hr_scale": 1, "denoising_strength": 0.7, "hr_second_pass_steps": 0, "seed": -1, "override_settings": {},
    "override_settings_restore_afterwards": True, "clip_skip": 1, "save_images": True, "send_images": True,
    "do_not_save_grid": False, "do_not_save_samples": False,
}  # fmt: skip
OPEN_WEBUI = {
    "prompt": "a <cat>",
    "batch_size": 1,
    "width": 32,
    "height": 32,
    "steps": 2,
    "negative_prompt": "",
}


@pytest.mark.parametrize("fields", [SILLYTAVERN, OPEN_WEBUI], ids=["SillyTavern", "Open WebUI"])
def test_the_bodies_that_chat_programs_send_are_drawn(server, fields):
    answer = http.post(f"{server.address}/sdapi/v1/txt2img", json=fields)
    assert answer.status_code == 200
    assert picture_of(answer.json()["images"][0]).size == (32, 32)
    for name in ("samplers", "schedulers", "sd-models", "sd-vae", "upscalers", "latent-upscale-modes", "loras",
                 "embeddings", "memory", "options", "progress"):  # fmt: skip
        assert http.get(f"{server.address}/sdapi/v1/{name}").status_code == 200


def test_what_a1111_does_and_this_server_does_not_is_refused_by_name(server):
    answer = http.post(f"{server.address}/sdapi/v1/txt2img", json=SILLYTAVERN | {"enable_hr": True})
    assert answer.status_code == 400 and "enable_hr" in answer.json()["detail"]


def test_open_webui_asks_openai_images_with_these_fields(server):
    fields = {
        "model": "gpt-image-1",
        "prompt": "a <cat>",
        "n": 1,
        "size": "32x32",
        "response_format": "b64_json",
    }
    answer = http.post(f"{server.address}/v1/images/generations", json=fields).json()
    assert picture_of(answer["data"][0]["b64_json"]).size == (32, 32)
    answer = http.post(f"{server.address}/v1/images/generations", json=fields | {"response_format": "url"})
    assert answer.json()["data"][0]["url"].startswith("data:image/png;base64,")


def test_in_a1111s_dialect_a_tag_is_enough_and_in_the_others_the_word_is_needed(server, caplog):
    def drawn(prompt, **fields):
        fields |= {"prompt": prompt, "steps": 2, "width": 32, "height": 32, "seed": 3}
        answer = httpx.post(f"{server.address}/sdapi/v1/txt2img", json=fields, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()["images"][0]

    tagged = drawn("a photo of a <lora:cat:0.4>, (at night:1.3)")
    assert "the prompt has the tag of <cat> and not the word" in caplog.text
    assert pixels(tagged) == pixels(drawn("a photo of a <cat><lora:cat:0.4>, (at night:1.3)"))
    assert pixels(tagged) != pixels(drawn("a photo of a <cat><lora:cat:0.4>, at night"))
    answer = httpx.post(
        f"{server.address}/v1/images/generations", json={"prompt": "a photo of a <lora:cat:0.4>"}
    )
    assert answer.status_code == 400
    assert "nowhere the word <cat>" in answer.json()["error"]["message"]
    unknown = httpx.post(f"{server.address}/sdapi/v1/txt2img", json={"prompt": "<lora:style:1>"})
    assert unknown.status_code == 400 and "no concept named style" in unknown.json()["detail"]


def pixels(text):
    return Image.open(io.BytesIO(base64.b64decode(text))).tobytes()
