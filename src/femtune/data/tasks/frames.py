"""A task's knowledge about a problem beyond prompt and answer, stored as a column of the problem.

With it, every measurement can be repeated from a stored run. It holds the possible answers, the item
that the problem is about, and the order in which a pair is shown.
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
    scale: tuple[str, ...] = ()  # the possible answers, lowest first; empty for open answers
    choices: tuple[str, ...] = ()  # the text of each possible answer, for multiple choice
    # the judged item: problems that share it are never split apart, and count as one
    item: str = ""
    length: float = 0.0  # words of the judged text; for a pair, the second's minus the first's
    pair: str = ""  # shared by the two problems of a pair, one in each order
    swapped: bool = False  # True if the pair is shown in the opposite order of the data's
    presented: bool = True  # True for the order that is trained on, drawn at random for each pair

    def column(self) -> dict[str, Any]:
        """Return the frame as it is stored with the problem."""
        return asdict(self) | {"scale": list(self.scale), "choices": list(self.choices)}


def frame(problem: Problem) -> Frame | None:
    """Return the frame of a problem; None for one made from a plain prompt and answer.

    A user's own column that happens to be called `frame` is ignored.
    """
    stored = problem.columns.get("frame")
    if not isinstance(stored, Mapping) or not _is_frame(stored):
        return None
    texts = tuple(stored.get("choices") or ())
    known = Frame(**{**stored, "scale": tuple(stored["scale"]), "choices": texts})
    off = known.scale and problem.answer and problem.answer not in known.scale
    return None if off else known


def _is_frame(stored: Mapping[str, Any]) -> bool:
    """Return True if these are the fields of a frame, with the right types."""
    return (
        {*stored} | {"choices"} == {*_TYPES}  # earlier runs have no `choices`
        and all(isinstance(value, _TYPES[name]) for name, value in stored.items())
        and all(isinstance(text, str) for text in (*stored["scale"], *stored.get("choices", ())))
        and stored["form"] in get_args(Form)
    )


_TYPES: dict[str, Any] = {
    **{"form": str, "scale": (list, tuple), "choices": (list, tuple), "item": str},
    **{"length": (int, float), "pair": str, "swapped": bool, "presented": bool},
}


def scale_of(problem: Problem) -> Scale | None:
    """Return the scale of a problem's answers; None if its task knows none."""
    known = frame(problem)
    if known is None or not known.scale:
        return None
    unknown = ("",) * len(known.scale) if known.form == "choice" else ()
    return Scale(known.scale, known.choices or unknown)


def item_name(*texts: str) -> str:
    """Return a name for a judged item, whatever the file and the order of its texts.

    >>> item_name("Why?", "Because.", "So.") == item_name("Why?", "So.", "Because.")
    True
    """
    digest = hashlib.blake2b(digest_size=8)
    for text in sorted(" ".join(text.split()) for text in texts):
        digest.update(text.encode("utf-8", "replace") + b"\x00")
    return digest.hexdigest()
