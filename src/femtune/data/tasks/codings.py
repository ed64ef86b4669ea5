"""Codings of labels: which response 1 means, or which choice 2 means, decided for a whole column.

    pairs      A and B, model_a and model_b, left and right; 1 and 2; 0 and 1; 0 for a tie beside 1 and 2
    choices    the label of a choice, its text, its position from 0, or its position from 1

A column that can be read in two ways is refused: `--labels 1=A 2=B` settles it. No row is read in
another way than the rest of its column, whichever rows are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from femtune._util.parsing import named_pairs
from femtune._util.text import SHOWN, brief, first
from femtune.data.rows import BadRow
from femtune.data.tasks.cells import read_plain, read_score
from femtune.errors import ConfigError, DataError

Place = tuple[int, Any]  # a place in a source, and its row or BadRow

TEXT = "text"  # a coding by hand of choices: answers are the texts of choices

_SIDE = r"(?:model|response|output|answer|assistant|summary|completion|option|choice|side)[ _]?"
_NUMBER = re.compile(rf"(?:{_SIDE})?(-?[0-9]{{1,9}})")
_LETTER = re.compile(rf"(?:{_SIDE})?([ab])")
_WORDS = {"left": "A", "first": "A", "right": "B", "second": "B"}
_TIES = frozenset(
    (
        *("tie", "tie (bothbad)", "tie (both bad)", "tie (inconsistent)", "bothbad", "both bad"),
        *("both", "equal", "equally good", "draw", "same", "neither", "no preference"),
    )
)
# 0 and 1 in a column of such a name may say whether one side is better
_SIDED = r"(?:^|[_ .])(?:a|b|first|second|left|right|[12])(?:$|[_ .])"
_ONE_SIDE = re.compile(_SIDED, re.IGNORECASE)
# and in one of an annotator, 0 may be a tie, where no 2 occurs
_DOUBTFUL = re.compile(
    rf"{_SIDED}|annot|rater|worker|judge|labell?er|coder|expert|voter|human|person", re.IGNORECASE
)
_NUMBERS: dict[tuple[int, ...], Sequence[str]] = {
    (1, 2): "AB",
    (0, 1): "AB",
    (0, 1, 2): ("tie", "A", "B"),
}

Meanings = dict[str, str]  # a value of a column in lower case: the label that it stands for


def parse_labels(items: Sequence[str]) -> dict[str, str]:
    """Return a coding by hand; `text` alone says that answers are the texts of choices.

    >>> parse_labels(["1=A", "2=B"]), parse_labels(["text"])
    ({'1': 'A', '2': 'B'}, {'text': ''})
    """
    return {TEXT: ""} if tuple(items) == (TEXT,) else named_pairs("labels", items)


# --- which of two is better


def pair_meanings(values: Sequence[str], column: str, names: Mapping[str, str]) -> Meanings:
    """Return what the values of a column of preferences mean, without those that mean nothing.

    `names` are further values with a meaning, such as the columns of the two texts. Raises DataError if
    the column can be read in two ways.

    >>> pair_meanings(["1", "2", "2"], "label", {}), pair_meanings(["0", "1"], "label", {})
    ({'1': 'A', '2': 'B'}, {'0': 'A', '1': 'B'})
    """
    seen = dict.fromkeys(value.strip().lower() for value in values)
    known = {value: meaning for value in seen if (meaning := names.get(value) or _word(value))}
    numbers = {
        value: int(match[1])
        for value in seen
        if value not in known and (match := _NUMBER.fullmatch(value))
    }
    if seen and not known and not numbers:
        raise DataError(
            f"`{column}` has {first([*map(brief, seen)])}, and neither A, B nor tie. Say what they "
            f"mean: {_line(seen)}"
        )
    if not numbers:
        return known
    sides, tie = {*known.values()} - {"tie"}, "tie" in known.values()
    found = (*sorted({*numbers.values()}),)
    doubtful = found == (0, 1) and (_ONE_SIDE if tie else _DOUBTFUL).search(column) is not None
    if sides or found not in _NUMBERS or (tie and len(found) == 3) or doubtful:
        raise DataError(_two_ways(column, [*numbers, *known], len(values)))
    labels = dict(zip(found, _NUMBERS[found], strict=True))
    return known | {value: labels[number] for value, number in numbers.items()}


def _word(value: str) -> str:
    match = _LETTER.fullmatch(value)
    return match[1].upper() if match else "tie" if value in _TIES else _WORDS.get(value, "")


def _two_ways(column: str, seen: Sequence[str], num: int) -> str:
    """Describe why a column is refused, and the lines that settle it."""
    shown = " and ".join(map(brief, seen)) if len(seen) < 3 else first(seen)
    only = "only " if len(seen) == 1 else ""
    ways = [_line(seen)]
    if {*seen} <= {"0", "1", "2"}:
        ways = ["--labels 1=A 2=B 0=tie if 1 is the first and 0 is a tie"]
        ways.append("--labels 0=A 1=B if 0 is the first and 1 the second")
        ways.append("--labels 1=A 0=B if 1 says that the first is better")
    return (
        f"`{column}` has {only}{shown} in {num:,} rows, which can be read in two ways. Say which is the "
        f"first response: {'; '.join(ways)}."
    )


def _line(seen: Iterable[str]) -> str:
    """Return the setting that says what the values mean, to be filled in."""
    lines = [f"{_quoted(value)}=<A, B or tie>" for value in [*seen][:9]]
    if any(line.startswith("-") for line in lines):  # or -1 would be taken for a flag
        return " ".join(f"--labels={line}" for line in lines)
    return f"--labels {' '.join(lines)}"


def _quoted(value: str) -> str:
    return f'"{value}"' if re.search(r"[^\w.+-]", value) else value


def decode_pairs(
    places: Sequence[Place], column: str, by_hand: Mapping[str, str], names: Mapping[str, str]
) -> tuple[list[Place], str]:
    """Return rows whose `preference` is A, B or tie, and a sentence that says how it was read.

    A value without a meaning makes its row a BadRow. Raises DataError if the column can be read in two
    ways, ConfigError for a coding by hand with other labels.
    """
    values = _values(places, "preference")
    if by_hand:
        off = [label for label in by_hand.values() if label not in ("A", "B", "tie")]
        if off:
            raise ConfigError(f"labels of pairs are A, B and tie, got {first(off)}.")
        meanings = by_hand
    else:
        meanings = pair_meanings(values, column, names)
    expected = f"`{column}` must be A, B or tie" if not by_hand else f"`{column}` is not in --labels"

    def read(row: Mapping[str, Any]) -> dict[str, Any]:
        value = str(row["preference"]).strip()
        meaning = _meaning(value, meanings)
        if meaning is None:
            raise BadRow(expected, brief(value))
        return {**row, "preference": meaning}

    return _each(places, "preference", read), _sentence(column, values, meanings)


# --- ratings


def decode_ratings(
    places: Sequence[Place], column: str, by_hand: Mapping[str, str]
) -> tuple[list[Place], str]:
    """Return rows whose `score` is what a coding by hand says, and a sentence that repeats it.

    A value that it lacks is a BadRow.
    """

    def read(row: Mapping[str, Any]) -> dict[str, Any]:
        value = read_plain(row["score"], column) or ""
        if value not in by_hand:
            raise BadRow(f"`{column}` is not in --labels", brief(value))
        return {**row, "score": read_score(by_hand[value], column)}

    return _each(places, "score", read), _sentence_by_hand(column, _values(places, "score"), by_hand)


# --- choices

_WAYS = {
    "label": "the label of a choice",
    "text": "the text of a choice",
    "from 0": "a position from 0",
    "from 1": "a position from 1",
}


def readings(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the label that a row's answer stands for in each coding that it fits.

    >>> readings({"answer": "2", "choices": ["4", "6", "8", "2"], "labels": list("ABCD")})
    {'text': 'D', 'from 0': 'C', 'from 1': 'B'}
    """
    answer, labels = str(row["answer"]).strip(), row["labels"]
    found: dict[str, str] = {}
    named = re.sub(r"^\((\w)\)$|^(\w)[.)]$", r"\1\2", answer)
    same = [label for label in labels if label == named] or [
        label for label in labels if label.casefold() == named.casefold()
    ]
    if len(same) == 1:
        found["label"] = same[0]
    texts = [str(choice).strip() for choice in row["choices"]]
    if texts.count(answer) == 1:
        found["text"] = labels[texts.index(answer)]
    if re.fullmatch(r"[0-9]{1,9}", answer):
        number = int(answer)
        if number < len(labels):
            found["from 0"] = labels[number]
        if 1 <= number <= len(labels):
            found["from 1"] = labels[number - 1]
    return found


