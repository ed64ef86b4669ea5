"""What a task knows of a problem beyond prompt and answer; it travels with the problem as a column.

So all that is measured can be measured again from a stored run: which answers there are, which problems
are of one item, which way round a pair was shown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from femtune.data.answers import Scale
from femtune.types import Problem

Form = Literal["rating", "pair", "choice", "math"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """The column `frame` of a task's problem."""

    form: Form
    scale: tuple[str, ...] = ()  # the answers that there are, lowest first; empty where any may be
    item: str = (
        ""  # names what was judged: problems that share it are never split, or counted as several
    )
    length: float = 0.0  # words of what is judged; of a pair, the second's less the first's
    pair: str = ""  # a pair is a problem in each order; both share this
    swapped: bool = False  # whether the pair is shown the other way round than the data has it
    presented: bool = True  # whether it is the order that is trained on, drawn at random for each pair

    def column(self) -> dict[str, Any]:
        """As it is stored with the problem."""
        return asdict(self) | {"scale": list(self.scale)}


def frame(problem: Problem) -> Frame | None:
    """What the task knows of a problem; None for one that came as a plain prompt and answer.

    A column of somebody's own that is called `frame` too is no task's.
    """
    stored = problem.columns.get("frame")
    if not isinstance(stored, Mapping) or not _is_frame(stored):
        return None
    known = Frame(**{**stored, "scale": tuple(stored["scale"])})
    off = known.scale and problem.answer and problem.answer not in known.scale
    return None if off else known


def _is_frame(stored: Mapping[str, Any]) -> bool:
    """Whether these are a frame's fields, of their types."""
    return (
        stored.keys() == _TYPES.keys()
        and all(isinstance(stored[name], kind) for name, kind in _TYPES.items())
        and all(isinstance(answer, str) for answer in stored["scale"])
        and stored["form"] in get_args(Form)
    )


_TYPES: dict[str, Any] = {
    **{"form": str, "scale": (list, tuple), "item": str, "length": (int, float), "pair": str},
    **{"swapped": bool, "presented": bool},
}


def scale_of(problem: Problem) -> Scale | None:
    """The answers that a problem can have, where its task knows."""
    known = frame(problem)
    return Scale(known.scale) if known and known.scale else None


def item_name(*texts: str) -> str:
    """A name for what is judged, the same in whichever file and order its texts stand.

    >>> item_name("Why?", "Because.", "So.") == item_name("Why?", "So.", "Because.")
    True
    """
    digest = hashlib.blake2b(digest_size=8)
    for text in sorted(" ".join(text.split()) for text in texts):
        digest.update(text.encode("utf-8", "replace") + b"\x00")
    return digest.hexdigest()
