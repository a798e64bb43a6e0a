"""img2img's fields for masks: what is kept has its pixels, and what is drawn is as A1111 prepares it."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from perfusion.serving.answers import StatusError
from perfusion.serving.webui_inpainting import Inpainting
from tests.perfusion.serving import http
from tests.perfusion.serving.conftest import picture_of


def noise(size, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8))


def mask(size, box):
    picture = Image.new("L", size)
    ImageDraw.Draw(picture).rectangle(box, fill=255)
    return picture


def encoded(picture):
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def difference(picture, other):
    return np.abs(np.asarray(picture, int) - np.asarray(other, int))


SHARP = {"mask_blur": 0, "inpainting_fill": 1, "inpaint_full_res": False}


def test_the_whole_picture_is_drawn_and_what_the_mask_keeps_has_its_pixels(server):
    picture, place = noise((96, 64)), mask((96, 64), (48, 0, 95, 63))
    fields = {"prompt": "a <cat>", "seed": 3, "steps": 2, "cfg_scale": 2.0, "width": 96, "height": 64,
              "init_images": [encoded(picture)], "mask": encoded(place), "denoising_strength": 1.0}  # fmt: skip
    answer = http.post(f"{server.address}/sdapi/v1/img2img", json=fields | SHARP).json()
    drawing = picture_of(answer["images"][0]).convert("RGB")
    alone = server.runtime.generate(
        "a <cat>", seed=3, num_inference_steps=2, guidance_scale=2.0, width=96, height=64, image=picture, mask=place,
        image_strength=1.0,
    )  # fmt: skip
    assert difference(drawing, picture)[:, :48].max() == 0
    assert difference(drawing, alone)[:, 48:].max() <= 1
    soft = http.post(f"{server.address}/sdapi/v1/img2img", json=fields | SHARP | {"mask_blur": 4}).json()
    blended = difference(picture_of(soft["images"][0]).convert("RGB"), picture).mean((0, 2))
    assert blended[:24].max() == 0 and 0 < blended[46] < blended[60]


def test_the_surroundings_of_the_mask_are_drawn_at_the_whole_size(server):
    picture, place = noise((200, 120)), mask((200, 120), (30, 40, 49, 49))
    fields = {"prompt": "a cat", "steps": 2, "width": 64, "height": 32, "init_images": [encoded(picture)],
              "mask": encoded(place), "mask_blur": 0}  # fmt: skip
    answer = http.post(f"{server.address}/sdapi/v1/img2img", json=fields).json()
    drawing = picture_of(answer["images"][0]).convert("RGB")
    assert drawing.size == (200, 120)
    change = difference(drawing, picture).max(2)
    assert change[40:50, 30:50].mean() > 0
    change[40:50, 30:50] = 0
    assert change.max() == 0


@pytest.mark.parametrize(
    "bounds, padding, expected",
    [((30, 40, 49, 49), 0, (30, 40, 50, 50)), ((30, 40, 49, 49), 10, (10, 30, 70, 60)),
     ((0, 0, 9, 59), 0, (0, 0, 120, 60)), ((190, 110, 199, 119), 0, (180, 110, 200, 120)),
     ((0, 0, 199, 119), 8, (0, 0, 200, 120))],
)  # fmt: skip
def test_the_box_has_the_shape_of_the_drawing_and_lies_within_the_picture(bounds, padding, expected):
    fields = {"mask_blur": 0, "inpaint_full_res_padding": padding}
    size = (64, 32)
    place = Inpainting.of(fields, noise((200, 120)), mask((200, 120), bounds), size)
    assert place.box == expected
    assert place.image.size == place.mask.size == size


def test_a_fill_of_0_knows_nothing_of_what_it_covers():
    place = mask((64, 64), (20, 20, 40, 40))
    picture = noise((64, 64))
    other = picture.copy()
    other.paste("red", (20, 20, 41, 41))

    def images(**fields):
        fields = {"inpaint_full_res": False, "mask_blur": 0} | fields
        return [Inpainting.of(fields, each, place, (64, 64)).image for each in (picture, other)]

    assert difference(*images(inpainting_fill=0)).max() == 0
    assert difference(*images(inpainting_fill=1)).max() > 0
    filled, _ = images(inpainting_fill=0)
    assert difference(filled, picture)[:20].max() == 0
    assert abs(np.asarray(filled)[25:35, 25:35].mean() - 127) < 30  # the mean of the noise around


def test_a_mask_of_nothing_draws_nothing_anew():
    picture = noise((64, 64))
    place = Inpainting.of({}, picture, Image.new("L", (64, 64)), (64, 64))
    assert difference(place.laid_over(Image.new("RGB", (64, 64))), picture).max() == 0


@pytest.mark.parametrize(
    "fields, name",
    [({"inpainting_fill": 2}, "inpainting_fill"), ({"resize_mode": 2, "inpaint_full_res": False}, "resize_mode"),
     ({"mask_blur": -1}, "mask_blur"), ({"mask_blur": 1e9}, "mask_blur"),
     ({"inpaint_full_res_padding": -3}, "inpaint_full_res_padding")],
)  # fmt: skip
def test_what_is_not_done_is_refused_by_the_name_of_its_field(fields, name):
    with pytest.raises(StatusError, match=name) as error:
        Inpainting.of(fields, noise((32, 32)), mask((32, 32), (0, 0, 9, 9)), (32, 32))
    assert error.value.field == name


@pytest.mark.parametrize(
    "fields",
    [{"alwayson_scripts": {"ADetailer": {"args": [True]}}}, {"styles": ["x"]}, {"subseed_strength": 0.5},
     {"latent_mask": "AAAA"}, {"refiner_checkpoint": "x"}, {"s_churn": 1.0},
     {"override_settings": {"sd_model_checkpoint": "v1-5"}}],
)  # fmt: skip
def test_fields_that_ask_for_more_are_refused_and_empty_ones_are_not(server, fields):
    address = f"{server.address}/sdapi/v1/txt2img"
    usual = {"prompt": "a cat", "steps": 1, "width": 32, "height": 32}
    answer = http.post(address, json=usual | fields)
    assert answer.status_code == 400
    assert any(name in answer.json()["detail"] for name in (*fields, "v1-5"))
    empty = {name: type(value)() for name, value in fields.items()}
    assert http.post(address, json=usual | empty).status_code == 200


def test_infotext_fills_in_what_is_not_there(server):
    address = f"{server.address}/sdapi/v1/txt2img"
    fields = {
        "prompt": "a <cat>",
        "seed": 9,
        "steps": 2,
        "width": 32,
        "height": 64,
        "cfg_scale": 3,
        "sampler_name": "Euler",
    }
    first = http.post(address, json=fields).json()
    (text,) = json.loads(first["info"])["infotexts"]
    again = http.post(address, json={"infotext": text}).json()
    assert again["images"] == first["images"]
    other = http.post(address, json={"infotext": text, "seed": 10}).json()
    assert other["images"] != first["images"]
