"""What columns of tables are called: suggested to users, never used automatically."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable

_PROMPTS = "instruction question query input problem task request user usermessage text context source"
_TEXTS = "output completion answer reply generation generated modeloutput modelresponse candidate text"
_SUMMARIES = "generatedsummary systemsummary output decoded hypothesis response tldr generated"
_GOLD = "target gold goldanswer reference solution groundtruth correctanswer answerkey correct cop label"


def _sides(name: str, texts: str) -> dict[str, tuple[str, ...]]:
    """Return what the two texts of a pair are called: response_a is outputa or output1, for example."""
    stems = (name, *texts.split())
    return {
        f"{name}_{side}": tuple(f"{stem}{end}" for stem in stems for end in ends)
        for side, ends in (("a", "a1"), ("b", "b2"))
    }


# femtune's name of a column: what others call it, without case, spaces and signs, the likeliest first
SYNONYMS: dict[str, tuple[str, ...]] = {
    "prompt": tuple(_PROMPTS.split()),
    "question": ("questionstem", "stem", "prompt", *_PROMPTS.split()),
    "post": ("article", "document", "sourcetext", "source", "passage", "content", "text", "input"),
    "title": ("headline",),
    "response": tuple(_TEXTS.split()),
    **_sides("response", _TEXTS),
    "summary": tuple(_SUMMARIES.split()),
    **_sides("summary", _SUMMARIES),
    "score": (
        *("rating", "humanscore", "humanrating", "overall", "overallscore", "overallrating", "stars"),
        *("grade", "mark", "label", "quality"),
    ),
    "preference": (
        *("winner", "preferred", "humanpreference", "overallpreference", "choice", "better", "verdict"),
        *("vote", "label"),
    ),
    "chosen": ("preferred", "chosenresponse", "preferredresponse", "accepted", "winner"),
    "rejected": ("rejectedresponse", "dispreferred", "otherresponse", "loser"),
    "choices": ("options", "alternatives", "candidates", "answers"),
    "answer": (*_GOLD.split(), "output", "completion", "response", "score", "rating"),
    "rater": ("annotator", "worker", "judge", "reviewer", "labeler", "labeller", "participant"),
    "attribute": ("aspect", "dimension", "axis"),
}


def likely(name: str, columns: Collection[str]) -> str | None:
    """Return the column that most likely is femtune's column of that name, or None.

    >>> likely("score", ["id", "Human Score"]), likely("rater", ["worker_id"]), likely("score", ["x"])
    ('Human Score', 'worker_id', None)
    """
    ends = ("", "name", "id") if name == "rater" else ("",)
    there = {plain_name(column): column for column in columns}
    called = (f"{stem}{end}" for stem in (plain_name(name), *SYNONYMS.get(name, ())) for end in ends)
    return next((there[each] for each in called if each in there), None)


def flags_for(missing: Iterable[str], columns: Collection[str]) -> str:
    """Return the flags that map missing names to the likeliest columns, where there is one.

    >>> flags_for(["score", "response"], ["human score", "x"])
    "--columns 'response=<its name>' 'score=human score'"
    """
    order = {name: place for place, name in enumerate(SYNONYMS)}
    names = sorted(missing, key=lambda name: (order.get(name, len(order)), name))
    found = {name: likely(name, columns) for name in names}
    pairs = (shlex.quote(f"{name}={column or '<its name>'}") for name, column in found.items())
    return " ".join(["--columns", *pairs])


def spelled(name: str, columns: Collection[str]) -> str | None:
    """Return the column of that name, case, spaces and signs aside, or None.

    >>> spelled("score", ["rating", "Score "]), spelled("score", ["rating"])
    ('Score ', None)
    """
    return next((column for column in columns if plain_name(column) == plain_name(name)), None)


def plain_name(name: str) -> str:
    """Return a column's name without case, spaces and signs.

    >>> plain_name("Option_1"), plain_name("option 1")
    ('option1', 'option1')
    """
    return re.sub(r"[\W_]+", "", str(name).casefold())
