"""Rationales with a tally: each step names a point, its weight, and the tally so far.

    It is brief: plus 1, so 4.
    It is inaccurate: minus 2, so 2.

The worlds of judges share this code for writing and checking. The weight of a point depends on the
judge.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

Point = tuple[str, int]  # what is judged, with +1 for or -1 against
Weights = Mapping[Point, int]  # the weight that a judge gives each point: one of WEIGHTS
Step = tuple[Point, int, int]  # the claimed point, the sign it is counted with, its weight

WEIGHTS = (0, 1, 2)

_STEP = re.compile(r"(?P<claim>[\w ]+): (?P<sign>plus|minus) (?P<weight>[0-2]), so (?P<tally>.+)\.")
_TALLY = re.compile(r"-?[0-9]{1,3}")


def total(points: Sequence[Point], weights: Weights) -> int:
    """Return the weighted sum of points for a judge."""
    return sum(point[1] * weights[point] for point in points)


def write_steps(
    steps: Sequence[Step],
    start: int,
    claims: Mapping[Point, str],
    slips: Mapping[int, int] | None = None,
) -> tuple[list[str], int]:
    """Write one line for each step; return them and the last tally. `slips` adds errors, by step.

    >>> write_steps([(("tone", 1), 1, 2)], 3, {("tone", 1): "It is kind"})
    (['It is kind: plus 2, so 5.'], 5)
    """
    lines, tally = [], start
    for place, (point, sign, weight) in enumerate(steps):
        tally += sign * weight + (slips or {}).get(place, 0)
        word = "plus" if sign > 0 else "minus"
        lines.append(f"{claims[point]}: {word} {weight}, so {tally}.")
    return lines, tally


def check_steps(
    lines: Sequence[str], points: Sequence[Point], start: int | None, claims: Mapping[Point, str]
) -> tuple[list[bool], int | None]:
    """Return whether each step is valid, and the last tally (None if it is missing).

    A valid step names the point at its place with the right sign and a possible weight. Its tally
    follows from the last one written: `start` for the first step, None if the line with it is missing.
    The weight need not be this judge's; the answer shows whether it is. A missing or surplus step counts
    as one invalid step, so the list has max(points, lines) entries.
    """
    named = {claim: point for point, claim in claims.items()}
    sound: list[bool] = []
    tally = start
    for place in range(max(len(points), len(lines))):
        match = _STEP.fullmatch(lines[place]) if place < len(lines) else None
        before, tally = tally, _as_tally(match["tally"] if match else "")
        if match is None or before is None or tally is None:
            sound.append(False)
            continue
        sign = 1 if match["sign"] == "plus" else -1
        point = points[place] if place < len(points) else None
        claimed = named.get(match["claim"], ("nothing", 0))
        follows = tally == before + sign * int(match["weight"])
        sound.append(claimed == point and claimed[1] == sign and follows)
    return sound, tally


def _as_tally(text: str) -> int | None:
    return int(text) if _TALLY.fullmatch(text) else None
