"""Scales: the possible answers of a rating, a pair or a choice, and the one that an answer stands for.

>>> scale = parse_scale("1,5")
>>> scale.answers, scale.read("**4**"), scale.read("4 out of 5 stars"), scale.read("6")
(('1', '2', '3', '4', '5'), '4', '4', None)

Texts, numbers and labels are compared alike everywhere: see `answer_text`, `numbers` and `labels`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from femtune._util.text import first
from femtune.data.grammar.labels import Choices
from femtune.data.grammar.number_words import WORD, in_digits
from femtune.data.grammar.numbers import as_fraction, as_quantity
from femtune.data.grammar.text import DOUBT, plain, remembered, same_text, unbracketed, unled, unmarked
from femtune.data.grammar.units import Unit
from femtune.errors import ConfigError, DataError

__all__ = ["Scale", "as_fraction", "infer_scale", "parse_scale", "plain", "read_rating", "same_text"]

# --- scales


@dataclass(frozen=True)
class Scale:
    """The possible answers: ratings or labels from the lowest to the highest, or letters."""

    answers: tuple[str, ...]
    texts: tuple[str, ...] = ()  # for a choice, the text of each answer's choice, "" if not known

    def __post_init__(self) -> None:
        different = {*map(plain, self.answers)}
        if len(self.answers) < 2 or len(different) < len(self.answers) or "" in different:
            shown = ", ".join(self.answers) or "nothing"
            raise ConfigError(f"a scale needs at least two different answers, got {shown}.")

    @property
    def numeric(self) -> bool:
        """True if all answers are numbers; otherwise an answer's value is its position, from 0."""
        return all(as_fraction(answer) is not None for answer in self.answers)

    def value(self, answer: str) -> float:
        """Return the value of an answer: its number, or its position on a scale of labels.

        >>> parse_scale("1,5").value("4"), parse_scale("bad,fair,good").value("good")
        (4.0, 2.0)
        """
        number = as_fraction(answer) if self.numeric else None
        return float(self.answers.index(answer) if number is None else number)

    def read(self, text: str) -> str | None:
        """Return the answer of the scale that a text stands for, or None; of at most 5, "4/5" is 4.

        >>> parse_scale("1,5,0.5").read("3.50"), Scale(("A", "B", "tie")).read("Response B")
        ('3.5', 'B')
        """
        return _read(self, text)

    def nearest(self, value: float) -> str:
        """Return the answer whose value is nearest; the lower one of two."""
        return min(self.answers, key=lambda answer: abs(self.value(answer) - value))

    def __str__(self) -> str:
        """Describe the scale for a prompt: "a whole number from 1 to 5", "A, B or tie"."""
        low, high = self.answers[0], self.answers[-1]
        if not self.numeric:
            return f"{', '.join(self.answers[:-1])} or {high}"
        steps = {Fraction(b) - Fraction(a) for a, b in zip(self.answers, self.answers[1:], strict=False)}
        if steps == {1} and Fraction(low).denominator == 1:
            return f"a whole number from {low} to {high}"
        if len(steps) == 1:
            return f"from {low} to {high} in steps of {float(steps.pop()):g}"
        return f"{', '.join(self.answers[:-1])} or {high}"


@remembered
def _read(scale: Scale, text: str) -> str | None:
    if scale.texts:
        return Choices(scale.answers, scale.texts).read(text)
    if scale.numeric:
        points = {as_fraction(answer): answer for answer in scale.answers}
        number = read_rating(text, as_fraction(scale.answers[-1]))
        return None if number is None else points.get(number)
    said = unled(unmarked(text))
    for written in (text, said, _ARTICLE.sub("", said), _compared(scale, said)):
        same = [answer for answer in scale.answers if same_text(answer, written)]
        if same:
            return same[0]
    return Choices(scale.answers).read(text)


_SIGNS = re.compile(r"(?P<one>[AB]) ?(?P<sign>>{1,2}|<{1,2}|=) ?(?P<other>[AB])")
_PLACE = re.compile(
    r"(?:the )?(?P<place>first|second)(?: (?:one|assistant|response|summary))?(?: is (?:the )?better)?",
    re.IGNORECASE,
)
_ALIKE = re.compile(
    r"(?:they|both(?: responses| summaries)?) are (?:equal|alike|the same|tied|equally \w+)",
    re.IGNORECASE,
)


def _compared(scale: Scale, said: str) -> str:
    """Return the answer of a pair in "A > B", "the first response" or "both are equally good"."""
    if scale.answers[:2] != ("A", "B"):
        return ""
    if (place := _PLACE.fullmatch(said)) is not None:
        return "A" if place["place"].lower() == "first" else "B"
    signs = _SIGNS.fullmatch(said)
    if _ALIKE.fullmatch(said) or (signs and signs["sign"] == "=" and signs["one"] != signs["other"]):
        return "tie"
    if signs is None or signs["one"] == signs["other"]:
        return ""
    return signs["one"] if ">" in signs["sign"] else signs["other"]


