"""Comparison of answers as text, numbers, letters, and points of a scale.

>>> same_text("**Paris.**", "paris"), as_fraction("3/4"), as_letter("(b) Paris")
(True, Fraction(3, 4), 'b')
>>> scale = parse_scale("1,5")
>>> scale.answers, scale.read("**4**"), scale.read("4 out of 5"), scale.read("6")
(('1', '2', '3', '4', '5'), '4', '4', None)
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from femtune._util.text import first
from femtune.data.answer_format import bare
from femtune.errors import ConfigError, DataError

remembered = functools.lru_cache(maxsize=65536)  # the answers of a data set repeat a lot

# --- text, numbers, letters

_KEPT = ("<super>", "<sub>", "<fraction>")  # NFKC would turn 10² into 102, and 1½ into 11/2
_NUMBER = re.compile(
    r"(?P<sign>[+-]?) ?[$€£¥]? ?"
    r"(?P<value>\d+ ?/ ?\d+|(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?(?:e[+-]?\d{1,3})?)"
    r" ?%?",
    re.ASCII | re.IGNORECASE,
)
_LETTER = re.compile(r"\(?([a-z])(?:\)|[.:](?:\s|$)|$)(.*)", re.DOTALL)
_OTHER = re.compile(r"\([a-z]\)|\b(?:or|and) [a-z]$")
_PLACE = re.compile(r"\(?([0-9]{1,2})(?:\)|[.:](?:\s|$)|$)", re.ASCII)
_OF_MOST = re.compile(r"(?P<points>.+?) ?(?:/|out of) ?(?P<most>[^/]+)", re.IGNORECASE)
_NOUN = re.compile(r"(?:answer|assistant|choice|option|response|summary) ", re.IGNORECASE)


def same_text(answer: str, gold: str) -> bool:
    """Return True if two answers are equal, ignoring case, spaces, markup and forms of characters."""
    return plain(answer) == plain(gold) != ""


@remembered
def plain(answer: str) -> str:
    """Normalize an answer: no markup, one case, single spaces, one form of each character."""
    return " ".join(_folded(bare(answer)).casefold().split())


def _folded(text: str) -> str:
    """Replace compatibility forms of characters by one, and digits of all scripts by 0 to 9."""
    if text.isascii():
        return text
    composed = unicodedata.normalize("NFC", text)
    return "".join(map(_folded_character, composed)).replace("\N{MINUS SIGN}", "-")


def _folded_character(character: str) -> str:
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    kept = unicodedata.decomposition(character).startswith(_KEPT)
    return character if kept else unicodedata.normalize("NFKC", character)


@remembered
def as_fraction(answer: str) -> Fraction | None:
    """Return the exact number that an answer is, or None."""
    if len(answer) > 400:  # int() of thousands of digits is slow, and refused in the end
        return None
    text = re.sub("(?<=[0-9])[\u00a0\u2009\u202f](?=[0-9]{3})", ",", bare(answer))
    match = _NUMBER.fullmatch(_folded(text).strip())
    try:
        return Fraction(re.sub("[, ]", "", match["sign"] + match["value"])) if match else None
    except (ValueError, ZeroDivisionError):  # "", "e5", "." and "1/0"
        return None


@remembered
def as_letter(answer: str) -> str:
    """Return the letter of "B", "(b)", "B. Paris" or "B) Paris" in lower case; "" for other answers."""
    match = _LETTER.match(plain(answer))
    # "(A) or (B)" names no single letter
    return match[1] if match and not _OTHER.search(match[2]) else ""


@remembered
def as_label(answer: str) -> str:
    """Return the letter or the number of a choice: 3 for "(3)" and "3. Paris", as in parts of ARC."""
    match = _PLACE.match(plain(answer))
    return match[1] if match else as_letter(answer)


# --- scales


@dataclass(frozen=True)
class Scale:
    """The possible answers: ratings or labels from the lowest to the highest, or letters."""

    answers: tuple[str, ...]

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
    if scale.numeric:
        places = {as_fraction(answer): answer for answer in scale.answers}
        match = _OF_MOST.fullmatch(bare(text))
        most = places and as_fraction(scale.answers[-1])
        if match and most != 1:  # if the highest is 1, "1/2" is a half, and "10/10" is not 1
            return (
                places.get(as_fraction(match["points"])) if as_fraction(match["most"]) == most else None
            )
        number = as_fraction(text)
        return None if number is None else places.get(number)
    named = _NOUN.sub("", bare(text), count=1)
    for written in (text, named):
        same = [answer for answer in scale.answers if plain(answer) == plain(written)]
        if same:
            return same[0]
    letter = as_letter(named)
    lettered = [answer for answer in scale.answers if plain(answer) == letter]
    return lettered[0] if lettered and not _names_another(scale, lettered[0], bare(named)) else None


def _names_another(scale: Scale, answer: str, text: str) -> bool:
    """Return True if a text that begins with an answer's letter names another one: "(A) or (B)"."""
    small = text.lstrip("(")[:1].islower()  # otherwise "a" may be the article
    others = [each for each in scale.answers if each != answer]
    others += [each.lower() for each in others if small]
    return any(re.search(rf"\b{re.escape(other)}\b", text) for other in others)


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
        found = first(sorted(seen))
        raise DataError(
            f"the scale can't be inferred from the ratings {found}. Set --scale 1,5, or with a step "
            "--scale 1,5,0.5, or with labels in ascending order --scale bad,fair,good."
        )
    return parse_scale(f"{min(whole)},{max(whole)}")


def _counted(whole: list[int]) -> tuple[list[int], ...]:
    """Return the whole numbers from 0 and from 1, each list as long as `whole`."""
    return [*range(len(whole))], [*range(1, len(whole) + 1)]


def _short(number: Fraction) -> str:
    """Write a number without trailing zeros: 3, 3.5."""
    return str(number.numerator) if number.denominator == 1 else str(float(number))
