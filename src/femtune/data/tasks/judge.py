"""Judging: rate one text, or choose the better of two, as one rater or several would.

    Rate the response from 1 to 5, as Robin would.      Which response is better, A or B?

    Prompt:                                             Prompt:
    Why do stars shine?                                 Why do stars shine?

    Response:                                           Response A:
    They burn.                                          They burn.

                                                        Response B:
                                                        They fuse hydrogen.

`summarize` is the same with posts and summaries; a `Wording` holds the words of a task.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, Literal

from femtune._util.text import brief, number_text
from femtune.data.answer_format import AnswerFormat
from femtune.data.answers import Scale, as_fraction, infer_scale
from femtune.data.prompts import LINE, instruct
from femtune.data.rows import DUPLICATE, BadRow
from femtune.data.tasks.frames import Frame, item_name
from femtune.data.tasks.labels import SOFT, shares
from femtune.data.tasks.wording import Template
from femtune.types import Problem

Row = Mapping[str, Any]
Raters = Literal["each", "named", "mean", "median", "majority"]


@dataclass(frozen=True)
class Wording:
    """The words of a task for the judged text and for what it responds to."""

    thing: str  # the judged text, for example "response", and its column
    given: tuple[tuple[str, str], ...]  # headings and columns of what it responds to


@dataclass(frozen=True)
class Asking:
    """The user's text around an item, and the handling of scores between two points of the scale."""

    rubric: str = ""
    template: Template | None = None
    between: Literal["refuse", "round", "soft"] = "refuse"


PLAINLY = Asking()
JUDGE = Wording("response", (("Prompt", "prompt"),))
EXTRAS = (("Criterion", "criterion"), ("Reference answer", "reference"))  # shown if the row has them
_MADE_INTO_TEXT = {"prompt", "title", "post", "response", "summary", "criterion", "reference"}
_PAIR = ("A", "B")
_SWAPPED = " (swapped)"  # suffix of the id of a pair in the opposite order


# --- prompts


def write_rating(
    row: Row, scale: Scale, wording: Wording, rater: str = "", asking: Asking = PLAINLY
) -> str:
    """Write the prompt that asks for a rating of one text.

    >>> row = {"prompt": "Why?", "response": "Because.", "attribute": "coherence"}
    >>> print(write_rating(row, Scale(("0", "1", "2")), JUDGE, rater="Robin").splitlines()[0])
    Rate the coherence of the response from 0 to 2, as Robin would.
    """
    attribute = str(row.get("attribute") or "").replace("_", " ").strip()
    attribute = "overall quality" if attribute == "overall" else attribute
    what = f"the {attribute} of the {wording.thing}" if attribute else f"the {wording.thing}"
    low, high = scale.answers[0], scale.answers[-1]
    between = f"from {low} to {high}" if scale.numeric else f"as {scale}"
    whose = f", as {rater} would" if rater else ""
    if asking.template is not None:
        named = {"scale": str(scale), "rater": rater or None}
        return _filled(asking, {**row, "attribute": attribute or None, **named})
    blocks = [*wording.given, *EXTRAS, (wording.thing.capitalize(), wording.thing)]
    found = [(name, row.get(key)) for name, key in blocks]
    return _blocks(f"Rate {what} {between}{whose}.", [("Rubric", asking.rubric), *found])


def write_pair(
    row: Row,
    wording: Wording,
    rater: str = "",
    asking: Asking = PLAINLY,
    *,
    swapped: bool = False,
    tie: bool = False,
) -> str:
    """Write the prompt that asks which of two texts is better; `swapped` shows the second one first."""
    attribute = str(row.get("attribute") or "").replace("_", " ").strip()
    by = f" in {attribute}" if attribute and attribute != "overall" else ""
    which = "A, B, or is it a tie" if tie else "A or B"
    asked = f"Which {wording.thing} is better{by}, {which}?"
    if rater:
        asked = f"Which {wording.thing} would {rater} prefer{by}, {which}?"
    first, second = reversed(_sides(wording)) if swapped else _sides(wording)
    if asking.template is not None:
        a, b = _sides(wording)
        shown = {a: row.get(first), b: row.get(second), "rater": rater or None}
        named = {"scale": "A, B or tie" if tie else which, "attribute": attribute or None}
        return _filled(asking, {**row, **shown, **named})
    blocks: list[tuple[str, Any]] = [("Rubric", asking.rubric)]
    blocks += [(name, row.get(key)) for name, key in (*wording.given, *EXTRAS)]
    name = wording.thing.capitalize()
    blocks += [(f"{name} A", row.get(first)), (f"{name} B", row.get(second))]
    return _blocks(asked, blocks)


