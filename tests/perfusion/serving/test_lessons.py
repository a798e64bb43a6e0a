"""Trainings over HTTP, with a process in place of perfusion-train that learns nothing and says what it is told to."""

import io
import sys
import textwrap
import time

import httpx
import numpy as np
import pytest
from PIL import Image

from perfusion.runtime import Runtime
from perfusion.serving.lessons import LessonBounds, Lessons
from perfusion.serving.library import Library

PATH = "/api/trainings"


@pytest.fixture
def library(bundle, tmp_path):
    with Runtime(bundle.folder, provider="cpu", threads=1) as runtime:
        yield Library(runtime, tmp_path / "concepts", samples=False)


@pytest.fixture
def make_lessons(library, toy_concept, tmp_path, monkeypatch):
    """Lessons whose process runs some lines of Python; `output` is where the concept goes."""
    opened = []

    def make(code, **bounds):
        def command(lessons, lesson):
            output = lessons._place(lesson) / "concept.safetensors"
            toy_concept().save(output)
            output.with_name(f"{output.name}.work").mkdir(exist_ok=True)
            return [
                sys.executable,
                "-c",
                f"output = {str(output)!r}\nimport sys, time\n{textwrap.dedent(code)}",
            ]

        monkeypatch.setattr(Lessons, "_command", command)
        opened.append(Lessons(tmp_path / "trainings", library, bounds=LessonBounds(**bounds)))
        return opened[-1]

    yield make
    for lessons in opened:
        lessons.close()


def form(name="cat", count=2, superclass="cat", picture=None, **fields):
    """What a page sends."""
    stream = io.BytesIO()
    (picture or Image.new("RGB", (16, 16))).save(stream, "PNG")
    files = [("pictures", (f"{number}.png", stream.getvalue())) for number in range(count)]
    return {"data": {"name": name, "superclass": superclass, **fields}, "files": files}


@pytest.fixture
def client(serve):
    def client(lessons):
        return httpx.Client(base_url=serve(lessons=lessons).address, timeout=30)

    return client


def ended(client, number):
    """A training's facts once it is over."""
    ends = time.monotonic() + 60
    while (facts := client.get(f"{PATH}/{number}").json())["state"] in ("waiting", "training"):
        assert time.monotonic() < ends
        time.sleep(0.05)
    return facts


def test_a_training_tells_its_progress_and_its_concept_lands_in_the_library(make_lessons, client, library):
    lessons = make_lessons("""
        print("training <cat> 3/8, 0:02 elapsed, 1:05 left, loss 0.1250", file=sys.stderr, flush=True)
        while not __import__("os").path.exists(output + ".go"): time.sleep(0.02)
    """)
    with client(lessons) as http:
        lesson = http.post(PATH, **form()).json()
        while (facts := http.get(f"{PATH}/{lesson['id']}").json())["step"] == 0:
            time.sleep(0.02)
        assert (facts["state"], facts["total"], facts["loss"], facts["seconds_left"]) == (
            "training",
            8,
            0.125,
            65,
        )
        assert "client" not in facts
        (lessons._place(lessons.get("127.0.0.1", lesson["id"])) / "concept.safetensors.go").touch()
        assert ended(http, lesson["id"])["concept"] == "cat"
        assert [known.word for known in library.concepts] == ["<cat>"]
        assert http.post(PATH, **form()).status_code == 409
        assert http.delete(f"{PATH}/{lesson['id']}").status_code == 204
        assert http.get(PATH).json() == []
    assert [known.word for known in library.concepts] == ["<cat>"]


def test_it_is_drawn_with_while_it_is_learned_and_its_verdict_is_told(
    make_lessons, client, toy_concept, library
):
    lessons = make_lessons("""
        import pathlib, json
        work = pathlib.Path(output + ".work")
        for step in (4, 8):
            (work / f"step-{step:06}.safetensors").write_bytes(pathlib.Path(output).read_bytes())
            print(f"training <cat> {step}/8, 0:02 elapsed, loss 0.1250", file=sys.stderr, flush=True)
        remedies = [{"words": "fewer steps", "option": "--steps"}, {"words": "another model", "option": "--model"}]
        verdict = {"grade": "not learned", "reason": "it is fog", "remedies": remedies}
        print(json.dumps({"verdict": verdict}))
    """)
    with client(lessons) as http:
        number = http.post(PATH, **form()).json()["id"]
        facts = ended(http, number)
        assert (facts["grade"], facts["verdict"]) == (
            "not learned",
            "not learned: it is fog. Try fewer steps, or another model (the server's options --bundle and "
            "--training-model).",
        )
        assert [each["step"] for each in facts["samples"]] == [4, 8]
        picture = Image.open(io.BytesIO(http.get(facts["samples"][1]["url"]).content))
        assert http.get(f"{PATH}/{number}/samples/5").status_code == 404
    expected = library.runtime.generate("a photo of a <cat> on the grass", seed=0)
    assert np.abs(np.asarray(picture, int) - np.asarray(expected, int)).max() <= 1
    assert list(library.runtime.concepts) == ["<cat>"]


def test_what_is_over_goes_on_and_its_concept_takes_the_place_of_the_one_before(
    make_lessons, client, library
):
    lessons = make_lessons("""
        print("training <cat> 8/8, 0:02 elapsed, loss 0.1250", file=sys.stderr, flush=True)
    """)
    with client(lessons) as http:
        number = http.post(PATH, **form()).json()["id"]
        assert ended(http, number)["steps"] is None
        for steps in (8, 10_001, 0):
            assert http.post(f"{PATH}/{number}/continue", json={"steps": steps}).status_code == 400
        assert http.post(f"{PATH}/{number}/continue", json={}).status_code == 202
        facts = ended(http, number)
        assert (facts["state"], facts["steps"]) == ("done", 12)
        assert [known.word for known in library.concepts] == ["<cat>"]


