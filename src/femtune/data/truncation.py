"""Where a completion ends: at its end token, or where its first complete answer is closed.

The cut is a pure function of the sampled tokens, applied by the driver to what every engine writes. An
engine that asks it while it writes only stops earlier, with equal results.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from femtune.data.answer_format import AnswerFormat
from femtune.types import Tokenizer


@dataclass(frozen=True)
class Cut:
    """The first point at which an answer is closed in sampled tokens.

    `opening` is "<think>" where the prompt's template opens a thinking block: no answer is closed before
    the completion closes the block. Completions are then read with it before their text.
    """

    format: AnswerFormat
    tokenizer: Tokenizer
    opening: str = ""
    _closing: dict[int, bool] = field(default_factory=dict, compare=False, repr=False)

    def __call__(self, tokens: Sequence[int]) -> int | None:
        """Return the number of tokens up to and including the one that closes an answer, or None.

        The smallest n for which the text of the first n tokens has a closed answer.
        """
        places = [place for place, token in enumerate(tokens, 1) if self.can_close(token)]
        text = self.opening + self.tokenizer.decode(tokens)
        if "\ufffd" in text or self.format.spec.startswith("regex:"):
            # a byte outside UTF-8 may undo a line break before it, and a pattern its own match
            return next((place for place in places if self._closed(tokens[:place])), None)
        # else what is closed stays so, and decoding is the cost: once, or log2(places) times
        if not places or not self.format.closed(text):
            return None
        return places[bisect_left(places, True, key=lambda place: self._closed(tokens[:place]))]

    def closes(self, tokens: Sequence[int]) -> bool:
        """True if the last of the tokens closes an answer, where none before it does."""
        return self.can_close(tokens[-1]) and self._closed(tokens)

    def can_close(self, token: int) -> bool:
        """True if a token's text has a character that may close an answer."""
        known = self._closing.get(token)
        if known is None:
            text = _text_within(token, self.tokenizer)
            known = self._closing[token] = any(c in text for c in self.format.closers)
        return known

    def _closed(self, tokens: Sequence[int]) -> bool:
        return self.format.closed(self.opening + self.tokenizer.decode(tokens))


def trained_tokens(
    sampled: Sequence[int], finish_reason: str, end_token: int, tokenizer: Tokenizer
) -> tuple[int, ...]:
    """Return the tokens that a completion is trained on.

    After a cut ("answered") it takes the place of a closing token of white space alone. One that also
    holds text of the answer, such as "}", is kept before it. Other completions stay as they are.
    """
    if finish_reason != "answered":
        return tuple(sampled)
    blank = _text_within(sampled[-1], tokenizer).isspace()
    return (*(sampled[:-1] if blank else sampled), end_token)


def _text_within(token: int, tokenizer: Tokenizer) -> str:
    """The text of a token that other text stands before, at least once: alone, some lose a space."""
    return tokenizer.decode((token, token))