def instruction(scale: Scale, form: AnswerFormat = LINE) -> str:
    """Return the instruction that each prompt ends with: the form of the answer.

    >>> instruction(Scale(("A", "B")))
    'Think step by step, then end with the line "Answer: " and A or B.'
    """
    return instruct(form, f"the rating, {scale}" if scale.numeric else str(scale))


def _filled(asking: Asking, values: Row) -> str:
    """Fill the user's template from a row; the rubric comes first unless the template places it."""
    assert asking.template is not None
    text = asking.template.fill({**values, "rubric": asking.rubric or None})
    placed = not asking.rubric or "rubric" in asking.template.names
    return text if placed else f"Rubric:\n{asking.rubric}\n\n{text}"


def known_names(rows: Iterable[Row]) -> set[str]:
    """Return the names that a template may use for these rows."""
    return {name for row in rows for name in row} | {"rubric", "scale", "rater", "attribute"}


def _blocks(head: str, blocks: Iterable[tuple[str, Any]]) -> str:
    texts = [f"{name}:\n{str(text).strip()}" for name, text in blocks if text not in (None, "")]
    return "\n\n".join([head, *texts])


# --- ratings


def find_scale(rows: Iterable[Row]) -> Scale:
    """Infer the scale of whole numbers from the scores. Raises DataError if they fit none."""
    return infer_scale(_score_text(row["score"]) for row in rows if row.get("score") is not None)


def ratings(
    rows: Sequence[tuple[int, Row]],
    scale: Scale,
    wording: Wording = JUDGE,
    raters: Raters = "each",
    asking: Asking = PLAINLY,
) -> Iterator[tuple[int, Problem | BadRow]]:
    """Yield a problem for each rating, or for each text with its raters' mean, median or majority.

    Yields place and problem, or place and BadRow. `named` asks for the rating of that rater; `each`
    names no rater. Means are over valid ratings. As `asking` says, a mean is rounded to the nearest
    answer of the scale, or becomes a soft label of two answers.
    """
    if raters in ("each", "named"):
        for place, row in rows:
            yield place, _rating(row, scale, wording, raters == "named", asking)
        return
    groups: dict[tuple[str, str], list[tuple[int, Row]]] = defaultdict(list)
    for place, row in rows:
        item = item_name(*(str(row.get(key)) for _, key in wording.given), str(row.get(wording.thing)))
        groups[item, str(row.get("attribute"))].append((place, row))
    for group in groups.values():
        good, answers, values = [], [], []
        for place, row in group:
            one = _rating(row, scale, wording, False, asking)
            if isinstance(one, BadRow):
                yield place, one
            else:
                good.append((place, row))
                answers.append(one.answer)
                if one.answer:
                    values.append(_worth(row, one.answer, scale))
        if not good:
            continue
        place, row = good[0]
        score: dict[str, Any] = {}
        if values and raters == "majority":
            top = Counter(filter(None, answers)).most_common(2)
            if len(top) == 2 and top[0][1] == top[1][1]:
                yield from _split(good, top)
                continue
            score = {"score": top[0][0]}
        elif values:
            middle = fmean(values) if raters == "mean" else median(values)
            score = {"score": middle if asking.between == "soft" else scale.nearest(middle)}
        merged = {key: value for key, value in row.items() if key not in ("rater", "score")} | score
        yield place, _rating(merged | {"ratings": answers}, scale, wording, False, asking)


def _worth(row: Row, answer: str, scale: Scale) -> float:
    """Return a score as the row has it, or for a label, the value of its answer."""
    number = as_fraction(_score_text(row["score"])) if scale.numeric else None
    return scale.value(answer) if number is None or scale.read(str(row["score"])) else float(number)


def is_rounded(problem: Problem) -> bool:
    """Return True if a problem's score was between two points of the scale."""
    return ROUNDED in problem.columns


