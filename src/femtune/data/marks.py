"""Encode what data spell out like special tokens as text, so that data can't end the user's turn.

A mark is text that the tokenizer would read as one control token, such as "<|im_end|>". Marks in
messages are hidden behind private characters while the chat template renders them, and encoded
letter by letter afterwards. Marks that the template itself writes stay control tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from femtune._util.text import brief
from femtune.errors import DataError
from femtune.types import Message

# A worked example's answer may hold a thinking block; its marks stay tokens, as the model writes them.
_THINKING = re.compile(r"</?think(?:ing)?>", re.IGNORECASE)
_JOINT = "\uf8ff"  # a private character, before a text that is encoded as following another


@dataclass(frozen=True)
class Marks:
    """The marks of a Hugging Face tokenizer, and the encoding of text that spells them out.

    These are its special tokens, and the other added tokens that its chat template names, such as
    "<tool_call>".
    """

    tokenizer: Any

    def hide(self, messages: Sequence[Message]) -> tuple[list[Message], dict[str, str]]:
        """Replace marks in messages by private characters; return the mark of each character too."""
        patterns = [self._of_answers if m["role"] == "assistant" else self._pattern for m in messages]
        pairs = list(zip(messages, patterns, strict=True))
        found = {mark for m, pattern in pairs if pattern for mark in pattern.findall(m["content"])}
        if not found:
            return list(messages), {}
        text = "".join(message["content"] for message in messages)
        free = (chr(code) for code in range(0xE000, 0xF800) if chr(code) not in text)
        names = dict(zip(sorted(found), free, strict=False))
        hidden: list[Message] = [
            {**m, "content": pattern.sub(lambda mark: names[mark[0]], m["content"])} if pattern else m
            for m, pattern in pairs
        ]
        return hidden, {name: mark for mark, name in names.items()}

    def encode(self, text: str, hidden: Mapping[str, str]) -> list[int]:
        """Return the tokens of a text in which private characters stand for marks.

        Nothing is added at its ends. Raises DataError if the tokenizer can't write a mark as text.
        """
        if not hidden:
            tokens = self._ids(text)
        else:
            tokens = []
            for part in filter(None, re.split(f"([{''.join(hidden)}])", text)):
                mark = hidden.get(part)
                tokens += (
                    self._part(part, bool(tokens)) if mark is None else self._spelled(mark, bool(tokens))
                )
            self._check_spelled(tokens, _shown(text, hidden), hidden.values())
        if self._pattern and self._normalizes:
            written = len(self._pattern.findall(text))
            if sum(token in self._controls for token in tokens) > written:
                raise DataError(
                    f"the tokenizer reads a special token in the text {brief(_shown(text, hidden))!r}: "
                    "take what looks like one out of the row."
                )
        return tokens

    def encode_answer(self, text: str) -> list[int]:
        """Return the tokens of an assistant's text, with marks as text except those of thinking."""
        [message], hidden = self.hide([{"role": "assistant", "content": text}])
        return self.encode(message["content"], hidden)

    def _spelled(self, mark: str, follows: bool) -> list[int]:
        tokens = self._part(mark, follows, split_special_tokens=True)
        if self._controls.isdisjoint(tokens):
            return tokens
        # the tokenizer splits only tokens flagged as special: keep others apart from their first letter
        return [*self._part(mark[0], follows), *self._part(mark[1:], True)]

    def _check_spelled(self, tokens: Sequence[int], text: str, marks: Iterable[str]) -> None:
        """Raise DataError unless the tokens' text has each mark as often as the text."""
        back = _squeezed(self.tokenizer.decode(tokens, clean_up_tokenization_spaces=False))
        for mark in marks:
            if back.count(_squeezed(mark)) < _squeezed(text).count(_squeezed(mark)):
                raise DataError(
                    f"{mark!r} in the text of a prompt is a special token, and the tokenizer can't "
                    f"write it as text: take it out of the row that holds {brief(text)!r}."
                )

    def _part(self, text: str, follows: bool, **options: Any) -> list[int]:
        """Return the tokens of a part of a text, which may follow another."""
        if not (follows and self._prefixes):
            return self._ids(text, **options)
        joint = self._ids(_JOINT)
        return self._ids(_JOINT + text, **options)[len(joint) :]

    def _ids(self, text: str, **options: Any) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=False, **options)["input_ids"]
        return found

    @cached_property
    def _prefixes(self) -> bool:
        """True if the tokenizer writes a space before any text, as SentencePiece does."""
        parts = [*self._ids("a"), *self._ids("b")]
        return "a b" in self.tokenizer.decode(parts, clean_up_tokenization_spaces=False)

    @cached_property
    def _normalizes(self) -> bool:
        """True if marks are looked for in normalized text, where other letters may become one."""
        core = getattr(self.tokenizer, "backend_tokenizer", None)
        added = self.tokenizer.added_tokens_decoder
        is_plain = core is not None and core.normalizer is None
        return not is_plain and any(added[number].normalized for number in self._controls)

    @cached_property
    def _marks(self) -> dict[str, int]:
        named = self.tokenizer.chat_template or ""
        special = special_ids(self.tokenizer)
        return {
            str(token): number
            for number, token in self.tokenizer.added_tokens_decoder.items()
            if (number in special or str(token) in named) and len(str(token).strip()) > 1
        }

    @cached_property
    def _controls(self) -> frozenset[int]:
        unknown = self.tokenizer.unk_token_id  # a character that the tokenizer lacks is no control token
        return frozenset(self._marks.values()) - {unknown}

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        return _any_of(self._marks)

    @cached_property
    def _of_answers(self) -> re.Pattern[str] | None:
        return _any_of(mark for mark in self._marks if not _THINKING.fullmatch(mark))


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Return the tokens flagged as special, or with a role of one, such as padding."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(number for number, token in added if token.special).union(tokenizer.all_special_ids)


def _any_of(marks: Iterable[str]) -> re.Pattern[str] | None:
    """Return a pattern of any of the marks, the longest first; None without any."""
    found = sorted(marks, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, found))) if found else None


def _shown(text: str, hidden: Mapping[str, str]) -> str:
    return "".join(hidden.get(char, char) for char in text) if hidden else text


def _squeezed(text: str) -> str:
    return "".join(text.split()).lower()
