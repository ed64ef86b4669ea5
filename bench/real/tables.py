"""Tables from stored cells: what each contender reached, and its difference to rejection:4."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

from femtune.evaluation.item_scores import compare_scores, describe_difference

Row = dict[str, str]


def stored(folder: Path) -> list[str]:
    """Return the names of stored cells."""
    return sorted(p.name.removesuffix(".csv") for p in folder.glob("*.csv") if ".items" not in p.name)


def markdown(folder: Path, tasks: Sequence[str]) -> str:
    """Return a table for each task that has cells."""
    return "\n".join(_table(folder, task) for task in tasks if any(folder.glob(f"{task}.*.csv")))


def _table(folder: Path, task: str) -> str:
    cells: dict[str, dict[int, list[Row]]] = {}
    for name in stored(folder):
        if name.split(".")[0] == task:
            rows = _read(folder / f"{name}.csv")
            cells.setdefault(rows[0]["contender"], {})[int(rows[0]["seed"])] = rows
    lines = [
        f"**{task}**",
        "",
        "| contender | seeds | best, held out | last | best less rejection:4 | kept at last "
        "| right equations kept, first and last | all right, of right answers | processor minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for contender, seeds in cells.items():
        first = {seed: _of(rows, "validation", 1) for seed, rows in seeds.items()}
        last = {seed: _last(rows) for seed, rows in seeds.items()}
        best = {seed: _of(rows, "best") for seed, rows in seeds.items()}
        lines.append(
            f"| `{contender}` | {len(seeds)} | {_mean(best.values(), 'accuracy')} | "
            f"{_mean([_of(rows, 'last') for rows in seeds.values()], 'accuracy')} | "
            f"{_against(folder, task, contender, seeds)} | {_mean(last.values(), 'kept_share')} | "
            f"{_mean(first.values(), 'right_equations')}, {_mean(last.values(), 'right_equations')} | "
            f"{_mean(best.values(), 'right_rationales')} | "
            f"{_minutes([_of(rows, 'cost') for rows in seeds.values()])} |"
        )
    return "\n".join(lines) + "\n"


def _read(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _of(rows: Sequence[Row], part: str, iteration: int | None = None) -> Row:
    for row in rows:
        if row["part"] == part and (iteration is None or row["iteration"] == str(iteration)):
            return row
    return {}


def _last(rows: Sequence[Row]) -> Row:
    found = [row for row in rows if row["part"] == "validation"]
    return found[-1] if found else {}


def _mean(rows: Iterable[Row], column: str) -> str:
    values = [float(row[column]) for row in rows if row.get(column)]
    return f"{fmean(values):.3f}".replace("0.", ".", 1) if values else "–"


def _minutes(rows: Sequence[Row]) -> str:
    values = [float(row["processor_s"]) / 60 for row in rows if row.get("processor_s")]
    return f"{fmean(values):.0f}" if values else "–"


def _against(folder: Path, task: str, contender: str, seeds: dict[int, list[Row]]) -> str:
    own, other = {}, {}
    groups: dict[str, str] = {}
    for seed in seeds:
        mine = folder / f"{task}.{contender.replace(':', '-')}.{seed}.items.csv"
        theirs = folder / f"{task}.rejection-4.{seed}.items.csv"
        if contender == "rejection:4" or not mine.exists() or not theirs.exists():
            continue
        own[seed], other[seed] = (
            {row["item"]: float(row["best"]) for row in _read(path)} for path in (mine, theirs)
        )
        groups |= {row["item"]: row["cluster"] for row in _read(mine)}
    found = compare_scores(own, other, groups) if own else None
    return describe_difference(found) if found else "–"
