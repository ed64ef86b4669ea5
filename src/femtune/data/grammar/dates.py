"""Dates in answers, where they have one reading.

>>> read_date("March 4, 2024") == read_date("4th of March 2024") == read_date("2024-03-04")
True
>>> read_date("25/12/2024"), read_date("03/04/2024"), is_date_like("03/04/2024")
(Date(year=2024, month=12, day=25), None, True)

The month stands before the day in some countries, and after it in others: 03/04/2024 is compared as
text.
"""

from __future__ import annotations

import datetime
import re
from typing import NamedTuple

from femtune.data.grammar.text import plain, remembered, unled


class Date(NamedTuple):
    """A date; 0 stands for a year or day that is left out, and differs from any year or day."""

    year: int
    month: int
    day: int


MONTHS = {
    name: number
    for number, names in enumerate(
        (
            *("january jan", "february feb", "march mar", "april apr", "may", "june jun", "july jul"),
            *("august aug", "september sept sep", "october oct", "november nov", "december dec"),
        ),
        1,
    )
    for name in names.split()
}
_WEEKDAYS = ("mon", "tues", "wednes", "thurs", "fri", "satur", "sun")
_WEEKDAY = re.compile(rf"({'|'.join(_WEEKDAYS)})day,? ")
_NUMBERS = re.compile(r"(\d{4})([-/.])(\d{1,2})\2(\d{1,2})|(\d{1,2})([-/.])(\d{1,2})\6(\d{4})", re.ASCII)
_MONTH, _DAY, _YEAR = rf"(?P<month>{'|'.join(MONTHS)})", r"(?P<day>\d{1,2})", r"(?P<year>\d{4})"
_NAMED = [
    re.compile(pattern, re.ASCII)
    for pattern in (
        rf"{_MONTH} {_DAY}(?: {_YEAR})?",
        rf"{_DAY} {_MONTH}(?: {_YEAR})?",
        rf"{_MONTH} {_YEAR}",
        rf"{_YEAR} {_MONTH} {_DAY}",
    )
]


@remembered
def read_date(answer: str) -> Date | None:
    """Return the date that an answer is; None if it is no date, or has two readings."""
    text = plain(unled(plain(answer)))
    if len(text) > 60:
        return None
    weekday = _WEEKDAY.match(text)
    found = _named(text[weekday.end() :] if weekday else text) or _numbered(text)
    if found is None or weekday is None or not (found.year and found.day):
        return found
    return found if datetime.date(*found).weekday() == _WEEKDAYS.index(weekday[1]) else None


def is_date_like(answer: str) -> bool:
    """Return True for numbers written as a date is, with one reading, with two, or with none."""
    return _NUMBERS.fullmatch(plain(answer)) is not None


def _named(text: str) -> Date | None:
    text = re.sub(r"(?<=\d)(?:st|nd|rd|th)\b|\b(?:the|of)\b|(?<=[a-z])\.|,", " ", text)
    text = " ".join(text.split())
    match = next(filter(None, (pattern.fullmatch(text) for pattern in _NAMED)), None)
    if match is None:
        return None
    given = match.groupdict()
    return _valid(int(given["year"] or 0), MONTHS[given["month"]], int(given.get("day") or 0))


def _numbered(text: str) -> Date | None:
    match = _NUMBERS.fullmatch(text)
    if match is None:
        return None
    if match[1]:
        return _valid(int(match[1]), int(match[3]), int(match[4]))
    one, other, year = int(match[5]), int(match[7]), int(match[8])
    both = {_valid(year, one, other), _valid(year, other, one)} - {None}
    return both.pop() if len(both) == 1 else None


def _valid(year: int, month: int, day: int) -> Date | None:
    try:
        datetime.date(year or 2000, month, day or 1)  # 2000 has a 29 February
    except ValueError:
        return None
    return Date(year, month, day)
