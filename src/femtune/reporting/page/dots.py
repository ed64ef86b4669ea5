"""Dot plots with a row for each contender: its value as a dot, its interval as a bar."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from femtune.reporting.page.drawing import WIDE, Axis, chosen, drawn, span

HEIGHT, NARROW_HEIGHT = 34, 46  # pixels of a row; a narrow plot has the label above the row


@dataclass(frozen=True)
class Row:
    """A labelled value with its interval, and the name of its colour in style.css."""

    label: str
    value: float
    ci: tuple[float, float] | None
    colour: str
    shape: str = "circle"


def dots(rows: Sequence[Row], axis: Axis, label: str, *, width: int, at: float | None = None) -> Markup:
    """Draw the rows from the top, with a line across all of them at `at`."""
    narrow = width < WIDE
    values = [_values(number, row, axis) for number, row in enumerate(rows)]
    x, y = _across(values, axis, narrow), _down(rows, narrow)
    layers = [] if at is None else [_line(at)]
    layers += _marks(x, y)
    if narrow:
        layers.append(
            {
                "mark": {"type": "text", "align": "left", "dy": -15, "limit": width},
                "encoding": {"y": y, "x": {"value": 0}, "text": {"field": "label"}},
            }
        )
    height = (NARROW_HEIGHT if narrow else HEIGHT) * len(rows) + 46
    return drawn({"data": {"values": values}, "layer": layers}, label, width, height)


def _values(number: int, row: Row, axis: Axis) -> dict[str, Any]:
    share = axis.format.endswith("%")
    low, high = row.ci or (None, None)
    return {
        "row": number,
        "label": row.label,
        "y": row.value,
        "low": low,
        "high": high,
        "end": row.value if high is None else max(high, row.value),
        "text": f"{100 * row.value:.1f}%" if share else f"{row.value:.3f}",
        "colour": row.colour,
        "shape": row.shape,
    }


def _across(values: Sequence[Mapping[str, Any]], axis: Axis, narrow: bool) -> dict[str, Any]:
    low, high = axis.domain or span(values, axis)
    room = 0.22 if narrow else 0.14  # for the number at the end
    return {
        "field": "y",
        "type": "quantitative",
        "title": axis.title,
        "axis": {"format": axis.format, "values": _ticks(low, high, 4 if narrow else 7)},
        "scale": {"domain": [low, high + (high - low) * room], "zero": False, "clamp": True},
    }


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Return round numbers between low and high, never beyond: no share is 120%.

    >>> _ticks(0.31, 1.0, 4)
    [0.4, 0.6, 0.8, 1.0]
    """
    size = 10.0 ** math.floor(math.log10(max(high - low, 1e-9)))
    steps = (size * part for part in (0.1, 0.2, 0.5, 1, 2, 5))
    step = next((step for step in steps if (high - low) / step <= most), high - low)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def _down(rows: Sequence[Row], narrow: bool) -> dict[str, Any]:
    names = {str(number): row.label for number, row in enumerate(rows)}
    extent = min(320.0, 16 + 8.0 * max(len(row.label) for row in rows))  # enough for any font
    axis = {
        "labelExpr": chosen(names),
        "grid": False,
        "labelColor": "var(--ink)",
        "labelFontSize": 13,
        "labelAlign": "left",
        "minExtent": extent,
        "labelPadding": extent,
    }
    return {"field": "row", "type": "ordinal", "title": None, "axis": None if narrow else axis}


def _line(at: float) -> dict[str, Any]:
    return {
        "data": {"values": [{"at": at}]},
        "mark": {"type": "rule", "strokeDash": [3, 3], "color": "var(--soft)"},
        "encoding": {"x": {"field": "at", "type": "quantitative"}},
    }


def _marks(x: Mapping[str, Any], y: Mapping[str, Any]) -> list[dict[str, Any]]:
    colour = {"field": "colour", "type": "nominal", "scale": None, "legend": None}
    shape = {**colour, "field": "shape"}
    bar = {"type": "rule", "strokeWidth": 3, "strokeCap": "round", "opacity": 0.5, "clip": True}
    low, end = {**x, "field": "low"}, {**x, "field": "end"}
    return [
        {
            "transform": [{"filter": "datum.low != null"}],
            "mark": bar,
            "encoding": {"x": low, "x2": {"field": "high"}, "y": y, "color": colour},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 110, "opacity": 1},
            "encoding": {"x": x, "y": y, "color": colour, "shape": shape},
        },
        {
            "mark": {"type": "text", "align": "left", "dx": 10, "fontWeight": 600},
            "encoding": {"x": end, "y": y, "text": {"field": "text"}},
        },
    ]
