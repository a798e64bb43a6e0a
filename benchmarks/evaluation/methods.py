"""The methods that are compared: rows of data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.evaluation.baselines import IDENTIFIER
from benchmarks.evaluation.plan import Plan
from perfusion.errors import RequestError
from recipes.pocket.subjects import Subject

__all__ = [
    "DEFAULT_BIAS",
    "FOR_PAIRS",
    "METHODS",
    "Method",
    "Setting",
    "chosen_methods",
    "method_named",
    "trainings",
]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a method's file is used in drawing: lock and bias of a concept, the strength of a concept or scale of a LoRA,
    and for both from where on; the rest has nothing to turn."""

    lock: str = ""
    bias: float = 0.0
    scale: float = 1.0
    start: float = 0.0
    """The share of the noise levels at which the base model still draws the plain noun."""

    @property
    def label(self) -> str:
        """ "local 0.75", "scale 0.5", "global 0.5, start 0.3"; empty for a baseline as it was trained."""
        own = f"{self.lock} {self.bias:g}" if self.lock else ""
        turned = f"{'strength' if self.lock else 'scale'} {self.scale:g}" if self.scale != 1 else ""
        late = f"start {self.start:g}" if self.start else ""
        return ", ".join(filter(None, (own, turned, late)))

    def drew(self, row: Mapping[str, Any]) -> bool:
        """Whether a row of `Drawings` is of a picture with this setting."""
        return all(row[name] == value for name, value in asdict(self).items())


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the table."""

    name: str
    title: str
    group: str
    """`perfusion`, `ablation` or `baseline`."""
    rates: tuple[float, ...]
    """The grid: learning rates, or for Perfusion factors of its own two."""
    seconds_per_step: float
    """Of one free core, for the time that is left."""
    training: str = ""
    """Whose weights are drawn with, where another method has trained them; empty: its own."""
    options: tuple[tuple[str, object], ...] = ()
    """Of `TrainingConfig`, for ablations."""
    tuned: bool = True
    """Whether rate and step are those that the tuning found; else the product's defaults."""
    artist: str = "pipeline"
    """What draws: the product's `runtime`, or diffusers' `pipeline`."""
    combines: str = ""
    """How two separately trained subjects come into one picture; empty: they cannot."""
    fixed_gate: bool = False
    slides: bool = False
    """Whether it is drawn with several biases, and not with the default one alone."""
    scales: tuple[float, ...] = ()
    """Of a LoRA, or strengths of a concept at its default bias, which it is drawn with besides 1."""
    starts: tuple[tuple[float, float], ...] = ()
    """Of a baseline, which it is drawn with too: scales, 1 where there is none, and starts."""
    factor: float = 1.0
    """Of Perfusion's own two rates, where it is not tuned."""

    @property
    def source(self) -> str:
        """The training whose weights are drawn with."""
        return self.training or self.name

    def settings(self, plan: Plan) -> tuple[Setting, ...]:
        """What it is drawn with, the default first."""
        if self.group == "baseline" or self.fixed_gate:
            late_settings = (Setting(scale=scale, start=start) for scale, start in self.starts)
            return (*(Setting(scale=scale) for scale in (1.0, *self.scales)), *late_settings)
        if not self.slides:
            return (Setting(lock="local", bias=DEFAULT_BIAS),)
        local = [DEFAULT_BIAS, *(bias for bias in plan.biases if bias != DEFAULT_BIAS)]
        if self.group == "ablation":
            return tuple(
                Setting(lock="local", bias=bias) for bias in local if bias in (0.6, DEFAULT_BIAS, 0.9)
            )
        early_settings = (
            Setting(lock=lock, bias=bias)
            for lock, biases in (("local", local), ("global", plan.global_biases))
            for bias in biases
        )
        weaker_settings = (Setting(lock="local", bias=DEFAULT_BIAS, scale=scale) for scale in self.scales)
        late_settings = (
            Setting(lock=lock, bias=bias, start=start) for lock, bias in plan.late for start in plan.starts
        )
        return (*early_settings, *weaker_settings, *late_settings, FOR_PAIRS)

    def seeds(self, plan: Plan) -> int:
        """Drawings of each prompt."""
        return plan.ablation_seeds if self.group == "ablation" else plan.seeds

    def word(self, subject: Subject, setting: Setting) -> str:
        """What stands for the subject in a prompt."""
        if self.artist == "runtime":
            numbers = "-".join(f"{value:g}" for value in (setting.bias, setting.scale, setting.start))
            return f"<{subject.name}-{setting.lock}-{numbers}>"
        if self.name in ("textual-inversion", "own-position", "similarity-gate"):
            return subject.token
        if self.name == "custom-diffusion":
            return f"{subject.token} {subject.noun}"
        return f"{IDENTIFIER} {subject.noun}"


