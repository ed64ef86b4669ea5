"""The building blocks of a page: figures, tables and sentences, as text that the template escapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

from markupsafe import Markup

from femtune.evaluation.bootstrap import Estimate
from femtune.reporting.page.contenders import Measure
from femtune.reporting.page.drawing import NUM_COLOURS, mark
from femtune.reporting.page.figures import Series
from femtune.reporting.page.record import Found
from femtune.reporting.page.texts import percent


@dataclass(frozen=True)
class Table:
    """A table of text cells; the first cell of a row is its header."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Key:
    """A legend entry: a colour, a shape and their meaning."""

    colour: str  # its name in style.css
    mark: str
    label: str


@dataclass(frozen=True)
class Figure:
    """A picture; `narrow` is the version for a phone, if there is one."""

    title: str
    picture: Markup
    caption: str = ""
    narrow: Markup | None = None
    keys: Sequence[Key] = ()


@dataclass(frozen=True)
class Section:
    """A heading, a few sentences, figures side by side, and the numbers behind them."""

    id: str
    title: str
    says: Sequence[str] = ()
    keys: Sequence[Key] = ()
    _: KW_ONLY
    figures: Sequence[Figure] = ()
    below: Sequence[Figure] = ()  # further figures, in rows of their own
    tables: Sequence[Table] = ()  # collapsed, except where a table is the figure
    notes: Sequence[str] = ()  # what is missing, and why
    extra: str = ""  # the part of the template for this section's own data
    data: object = None


def group_keys(found: Found) -> list[Key]:
    """Return the schemes' legend; empty if there is only one scheme."""
    groups = found.schemes
    if len(groups) < 2:
        return []
    return [
        Key(f"c{number % NUM_COLOURS}", mark(number), group.label) for number, group in enumerate(groups)
    ]


def series(number: int, points: Sequence[tuple[float, Estimate]]) -> Series:
    """Return estimates as a line."""
    return Series(
        number,
        [(x, each.value or 0.0, *(each.ci if each.ci else (None, None))) for x, each in points],
    )


def with_interval(measure: Measure, estimate: Estimate | None) -> str:
    """Return a value and its interval for a table cell."""
    if estimate is None or estimate.value is None:
        return "–"
    if estimate.ci is None:
        return measure.text(estimate.value)
    return f"{measure.text(estimate.value)} ({interval(measure, estimate)})"


def interval(measure: Measure, estimate: Estimate) -> str:
    """Return an interval as text.

    >>> interval(Measure("accuracy", "accuracy"), Estimate(0.5, (0.4, 0.6)))
    '40.0% to 60.0%'
    """
    low, high = estimate.ci or (float("nan"), float("nan"))
    return f"{measure.text(low)} to {measure.text(high)}"


def capital(text: str) -> str:
    """Return a text with its first letter in upper case.

    >>> capital("loss of the M-step")
    'Loss of the M-step'
    """
    return text[:1].upper() + text[1:]


def of(part: int, whole: int) -> str:
    """Return a part of a whole as text, with its percentage.

    >>> of(3, 4)
    '3 of 4 (75.0%)'
    """
    return f"{part:,} of {whole:,}" + (f" ({percent(part / whole)})" if whole else "")
