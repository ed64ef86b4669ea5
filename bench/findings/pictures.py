"""A figure's numbers as an SVG file, drawn by femtune.reporting.page.drawing; dark on a dark page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from femtune._util.atomic_files import replacing
from femtune.reporting.page.drawing import SHAPES, Axis, drawn, span
from findings.experiments import BASELINES, EXPERIMENTS, FOLDER, Figure
from findings.numbers import Found, Mean, at_end, by_iteration, found_of
from findings.tables import NOT_YET, TITLES

PICTURES = FOLDER.parent.parent / "docs" / "pictures"
MOST = 8  # series of a panel: more can't be told apart
WIDTHS = {1: 400, 2: 330, 3: 250}  # pixels of a panel, by how many stand side by side
HEIGHT = 190
LEAST = 0.1  # of an axis of shares: less would show noise as if it were much
# A page shows the file as an image: it sees none of the page's colours, but whether the page is dark.
# Those of report/style.css and two more, on the site's own two backgrounds.
_STYLE = """\
.finding { --paper: #ffffff; --ink: #1d2126; --soft: #5a626c; --line: #dedcd4;
  --c0: #1f5fa8; --c1: #b4530a; --c2: #1f7a5a; --c3: #8a3fa0; --c4: #b02a55; --c5: #6c6a00;
  --c6: #4a4f57; --c7: #8a5a2b; }
@media (prefers-color-scheme: dark) {
  .finding { --paper: #1e2129; --ink: #e8e6e1; --soft: #a3abb5; --line: #3b414c;
    --c0: #86b8f0; --c1: #f0a35e; --c2: #6cc7a3; --c3: #d0a2e6; --c4: #f08aa8; --c5: #d2cc62;
    --c6: #c4c9d1; --c7: #c79a6b; } }
"""

_LEGEND = {
    "labelLimit": 400,
    "title": None,
    "orient": "top",
    "labelColor": "var(--ink)",
    "labelFontSize": 12,
    "symbolSize": 70,
    "columns": 4,
    "columnPadding": 44,
}

Spec = dict[str, Any]


def place(figure: Figure, folder: Path = PICTURES) -> Path:
    return folder / f"findings-{figure.name}.svg"


def draw(figure: Figure, numbers: Path = FOLDER, pictures: Path = PICTURES) -> Path:
    """Draw a figure from the stored CSV files alone; says so in it where there are none.

    Raises ValueError where it has more series than can be told apart.
    """
    panels = {"curves": _curves, "setting": _setting, "scatter": _scatter}[figure.kind]
    found = found_of(figure, numbers)
    names = list(dict.fromkeys(name for each in found for name in each.schemes))
    if len(names) > MOST:
        raise ValueError(
            f"figure {figure.name} has {len(names)} schemes, at most {MOST} can be told apart."
        )
    rows = panels(figure, found) if found else []
    if not any(rows):
        rows = [[_words(NOT_YET)]]
    shown = [{"hconcat": row, "spacing": 24} for row in rows if row]
    spec = {"vconcat": shown, "spacing": 18, "autosize": "pad", "padding": 8}
    if names:
        spec["resolve"] = {"scale": {"color": "shared", "shape": "shared"}}
    inside = str(drawn({**spec, "width": None, "height": None}, figure.about, 0, 0))
    with replacing(path := place(figure, pictures)) as part:
        part.write_text(_file(inside))
    return path


def _file(svg: str) -> str:
    head, _, rest = svg.partition(">")
    head = head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" class="finding" ', 1)
    back = '<rect width="100%" height="100%" fill="var(--paper)"/>'
    rest = rest.replace(' stroke-width="2" opacity="1"', "")  # of what has no stroke
    return f"{head}><style>\n{_STYLE}</style>{back}{rest}\n"


# --- what stands where: a list of rows of panels


def _curves(figure: Figure, found: Sequence[Found]) -> list[list[Spec]]:
    rows: list[list[Spec]] = []
    columns = [column for column in figure.measures if any(each.has(column) for each in found)]
    for number, column in enumerate(columns):
        row = []
        for each in found:
            points = []
            for name in each.schemes:
                xs, ys = (by_iteration(each, name, wanted) for wanted in (figure.x, column))
                points += [_point(name, xs[k][0], ys[k]) for k in ys if k in xs]
            if not points:
                continue
            levels = {
                name: mean
                for name in (figure.baselines if column == "accuracy" else ())
                if (mean := at_end(each, name, None, column)) is not None
            }
            title = each.world if number == 0 else None
            is_last = number == len(columns) - 1
            x = _axis("quantitative", TITLES[figure.x] if is_last else None)
            row.append(_panel(points, x, TITLES[column], title, len(found), _order(found), levels))
        rows.append(row)
    return rows


def _setting(figure: Figure, found: Sequence[Found]) -> list[list[Spec]]:
    row = []
    for each in found:
        for column in figure.measures:
            points = [
                _point(name, value if figure.scale == "names" else float(value), mean)
                for name in each.schemes
                for value in each.values
                if (mean := at_end(each, name, value, column)) is not None
            ]
            if not points:
                continue
            title = each.world if len(found) > 1 else None
            ticks = list(dict.fromkeys(point["x"] for point in points))
            x = _setting_axis(figure, ticks)
            row.append(_panel(points, x, TITLES[column], title, 2, _order(found), {}))
    return [row]


def _setting_axis(figure: Figure, ticks: Sequence[Any]) -> Spec:
    if figure.scale == "names":
        return _axis("ordinal", figure.x_title) | {"sort": [*ticks], "scale": {"padding": 0.4}}
    axis = _axis("quantitative", figure.x_title)
    if figure.scale == "log":
        axis["scale"] |= {"type": "log", "base": 2}
    axis["axis"] |= {"values": [*ticks]}
    return axis


def _scatter(figure: Figure, found: Sequence[Found]) -> list[list[Spec]]:
    row = []
    for each in found:
        points = [
            {"label": line["contender"], "x": line[figure.x], "y": line["accuracy"]}
            for line in each.rows
            if line["kind"] == "scheme" and None not in (line[figure.x], line["accuracy"])
        ]
        if points:
            x = _axis("quantitative", TITLES[figure.x])
            y = TITLES["accuracy"]
            row.append(_panel(points, x, y, each.world, len(found), _order(found), {}, joined=False))
    return [row]


def _order(found: Sequence[Found]) -> list[str]:
    return list(dict.fromkeys(name for each in found for name in each.schemes))


def looks(names: Sequence[str]) -> list[tuple[str, str]]:
    """Colour and shape of each: in every figure the same, as far as there are colours."""
    known = [name for each in EXPERIMENTS.values() for name in each.contenders if name not in BASELINES]
    order = list(dict.fromkeys([*known, *names]))
    taken: list[int] = []
    for name in names:
        free = (number % MOST for number in range(order.index(name), order.index(name) + MOST))
        taken.append(next(number for number in free if number not in taken))
    return [(f"var(--c{n})", SHAPES[(n + n // len(SHAPES)) % len(SHAPES)]) for n in taken]


# --- parts of a specification


def _point(name: str, x: Any, mean: Mean) -> Spec:
    middle, half = mean
    ends = {} if half != half else {"low": max(0.0, middle - half), "high": min(1.0, middle + half)}
    return {"label": name, "x": x, "y": middle, **ends}


def _axis(kind: str, title: str | None) -> Spec:
    axis = {"title": title, "grid": False, "tickCount": 5, "labelAngle": 0, "labelOverlap": True}
    return {
        "field": "x",
        "type": kind,
        "axis": axis,
        "scale": {"zero": False, "nice": False, "padding": 10},
    }


def _panel(
    points: Sequence[Spec],
    x: Spec,
    y_title: str,
    title: str | None,
    beside: int,
    names: Sequence[str],
    levels: dict[str, Mean],
    joined: bool = True,
) -> Spec:
    """Points with their intervals, joined by lines, and dashed lines at the level of baselines."""
    colours, shapes = zip(*looks(names), strict=True)
    by = {"field": "label", "type": "nominal", "legend": _LEGEND}
    colour = {**by, "scale": {"domain": [*names], "range": [*colours]}}
    shape = {**by, "scale": {"domain": [*names], "range": [*shapes]}}
    y_axis = {"title": y_title, "format": ".2~f", "tickCount": 5, "minExtent": 36}
    seen = [mean[0] for mean in levels.values()]
    low, high = span([*points, *({"y": each} for each in seen)], Axis(y_title, ".0%"))
    low, high = min(low, max(0.0, high - LEAST)), max(high, min(1.0, low + LEAST))
    scale = {"domain": [low, high], "nice": False, "zero": False}
    y = {"field": "y", "type": "quantitative", "axis": y_axis, "scale": scale}
    own = {"x": x, "color": colour}
    mark = {"type": "point", "filled": True, "size": 45 if joined else 28, "opacity": 1}
    layers = _levels(levels, 0.07 * (high - low))
    if joined:
        layers.append({"mark": {"type": "line", "strokeWidth": 1.5}, "encoding": {**own, "y": y}})
        ends = {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
        bars = {"mark": {"type": "rule", "strokeWidth": 1.2}, "encoding": {**own, **ends}}
        layers.append({**bars, "transform": [{"filter": "isValid(datum.low)"}]})
    layers.append({"mark": mark, "encoding": {**own, "y": y, "shape": shape}})
    panel: Spec = {
        "width": WIDTHS[beside],
        "height": HEIGHT,
        "layer": layers,
        "data": {"values": [*points]},
    }
    return panel | (
        {"title": {"text": title, "anchor": "start", "color": "var(--ink)"}} if title else {}
    )


def _levels(levels: dict[str, Mean], near: float) -> list[Spec]:
    """A dashed line for each, with its name at the right; those of near ones stand together."""
    groups: list[list[tuple[float, str]]] = []
    for level, name in sorted(((mean[0], name) for name, mean in levels.items()), reverse=True):
        if groups and groups[-1][0][0] - level < near:
            groups[-1].append((level, name))
        else:
            groups.append([(level, name)])
    lines = [
        {"y": level, "label": ", ".join(name for _, name in group) if number == 0 else ""}
        for group in groups
        for number, (level, _) in enumerate(group)
    ]
    y = {"field": "y", "type": "quantitative"}
    words = {
        "type": "text",
        "align": "right",
        "dx": -2,
        "dy": -6,
        "fontSize": 11,
        "color": "var(--soft)",
    }
    right = {"x": {"value": "width"}, "text": {"field": "label"}}
    rule = {"mark": {"type": "rule", "strokeDash": [4, 3]}, "encoding": {"y": y}}
    both = [rule, {"mark": words, "encoding": {"y": y, **right}}]
    return [{"data": {"values": lines}, "layer": both}] if lines else []


def _words(text: str) -> Spec:
    mark = {"type": "text", "color": "var(--soft)", "fontSize": 14}
    return {
        "width": 400,
        "height": 60,
        "data": {"values": [{}]},
        "mark": mark,
        "encoding": {"text": {"value": text}},
    }