ROUNDED = "rounded_from"  # the column: a score between two points of the scale


def _rating(row: Row, scale: Scale, wording: Wording, named: bool, asking: Asking) -> Problem | BadRow:
    text = _required(row, wording.thing)
    if isinstance(text, BadRow):
        return text
    answer = ""
    more: dict[str, Any] = {}
    if row.get("score") is not None:
        read = scale.read(_score_text(row["score"]))
        soft = {} if read is not None or not scale.numeric else _between(row["score"], scale)
        if read is None and (not soft or asking.between == "refuse"):
            low, high = scale.answers[0], scale.answers[-1]
            between = f"{low} to {high}" if scale.numeric else str(scale)
            advice = "; --round-scores or --soft-labels accepts such scores" if soft else ""
            what = f"`score` is off the scale, {between}{advice}"
            return BadRow(what, brief(str(row["score"])))
        if read is None:
            read = max(soft, key=lambda answer: soft[answer])  # the lower one of two equal shares
            more = {ROUNDED: str(row["score"])}
            more |= {SOFT: soft} if asking.between == "soft" else {}
        answer = read
    rater = str(row.get("rater") or "")
    if named and not rater:
        return BadRow("no `rater`, which --raters named needs")
    known = (str(row.get(key) or "") for _, key in wording.given)
    item = item_name(*known, text)
    frame = Frame(form="rating", scale=scale.answers, item=item, length=float(len(text.split())))
    try:
        prompt = write_rating(row, scale, wording, rater if named else "", asking)
    except BadRow as fault:
        return fault
    columns = _columns(row, wording) | more | {"frame": frame.column()}
    return Problem(str(row["id"]), prompt, answer, columns)


def _between(score: Any, scale: Scale) -> dict[str, Any]:
    """Return the two points around a score between them, with their shares; {} for other scores."""
    number = as_fraction(_score_text(score))
    return {} if number is None else shares(number, scale)


# --- pairs


def pairs(
    rows: Sequence[tuple[int, Row]],
    wording: Wording = JUDGE,
    raters: Raters = "each",
    asking: Asking = PLAINLY,
    *,
    tie: bool = False,
) -> Iterator[tuple[int, Problem | BadRow]]:
    """Yield two problems for each pair, one in each order; `presented` marks the one to train on.

    A hash of the pair's id chooses the presented order, equal in every run, so that neither answer is
    favored. With raters "mean", "median" or "majority", the answer of a pair is the
    majority's.
    """
    if raters in ("mean", "median", "majority"):
        rows = list(_majorities(rows, wording))
    for place, row in rows:
        if isinstance(row, BadRow):
            yield place, row
            continue
        for problem in _pair(row, wording, raters == "named", tie, asking):
            yield place, problem


def _majorities(rows: Iterable[tuple[int, Row]], wording: Wording) -> Iterator[tuple[int, Any]]:
    groups: dict[tuple[str, str], list[tuple[int, Row]]] = defaultdict(list)
    for place, row in rows:
        texts = [key for _, key in wording.given] + [*_sides(wording)]
        item = item_name(*(str(row.get(key) or "") for key in texts))
        groups[item, str(row.get("attribute"))].append((place, row))
    for group in groups.values():
        place, row = group[0]
        votes = Counter(_vote(each, row, wording) for _, each in group if each.get("preference"))
        top = votes.most_common(2)
        if len(top) == 2 and top[0][1] == top[1][1]:
            if "tie" not in votes:
                yield from _split(group, top)
                continue
            top = [("tie", 0)]
        merged = {key: value for key, value in row.items() if key not in ("rater", "preference")}
        given = {"preference": top[0][0]} if top else {}
        yield place, merged | given | {"ratings": list(votes.elements())}


def _split(
    rows: Iterable[tuple[int, Row]], top: Sequence[tuple[str, int]]
) -> Iterator[tuple[int, BadRow]]:
    """Yield the rows of an item without a majority as bad."""
    for place, _ in rows:
        yield place, BadRow("raters are split evenly", f"{top[0][1]} to {top[1][1]}")