def test_one_that_was_stopped_goes_on_where_it_was(make_lessons, client):
    with client(make_lessons("time.sleep(60)")) as http:
        number = http.post(PATH, **form()).json()["id"]
        assert http.post(f"{PATH}/{number}/continue", json={}).status_code == 409
        http.delete(f"{PATH}/{number}")
        assert ended(http, number)["state"] == "cancelled"
        assert http.post(f"{PATH}/{number}/continue", json={}).json()["state"] in ("waiting", "training")
        http.delete(f"{PATH}/{number}")


def test_masks_lie_beside_the_photos_and_must_fit_them(make_lessons, client, tmp_path):
    def mask(side):
        stream = io.BytesIO()
        Image.new("L", (side, side), 200).save(stream, "PNG")
        return stream.getvalue()

    with client(make_lessons("pass")) as http:
        fields = form()
        for sides in ((16,), (16, 17), (16, 16, 16)):
            files = [*fields["files"], *(("masks", ("m.png", mask(side))) for side in sides)]
            answer = http.post(PATH, data=fields["data"], files=files)
            assert (answer.status_code, answer.json()["error"]["field"]) == (400, "masks")
        files = [*fields["files"], *(("masks", ("m.png", mask(16))) for _ in range(2))]
        assert http.post(PATH, data=fields["data"], files=files).status_code == 202
    assert [path.name for path in sorted((tmp_path / "trainings").glob("*/masks/*"))] == ["1.png", "2.png"]


def test_what_went_wrong_is_said_in_the_training_s_own_words(make_lessons, client, library):
    lessons = make_lessons("""
        print("perfusion-train: The superclass is unknown. Choose another.", file=sys.stderr)
        sys.exit(1)
    """)
    with client(lessons) as http:
        facts = ended(http, http.post(PATH, **form()).json()["id"])
    assert (facts["state"], facts["error"]) == ("failed", "The superclass is unknown. Choose another.")
    assert library.concepts == []


def test_a_training_is_stopped_and_one_that_was_under_way_goes_on_after_a_restart(make_lessons, client):
    lessons = make_lessons("time.sleep(60)")
    with client(lessons) as http:
        first, second = (http.post(PATH, **form(name)).json()["id"] for name in ("one", "two"))
        assert http.delete(f"{PATH}/{first}").status_code == 204
        assert ended(http, first)["state"] == "cancelled"
        while http.get(f"{PATH}/{second}").json()["state"] != "training":
            time.sleep(0.02)
    lessons.close()
    with client(make_lessons("pass")) as http:
        assert {each["id"]: each["name"] for each in http.get(PATH).json()} == {first: "one", second: "two"}
        assert ended(http, second)["state"] == "done"


@pytest.mark.parametrize("fields", [
    {"count": 0}, {"count": 11}, {"name": "../up"}, {"name": ""}, {"superclass": "--model=x/y"}, {"superclass": " "},
    {"options": "[1]"}, {"options": '{"steps": 0}'}, {"options": '{"steps": "many"}'},
])  # fmt: skip
def test_what_cannot_be_learned_is_refused_and_nothing_is_written(make_lessons, client, tmp_path, fields):
    with client(make_lessons("pass")) as http:
        answer = http.post(PATH, **form(**fields))
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].endswith(".")
    assert not list((tmp_path / "trainings").glob("*"))


def test_only_so_many_trainings_wait(make_lessons, client):
    with client(make_lessons("time.sleep(60)", open=2)) as http:
        assert [http.post(PATH, **form(name)).status_code for name in "ab"] == [202, 202]
        refused = http.post(PATH, **form("c"))
    assert refused.status_code == 429 and refused.headers["Retry-After"] == "60"


def test_trainings_have_a_quota_of_disk_and_the_oldest_that_are_over_go(make_lessons, client, tmp_path):
    noise = Image.effect_noise((300, 300), 100).convert("RGB")
    stream = io.BytesIO()
    noise.save(stream, "PNG")
    with client(make_lessons("pass", size=round(2.5 * len(stream.getvalue())))) as http:
        first, second = (
            http.post(PATH, **form(name, 1, picture=noise)).json()["id"] for name in ("one", "two")
        )
        assert [ended(http, each)["state"] for each in (first, second)] == ["done", "done"]
        refused = http.post(PATH, **form("three", 3, picture=noise))
        assert refused.status_code == 507 and "no room" in refused.json()["error"]["message"]
        assert {path.name for path in (tmp_path / "trainings").iterdir()} == {first, second}
        third = http.post(PATH, **form("three", 1, picture=noise)).json()["id"]
        assert [each["id"] for each in http.get(PATH).json()] == [third, second]
    assert {path.name for path in (tmp_path / "trainings").iterdir()} == {second, third}


def test_photos_are_kept_no_larger_than_is_learned_from(make_lessons, client, tmp_path):
    with client(make_lessons("pass")) as http:
        http.post(PATH, **form(count=1, picture=Image.new("RGB", (3000, 300))))
    with Image.open(next((tmp_path / "trainings").glob("*/photos/1.png"))) as photo:
        assert photo.size == (2048, 205)


def test_a_server_that_does_not_teach_says_why(client):
    with client("Teaching is switched off on this server.") as http:
        for answer in (http.get(PATH), http.post(PATH, **form())):
            assert answer.status_code == 404
            assert answer.json()["error"]["message"] == "Teaching is switched off on this server."
