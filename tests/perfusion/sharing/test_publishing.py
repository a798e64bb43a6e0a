"""Sharing by the command, with huggingface_hub itself against a hub on loopback, in processes of their own."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from perfusion import Concept
from perfusion.concept.card import extract
from perfusion.embedded import bundle_path
from tests.perfusion.hub_endpoint import TOKEN, Repositories, run_beside, serving

CAKE = bundle_path() / "concepts" / "pink-cake.safetensors"

CODE = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from perfusion.commands.share import main
from perfusion.hub import local_concept
replies = []
for words, typed in json.loads(sys.argv[1]):
    out, err, sys.stdin = io.StringIO(), io.StringIO(), io.StringIO(typed)
    with redirect_stdout(out), redirect_stderr(err):
        if words[0] == "fetch":
            print(local_concept(words[1]))
            code = 0
        else:
            code = main(words)
    replies.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(replies))
"""


@dataclass(frozen=True)
class Reply:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str


def share(endpoint: str, home: Path, *calls: tuple[Sequence[object], str], **env: str) -> list[Reply]:
    """The commands one after another, each with what is typed to it."""
    words = [([str(word) for word in call], typed) for call, typed in calls]
    replies, _ = run_beside(endpoint, home, CODE, words, **env)
    return [Reply(*reply) for reply in replies]


