"""Sankey diagrams of draws: problems -> attempts -> outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from femtune.reporting.page.drawing import drawn

HEIGHT, GAP = 260, 30  # pixels; two lines of text fit beside the smallest node
ACROSS = (0.0, 0.37, 0.74)  # positions of the columns as fractions of the width
THICK = 0.012


@dataclass(frozen=True)
class Stop:
    """A node of the diagram: its label, number of draws and colour."""

    label: str
    num: int
    colour: str


def flow(
    start: Stop,
    stages: Sequence[Stop],
    ends: Sequence[Stop],
    links: Mapping[tuple[int, int], int],
    label: str,
    *,
    width: int,
) -> Markup:
    """Draw bands in proportion to draws; `links` counts draws from a stage to an end."""
    total = sum(stage.num for stage in stages)
    most = max(len(stages), len(ends))
    scale = (HEIGHT - GAP * (most - 1)) / max(total, 1)
    columns = [_column([start], [total], x, scale) for x in ACROSS[:1]]
    columns += [
        _column(own, [stop.num for stop in own], x, scale)
        for own, x in ((stages, ACROSS[1]), (ends, ACROSS[2]))
    ]
    bands: list[dict[str, Any]] = []
    at = columns[0][0]["top"]
    for number, stage in enumerate(stages):
        size = stage.num * scale
        place = (ACROSS[0], at, ACROSS[1], columns[1][number]["top"], size)
        bands += _band(*place, stage.colour, f"in {number}")
        at += size
    left, right = ([place["top"] for place in column] for column in columns[1:])
    for (stage_number, end), num in sorted(links.items()):
        size = num * scale
        place = (ACROSS[1], left[stage_number], ACROSS[2], right[end], size)
        bands += _band(*place, ends[end].colour, f"{stage_number} {end}")
        left[stage_number] += size
        right[end] += size
    return drawn(
        {"layer": _layers(bands, [place for column in columns for place in column])},
        label,
        width,
        HEIGHT + 24,
    )


def _column(stops: Sequence[Stop], sizes: Sequence[int], x: float, scale: float) -> list[dict[str, Any]]:
    """Place nodes one below the other, centered in the height."""
    used = sum(sizes) * scale + GAP * (len(stops) - 1)
    top = (HEIGHT - used) / 2
    made = []
    for stop, size in zip(stops, sizes, strict=True):
        bottom = top + size * scale
        own = {"x": x, "x2": x + THICK, "top": top, "bottom": bottom, "middle": (top + bottom) / 2}
        made.append(own | {"label": stop.label, "colour": stop.colour})
        top = bottom + GAP
    return made


def _layers(
    bands: Sequence[Mapping[str, Any]], places: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    x = {"field": "x", "type": "quantitative", "axis": None, "scale": {"domain": [0, 1], "nice": False}}
    y = {
        "type": "quantitative",
        "axis": None,
        "scale": {"domain": [-14, HEIGHT + 6], "reverse": True, "nice": False},
    }
    colour = {"field": "colour", "type": "nominal", "scale": None, "legend": None}
    edges = {"x": x, "y": {**y, "field": "top"}, "y2": {"field": "bottom"}, "color": colour}
    words = {"x": {**x, "field": "x2"}, "y": {**y, "field": "middle"}, "text": {"field": "label"}}
    return [
        {
            "data": {"values": bands},
            "mark": {"type": "area", "opacity": 0.28},
            "encoding": {**edges, "detail": {"field": "link", "type": "nominal"}},
        },
        {
            "data": {"values": places},
            "mark": {"type": "rect", "opacity": 1},
            "encoding": {**edges, "x2": {"field": "x2"}},
        },
        {
            "data": {"values": places},
            "mark": {"type": "text", "align": "left", "baseline": "middle", "dx": 4, "lineBreak": "\n"},
            "encoding": words,
        },
    ]


def _band(
    x0: float, top0: float, x1: float, top1: float, size: float, colour: str, link: str
) -> list[dict[str, Any]]:
    """Return the edges of a band that curves from one height to another."""
    made = []
    for step in range(21):
        t = step / 20
        top = top0 + (top1 - top0) * t * t * (3 - 2 * t)
        x = x0 + THICK + (x1 - x0 - THICK) * t
        made.append({"x": x, "top": top, "bottom": top + size, "colour": colour, "link": link})
    return made
