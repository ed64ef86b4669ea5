"""The end of a completion: its end token, or the point at which its first complete answer is closed.

The cut is a pure function of the sampled tokens, and the driver applies it to every engine's output. An
engine may also apply it while sampling; it then stops earlier, with equal results.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from femtune.data.answer_format import AnswerFormat
from femtune.types import Tokenizer


@dataclass(frozen=True)
class Cut:
    """The cut of sampled tokens at the first point where an answer is closed.

    `opening` is "<think>" if the chat template opens a thinking block. Completions are then parsed with
    it before their text, and no answer is closed before the completion closes the block.
    """

    format: AnswerFormat
    tokenizer: Tokenizer
    opening: str = ""
    _closing: dict[int, bool] = field(default_factory=dict, compare=False, repr=False)

    def __call__(self, tokens: Sequence[int]) -> int | None:
        """Return the number of tokens up to and including the one that closes an answer, or None.

        It is the smallest n for which the text of the first n tokens holds a closed answer.
        """
        places = [place for place, token in enumerate(tokens, 1) if self.can_close(token)]
        text = self.opening + self.tokenizer.decode(tokens)
        if "\ufffd" in text or self.format.spec.startswith("regex:"):
            # a byte outside UTF-8 may undo a line break before it, and a regex may undo its own match
            return next((place for place in places if self._closed(tokens[:place])), None)
        # otherwise a closed answer stays closed; decode once, or log2(places) times
        if not places or not self.format.closed(text):
            return None
        return places[bisect_left(places, True, key=lambda place: self._closed(tokens[:place]))]

    def closes(self, tokens: Sequence[int]) -> bool:
        """Return True if the last token closes an answer that was not closed before it."""
        return self.can_close(tokens[-1]) and self._closed(tokens)

    def can_close(self, token: int) -> bool:
        """Return True if a token's text has a character that may close an answer."""
        known = self._closing.get(token)
        if known is None:
            text = _text_within(token, self.tokenizer)
            known = self._closing[token] = any(c in text for c in self.format.closers)
        return known

    def _closed(self, tokens: Sequence[int]) -> bool:
        return self.format.closed(self.opening + self.tokenizer.decode(tokens))


def cut_text(text: str, form: AnswerFormat) -> int | None:
    """Return the length of the shortest beginning of a text that holds a closed answer, or None.

    >>> cut_text("So 4.\\nAnswer: 4\\nAnd so on.", AnswerFormat("line"))
    16
    """
    places = [place for place, char in enumerate(text, 1) if char in form.closers]
    if form.spec.startswith("regex:"):  # more text may undo its match
        return next((place for place in places if form.closed(text[:place])), None)
    if not places or not form.closed(text[: places[-1]]):
        return None
    return places[bisect_left(places, True, key=lambda place: form.closed(text[:place]))]


def trained_tokens(
    sampled: Sequence[int], finish_reason: str, end_token: int, tokenizer: Tokenizer
) -> tuple[int, ...]:
    """Return the tokens that a completion is trained on.

    After a cut ("answered"), the end token replaces a closing token of only white space. A closing token
    with text of the answer, such as "}", is kept before it. Other completions are unchanged.
    """
    if finish_reason != "answered":
        return tuple(sampled)
    blank = _text_within(sampled[-1], tokenizer).isspace()
    return (*(sampled[:-1] if blank else sampled), end_token)


def _text_within(token: int, tokenizer: Tokenizer) -> str:
    """Return the text of a token within a text; decoded alone, some tokens lose a space."""
    return tokenizer.decode((token, token))
