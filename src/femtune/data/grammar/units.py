"""Units after a number: words, symbols, powers and rates, in one name for each unit.

>>> read_unit(" kilometres per hour").name, read_unit("km/h").name, read_unit(" square feet").name
('km/h', 'km/h', 'ft^2')
>>> read_unit(" slices of pizza"), read_unit(" or 19"), read_unit("x")
(Unit(name='slic', rest='of pizza'), None, None)

A word that is no known unit is what was counted. `factor` converts units that are exact parts of each
other: 1 hour is 60 minutes. Metric and imperial units are not converted, nor degrees and bytes.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from femtune.data.grammar.dates import MONTHS
from femtune.data.grammar.number_words import WORD

# The name of a unit, then other spellings. Plurals follow by rule. A symbol of one letter needs a space
# before it or \text{}: 5 m is five meters, and 5m may be 5 times m. K is absent: kelvins or thousands.
_KNOWN = """
m meter metre | cm centimeter centimetre | mm millimeter millimetre | km kilometer kilometre
in inch | ft foot feet | yd yard | mi mile | g gram gramme | kg kilogram kilo | mg milligram
lb lbs pound | oz ounce | s sec second | ms millisecond | min minute | h hr hour | day | wk week
yr year | l L liter litre | ml mL milliliter millilitre | cl centiliter centilitre | gal gallon
N newton | J joule | kJ kilojoule | W watt | kW kilowatt | kWh kilowatt-hour | V volt | A amp ampere
Hz hertz | kHz kilohertz | MHz megahertz | GHz gigahertz | Pa pascal | kPa kilopascal
kB KB kilobyte | MB megabyte | GB gigabyte | TB terabyte
° deg degree | °C celsius centigrade | °F fahrenheit | % percent pct
$ US$ USD dollar buck | € EUR euro | £ GBP | ¥ JPY yen | ₹ INR Rs rupee | ¢ cent
km/h kph kmh | mi/h mph | m/s mps
person people | man men | woman women | child children | mouse mice
"""
_FILLER = re.compile(
    r"\s+(?P<rest>(?:of|in|for|on|at|from|with)\s.+|left|remaining|altogether|total|more)$", re.DOTALL
)
_SYMBOLS = re.compile(r"[%°€£¥₹¢$]|°[CF]|US\$")
_WORD = r"(?:[^\W\d_]+(?:-[^\W\d_]+)*|°[CF]?|[%€£¥₹¢$]|US\$)(?:\^[23])?"
_PHRASE = re.compile(rf"{_WORD}(?:(?: | ?/ ?){_WORD}){{0,7}}")
# Words after a number that make it another number, a doubt, a formula, or a time.
_NO_UNIT = re.compile(
    r"^\s*(?:squared|cubed)\b"
    r"|\b(?:or|nor|and|not?|but|to|than|if|is|are|was|be|wait|actually|maybe|perhaps|either|between|minus"
    r"|plus|less|fewer|below|above|under|over|about|versus|vs|loss|debt|hundred|thousand|million|billion"
    r"|trillion|dozens?|half|halves|thirds?|quarters?|pi|sqrt|sin|cos|tan|log|ln|exp|mod|base|choose"
    r"|factorial|infinity|(?:four|fif|six|seven|eigh|nin|ten|hundred|thousand)ths"
    r"|lakhs?|crores?|mil|mln|mn|bn|negative|am|pm|bce?|ad|because|since|so|then|remainder"
    r"|degrees? (?:north|south)|has|have|had|can|cannot|could|may|might|must|shall|should|will|would)\b"
    r"|\b(?:grand|gross)\s*$",
    re.IGNORECASE,
)
# a month, or another number in words: "apples four pears", but not "two-liter bottles", "in one hour"
_NUMBER = re.compile(
    rf"(?<![\w-])(?!(?<=in )one\b)(?:{WORD})(?![\w-])|^(?:{'|'.join(MONTHS)})\s*$", re.IGNORECASE
)

# Units of one kind in their smallest, which stands last in its group.
_PARTS = {
    name: (kind, Fraction(size))
    for kind, sizes in {
        "length": "km 1000000 m 1000 cm 10 mm 1",
        "feet": "mi 63360 yd 36 ft 12 in 1",
        "mass": "kg 1000000 g 1000 mg 1",
        "pounds": "lb 16 oz 1",
        "time": "wk 604800000 day 86400000 h 3600000 min 60000 s 1000 ms 1",
        "volume": "L 1000 cl 10 ml 1",
        "dollars": "$ 100 ¢ 1",
        "power": "kW 1000 W 1",
        "frequency": "GHz 1000000000 MHz 1000000 kHz 1000 Hz 1",
        "pressure": "kPa 1000 Pa 1",
        "energy": "kJ 1000 J 1",
    }.items()
    for name, size in zip(sizes.split()[::2], sizes.split()[1::2], strict=True)
}


def factor(one: str, other: str) -> Fraction | None:
    """Return how many of the other unit are in one; None if that is no exact number.

    >>> factor("h", "min"), factor("km/h", "m/s"), factor("m^2", "cm^2"), factor("km", "mi")
    (Fraction(60, 1), Fraction(5, 18), Fraction(10000, 1), None)
    """
    found = [_measure(name) for name in (one, other)]
    if found[0] is None or found[1] is None or found[0][0] != found[1][0]:
        return None
    return found[0][1] / found[1][1]


def _measure(name: str) -> tuple[str, Fraction] | None:
    """Return the kind of a unit, such as length^2/time, and its size in the smallest of the kind."""
    kinds, size = [], Fraction(1)
    for place, part in enumerate(name.split("/")):
        unit, _, power = part.partition("^")
        if unit not in _PARTS:
            return None
        kind, own = _PARTS[unit]
        kinds.append(f"{kind}^{power or 1}")
        size *= own ** (int(power or 1) * (-1 if place else 1))
    return "/".join(kinds), size


class Unit(NamedTuple):
    """A unit's name ("" without one), and what follows it: `of pizza`, `in total`."""

    name: str
    rest: str = ""

    def agrees(self, other: Unit) -> bool:
        """Return True if units are the same, or one of them is left out."""
        return all(a == b or not (a and b) for a, b in zip(self, other, strict=True))


