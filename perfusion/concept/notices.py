"""What is worth a word about prompts that can be drawn: they may not say what their author means.

Shared by the runtime and by `perfusion.diffusers`. Nothing here changes what is drawn.
"""

import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from weakref import WeakSet

from perfusion.concept.concept_file import Concept
from perfusion.concept.prompt_syntax import ParsedPrompt
from perfusion.concept.words import named, pieces

__all__ = ["WORD_END", "PromptNotices", "foreign_syntax", "nearest", "unseen_words"]

_LETTER = r"[^\W_]"
WORD_END = "</w>"
"""What a token that ends a word ends with, in tokenizers of CLIP's kind."""
_MOST_TOLD = 3  # concepts or words of which one line tells
_MOST_STRANGE = 1000  # words that are remembered, and after which nothing more is told

_FOREIGN = re.compile(
    r"\[[^\[\]:|]*[:|][^\[\]]*\]"  # [one:other:0.5], [one|other]
    r"|\{[^{}|]*\|[^{}]*\}"  # {one|other}
    r"|\b__[^\W_][\w/-]{0,60}__"  # __wildcard__
    r"|\bembedding:[\w./-]+"
    r"|<(?:hypernet|lyco):[^<>]*>"
)


class PromptNotices:
    """Warnings about prompts, each where it can still help: a concept that no prompt names is told of once."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._known: WeakSet[Concept] = WeakSet()  # that some prompt named, or that were told of
        self._strange: set[str] = set()  # words of no meaning that were told of

    def unknown(self, words: Iterable[str], tokens: Collection[str]) -> None:
        """Of words that look like a concept's and are none."""
        for word in dict.fromkeys(words):
            near = nearest(word, tokens)
            hint = f"; did you mean {near}?" if near else ""
            self._log.warning("no concept named %s is loaded, so it is read as plain text%s", word, hint)

    def unseen(self, words: Iterable[str]) -> None:
        """Of words that a model with a small vocabulary was never trained with, each once."""
        new = [word for word in dict.fromkeys(words) if word not in self._strange]
        if new and len(self._strange) < _MOST_STRANGE:
            self._strange.update(new)
            self._log.warning(
                "the embedded model has never seen %s, so expect nothing of it; docs/pocket.md has the words it knows",
                ", ".join(map(repr, new[:_MOST_TOLD])) + (" and others" if len(new) > _MOST_TOLD else ""),
            )

    def syntax(self, prompt: str, parsed: ParsedPrompt) -> None:
        """Of what its parser remarks on, and of what `foreign_syntax` finds."""
        for remark in parsed.remarks:
            self._log.warning("%s", remark)
        if marks := foreign_syntax(prompt):
            self._log.warning(
                "the prompt has %s, which other programs replace by other words; here it is read as it stands",
                ", ".join(marks),
            )

    def unnamed(self, prompts: Sequence[str], concepts: Mapping[str, Concept]) -> None:
        """Of new concepts that no prompt names: by a near spelling, or where no concept is named at all.

        Who names one concept knows how, and may have loaded the others for later.
        """
        new = {token: concept for token, concept in concepts.items() if concept not in self._known}
        if not new:
            return
        self._known.update(new.values())
        present = {token for prompt in prompts for token in named(prompt, new)}
        spellings = {token: _spelling(token, prompts) for token in new if token not in present}
        for token, spelling in spellings.items():
            if spelling:
                self._log.warning(
                    "no prompt names %s, so it is not drawn; did you mean %s by %r?", token, token, spelling
                )
        absent = [token for token, spelling in spellings.items() if not spelling]
        if absent and not any(named(prompt, concepts) for prompt in prompts):
            more = f" and {len(absent) - _MOST_TOLD} more" if len(absent) > _MOST_TOLD else ""
            self._log.warning(
                "no prompt names %s%s, so nothing of it is drawn", ", ".join(absent[:_MOST_TOLD]), more
            )


def foreign_syntax(prompt: str) -> tuple[str, ...]:
    """What in a prompt other programs replace by something else: choices, changes on the way, files by their names."""
    return tuple(dict.fromkeys(_FOREIGN.findall(prompt)))


def unseen_words(prompt: str, tokens: Collection[str], knows: Callable[[str], bool]) -> tuple[str, ...]:
    """The words of a prompt, concepts' own left out, that the base model does not know; `knows` is asked for the token
    of a whole word."""
    plain = "".join(piece for _, piece in pieces(prompt, tokens) if piece not in tokens)
    words = re.findall(rf"(?<![<\w]){_LETTER}+(?![>\w])", plain)
    return tuple(dict.fromkeys(word for word in words if not knows(f"{word.lower()}{WORD_END}")))


def nearest(word: str, tokens: Collection[str]) -> str | None:
    """The token that a word is a near spelling of."""
    import difflib  # only where something is misspelt

    plain = {_plain(token): token for token in tokens}
    close = difflib.get_close_matches(_plain(word), list(plain), n=1, cutoff=0.75)
    return plain[close[0]] if close else None


def _spelling(token: str, prompts: Sequence[str]) -> str | None:
    """Where a prompt has a token's letters and digits in another spelling: "pink-cake", "<Pink_Cake>"."""
    letters = r"[\W_]{0,2}".join(map(re.escape, _plain(token)))
    if not letters:
        return None
    pattern = re.compile(rf"<{letters}>|(?<!{_LETTER}){letters}(?!{_LETTER})", re.IGNORECASE)
    matches = (pattern.search(prompt) for prompt in prompts)
    return next((match.group() for match in matches if match), None)


def _plain(word: str) -> str:
    return re.sub(r"[\W_]", "", word).casefold()
