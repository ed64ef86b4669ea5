"""The page's part on a ladder: its rungs as accuracy over cost, the chosen one marked, and its table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from femtune.reporting.page.drawing import NARROW, WIDE, drawn
from femtune.reporting.page.parts import Figure, Key, Section, Table
from femtune.reporting.page.record import Found
from femtune.reporting.page.texts import count, name, percent, seconds

Row = Mapping[str, Any]  # a rung, as ladder.json has it

CHOSEN, UNTRAINED, TRAINED = "c0", "other", "c1"  # names of colours in style.css
_TRAINED = ("answer-only", "fem", "fem-votes", "fem-probabilities")


def ladder(found: Found) -> Section | None:
    """Build the section of a ladder's numbers, None where the runs are no ladder's."""
    stored, rows = found.ladder, _rows(found)
    if not rows:
        return None
    chosen = str(stored.get("chosen"))
    command = stored.get("command")
    return Section(
        "ladder",
        "The rungs in numbers",
        [f"To use {name(chosen)}: {command}"] if command else [],
        tables=[
            _table(rows, chosen),
            _differences(chosen, stored.get("against_chosen") or []),
            Table("What each rung is", ["", ""], [[_named(r), str(r.get("title", ""))] for r in rows]),
        ],
        notes=_not_run(stored.get("not_run") or {}),
    )


def _not_run(reasons: Mapping[str, str]) -> list[str]:
    """Return the rungs that were not run, a sentence for each reason."""
    rungs: dict[str, list[str]] = {}
    for rung, why in reasons.items():
        rungs.setdefault(why, []).append(rung)
    return [f"Not run: {', '.join(some)} ({why})." for why, some in rungs.items()]


def _rows(found: Found) -> list[dict[str, Any]]:
    """Return the rungs, numbered from the cheapest."""
    rows = [each for each in found.ladder.get("rungs", ()) if isinstance(each, Mapping)]
    return [{**row, "number": number} for number, row in enumerate(rows, 1)]


def _named(row: Row) -> str:
    return f"{row['number']} {name(row['name'])}"


def _keys(rows: Sequence[Row], chosen: str) -> list[Key]:
    """Return the legend of the colours."""
    keys = [Key(CHOSEN, "◆", f"chosen: {name(chosen)}")]
    others = [str(row["name"]) for row in rows if row["name"] not in (chosen, "majority")]
    if any(other not in _TRAINED for other in others):
        keys.append(Key(UNTRAINED, "●", "not trained"))
    if any(other in _TRAINED for other in others):
        keys.append(Key(TRAINED, "■", "trained"))
    return keys


# --- the figure


def figure(found: Found) -> Figure | None:
    """Draw the rungs as accuracy over cost, None where the runs are no ladder's."""
    stored, rows = found.ladder, _rows(found)
    if not rows:
        return None
    chosen, money = str(stored.get("chosen")), stored.get("cost") == "money"
    title = "money" if money else "tokens passed through the model, trained ones three times"
    values = _values(rows, chosen, "money" if money else "passes")
    told = ", ".join(f"{row['name']} {percent(row['accuracy'])}" for row in rows)
    label = f"Accuracy over cost: {told}. Chosen: {chosen}."
    floor = next((row["accuracy"] for row in rows if row["name"] == "majority"), None)
    line = "" if floor is None else "The dashed line is the majority, which costs nothing. "
    numbered = ", ".join(f"{each['number']} {each['label']}" for each in values)
    return Figure(
        "Accuracy on held-out problems over cost",
        _picture(values, floor, title, label, WIDE),
        f"{line}Bars are 95% intervals over problems. {numbered}.",
        _picture(values, floor, title, label, NARROW),
        _keys(rows, chosen),
    )


def _values(rows: Sequence[Row], chosen: str, cost: str) -> list[dict[str, Any]]:
    """Return the points of the figure: rungs that cost something."""
    made: list[dict[str, Any]] = []
    for row in rows:
        price = row.get(cost)
        if not price or not math.isfinite(price):
            continue
        low, high = row.get("accuracy_ci") or (None, None)
        is_trained = row["name"] in _TRAINED
        colour = CHOSEN if row["name"] == chosen else TRAINED if is_trained else UNTRAINED
        shapes = {CHOSEN: "diamond", TRAINED: "square", UNTRAINED: "circle"}
        made.append(
            {
                "number": str(row["number"]),
                "label": name(row["name"]),
                "x": float(price),
                "y": row["accuracy"],
                "low": low,
                "high": high,
                "colour": f"var(--{colour})",
                "shape": shapes[colour],
                "size": 240 if colour == CHOSEN else 90,
            }
        )
    return made