def read_unit(text: str) -> Unit | None:
    """Return the unit that a text after a number is, or None if it is anything else."""
    spaced = text[:1].isspace()
    text = " ".join(text.split())
    if not text:
        return Unit("")
    rest = ""
    if match := _FILLER.search(f" {text}"):
        text, rest = f" {text}"[: match.start()].strip(), match["rest"].casefold()
    said = f"{text} {rest}"
    if _NO_UNIT.search(said) or _NUMBER.search(said) or not re.fullmatch(r"[^\W\d_]?[^\d]*", rest):
        return None
    if not text:
        return Unit("", rest)
    if not spaced and not _is_tight(text):
        return None
    name = _name(text) if _PHRASE.fullmatch(text) else None
    return None if name is None else Unit(name, rest)


def _is_tight(text: str) -> bool:
    """Return True if a text may follow a number without a space, as a symbol of two letters can."""
    first = re.split(r"[ /^]", text)[0]
    return bool(_SYMBOLS.match(text)) or (len(first) > 1 and first in _NAMES)


def _name(text: str) -> str | None:
    """Return the one name of a unit, such as mi/h for "miles per hour"."""
    text = re.sub(r"\bper cent\b", "percent", text)
    text = re.sub(r"\bdegrees? (?=celsius|fahrenheit|centigrade|[CF]\b)", "°", text, flags=re.IGNORECASE)
    text = re.sub(
        r"° ?(?:(c)(?:elsius|entigrade)?|(f)(?:ahrenheit)?)\b", _degree, text, flags=re.IGNORECASE
    )
    names = [_power(part.strip()) for part in re.split(r" ?/ ?| (?:per|an?|each) ", text)]
    known = [name for name in names if name]
    whole = "/".join(known)
    return _NAMES.get(whole, whole) if len(known) == len(names) else None


def _degree(match: re.Match[str]) -> str:
    return "°C" if match[1] else "°F"


def _power(text: str) -> str | None:
    """Return the name of a unit that may be squared or cubed."""
    before = re.fullmatch(r"(sq|square|cubic|cu)\.? (.+)", text, re.IGNORECASE)
    after = re.fullmatch(r"(.+?)(?: (squared|cubed)|\^([23]))", text, re.IGNORECASE)
    unit = before[2] if before else after[1] if after else text
    name = _one(unit)
    if name is None or not (before or after):
        return name
    word = (before[1] if before else after[2] or after[3] if after else "").lower()
    return f"{name}^{3 if word in ('cubic', 'cu', 'cubed', '3') else 2}"


def _one(text: str) -> str | None:
    """Return the name of a known unit, or of what was counted; None for a short unknown symbol."""
    words = text.split(" ")
    if len(words) == 1:
        if len(text) <= 2:
            return _NAMES.get(text)  # mg is not Mg
        return _NAMES.get(text) or _NAMES.get(_stem(text), _stem(text))
    return " ".join(_NAMES.get(_stem(word), _stem(word)) for word in words)


def _stem(word: str) -> str:
    """Return a word without its plural: one form for cookie and cookies, box and boxes."""
    word = word.casefold()
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 2:
        word = word[:-1]
    word = word.removesuffix("e") if len(word) > 3 else word
    return f"{word[:-1]}y" if word.endswith("i") and len(word) > 3 else word


def _names() -> dict[str, str]:
    found: dict[str, str] = {}
    for line in _KNOWN.replace("\n", " | ").split("|"):
        if names := line.split():
            found |= dict.fromkeys(names, names[0]) | {_stem(n): names[0] for n in names if len(n) > 2}
    return found


_NAMES = _names()