def to(name: str, *more: object, licence: str | None = "cc0-1.0") -> list[object]:
    return [CAKE, "--to", name, *more, *(["--license", licence] if licence else [])]


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of a camera that wrote down where it was."""
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    exif = Image.Exif()
    exif[0x010E] = "at home"
    Image.new("RGB", (24, 16), "pink").save(path, exif=exif)
    return path


@dataclass(frozen=True)
class Hub:
    """What was said and what is there after all calls."""

    repositories: Repositories
    private: set[str]
    requests: list[str]
    replies: dict[str, Reply]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, photo: Path) -> Hub:
    home = tmp_path_factory.mktemp("home")
    (home / "drawn").mkdir()
    calls = {
        "published": (to("me/cake", "--yes", "--gallery", photo, "--base-model", "me/model"), ""),
        "fetched": (["fetch", "me/cake"], ""),
        "refused by its owner": (to("me/no"), "n\n"),
        "nobody there": (to("me/no"), ""),
        "no licence": (to("me/no", "--yes", licence=None), ""),
        "empty licence": (to("me/no", "--yes", licence=None), "\n"),
        "asked twice": (to("me/asked", "--private", licence=None), "openrail\nyes\n"),
        "again": (to("me/cake", "--yes", "--message", "Better", "--picture", photo), ""),
        "unknown licence": (to("me/odd", "--yes", licence="mine-alone"), ""),
        "of others": (to("you/cake", "--yes"), ""),
        "beside others": (to("me/many"), "n\n"),
        "no drawings": (to("me/no", "--gallery", "drawn"), "n\n"),
        "to a folder": (to("me/no", "--output", "out"), ""),
    }
    repositories: Repositories = {"me/many": {"other.safetensors": b"x"}}
    private: set[str] = set()
    with serving(repositories, private) as (endpoint, requests):
        replies = share(endpoint, home, *calls.values(), HF_TOKEN=TOKEN)
        (stranger,) = share(endpoint, home, (to("me/no", "--yes"), ""))
        (wrong,) = share(endpoint, home, (to("me/no", "--yes"), ""), HF_TOKEN="hf_old")
    (gone,) = share(endpoint, home, (to("me/no", "--yes"), ""), HF_TOKEN=TOKEN)
    (offline,) = share(endpoint, home, (to("me/no", "--yes"), ""), HF_TOKEN=TOKEN, HF_HUB_OFFLINE="1")
    named = dict(zip(calls, replies, strict=True))
    named |= {"stranger": stranger, "wrong": wrong, "gone": gone, "offline": offline}
    assert (home / "out" / "README.md").is_file()
    return Hub(repositories, private, requests, named)


def test_what_is_published_is_a_page_the_file_its_card_and_the_gallery(hub):
    assert hub.replies["published"].code == 0
    assert hub.replies["published"].out.endswith("/me/cake\n")
    files = hub.repositories["me/cake"]
    names = {".gitattributes", "README.md", "pink-cake.safetensors", "pink-cake.png", "pictures/1.png"}
    assert set(files) == names
    assert files["pink-cake.safetensors"] == extract(files["pink-cake.png"]) == CAKE.read_bytes()


def test_whoever_names_the_repository_gets_the_concept(hub):
    assert Path(hub.replies["fetched"].out.strip()).read_bytes() == CAKE.read_bytes()


def test_a_photograph_is_published_without_what_its_camera_wrote(hub, photo):
    for name in ("pictures/1.png", "pink-cake.png"):
        data = hub.repositories["me/cake"][name]
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.size == (24, 16)
            assert not picture.getexif()
        assert b"at home" not in data


def test_the_hub_reads_the_facts_of_the_page(hub):
    text = hub.repositories["me/asked"]["README.md"].decode()
    facts = ModelCard(text).data.to_dict()
    assert facts["license"] == "openrail"
    assert facts["instance_prompt"] == "<pink-cake>"
    assert (facts["pipeline_tag"], facts["library_name"]) == ("text-to-image", "perfusion-edge")
    assert {"text-to-image", "perfusion", f"base:{Concept.load(CAKE).base}"} <= set(facts["tags"])


def test_it_is_asked_what_was_not_said_and_the_answers_count(hub):
    reply = hub.replies["asked twice"]
    assert reply.code == 0
    assert "Licence of the concept" in reply.err
    assert "<pink-cake> goes to me/asked, a new private repository: 3 files," in reply.err
    assert f"pink-cake.safetensors, {CAKE.stat().st_size:,} bytes" in reply.err
    assert "me/asked" in hub.private


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("refused by its owner", "Nothing was published."),
        ("nobody there", "nobody answers here. Give --yes."),
        ("no licence", "nobody answers here. Give --license."),
        ("empty licence", "A concept is shared under a licence. Give one with --license, such as cc-by-4.0."),
        ("unknown licence", '"license" must be one of'),
        ("of others", "Your token may not write there."),
        ("beside others", "other.safetensors stays there too"),
        ("no drawings", "drawn has no drawing of <pink-cake> that says how it was drawn."),
        ("stranger", "nobody is logged in to the hub. Run hf auth login, or set HF_TOKEN"),
        ("wrong", "The hub does not know your token. Run hf auth login."),
        ("gone", "me/no: The hub cannot be reached"),
        ("offline", "me/no: The hub cannot be reached"),
    ],
)
def test_nothing_is_published_and_the_reason_is_told(hub, case, message):
    reply = hub.replies[case]
    assert reply.code == 1, reply.err
    assert message in reply.err
    assert not reply.out
    assert "me/no" not in hub.repositories
    assert set(hub.repositories["me/many"]) == {"other.safetensors"}


def test_what_is_there_is_replaced_and_the_rest_stays(hub):
    reply = hub.replies["again"]
    assert reply.code == 0
    assert "me/cake, a public repository that is there" in reply.err
    assert "README.md, " in reply.err
    assert "replaces the one there" in reply.err
    assert "pictures/1.png" in hub.repositories["me/cake"]


def test_a_folder_in_place_of_the_hub_asks_nobody(hub):
    assert hub.replies["to a folder"].out == "out\n"
    assert not any("me/no/" in request for request in hub.requests)


def test_the_token_is_never_shown_nor_part_of_an_address(hub):
    """The hub of this test puts it into its reply to whoever may not write."""
    texts = [text for reply in hub.replies.values() for text in (reply.out, reply.err)]
    assert not any(TOKEN in text for text in [*texts, *hub.requests])
