"""The CSV files, read back, and means over seeds with their 95% intervals."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from femtune.evaluation.bootstrap import half_width
from findings.experiments import Figure

Mean = tuple[float, float]  # over seeds, with half of its 95% interval, which is nan for one seed
_TEXTS = ("world", "contender", "kind", "setting", "value")


@dataclass(frozen=True)
class Found:
    """What is stored of an experiment."""

    name: str
    rows: tuple[dict[str, Any], ...]  # of the CSV, numbers as numbers, None where there is none
    about: dict[str, Any]  # of the JSON: experiment, made_with

    @property
    def world(self) -> str:
        return str(self.about["experiment"]["world"])

    @property
    def seeds(self) -> list[int]:
        return sorted({row["seed"] for row in self.rows})

    @property
    def schemes(self) -> list[str]:
        """And what learns by reinforcement: all that has iterations."""
        return self._names("scheme", "rl")

    @property
    def baselines(self) -> list[str]:
        return self._names("baseline")

    @property
    def values(self) -> list[str]:
        """Of the setting that varies, in the order of the experiment."""
        return list(dict.fromkeys(row["value"] for row in self.rows if row["seed"] == self.seeds[0]))

    @property
    def base(self) -> tuple[dict[str, Any], ...]:
        """A row for each seed and value: the base is the same for all schemes."""
        first = {
            (row["seed"], row["value"]): row
            for row in reversed(self.rows)
            if row["kind"] == "scheme" and row["iteration"] == 0
        }
        return tuple(first.values())

    def of(self, contender: str, value: str | None = None) -> list[dict[str, Any]]:
        return [
            row for row in self.rows if row["contender"] == contender and value in (None, row["value"])
        ]

    def has(self, column: str) -> bool:
        return any(row[column] is not None for row in self.rows)

    def _names(self, *kinds: str) -> list[str]:
        return list(dict.fromkeys(row["contender"] for row in self.rows if row["kind"] in kinds))


def read(name: str, folder: Path) -> Found | None:
    """None where it was not run yet."""
    path = folder / f"{name}.csv"
    if not path.exists():
        return None
    with path.open(newline="") as file:
        rows = [{key: _value(key, text) for key, text in row.items()} for row in csv.DictReader(file)]
    return Found(name, tuple(rows), json.loads(path.with_suffix(".json").read_text()))


def _value(column: str, text: str) -> Any:
    if column in _TEXTS:
        return text
    if column in ("seed", "iteration"):
        return int(text)
    return float(text) if text else None


def found_of(figure: Figure, folder: Path) -> list[Found]:
    """Of a figure's experiments those that were run."""
    return [found for name in figure.experiments if (found := read(name, folder)) is not None]


# --- of one contender


