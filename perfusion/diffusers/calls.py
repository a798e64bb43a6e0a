"""A pipeline's own `encode_prompt` as a value: what it was called with, and the same with other prompts."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from perfusion.diffusers.rows import Texts

__all__ = ["Call"]

_PROMPTS = ("prompt", "prompt_2")
_NEGATIVES = ("negative_prompt", "negative_prompt_2")


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """A call of a pipeline's own `encode_prompt`, which can be made again."""

    pipeline: Any
    method: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def make(self) -> Any:
        """Encodings of prompts and of negative prompts; of two text encoders then both pooled states."""
        return self.method(*self.args, **self.kwargs)

    @property
    def reads_plainly(self) -> bool:
        """Whether it is diffusers' own: a pipeline by others may read weights in a prompt."""
        return str(getattr(self.method, "__module__", "")).startswith("diffusers.pipelines.")

    def arguments(self) -> Mapping[str, Any]:
        """All of them by their names, with the defaults."""
        bound = inspect.signature(self.method).bind(*self.args, **self.kwargs)
        bound.apply_defaults()
        return bound.arguments

    @property
    def has_encodings(self) -> bool:
        """Whether some of what it is to encode comes finished."""
        arguments = self.arguments()
        return any(arguments.get(name) is not None for name in ("prompt_embeds", "negative_prompt_embeds"))

    def saying(self, prompts: Sequence[Texts], negatives: Sequence[Texts]) -> Call:
        """The call with other prompts and negative prompts, as many as it has."""
        arguments = self.arguments()
        changes: dict[str, Any] = {}
        for names, side in ((_PROMPTS, prompts), (_NEGATIVES, negatives)):
            for index, name in enumerate(names):
                if side and arguments.get(name):
                    column = [texts[min(index, len(texts) - 1)] for texts in side]
                    changes[name] = column[0] if isinstance(arguments[name], str) else column
        return self._changed(changes)

    def alone(self, prompt: str) -> Call:
        """The call for one prompt, once and without guidance."""
        return self._changed(
            {
                "prompt": prompt, "prompt_2": None, "num_images_per_prompt": 1, "do_classifier_free_guidance": False,
                "negative_prompt": None, "negative_prompt_2": None,
            }
        )  # fmt: skip

    def _changed(self, changes: Mapping[str, Any]) -> Call:
        signature = inspect.signature(self.method)
        bound = signature.bind(*self.args, **self.kwargs)
        bound.arguments.update(
            {name: change for name, change in changes.items() if name in signature.parameters}
        )
        return replace(self, args=bound.args, kwargs=bound.kwargs)