def _vote(row: Row, first: Row, wording: Wording) -> str:
    """Return a row's preference, in terms of the order in which the pair's first row has the texts."""
    side = _sides(wording)[0]
    same = str(row.get(side)).split() == str(first.get(side)).split()
    return str(row["preference"]) if same else turned(str(row["preference"]))


def _pair(row: Row, wording: Wording, named: bool, tie: bool, asking: Asking) -> list[Problem | BadRow]:
    texts = [_required(row, side) for side in _sides(wording)]
    for text in texts:
        if isinstance(text, BadRow):
            return [text]
    one, other = (str(text) for text in texts)
    if " ".join(one.split()) == " ".join(other.split()):
        return [BadRow(f"`{wording.thing}_a` and `{wording.thing}_b` have the same text")]
    rater = str(row.get("rater") or "")
    if named and not rater:
        return [BadRow("no `rater`, which --raters named needs")]
    answer = str(row.get("preference") or "")
    scale = (*_PAIR, "tie") if tie else _PAIR
    if answer and answer not in scale:
        return [BadRow(f"`preference` must be one of {', '.join(scale)}", brief(answer))]
    item = item_name(*(str(row.get(key) or "") for _, key in wording.given), one, other)
    name = str(row["id"])
    if name.endswith(_SWAPPED):
        return [
            BadRow(
                f"`id` ends in{_SWAPPED}, which is reserved for the opposite order of a pair",
                brief(name),
            )
        ]
    shown_swapped = bool(hashlib.blake2b(f"order {name}".encode(), digest_size=1).digest()[0] % 2)
    longer = len(other.split()) - len(one.split())
    problems: list[Problem | BadRow] = []
    for swapped in (False, True):
        frame = Frame(
            form="pair",
            scale=scale,
            item=item,
            length=float(-longer if swapped else longer),
            pair=name,
            swapped=swapped,
            presented=swapped == shown_swapped,
        )
        whose = rater if named else ""
        try:
            prompt = write_pair(row, wording, whose, asking, swapped=swapped, tie=tie)
        except BadRow as fault:
            return [fault]
        columns = _columns(row, wording) | {"frame": frame.column()}
        own = f"{name}{_SWAPPED}" if swapped else name
        problems.append(Problem(own, prompt, turned(answer) if swapped else answer, columns))
    return problems


def turned(answer: str) -> str:
    """Return the answer to a pair in the opposite order: A for B and B for A.

    >>> turned("A"), turned("tie")
    ('B', 'tie')
    """
    return {"A": "B", "B": "A"}.get(answer, answer)


# --- rows


def _required(row: Row, name: str) -> str | BadRow:
    text = row.get(name)
    if not isinstance(text, str) or not text.strip():
        return BadRow(f"`{name}` is empty")
    return text


def _score_text(score: Any) -> str:
    return number_text(score) if isinstance(score, float) else str(score).strip()


def with_ids(rows: Iterable[tuple[int, Any]], wording: Wording) -> Iterator[tuple[int, Any]]:
    """Yield the rows with an id each: their own, or one made of their content, numbered if repeated."""
    seen: Counter[str] = Counter()
    for place, row in rows:
        if isinstance(row, BadRow):
            yield place, row
            continue
        own = row.get("id") not in (None, "")
        name = str(row["id"]) if own else _made_of(row, wording)
        seen[name] += 1
        if own and seen[name] > 1:
            yield place, BadRow(DUPLICATE, f'"{name}"')
        else:
            yield place, row | {"id": name if seen[name] == 1 else f"{name}#{seen[name]}"}


def _made_of(row: Row, wording: Wording) -> str:
    texts = [key for _, key in wording.given] + [wording.thing, *_sides(wording)]
    item = item_name(*(str(row.get(key) or "") for key in texts))
    return "/".join([item, *(str(row[key]) for key in ("attribute", "rater") if row.get(key))])


def _sides(wording: Wording) -> tuple[str, str]:
    return f"{wording.thing}_a", f"{wording.thing}_b"


def _columns(row: Row, wording: Wording) -> dict[str, Any]:
    """Return the row's columns, without the texts that are in the prompt."""
    texts = _MADE_INTO_TEXT | {*_sides(wording)}
    own = texts | {"id", "item", "answer", "score", "preference", "frame"}
    return {key: value for key, value in row.items() if key not in own and value is not None}