def _placed(values: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the points with the corner of each number: neighbours in cost have different ones."""
    corners: dict[str, int] = {}
    before = -math.inf
    corner = 0
    for each in sorted(values, key=lambda point: (point["x"], point["number"])):
        near = math.log(each["x"]) - before < 0.25
        corner = (corner + 1) % len(_CORNERS) if near else 0
        corners[each["number"]] = corner
        before = math.log(each["x"])
    return [{**each, "corner": corners[each["number"]]} for each in values]


# horizontal and vertical shift of a number in pixels, and its alignment
_CORNERS = ((9, -8, "left"), (9, 10, "left"), (22, 1, "left"), (-9, 10, "right"))


def _picture(
    values: Sequence[Mapping[str, Any]], floor: float | None, title: str, label: str, width: int
) -> Markup:
    narrow = width < WIDE
    ends = [each[key] for each in values for key in ("low", "y", "high") if each[key] is not None]
    ends += [] if floor is None else [floor]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    costs = [each["x"] for each in values] or [1.0]
    y = {
        "field": "y",
        "type": "quantitative",
        "title": None,
        "axis": {"format": ".0%", "tickCount": 5},
        "scale": {"domain": [max(0.0, low - 0.04), min(1.0, high + 0.04)], "zero": False},
    }
    x = {
        "field": "x",
        "type": "quantitative",
        "title": _broken(title) if narrow else title,
        "axis": {"grid": False, "format": ".2~s", "values": _ticks(min(costs), max(costs), narrow)},
        "scale": {"type": "log", "domain": [min(costs) / 1.6, max(costs) * 1.6], "nice": False},
    }
    colour = {"field": "colour", "type": "nominal", "scale": None, "legend": None}
    layers: list[dict[str, Any]] = []
    if floor is not None:
        layers.append(
            {
                "data": {"values": [{"at": floor}]},
                "mark": {"type": "rule", "strokeDash": [3, 3], "color": "var(--soft)"},
                "encoding": {"y": {"field": "at", "type": "quantitative"}},
            }
        )
    layers += [
        {
            "transform": [{"filter": "datum.low != null"}],
            "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.45},
            "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour},
        },
        {
            "mark": {"type": "point", "filled": True, "opacity": 1},
            "encoding": {
                "x": x,
                "y": y,
                "color": colour,
                "shape": {**colour, "field": "shape"},
                "size": {"field": "size", "type": "quantitative", "scale": None, "legend": None},
            },
        },
        *(
            {
                "transform": [{"filter": f"datum.corner == {number}"}],
                "mark": {"type": "text", "align": align, "dx": dx, "dy": dy, "fontWeight": 600},
                "encoding": {"x": x, "y": y, "text": {"field": "number"}},
            }
            for number, (dx, dy, align) in enumerate(_CORNERS)
        ),
    ]
    spec = {"data": {"values": _placed(values)}, "layer": layers}
    return drawn(spec, label, width, 260 if narrow else 320)


def _ticks(low: float, high: float, narrow: bool) -> list[float]:
    """Return 1, 2 and 5 times powers of ten between two costs; powers alone if they are many.

    >>> _ticks(1500, 60000, False)
    [1000.0, 2000.0, 5000.0, 10000.0, 20000.0, 50000.0]
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    few = len(powers) > (3 if narrow else 5)
    made = [step * 10.0**power for power in powers for step in ((1,) if few else (1, 2, 5))]
    return [each for each in made if low / 1.6 <= each <= high * 1.6]


def _broken(title: str) -> list[str] | str:
    """Return a title in two lines, for a phone."""
    first, comma, rest = title.partition(", ")
    return [f"{first},", rest] if comma else title


# --- tables


def _table(rows: Sequence[Row], chosen: str) -> Table:
    """Build the table of the rungs."""
    has_money = any(row.get("money") is not None for row in rows)
    kinds = {"generated": "written", "prompt": "read", "scored": "scored", "trained": "trained"}
    head = ["", "accuracy", *kinds.values(), "CPU", "time", *(["money"] if has_money else [])]
    made = []
    for row in rows:
        found = row.get("accuracy_ci")
        interval = f" ({percent(found[0])} to {percent(found[1])})" if found else ""
        money = row.get("money")
        made.append(
            [
                _named(row) + (" (chosen)" if row["name"] == chosen else ""),
                percent(row["accuracy"]) + interval,
                *(count(row["tokens"][kind]) for kind in kinds),
                seconds(row["processor_s"]),
                seconds(row["seconds"]),
                *([("–" if money is None else f"{money:.4g}")] if has_money else []),
            ]
        )
    return Table("Accuracy of each rung, and its tokens", head, made)


def _differences(chosen: str, compared: Sequence[Row]) -> Table:
    """Build the table of each other rung less the chosen one."""
    rows = [
        [
            name(each["name"]),
            f"{_points(each['difference'])} ({_points(each['low'])} to {_points(each['high'])})",
            f"{each['p_value']:.3f}",
        ]
        for each in compared
    ]
    caption = f"Each rung less {name(chosen)} on the same problems, corrected by Holm"
    return Table(caption, ["", "points of accuracy", "p"], rows)


def _points(share: float) -> str:
    """Return a difference of shares in points.

    >>> _points(-0.45), _points(0.1)
    ('−45.0', '+10.0')
    """
    return f"{100 * share:+.1f}".replace("-", "−")
