"""Photos looked at before they are learned from: where the thing is, and HEIC as every browser reads it."""

import base64
import io
import sys
import textwrap
import threading

import httpx
import numpy as np
import pytest
from PIL import Image

from perfusion.serving import mask_routes
from perfusion.serving.answers import StatusError
from perfusion.serving.mask_search import MaskSearch

PATH = "/api/masks"


def png(colour="red", size=(24, 24)):
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def searches(monkeypatch):
    """Puts lines of Python in the place of perfusion-train; they see `sources`, `masks` and `superclass`."""

    def searches(code):
        def command(search, sources, masks, superclass):
            names = f"sources, masks, superclass = {str(sources)!r}, {str(masks)!r}, {superclass!r}\n"
            imports = "import json, pathlib, sys, time\nfrom PIL import Image\n"
            return [sys.executable, "-c", imports + names + textwrap.dedent(code)]

        monkeypatch.setattr(MaskSearch, "_command", command)

    return searches


FINDS = """
    pathlib.Path(masks).mkdir()
    covers = {}
    for number, path in enumerate(sorted(pathlib.Path(sources).iterdir())):
        Image.new("L", Image.open(path).size, 100 * number).save(pathlib.Path(masks) / path.name)
        covers[path.name] = number / 2
    print(json.dumps({"covers": covers}))
"""


def test_each_photo_gets_its_mask_in_the_order_they_came_in(server, searches):
    searches(FINDS)
    files = [("pictures", ("b.png", png(size=(20, 30)))), ("pictures", ("a.png", png()))]
    answers = httpx.post(
        f"{server.address}{PATH}", data={"superclass": "cat"}, files=files, timeout=60
    ).json()
    assert [each["cover"] for each in answers] == [0, 0.5]
    masks = [Image.open(io.BytesIO(base64.b64decode(each["mask"].partition(",")[2]))) for each in answers]
    assert [(mask.size, mask.getpixel((0, 0))) for mask in masks] == [((20, 30), 0), ((24, 24), 100)]


def test_what_the_search_complains_of_is_told(server, searches):
    searches("sys.exit(\"perfusion-train: The embedded model has never seen 'zebra'.\")")
    files = [("pictures", ("a.png", png()))]
    answer = httpx.post(f"{server.address}{PATH}", data={"superclass": "zebra"}, files=files, timeout=60)
    assert answer.status_code == 422
    assert answer.json()["error"]["message"] == "The embedded model has never seen 'zebra'."


def test_a_search_for_which_nobody_waits_is_ended(searches):
    searches("time.sleep(60)")
    given_up = threading.Event()
    threading.Timer(0.5, given_up.set).start()
    with pytest.raises(StatusError, match="was ended"):
        MaskSearch().find([Image.new("RGB", (24, 24))], "cat", given_up)


@pytest.mark.parametrize("count, superclass, field", [
    (0, "cat", "pictures"), (11, "cat", "pictures"), (1, "--model=x", "superclass"), (1, "", "superclass"),
])  # fmt: skip
def test_what_cannot_be_searched_is_refused_by_its_name(server, count, superclass, field):
    files = [("pictures", ("a.png", png()))] * count or [("other", ("a.png", png()))]
    answer = httpx.post(f"{server.address}{PATH}", data={"superclass": superclass}, files=files, timeout=60)
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, field)


def test_a_server_that_does_not_teach_searches_nothing(serve):
    address = serve(lessons="Teaching is switched off on this server.").address
    files = [("pictures", ("a.png", png()))]
    answer = httpx.post(f"{address}{PATH}", data={"superclass": "cat"}, files=files, timeout=60)
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        404,
        "Teaching is switched off on this server.",
    )


def photo(server, data):
    return httpx.post(f"{server.address}/api/photo", files={"file": ("IMG_1.HEIC", data)}, timeout=60)


def test_a_phone_s_heic_becomes_an_upright_jpeg_of_a_size_that_is_learned_from(server):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    picture, stream = Image.new("RGB", (2400, 1200), "blue"), io.BytesIO()
    picture.paste("red", (0, 0, 1200, 1200))
    picture.save(stream, "HEIF", quality=60)
    answer = photo(server, stream.getvalue())
    assert answer.headers["Content-Type"] == "image/jpeg"
    jpeg = Image.open(io.BytesIO(answer.content))
    assert (jpeg.format, jpeg.size) == ("JPEG", (2048, 1024))
    red, _, blue = np.asarray(jpeg)[500, 200]
    assert red > 200 > 60 > blue


def test_where_heic_cannot_be_read_it_is_said_with_what_to_do(server, monkeypatch):
    monkeypatch.setattr(mask_routes, "knows_heif", lambda: False)
    answer = photo(server, b"\0\0\0\x18ftypheic" + bytes(64))
    assert answer.status_code == 415
    assert "perfusion-edge[heif]" in answer.json()["error"]["message"]
    assert "save the photo as JPEG" in answer.json()["error"]["message"]


def test_what_is_no_photo_and_a_claim_of_too_many_pixels_are_refused(server):
    assert photo(server, b"hello").status_code == 400
    wide = bytearray(png(size=(8, 8)))
    wide[16:24] = (1 << 16).to_bytes(4, "big") * 2  # 4 billion pixels
    assert photo(server, bytes(wide)).status_code in (400, 413)