def choice_coding(places: Sequence[Place], column: str, unit: str) -> str:
    """Return the coding of a column of answers: one of "label", "text", "from 0" and "from 1".

    Answers that fit no coding do not count. Raises DataError if no coding fits all the others, or if
    several do that do not agree.
    """
    fitting = [
        (place, row, found)
        for place, row in places
        if not isinstance(row, BadRow) and row.get("answer") is not None and (found := readings(row))
    ]
    ways = [way for way in _WAYS if all(way in found for _, _, found in fitting)]
    if not ways:
        raise DataError(_mixed(fitting, column, unit))
    if ways[0] == "label" and any(row.get("labels_given") for _, row, _ in fitting):
        # labels such as 1 to 4 are no positions
        ways = [way for way in ways if way in ("label", "text")]
    for place, row, found in fitting:
        if len({found[way] for way in ways}) > 1:
            meant = ", ".join(f"{found[way]} as {_WAYS[way]}" for way in ways)
            answer = brief(str(row["answer"]))
            raise DataError(
                f"`{column}` can be read in several ways: {unit} {place} has {answer}, which is "
                f"{meant}. {_choice_lines(row)}"
            )
    return ways[0]


def _choice_lines(row: Mapping[str, Any]) -> str:
    labels = row["labels"]
    from_0 = " ".join(f"{number}={label}" for number, label in enumerate(labels))
    from_1 = " ".join(f"{number}={label}" for number, label in enumerate(labels, 1))
    return (
        f"Say which: --labels {from_0} if positions count from 0; --labels {from_1} if they count from "
        f"1; --labels {TEXT} if answers are the texts of choices."
    )