def last(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last checkpoint of each seed."""
    by_seed: dict[int, dict[str, Any]] = {}
    for row in rows:
        if row["iteration"] >= by_seed.get(row["seed"], row)["iteration"]:
            by_seed[row["seed"]] = row
    return [*by_seed.values()]


def over_seeds(rows: Sequence[dict[str, Any]], column: str, seeds: int) -> Mean | None:
    """The mean of a column, of rows of which each is another seed's.

    None where not all seeds have a number: a mean over those that kept something would flatter.
    """
    numbers = [row[column] for row in rows if row[column] is not None]
    return (fmean(numbers), half_width(numbers)) if numbers and len(numbers) == seeds else None


def at_end(found: Found, contender: str, value: str | None, column: str) -> Mean | None:
    """Of the last iteration; None where a scheme ended before it in a seed, having kept nothing."""
    rows = last(found.of(contender, value))
    whole = found.about["experiment"]["iterations"]
    if any(row["kind"] == "scheme" and row["iteration"] < whole for row in rows):
        return None
    return over_seeds(rows, column, len(found.seeds))


def difference(found: Found, contender: str, other: str, column: str) -> Mean | None:
    """How much more a contender has at the end than another: paired by seed, on the same problems."""
    if at_end(found, contender, None, column) is None or at_end(found, other, None, column) is None:
        return None
    return _paired(last(found.of(contender)), last(found.of(other)), column)


def difference_for_as_much(found: Found, contender: str, other: str, x: str, column: str) -> Mean | None:
    """How much more a contender has at its end than another had for as much of `x`, by seed.

    None where the other ended with less of it in a seed, with room for one more iteration.
    """
    if at_end(found, contender, None, column) is None:
        return None
    mine = last(found.of(contender))
    theirs = [
        row for own in mine for row in _within(found, other, x, own[x]) if row["seed"] == own["seed"]
    ]
    if over_seeds(theirs, column, len(found.seeds)) is None:
        return None
    return _paired(mine, theirs, column)


def _paired(rows: list[dict[str, Any]], others: list[dict[str, Any]], column: str) -> Mean:
    theirs = {row["seed"]: row[column] for row in others}
    pairs = [row[column] - theirs[row["seed"]] for row in rows]
    return fmean(pairs), half_width(pairs)


def reached(found: Found, contender: str, column: str, least: float, x: str) -> Mean | None:
    """What of `x` it took until a column was that high for the first time; None if in a seed never."""
    rows = (row for row in found.of(contender) if row[column] is not None and row[column] >= least)
    first: dict[int, dict[str, Any]] = {}
    for row in rows:
        if row["iteration"] <= first.get(row["seed"], row)["iteration"]:
            first[row["seed"]] = row
    return over_seeds([*first.values()], x, len(found.seeds))


def by_iteration(found: Found, contender: str, column: str) -> dict[int, Mean]:
    """Iterations that all seeds have."""
    rows = found.of(contender)
    means = {
        number: over_seeds([r for r in rows if r["iteration"] == number], column, len(found.seeds))
        for number in sorted({row["iteration"] for row in rows})
    }
    return {number: mean for number, mean in means.items() if mean is not None}


def within(found: Found, contender: str, x: str, most: float, column: str) -> Mean | None:
    """Of the last checkpoint that came with at most so much of `x`, a column that grows.

    None where some seed's run ended with room for one more iteration: it might have come further.
    """
    return over_seeds(_within(found, contender, x, most), column, len(found.seeds))


def _within(found: Found, contender: str, x: str, most: float) -> list[dict[str, Any]]:
    rows = found.of(contender)
    chosen = []
    for seed in found.seeds:
        own = [row for row in rows if row["seed"] == seed and row[x] is not None]
        inside = [row for row in own if row[x] <= most]
        if not inside:
            continue
        if len(inside) < len(own) or own[-1][x] + own[-1][x] / max(1, len(own) - 1) > most:
            chosen.append(inside[-1])
    return chosen


def budgets(found: Found, x: str) -> list[float]:
    """Amounts of `x`, round: the shortest run's total, a quarter and half of it, the longest runs'."""
    ends = [mean[0] for name in found.schemes if (mean := at_end(found, name, None, x)) is not None]
    shortest = min((row[x] for name in found.schemes for row in last(found.of(name))), default=0)
    if not ends or shortest <= 0:
        return []
    sizes = [rounded(size) for size in (shortest / 4, shortest / 2, shortest, max(ends))]
    return list(dict.fromkeys(sizes))


def rounded(number: float) -> float:
    """To two digits, up.

    >>> rounded(51354), rounded(37.2), rounded(0.5)
    (52000.0, 38.0, 0.5)
    """
    unit = 10.0 ** (math.floor(math.log10(number)) - 1)
    return round(math.ceil(number / unit - 1e-9) * unit, 6)


def rank_correlation(found: Found, contender: str | None, x: str, y: str) -> Mean | None:
    """Spearman's of two columns over the checkpoints of a seed, of one contender or of all schemes.

    The base counts once for all schemes. None where a seed has fewer than three checkpoints with both
    numbers, or one of the columns is constant.
    """
    from scipy.stats import spearmanr

    names = found.schemes if contender is None else [contender]
    values = []
    for seed in found.seeds:
        rows = [row for name in names for row in found.of(name) if row["seed"] == seed]
        points = [(row[x], row[y]) for row in rows if row["iteration"] > 0]
        points += [(row[x], row[y]) for row in rows if row["iteration"] == 0][:1]
        points = [point for point in points if None not in point]
        if len(points) < 3 or any(len({point[axis] for point in points}) < 2 for axis in (0, 1)):
            return None
        values.append(float(spearmanr(*zip(*points, strict=True)).statistic))
    return fmean(values), half_width(values)
