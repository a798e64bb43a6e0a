"""A trained concept tried out: pictures with it and without it, a verdict in words, and a sheet for the eye."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from perfusion.base.base_model import BaseModel
from perfusion.concept.concept_file import Concept
from perfusion.contact_sheet import contact_sheet
from perfusion.embedded import is_embedded
from perfusion.errors import DeviceError, ModelError, RequestError
from perfusion.judging.probes import MOSTLY, Probes, open_probes
from perfusion.judging.scorer import Scorer
from perfusion.judging.verdict import LEARNED, Remedy, TrainingVerdict, compare, gather, pass_verdict, tell
from perfusion.pocket.vocabulary import article
from perfusion.training.config import TrainingConfig
from perfusion.training.draw import draw
from perfusion.training.placement import Placement
from perfusion.training.samples import Samples
from perfusion.training.snapshot_choice import POCKET_PROMPTS, object_pictures, open_scorer, variant_pictures

__all__ = ["Trial", "try_out"]

PROMPTS = POCKET_PROMPTS
"""Six places, in words that every base model knows."""
FIRST_SEED, SEEDS = 1000, 4
"""Of a prompt. No seed of the choice among the snapshots: on those the chosen one looks better than it is."""
STEPS = 10
"""Of a picture, where the model's own number is not smaller."""
STRENGTHS = (1.0, 0.8, 0.6)
"""That are tried, one after the other, while the thing is seen too seldom: what was learned may be more than the model
can draw, and weaker it is still a thing."""
SEEN = 0.9
"""How often it is to be seen, as a share of how often the superclass is."""
SIDE = 256
"""Of a picture on the sheet, at most."""
COLUMNS, MOST_SHOWN = 6, 12
"""Of the sheet, and how many training pictures it shows."""
UNJUDGED, NOBODY = "not judged", "nobody has looked at the pictures"
JUDGES = (Remedy("a look at the sheet"), Remedy("a scorer, such as a CLIP model", "--scorer"))
POCKET_REMEDIES = (
    Remedy("a thing that this small model can draw in many looks, such as a cake, a hat or a bus"),
    Remedy("a larger model", "--model"),
)
REMEDIES = (
    Remedy("masks of the thing alone", "--masks"), Remedy("another superclass", "--superclass"),
    Remedy("fewer steps", "--steps"),
)  # fmt: skip
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """What came of trying a concept."""

    verdict: TrainingVerdict | None
    """None where there is nobody to judge."""
    sheet: Image.Image
    """What was learned from, with its masks; the prompts with the concept, and the same seeds without."""
    strength: float = 1.0
    """Of `STRENGTHS`, the one that suits the concept; the verdict and the sheet are of pictures drawn with it."""

    def tell(self, switches: Mapping[str, str] | None = None) -> str:
        """The verdict in a sentence, or that there is none; `switches` as those of `perfusion.judging.verdict.tell`."""
        return _tell(self.verdict, switches)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the verdict with its evidence; the grade "not judged" where there is none."""
        if self.verdict:
            return {**self.verdict.as_dict(), "strength": self.strength}
        facts = {"grade": UNJUDGED, "sentence": self.tell(), "reason": NOBODY}
        return {**facts, "remedies": [asdict(remedy) for remedy in JUDGES], "strength": self.strength}


def try_out(
    base: BaseModel, concept: Concept, samples: Samples, names: Sequence[str], config: TrainingConfig,
    placement: Placement, say: Say,
) -> Trial:  # fmt: skip
    """Draw six prompts with a concept and with its superclass, and judge. The base model is on its device.

    Args:
        names: of the training pictures.
        say: told why nobody judges, where somebody was expected to.
    """
    judges = _judges(base, config, placement.device, say)
    seeds = SEEDS if judges else 1
    texts = [prompt for prompt in PROMPTS for _ in range(seeds)]
    plain_prompts = [_plain(prompt, config.superclass) for prompt in texts]

    def drawn(prompts: Sequence[str], strength: float = 1.0) -> list[Image.Image]:
        return draw(
            base, replace(concept, strength=strength), prompts, range(FIRST_SEED, FIRST_SEED + len(texts)),
            placement=placement, batch_size=1 if config.checkpointing else 4,
            num_inference_steps=min(STEPS, base.num_inference_steps),
        )  # fmt: skip

    def attempt(strength: float) -> _Attempt:
        own = drawn([prompt.replace("{}", concept.token) for prompt in texts], strength)
        verdict = None
        if judges:
            scorer, probes = judges
            try:
                measures = compare(own, plain, subject, plain_prompts, scorer)
                evidence = gather(own, plain, plain_prompts, config.superclass, measures, probes)
            except RequestError as error:  # the scorer sees no difference between the two
                say(f"the concept cannot be judged: {error}")
            else:
                verdict = pass_verdict(evidence, concept.token, config.superclass, remedies)
        return _Attempt(strength=strength, pictures=own, verdict=verdict)

    plain = drawn(plain_prompts)
    whole, _ = variant_pictures(samples, config.crops)
    subject = [*whole, *object_pictures(samples, config.crops)]
    remedies = POCKET_REMEDIES if is_embedded(base.family) else REMEDIES
    best = _best(attempt)
    if best.strength != 1:
        say(
            f"at full strength {article(config.superclass)} is seen too seldom; the concept's own strength is "
            f"{best.strength:g} from now on"
        )
    sheet = _sheet(best.pictures[::seeds], plain[::seeds], samples, names, concept, config, best.heading)
    return Trial(verdict=best.verdict, sheet=sheet, strength=best.strength)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Attempt:
    """Pictures of one strength, and what was said of them."""

    strength: float
    pictures: Sequence[Image.Image]
    verdict: TrainingVerdict | None = None

    @property
    def seen(self) -> float:
        """How often the thing is seen, as a share of what is asked for, at most 1."""
        if self.verdict is None or self.verdict.evidence.plain_noun < MOSTLY:
            return 1.0  # nobody looks, or even the superclass is not seen: no strength would help
        evidence = self.verdict.evidence
        return min(1.0, evidence.noun / max(SEEN * evidence.plain_noun, 1e-9))

    @property
    def worth(self) -> float:
        """The share of the pictures that show the thing and are nearer to the subject, as far as one can tell from
        the shares of each; 0 where it is not learned."""
        if self.verdict is None or self.verdict.grade != LEARNED:
            return 0.0
        return self.seen * self.verdict.evidence.nearer

    @property
    def heading(self) -> str:
        """For the sheet."""
        words = _tell(self.verdict)
        return words if self.strength == 1 else f"at strength {self.strength:g}, {words}"


def _best(attempt: Callable[[float], _Attempt]) -> _Attempt:
    """Weaker and weaker until the thing is seen often enough; of these attempts the one of most worth, and full
    strength where none is learned."""
    attempts: list[_Attempt] = []
    for strength in STRENGTHS:
        attempts.append(attempt(strength))
        if attempts[-1].seen == 1:
            break
    return max(attempts, key=lambda each: each.worth)  # of equals the first, which is the strongest


def _tell(verdict: TrainingVerdict | None, switches: Mapping[str, str] | None = None) -> str:
    if verdict is None:
        return tell(UNJUDGED, NOBODY, JUDGES, switches)
    return tell(verdict.grade, verdict.reason, verdict.remedies, switches)


def _judges(
    base: BaseModel, config: TrainingConfig, device: torch.device, say: Say
) -> tuple[Scorer, Probes] | None:
    """A scorer and probes: those that were given, or the embedded model's own for itself."""
    folder: Path | None = config.scorer
    if folder is None and is_embedded(base.family):
        from perfusion.embedded import scorer_path

        folder = scorer_path()
    if folder is None:
        return None
    try:
        scorer = open_scorer(folder, device)
        return scorer, open_probes(folder, scorer, base.family)
    except (ModelError, DeviceError) as error:
        say(f"the concept cannot be judged: {error}")
        return None


