"""Vega-Lite specifications -> SVG elements in the page, drawn by vl-convert.

Colours are the page's own (style.css), so a picture follows the page's dark mode. Nothing in a picture
can run or load: only known elements and attributes are kept.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup, escape

from femtune._util.extras import check_extra
from femtune.reporting.page.texts import visible

WIDE, NARROW = 760, 340  # pixels: of a desktop's page, of a phone's
NUM_COLOURS = 6  # --c0 to --c5 in style.css; further series reuse them, with other shapes
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")
MARKS = ("●", "■", "▲", "◆", "▼", "✚")  # the same shapes in the page's text

_SVG = "http://www.w3.org/2000/svg"
_ELEMENTS = {"g", "path", "line", "rect", "text", "tspan", "svg"}
_ATTRIBUTES = {
    *("d", "x", "y", "x2", "y2", "dx", "dy", "width", "height", "viewBox", "transform", "opacity"),
    *("fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray"),
    *("stroke-miterlimit", "stroke-linecap", "stroke-linejoin"),
    *("text-anchor", "font-family", "font-size", "font-weight", "font-style"),
}


@dataclass(frozen=True)
class Axis:
    """An axis of a figure: its title, a d3 format, and its domain if it is fixed."""

    title: str
    format: str = ".2~f"
    domain: tuple[float, float] | None = None


def style(number: int) -> tuple[str, str]:
    """Return the colour and shape of a series."""
    return f"var(--c{number % NUM_COLOURS})", SHAPES[(number + number // NUM_COLOURS) % len(SHAPES)]


def mark(number: int) -> str:
    """Return a series' shape as a character."""
    return MARKS[(number + number // NUM_COLOURS) % len(MARKS)]


# --- drawing


def drawn(spec: Mapping[str, Any], label: str, width: int, height: int) -> Markup:
    """Draw a Vega-Lite specification as an SVG element with a text alternative.

    Raises ConfigError if vl-convert is not installed.
    """
    check_extra("a figure of the report", "vl_convert")
    import vl_convert

    # text that XML forbids would abort the process: see visible
    whole = _clean({**_CONFIG, "width": width, "height": height, **spec})
    root = ElementTree.fromstring(vl_convert.vegalite_to_svg(whole))
    for element in root.iter():  # within a page, SVG needs no namespace
        element.tag = element.tag.removeprefix(f"{{{_SVG}}}")
    _prune(root)
    inner = "".join(ElementTree.tostring(child, encoding="unicode") for child in root)
    box = f"0 0 {root.get('width')} {root.get('height')}"
    head = f'<svg role="img" aria-label="{escape(visible(label))}" viewBox="{box}" '
    return Markup(head + f'width="{root.get("width")}" height="{root.get("height")}">{inner}</svg>')


def drawable(text: str) -> str:
    r"""Return a text that vl-convert can draw.

    Vega truncates long labels by UTF-16 units and fails on half of a surrogate pair: these are escaped.

    >>> print(drawable("é 日本 😀"))
    é 日本 \U0001f600
    """
    return re.sub(r"[\U00010000-\U0010ffff]", lambda found: f"\\U{ord(found[0]):08x}", visible(text))


def _clean(value: Any) -> Any:
    """Return JSON that XML can hold: hidden characters escaped, NaN and infinity as null."""
    if isinstance(value, str):
        return drawable(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _clean(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(each) for each in value]
    return value


def _prune(element: ElementTree.Element) -> None:
    """Remove what is not drawn, and every unknown element and attribute."""
    for child in [*element]:
        empty = child.tag == "path" and child.get("d", "") in ("", "M0,0h0v0h0Z")
        if child.tag not in _ELEMENTS or empty or child.get("display") == "none":
            element.remove(child)
            continue
        _prune(child)
        if child.tag == "g" and len(child) == 0:
            element.remove(child)
    for name in [*element.attrib]:
        if name not in _ATTRIBUTES:
            del element.attrib[name]
        else:  # round to hundredths of a pixel; digits in texts stay
            element.set(name, re.sub(r"(\d\.\d\d)\d+", r"\1", element.attrib[name]))


_CONFIG: dict[str, Any] = {
    "background": None,
    "padding": 2,
    "autosize": {"type": "fit", "contains": "padding"},
    "config": {
        "font": "system-ui, sans-serif",
        "aria": False,
        "view": {"stroke": None},
        "axis": {
            "labelColor": "var(--soft)",
            "titleColor": "var(--soft)",
            "gridColor": "var(--line)",
            "domainColor": "var(--line)",
            "tickColor": "var(--line)",
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "labelLimit": 320,
            "labelFlush": False,
            "domain": False,
            "ticks": False,
            "labelPadding": 6,
        },
        "text": {"color": "var(--ink)", "fontSize": 12},
        "rule": {"color": "var(--soft)"},
    },
}


def chosen(names: Mapping[str, str]) -> str:
    """Return a Vega expression that gives each row's label; Vega reads JSON strings.

    A prefix, removed again, protects each label: Vega takes the string "if" for a keyword.
    """
    known = {f"_{label}": f"_{text}" for label, text in _clean(names).items()}
    return f"slice({json.dumps(known)}['_' + datum.label], 1)"


def span(values: Sequence[Mapping[str, Any]], axis: Axis, least: float = 0.02) -> tuple[float, float]:
    """Return the range of all intervals with some margin; shares stay within 0 and 1."""
    ends = [
        value[name] for value in values for name in ("low", "y", "high") if value.get(name) is not None
    ]
    low, high = min(ends), max(ends)
    air = max(least, 0.06 * (high - low))
    if axis.format.endswith("%"):
        return max(0.0, low - air), min(1.0, high + air)
    return low - air, high + air