DEFAULT_BIAS = 0.75
"""Of a concept file as it is written."""
FOR_PAIRS = Setting(lock="local", bias=DEFAULT_BIAS, scale=0.8, start=0.15)
"""For two concepts in one picture: of some thirty settings tried on pairs of four other subjects, and of those that
leave some likeness, the one that shows both nouns oftenest: in 56 % of the pictures. Strength 0.5 leaves none: 66 %."""
_FACTORS = (0.33, 1.0, 3.0)
_STRENGTHS = (0.5, 0.75)
_SCALES = (*_STRENGTHS, 1.25)
_STARTS = ((1.0, 0.15), (1.0, 0.3), (1.0, 0.45), (1.25, 0.3))


def _ours(name: str, title: str, group: str = "ablation", **fields: object) -> Method:
    known = {"rates": (), "seconds_per_step": 0.32, "tuned": False, "artist": "runtime"} | fields
    return Method(name=name, title=title, group=group, **known)  # type: ignore[arg-type]


METHODS = (
    _ours("perfusion", "Perfusion, as shipped", "perfusion", combines="both files are loaded", slides=True,
          scales=_STRENGTHS),
    _ours("perfusion-tuned", "Perfusion, tuned like the others", "perfusion", rates=_FACTORS, tuned=True,
          combines="both files are loaded"),
    _ours("unselected", "Perfusion without selection", training="perfusion", slides=True),
    _ours("trained-keys", "keys trained instead of locked", slides=True),
    _ours("no-mask", "without masks", options=(("masks", "none"),)),
    _ours("own-position", "no gate: only the concept's own token is edited", fixed_gate=True, artist="pipeline"),
    _ours("similarity-gate", "ROME's gate: the similarity itself", fixed_gate=True, artist="pipeline"),
    _ours("two-rows", "two rows", options=(("rows", 2),)),
    _ours("thrice", "three times the learning rates", factor=3.0, slides=True),
    Method(name="textual-inversion", title="Textual Inversion", group="baseline", rates=(0.002, 0.006, 0.02),
           seconds_per_step=0.34, combines="both words are loaded",
           starts=((1.0, 0.15), (1.0, 0.3), (1.0, 0.45))),
    Method(name="lora-values-1", title="LoRA, rank 1, cross-attention values", group="baseline",
           rates=(0.001, 0.003, 0.01), seconds_per_step=0.3, combines="both adapters are added", scales=_SCALES,
           starts=_STARTS),
    Method(name="lora-4", title="LoRA, rank 4, all attention", group="baseline", rates=(0.0003, 0.001, 0.003),
           seconds_per_step=0.45, combines="both adapters are added", scales=_SCALES, starts=_STARTS),
    Method(name="custom-diffusion", title="Custom Diffusion", group="baseline", rates=(0.0003, 0.001, 0.003),
           seconds_per_step=0.3, combines="its authors' merging in closed form"),
    Method(name="dreambooth", title="DreamBooth", group="baseline", rates=(0.00003, 0.0001, 0.0003),
           seconds_per_step=0.42),
    Method(name="dreambooth-prior", title="DreamBooth with prior pictures", group="baseline",
           rates=(0.00003, 0.0001, 0.0003), seconds_per_step=0.42),
)  # fmt: skip


def chosen_methods(names: Iterable[str] | None) -> tuple[Method, ...]:
    """All, or those of these names, in the table's order. Raises `RequestError` for a name that is none of them."""
    if names is None:
        return METHODS
    selection, valid = set(names), [method.name for method in METHODS]
    unknown = sorted(selection - set(valid))
    if unknown:
        raise RequestError(f"there is no method {unknown[0]!r}; choose among {', '.join(valid)}")
    return tuple(method for method in METHODS if method.name in selection)


def method_named(name: str) -> Method:
    """The one of this name. Raises `RequestError` where there is none."""
    (method,) = chosen_methods([name])
    return method


def trainings(methods: Iterable[Method]) -> tuple[Method, ...]:
    """The methods whose weights the given ones need, each once."""
    return tuple(dict.fromkeys(method_named(method.source) for method in methods))