def _mixed(
    fitting: Sequence[tuple[int, Mapping[str, Any], dict[str, str]]], column: str, unit: str
) -> str:
    """Describe a column with answers in several codings, with an example of each."""
    shown: dict[str, str] = {}
    for place, row, found in fitting:
        way = " or ".join(_WAYS[each] for each in found)
        shown.setdefault(way, f"{unit} {place} has {brief(str(row['answer']))}, {way}")
    values = {str(row["answer"]): "<its label>" for _, row, _ in fitting}
    lines = " ".join(f"{_quoted(value)}={label}" for value, label in [*values.items()][:SHOWN])
    return (
        f"`{column}` mixes codings: {first([*shown.values()], '; ')}. Write all answers alike, or say "
        f"what each is: --labels {lines}"
    )


def decode_choices(
    places: Sequence[Place], column: str, by_hand: Mapping[str, str], unit: str
) -> tuple[list[Place], str]:
    """Return rows whose `answer` is the label of a choice, and a sentence that says how it was read.

    `by_hand` maps values to labels, or is {"text": ""}. An answer that does not fit is a BadRow. Raises
    DataError if the column can be read in several ways.
    """
    way = ""
    if by_hand == {TEXT: ""}:
        way = "text"
    elif not by_hand and _values(places, "answer"):
        way = choice_coding(places, column, unit)

    def read(row: Mapping[str, Any]) -> dict[str, Any]:
        answer = str(row["answer"]).strip()
        if by_hand and not way:
            if answer not in by_hand:
                raise BadRow(f"`{column}` is not in --labels", brief(answer))
            label = by_hand[answer] if by_hand[answer] in row["labels"] else None
        else:
            label = readings(row).get(way)
        if label is None:
            where = {"text": "text", "label": "label"}.get(way, "position" if way else "label")
            among = first(row["labels"]) if where != "text" else first(row["choices"])
            raise BadRow(f"`{column}` is not the {where} of a choice", f"{brief(answer)} of {among}")
        return {**row, "answer": label}

    said = f"`{column}`: each answer is {_WAYS[way]}." if way else ""
    if by_hand and not way:
        said = _sentence_by_hand(column, _values(places, "answer"), by_hand)
    return _each(places, "answer", read), said


# --- all


def unused(by_hand: Mapping[str, str], places: Iterable[Place], name: str) -> list[str]:
    """Return the values in a coding by hand that no row has in a column."""
    seen = {value.lower() for value in _values(places, name)}
    return [value for value in by_hand if value.lower() not in seen and by_hand[value]]


def _values(places: Iterable[Place], name: str) -> list[str]:
    """Return the values of a column as text, without empty cells and bad rows."""
    return [
        str(row[name]).strip()
        for _, row in places
        if not isinstance(row, BadRow) and row.get(name) is not None
    ]


def _each(places: Iterable[Place], name: str, read: Any) -> list[Place]:
    """Return places with what `read` makes of rows with a label; what it refuses is a BadRow."""
    made: list[Place] = []
    for place, row in places:
        if not isinstance(row, BadRow) and row.get(name) is not None:
            try:
                row = read(row)
            except BadRow as fault:
                row = fault
        made.append((place, row))
    return made


def _meaning(value: str, meanings: Mapping[str, str]) -> str | None:
    """Return what a value means as it is written, else in lower case, as `pair_meanings` has it."""
    return meanings.get(value) or meanings.get(value.lower())


def _sentence(column: str, values: Sequence[str], meanings: Mapping[str, str]) -> str:
    """Say what the values that occur mean; "" if each means itself.

    >>> _sentence("label", ["2", "1"], {"1": "A", "2": "B"})
    '`label`: 1 is A, 2 is B.'
    """
    seen = sorted(dict.fromkeys(values))
    pairs = [(value, _meaning(value, meanings)) for value in seen]
    told = [f"{brief(value)} is {meaning}" for value, meaning in pairs if meaning]
    if all(value == meaning for value, meaning in pairs if meaning):
        return ""
    return f"`{column}`: {first(told)}."


def _sentence_by_hand(column: str, values: Sequence[str], by_hand: Mapping[str, str]) -> str:
    """Do as `_sentence` for values that are read only as they are written."""
    return _sentence(column, [value for value in values if value in by_hand], by_hand)
