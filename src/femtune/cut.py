"""Where a completion ends: at its end token, or where its first complete answer is closed.

The cut is a pure function of the sampled tokens, applied by the driver to what every engine writes. An
engine that asks it while it writes only stops earlier, with equal results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from femtune.answer_format import AnswerFormat
from femtune.types import FinishReason, Tokenizer


@dataclass(frozen=True)
class Cut:
    """The first point at which an answer is closed in sampled tokens."""

    format: AnswerFormat
    tokenizer: Tokenizer
    _closing: dict[int, bool] = field(default_factory=dict, compare=False, repr=False)

    def __call__(self, tokens: Sequence[int]) -> int | None:
        """Return the number of tokens up to and including the one that closes an answer, or None.

        The smallest n for which the text of the first n tokens has a closed answer.
        """
        for place, token in enumerate(tokens, 1):
            if self.can_close(token) and self.format.closed(self.tokenizer.decode(tokens[:place])):
                return place
        return None

    def closes(self, tokens: Sequence[int]) -> bool:
        """True if the last of the tokens closes an answer, where none before it does."""
        return self.can_close(tokens[-1]) and self.format.closed(self.tokenizer.decode(tokens))

    def can_close(self, token: int) -> bool:
        """True if a token's text has a character that may close an answer."""
        known = self._closing.get(token)
        if known is None:
            text = self.tokenizer.decode((token,))
            known = self._closing[token] = any(c in text for c in self.format.closers)
        return known


def trained_tokens(
    sampled: Sequence[int], finish_reason: FinishReason, end_token: int, tokenizer: Tokenizer
) -> tuple[int, ...]:
    """Return the tokens that a completion is trained on: those sampled, ended by an end token.

    A closing token of white space alone is replaced by the end token; one that holds text of the answer
    is kept before it.
    """
    if finish_reason != "answered":
        return tuple(sampled)
    kept = sampled if tokenizer.decode(sampled[-1:]).strip() else sampled[:-1]
    return (*kept, end_token)