_ARTICLE = re.compile(r"(?:it(?: is|['’]s) )?an? (?=tie\b)", re.IGNORECASE)
_OF_MOST = re.compile(r"(?P<points>.+?) ?(?:/|(?:out )?of) ?(?P<most>[^/]+)", re.IGNORECASE)
_MIXED = re.compile(r"-?\d+ +\d+ ?/ ?\d+")
_COMMENT = re.compile(
    r"(?<=[\d)\]])(?:,? (?:because|since|as|based on) [^\d]*| \((?!or\b)[^\W\d][^()\d]*\)"
    r"| [-–—] [^\W\d][^\d]*|: [^\W\d][^\d]*)$"
)
# "4 (leaning five)", but not "4 (two errors)"; one is a pronoun in most comments
_OTHER_RATING = re.compile(rf"\b(?!one\b)(?:{WORD})\W*$|\bat (?:best|least|most)\b", re.IGNORECASE)
_STARS = re.compile(r"((?P<full>[★⭐]+)\ufe0f?(?P<empty>[☆✩]*)) ?(?:\((?P<given>[^()]+)\))?")
_POINTS = re.compile(r"(?<=\d) ?(?:stars?|points?)$", re.IGNORECASE)


def read_rating(text: str, most: Fraction | None) -> Fraction | None:
    """Return the number of points in "4", "Rating: 4", "4 (good)" or "4 out of 5 stars", or None.

    `most` is the highest point. Of another one ("4/10") it is None.
    """
    text = in_digits(unled(unmarked(text)))
    if (stars := _STARS.fullmatch(text)) is not None:
        num, all_of_them = len(stars["full"]), not stars["empty"] or len(stars[1]) == most
        given = read_rating(stars["given"], most) if stars["given"] else num
        return Fraction(num) if all_of_them and given == num else None
    if (comment := _COMMENT.search(text)) is not None:
        if DOUBT.search(comment[0]) or _OTHER_RATING.search(comment[0]):
            return None
        text = text[: comment.start()]
    text = unbracketed(_POINTS.sub("", unbracketed(text)))
    match = None if _MIXED.fullmatch(text) else _OF_MOST.fullmatch(text)
    if match is None or most == 1:  # if the highest is 1, "1/2" is a half, and "10/10" is not 1
        return _points(text, most)
    return _points(match["points"], most) if _points(match["most"], most) == most else None


def _points(text: str, most: Fraction | None) -> Fraction | None:
    """Return a number of points; of units, only stars, points, and percent of at most 100."""
    found = as_quantity(_POINTS.sub("", unbracketed(text)))
    units = (Unit(""), Unit("%")) if most == 100 else (Unit(""),)
    return found.value if found and found.unit in units else None


def parse_scale(text: str) -> Scale:
    """Parse a scale: "lowest,highest", "lowest,highest,step", or labels in ascending order.

    >>> parse_scale("0, 2").answers, parse_scale("[1,2,0.5]").answers, parse_scale("bad,ok").answers
    (('0', '1', '2'), ('1', '1.5', '2'), ('bad', 'ok'))

    Raises ConfigError for an invalid scale.
    """
    listed = re.fullmatch(r"\s*(?:\[([^][]*)\]|\(([^()]*)\))\s*", text)  # as lists are written elsewhere
    inner = text if listed is None else listed[1] or listed[2] or ""
    parts = [part.strip() for part in inner.split(",")]
    numbers = [as_fraction(part) for part in parts]
    known = [number for number in numbers if number is not None]
    if not known:
        return Scale(tuple(parts))
    form = 'give "1,5", "1,5,0.5" with a step, or labels in ascending order, "bad,fair,good"'
    if len(known) < len(parts) or len(parts) not in (2, 3):
        raise ConfigError(f"scale {text!r} is invalid: {form}.")
    low, high = known[:2]
    step = known[2] if len(known) == 3 else Fraction(1)
    if not low < high or step <= 0 or (high - low) % step:
        raise ConfigError(f"scale {text!r}: steps of {step} from {low} do not reach {high}: {form}.")
    num = int((high - low) / step) + 1
    if num > 1001:
        raise ConfigError(f"scale {text!r} has {num} answers; the limit is 1,001. Use a larger step.")
    return Scale(tuple(_short(low + place * step) for place in range(num)))


def infer_scale(answers: Iterable[str]) -> Scale:
    """Infer a scale from ratings that are whole numbers from 0 or 1 on, at least three, without gaps.

    Raises DataError for other ratings: then only the user knows the scale.
    """
    seen = dict.fromkeys(answers)
    numbers = [as_fraction(answer) for answer in seen]
    whole = [int(number) for number in numbers if number is not None and number.denominator == 1]
    if len(whole) < len(numbers) or len(whole) < 3 or sorted(whole) not in _counted(whole):
        commas = any(re.fullmatch(r"[-+]?\d+,\d+", answer) for answer in seen)
        found = first(sorted(seen), "; " if commas else ", ")
        dots = " Write decimals with a point, as in 1.5." * commas
        raise DataError(
            f"the scale can't be inferred from the ratings {found}.{dots} Set --scale 1,5, or with a "
            "step --scale 1,5,0.5, or with labels in ascending order --scale bad,fair,good."
        )
    return parse_scale(f"{min(whole)},{max(whole)}")


def _counted(whole: list[int]) -> tuple[list[int], ...]:
    """Return the whole numbers from 0 and from 1, each list as long as `whole`."""
    return [*range(len(whole))], [*range(1, len(whole) + 1)]


def _short(number: Fraction) -> str:
    """Write a number without trailing zeros: 3, 3.5."""
    return str(number.numerator) if number.denominator == 1 else str(float(number))
