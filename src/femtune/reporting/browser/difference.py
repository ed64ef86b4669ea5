"""The difference of two texts: by sentences first, then by words in changed sentences.

>>> [(piece.kind, piece.text) for piece in difference("It is clear. So 3.", "It is clear. So 2.")]
[('same', 'It is clear. So '), ('less', '3'), ('more', '2'), ('same', '.')]
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

LONGEST = 50_000  # characters compared of each text
_PATIENCE = 1_000_000  # pairs of equal units; above this the middle of two texts is not compared
_SENTENCE = re.compile(r"[^\n.!?]*(?:[.!?]+(?=\s|$)[^\S\n]*\n?|\n|[.!?]+|$)")
_WORD = re.compile(r"\w+|\s+|[^\w\s]")


@dataclass(frozen=True)
class Piece:
    """A part of two texts: in both (same), only in the first (less), only in the second (more)."""

    kind: Literal["same", "less", "more"]
    text: str


def difference(first: str, second: str) -> list[Piece]:
    """Return the pieces of both texts in order; "same" and "less" make up the first text."""
    pieces: list[Piece] = []
    for a, b in _changes(_units(_SENTENCE, first), _units(_SENTENCE, second)):
        if a == b:
            pieces.append(Piece("same", a))
            continue
        for less, more in _changes(_units(_WORD, a), _units(_WORD, b)):
            if less == more:
                pieces.append(Piece("same", less))
            else:
                pieces += [Piece("less", less)] * bool(less) + [Piece("more", more)] * bool(more)
    return _joined(pieces)


def _units(pattern: re.Pattern[str], text: str) -> list[str]:
    return [unit for unit in pattern.findall(text) if unit]


def _changes(a: Sequence[str], b: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield corresponding parts of both: equal, or one that replaces the other."""
    shorter = min(len(a), len(b))
    start = next((i for i in range(shorter) if a[i] != b[i]), shorter)
    end = next((i for i in range(shorter - start) if a[-1 - i] != b[-1 - i]), shorter - start)
    if start:
        yield "".join(a[:start]), "".join(a[:start])
    a_middle, b_middle = a[start : len(a) - end], b[start : len(b) - end]
    if a_middle or b_middle:
        counts = Counter(b_middle)
        if sum(counts[unit] for unit in a_middle) > _PATIENCE:
            yield "".join(a_middle), "".join(b_middle)
        else:
            for _, i, j, k, m in SequenceMatcher(None, a_middle, b_middle, autojunk=False).get_opcodes():
                yield "".join(a_middle[i:j]), "".join(b_middle[k:m])
    if end:
        yield "".join(a[len(a) - end :]), "".join(a[len(a) - end :])


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Merge neighbours of one kind; in a change, "less" comes before "more".

    A space between two different words counts as different too: that is easier to read.
    """
    made: list[Piece] = []
    pieces = [
        each
        for before, piece, after in zip([None, *pieces], pieces, [*pieces[1:], None], strict=False)
        for each in (
            [Piece("less", piece.text), Piece("more", piece.text)]
            if piece.kind == "same"
            and re.fullmatch(r"[^\S\n]+", piece.text)
            and before is not None
            and after is not None
            and "same" not in (before.kind, after.kind)
            else [piece]
        )
    ]
    waiting = {"less": "", "more": ""}
    for piece in [*pieces, Piece("same", "")]:
        if piece.kind != "same":
            waiting[piece.kind] += piece.text
            continue
        if not piece.text and not any(waiting.values()):
            continue
        made += [Piece("less", waiting["less"])] if waiting["less"] else []
        made += [Piece("more", waiting["more"])] if waiting["more"] else []
        waiting = {"less": "", "more": ""}
        if made and made[-1].kind == "same":
            made[-1] = Piece("same", made[-1].text + piece.text)
        elif piece.text:
            made.append(piece)
    return made
