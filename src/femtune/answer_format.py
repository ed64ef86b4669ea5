"""Answer formats: how a completion writes its answer, how it is read, and where the completion ends.

line        Answer: X        (the default)
boxed       \\boxed{X}
hash        #### X
tag         <answer>X</answer>
bracket     [[X]]
json:KEY    {"KEY": X}
regex:...   the pattern's first group

>>> parse_format("line").read("Two and two make four.\\nAnswer: 4")
Parsed(rationale='Two and two make four.', answer='4', problem='')
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from femtune.errors import ConfigError
from femtune.types import Parsed

_ANSWER_LINE = re.compile(
    r"[\s#>]*([*-]\s+)?(?P<mark>[*_`]*)answer(?P<closed>[\s*_`]*):\s*(?P<answer>.*)",
    re.IGNORECASE,
)
# Markup around all of an answer. In pairs only: A* and $5 are answers, and other ones than A and 5.
_WRAPPED = re.compile(
    r"(?P<mark>\*{1,3}|`{1,3}|\${1,2})(?P<marked>(?:(?!(?P=mark)).)+)(?P=mark)"
    r"|\\boxed\{(?P<boxed>(?:[^{}]|\{[^{}]*\})+)\}|\\\((?P<inline>(?:(?!\\\)).)+)\\\)",
    re.DOTALL,
)


@dataclass(frozen=True)
class AnswerFormat:
    """A form of answer. `spec` is its name in a command, such as "line" or "json:score"."""

    spec: str

    @property
    def cue(self) -> str:
        """Text after which a model writes its answer; "" where there is none, so none can be forced."""
        return "\nAnswer:"

    @property
    def closers(self) -> str:
        """Characters of which one must be in the token that closes an answer."""
        return "\n"

    def ending(self, what: str = "your answer") -> str:
        """Words of the instruction: how the completion is to end.

        >>> parse_format("line").ending("A or B")
        'end with the line "Answer: " and A or B.'
        """
        return f'end with the line "Answer: " and {what}.'

    def read(self, text: str, *, require_rationale: bool = True) -> Parsed:
        """Split a completion's text into rationale and answer; `problem` says why where it can't.

        >>> parse_format("line").read("No idea.").problem
        'the last line is not "Answer: ..."'
        """
        lines = text.strip().splitlines()
        match = _ANSWER_LINE.fullmatch(lines[-1]) if lines else None
        if match is None:
            return Parsed(text.strip(), "", 'the last line is not "Answer: ..."')
        rationale = "\n".join(lines[:-1]).strip()
        answer = bare(_unmarked(match))
        if not answer.strip(".…*"):  # also the dots of an instruction, copied
            return Parsed(rationale, "", "the answer is empty")
        if require_rationale and all(map(_ANSWER_LINE.fullmatch, filter(str.strip, lines))):
            return Parsed(rationale, answer, "no rationale before the answer")
        return Parsed(rationale, answer)

    def closed(self, text: str) -> bool:
        """True if a text closes a complete answer: no placeholder, not within a thinking block.

        >>> line = parse_format("line")
        >>> line.closed("So 4.\\nAnswer: 4"), line.closed("So 4.\\nAnswer: 4\\n")
        (False, True)
        """
        *lines, _ = text.split("\n")
        return any(
            (match := _ANSWER_LINE.fullmatch(line)) and bare(_unmarked(match)).strip(".…*")
            for line in lines
        )


def parse_format(spec: str) -> AnswerFormat:
    """Return the answer format of that name. Raises ConfigError for an unknown one."""
    if spec != "line":
        raise ConfigError(f"answer_format {spec!r} is not known: choose line.")
    return AnswerFormat(spec)


def bare(answer: str) -> str:
    """Return an answer without markup around all of it, and without the full stop after it.

    >>> bare("**4**."), bare(r"$\\boxed{4}$"), bare("A*"), bare("$5")
    ('4', '4', 'A*', '$5')
    """
    while True:
        answer = answer.strip().removesuffix(".").rstrip()
        match = _WRAPPED.fullmatch(answer)
        if match is None:
            return answer
        answer = match["marked"] or match["boxed"] or match["inline"]


def _unmarked(line: re.Match[str]) -> str:
    """The answer of `**Answer:** 4` or `**Answer: 4**` without the other half of the markup."""
    mark, answer = line["mark"], line["answer"].rstrip()
    if not mark or mark in line["closed"]:
        return answer
    return answer.removeprefix(mark) if answer.startswith(mark) else answer.removesuffix(mark)
