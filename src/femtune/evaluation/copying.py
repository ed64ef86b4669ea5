"""How much of a rationale is copied out of its prompt: extractive fragments.

    prompt     "Rate the response. Response: it skips the last part."
    rationale  "It skips the last part, so 2."      fragment "it skips the last part", 5 of 7 words

A fragment is a run of words that stands in the prompt too. Source: Grusky, Naaman and Artzi 2018,
"Newsroom", arXiv 1804.11283, section 4. Words here are runs of letters and digits in lower case.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


class Copied(NamedTuple):
    """Share of words in fragments, and the mean length of the fragment that a word stands in."""

    coverage: float
    density: float


def copied(rationale: str, prompt: str) -> Copied | None:
    """Measure how much of a rationale stands in a prompt; None for a rationale without words.

    With n words and fragments of f_1, f_2, ... words: coverage = sum f / n, density = sum f^2 / n.

    >>> copied("It skips the last part, so 2.", "Response: it skips the last part.")
    Copied(coverage=0.7142857142857143, density=3.5714285714285716)
    """
    words = _words(rationale)
    if not words:
        return None
    lengths = fragments(words, _words(prompt))
    return Copied(sum(lengths) / len(words), sum(length * length for length in lengths) / len(words))


def fragments(words: Sequence[str], source: Sequence[str]) -> list[int]:
    """Return the lengths of the fragments, in order: from the left, each the longest that there is.

    The source's own procedure may miss a longer match that overlaps a shorter one; this one does not.

    >>> fragments("a a b c".split(), "a a a b".split())
    [3]
    """
    places: dict[str, list[int]] = {}
    for place, word in enumerate(source):
        places.setdefault(word, []).append(place)
    found, at = [], 0
    while at < len(words):
        longest = max((_alike(words, at, source, p) for p in places.get(words[at], ())), default=0)
        if longest:
            found.append(longest)
        at += max(longest, 1)
    return found


def _alike(words: Sequence[str], at: int, source: Sequence[str], place: int) -> int:
    """Return how many words are the same from both places on."""
    num, most = 0, min(len(words) - at, len(source) - place)
    while num < most and words[at + num] == source[place + num]:
        num += 1
    return num


def _words(text: str) -> list[str]:
    return [found.group().lower() for found in _WORD.finditer(text)]
