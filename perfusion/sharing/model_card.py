"""The page of a shared concept, README.md, with the facts in front of it that the hub sorts and shows it by.

https://huggingface.co/docs/hub/model-cards; `widget` and `instance_prompt` as the hub's pages of adapters have them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from perfusion.concept.concept_file import Concept
from perfusion.concept.settings import FILE_SETTINGS
from perfusion.embedded import embedded_fingerprint
from perfusion.errors import HubError
from perfusion.hub import parse_name

__all__ = ["CardFacts", "model_card"]


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a page says."""

    concept: Concept
    repository: str
    file: str
    card: str
    size: int
    """Bytes of the file."""
    licence: str
    base_model: str | None
    pictures: Mapping[str, str | None]
    """What the gallery shows, by its paths in the repository, with the prompts that are known."""

    @property
    def prompt(self) -> str:
        """What is drawn to see the concept."""
        prompt = next(filter(None, self.pictures.values()), f"a photo of a {self.concept.token}")
        return " ".join(prompt.split())


def model_card(facts: CardFacts) -> str:
    """The whole page. Raises `HubError` where huggingface_hub is missing, which writes the facts."""
    concept = facts.concept
    gallery = ["<Gallery />", ""] if facts.pictures else []
    lines = [
        "---", _metadata(facts), "---", "",
        f"# {_code(concept.token)}, a {_plain(concept.superclass)}", "", *gallery,
        "A [Perfusion](https://arxiv.org/abs/2305.01644) concept: a key-locked rank-1 edit of a text-to-image model, "
        f"which teaches it the word {_code(concept.token)}.", "",
        "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in _rows(facts)), "",
        "## Use", "", *_use(facts), "",
    ]  # fmt: skip
    return "\n".join(lines)


def _metadata(facts: CardFacts) -> str:
    try:
        from huggingface_hub import ModelCardData
    except ModuleNotFoundError as error:
        raise HubError("Sharing needs the package huggingface_hub. Install perfusion-edge[hub].") from error
    on_hub = parse_name(facts.base_model) if facts.base_model else None
    widget = [
        {"text": prompt or facts.prompt, "output": {"url": path}} for path, prompt in facts.pictures.items()
    ]
    return ModelCardData(
        base_model=on_hub.repo if on_hub else None,
        instance_prompt=facts.concept.token,
        library_name="perfusion-edge",
        license=facts.licence,
        pipeline_tag="text-to-image",
        tags=["text-to-image", "perfusion", "personalization", f"base:{facts.concept.base}"],
        widget=widget or None,
    ).to_yaml()


def _rows(facts: CardFacts) -> list[tuple[str, str]]:
    concept = facts.concept
    base = f"{_code(concept.base)}, checkpoint {_code(concept.base_fingerprint[:12])}"
    if facts.base_model:
        base = f"{_code(facts.base_model)} ({base})"
    told = {name: value for name, value in concept.training.items() if name != "base_model"}
    training = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in told.items())
    rows = [
        ("file", f"{_code(facts.file)}, {facts.size / 1000:.1f} kB"),
        ("the same in a picture", _code(facts.card)),
        ("base model", base),
        ("settings", ", ".join([*_defaults(concept), f"{concept.lock} lock"])),
        ("training", _code(training) if training else "not said"),
        ("made with", _code(concept.created_with) if concept.created_with else "not said"),
    ]
    return [(name, value.replace("|", "\\|")) for name, value in rows]


def _defaults(concept: Concept) -> list[str]:
    return [f"{name} {getattr(concept, name):g}" for name in FILE_SETTINGS]


def _use(facts: CardFacts) -> list[str]:
    """How to draw with it: with the embedded model at once, with any other one through a bundle of it."""
    embedded = facts.concept.base_fingerprint == embedded_fingerprint()
    bundle, opened = ("", "") if embedded else (" --bundle BUNDLE", '"BUNDLE"')
    model = facts.base_model or "MODEL"
    first = [] if embedded else [f"perfusion-export --model {model} --output BUNDLE"]
    return [
        "With Perfusion Edge:", "", "```", *first,
        f"perfusion-generate{bundle} --concept {facts.repository} --prompt {_quoted(facts.prompt)} --output out.png",
        "```", "",
        "```python", "from perfusion.runtime import Runtime", "",
        f"runtime = Runtime({opened})",
        f'runtime.load_concept("{facts.repository}")',
        f"picture = runtime.generate({facts.prompt!r}, seed=0)",
        "```", "",
        f"Or save {_code(facts.card)} and give it in the place of the name: the picture carries the concept.",
    ]  # fmt: skip


def _code(text: str) -> str:
    """Text that Markdown takes as it is."""
    return f"`{text.replace('`', chr(39))}`"


def _plain(text: str) -> str:
    """Text in a heading, without what Markdown or HTML would read."""
    return "".join(char for char in text if char.isalnum() or char in " -'.,")


def _quoted(text: str) -> str:
    """A word of a command line in double quotes, which every shell knows."""
    return '"' + "".join(f"\\{char}" if char in '\\"$`' else char for char in text) + '"'
