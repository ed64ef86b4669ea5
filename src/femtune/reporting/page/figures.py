"""Numbers -> pictures: lines with bands, groups with intervals, stacked bars, reliability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from markupsafe import Markup

from femtune.reporting.page.drawing import NARROW, Axis, chosen, drawn, span, style


@dataclass(frozen=True)
class Series:
    """A line or a row of dots: points (x, y, low, high); low and high are None if unknown."""

    number: int  # of its colour and shape
    points: Sequence[tuple[float, float, float | None, float | None]]


# --- lines over iterations, tokens, levels


def lines(
    series: Sequence[Series], x: Axis, y: Axis, label: str, *, width: int = NARROW, height: int = 190
) -> Markup:
    """Draw lines with points over a numeric x, with bands where there are intervals."""
    values = [
        {"s": str(each.number), "x": px, "y": py, "low": low, "high": high}
        for each in series
        for px, py, low, high in each.points
    ]
    ticks = sorted({px for each in series for px, *_ in each.points})
    step = -(-len(ticks) // 12)
    across = {
        "field": "x",
        "type": "quantitative",
        "title": x.title,
        "axis": {"grid": False, "format": x.format}
        | ({"values": ticks[::step]} if x.format == "d" else {"tickCount": 4}),
        "scale": {"nice": x.format != "d", "zero": x.format != "d"},
    }
    return drawn(
        {
            "data": {"values": values},
            "encoding": {"x": across, **_coloured(series, shapes=False)},
            "layer": [
                {
                    "transform": [{"filter": "datum.low != null"}],
                    "mark": {"type": "area", "opacity": 0.14 if len(series) < 3 else 0.09},
                    "encoding": {"y": _up(y, "low", values), "y2": {"field": "high"}},
                },
                {
                    "mark": {"type": "line", "strokeWidth": 2},
                    "encoding": {"y": _up(y, "y", values)},
                },
                {
                    "mark": {"type": "point", "filled": True, "size": 46, "opacity": 1},
                    "encoding": {"y": _up(y, "y", values), **_coloured(series)},
                },
            ],
        },
        label,
        width,
        height,
    )


def _coloured(series: Sequence[Series], shapes: bool = True) -> dict[str, Any]:
    names = [str(each.number) for each in series]
    looks = [style(each.number) for each in series]
    own: dict[str, Any] = {
        "color": {
            "field": "s",
            "type": "nominal",
            "legend": None,
            "scale": {"domain": names, "range": [colour for colour, _ in looks]},
        }
    }
    if shapes:
        scale = {"domain": names, "range": [shape for _, shape in looks]}
        own["shape"] = {"field": "s", "type": "nominal", "legend": None, "scale": scale}
    return own


def _up(axis: Axis, field: str, values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    domain = axis.domain or span(values, axis)
    close = axis.format == ".0%" and domain[1] - domain[0] < 0.05
    return {
        "field": field,
        "type": "quantitative",
        "title": None,
        "axis": {"format": ".1%" if close else axis.format, "tickCount": 5},
        "scale": {"domain": list(domain), "zero": False, "nice": axis.domain is None},
    }


# --- shares, reliability, cost


def stacks(
    values: Sequence[tuple[str, str, str, float]], label: str, axis: Axis, *, across: bool = False
) -> Markup:
    """Draw stacked bars of (bar, part, the part's colour, size); horizontal ones if `across`."""
    bars = list(dict.fromkeys(bar for bar, *_ in values))
    rows = [
        {"bar": bars.index(bar), "part": n, "size": size, "colour": colour, "label": bar}
        for n, (bar, _, colour, size) in enumerate(values)
    ]
    size = {
        "field": "size",
        "type": "quantitative",
        "title": axis.title if across else None,
        "stack": "zero",
        "axis": {"format": axis.format, "tickCount": 4, "grid": not across},  # it would cross labels
        "scale": {"domain": list(axis.domain)} if axis.domain else {},
    }
    names = {str(number): bar for number, bar in enumerate(bars)}
    bar: dict[str, Any] = {"field": "bar", "type": "ordinal", "title": None if across else axis.title}
    bar["axis"] = None if across else {"labelExpr": chosen(names), "labelAngle": 0, "grid": False}
    layers: list[dict[str, Any]] = [
        {
            "mark": {
                "type": "bar",
                "opacity": 0.85,
                **({"height": 14} if across else {"width": {"band": 0.7}}),
            },
            "encoding": {
                ("x" if across else "y"): size,
                ("y" if across else "x"): bar,
                "order": {"field": "part", "type": "quantitative"},
                "color": {"field": "colour", "type": "nominal", "scale": None, "legend": None},
            },
        }
    ]
    if across:
        layers.append(
            {
                "transform": [{"aggregate": [], "groupby": ["bar", "label"]}],
                "mark": {"type": "text", "align": "left", "dy": -15},
                "encoding": {"y": bar, "x": {"value": 0}, "text": {"field": "label"}},
            }
        )
    height = 42 * len(bars) + 46 if across else 170
    return drawn({"data": {"values": rows}, "layer": layers}, label, NARROW, height)


def diagonal(series: Sequence[Series], x: Axis, y: Axis, label: str) -> Markup:
    """Draw confidence against the share right; points are (x, y, number, None)."""
    values = [
        {"s": str(each.number), "x": px, "y": py, "n": num}
        for each in series
        for px, py, num, _ in each.points
    ]
    place = {
        name: {
            "field": name,
            "type": "quantitative",
            "title": axis.title,
            "axis": {"format": axis.format},
            "scale": {"domain": [0, 1], "nice": False},
        }
        for name, axis in (("x", x), ("y", y))
    }
    sizes = {"field": "n", "type": "quantitative", "legend": None, "scale": {"range": [30, 300]}}
    layers = [
        {
            "data": {"values": [{"x": 0, "y": 0}, {"x": 1, "y": 1}]},
            "mark": {"type": "line", "strokeDash": [3, 3], "color": "var(--soft)", "strokeWidth": 1},
            "encoding": place,
        },
        {
            "data": {"values": values},
            "mark": {"type": "line", "strokeWidth": 2},
            "encoding": {**place, **_coloured(series, shapes=False)},
        },
        {
            "data": {"values": values},
            "mark": {"type": "point", "filled": True, "opacity": 1},
            "encoding": {**place, **_coloured(series), "size": sizes},
        },
    ]
    return drawn({"layer": layers}, label, NARROW, 300)


def groups(series: Sequence[Series], names: Sequence[str], y: Axis, label: str) -> Markup:
    """Draw dots with intervals over named groups, several series side by side."""
    count = len(series)
    values = [
        {"s": str(each.number), "x": int(px), "side": place, "y": py, "low": low, "high": high}
        for place, each in enumerate(series)
        for px, py, low, high in each.points
    ]
    room = max(4, 42 // len(names))  # letters per line of a name
    words = {str(number): "\n".join(wrap(name, room)) for number, name in enumerate(names)}
    most = max(word.count("\n") for word in words.values())
    across = {
        "field": "x",
        "type": "ordinal",
        "title": None,
        "scale": {"domain": [*range(len(names))]},
        "axis": {"labelExpr": f"split({chosen(words)}, '\\n')", "labelAngle": 0, "grid": False},
    }
    offset = {
        "field": "side",
        "type": "ordinal",
        "scale": {"domain": [*range(count)], "paddingOuter": 0.8},
    }
    shared = {"x": across, "xOffset": offset}
    layers = [
        {
            "transform": [{"filter": "datum.low != null"}],
            "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.5},
            "encoding": {
                **shared,
                "y": _up(y, "low", values),
                "y2": {"field": "high"},
                **_coloured(series, shapes=False),
            },
        },
        {
            "mark": {"type": "point", "filled": True, "size": 50, "opacity": 1},
            "encoding": {**shared, "y": _up(y, "y", values), **_coloured(series)},
        },
    ]
    return drawn({"data": {"values": values}, "layer": layers}, label, NARROW, 200 + 14 * most)