def _plain(prompt: str, superclass: str) -> str:
    """The prompt with the superclass in the gap, and with its article."""
    return prompt.replace("a {}", article(superclass)).replace("{}", superclass)


def _sheet(
    own: Sequence[Image.Image], plain: Sequence[Image.Image], samples: Samples, names: Sequence[str],
    concept: Concept, config: TrainingConfig, sentence: str,
) -> Image.Image:  # fmt: skip
    """Pairs of crop and mask, then a row with the concept and one without."""
    cells: list[tuple[Image.Image, str]] = []
    shown = list(names)[:MOST_SHOWN]
    for name, crop, masked in zip(shown, *variant_pictures(samples, config.crops), strict=False):
        cells += [(crop, f"learned from {name}"), (masked, "what counts of it")]
    cells += [(Image.new("RGB", (1, 1), "white"), "")] * (-len(cells) % COLUMNS)
    cells += [
        (picture, prompt.replace("{}", concept.token)) for picture, prompt in zip(own, PROMPTS, strict=True)
    ]
    cells += [
        (picture, _plain(prompt, config.superclass)) for picture, prompt in zip(plain, PROMPTS, strict=True)
    ]
    side = min(SIDE, max(own[0].size))
    pictures = [picture.resize((side, side), Image.Resampling.LANCZOS) for picture, _ in cells]
    more = f" {len(names) - len(shown)} more pictures were learned from." if len(names) > len(shown) else ""
    heading = f"{concept.token}, {sentence}{more}"
    return contact_sheet(pictures, [caption for _, caption in cells], columns=COLUMNS, heading=heading)
