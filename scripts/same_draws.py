"""Compare two runs, or two folders of runs, draw by draw: tokens, rewards, what was kept, and weights.

    python scripts/same_draws.py runs/before runs/after

For changes that must not change results: a new layout, new names, another way to store. Columns that
have another name in older runs are matched. Exits with 1 where a draw, an example or a measure differs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

OLD_COLUMNS = {"prompt": "prompt_kind"}  # of draws that older versions stored
OLD_REASONS = {
    "cut off": "truncated",
    "unparsable": "parse_error",
    "leaks the hint": "hint_leak",
    "reward failed": "reward_failed",
    "engine failed": "engine_failed",
}
KEY = ("iteration", "problem_id", "stage", "index")
COMPARED = ("prompt_kind", "seed", "tokens", "reward", "answer", "reason")
TIMES = ("_s", "seconds", "per_second")  # ends of the names of measures that are never the same


def main() -> int:
    """Print what differs between the runs of two folders; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    args = parser.parse_args()
    runs = sorted(path.parent.relative_to(args.before) for path in args.before.rglob("config.yaml"))
    if not runs:
        print(f"{args.before} holds no run.")
        return 1
    differing = 0
    for run in runs:
        faults = list(differences(args.before / run, args.after / run))
        draws = sum(1 for _ in read_draws(args.before / run))
        print(f"{run}: {draws} draws, {'the same' if not faults else f'{len(faults)} differences'}")
        for fault in faults[:5]:
            print(f"    {fault}")
        differing += bool(faults)
    return min(differing, 1)


def differences(before: Path, after: Path) -> Iterator[str]:
    """Yield what differs between two runs, in words."""
    old, new = dict(read_draws(before)), dict(read_draws(after))
    for key in old.keys() ^ new.keys():
        yield f"draw {key} is in one run alone"
    for key in old.keys() & new.keys():
        if old[key] != new[key]:
            yield f"draw {key}: {old[key]} became {new[key]}"
    for path in sorted(before.rglob("examples.parquet")):
        name = path.relative_to(before)
        columns = ["prompt_tokens", "completion_tokens", "weight"]
        if not (after / name).exists():
            yield f"{name} is in one run alone"
        elif pq.read_table(path, columns=columns) != pq.read_table(after / name, columns=columns):
            yield f"{name}: examples or their weights differ"
    for path in sorted(before.rglob("metrics.json")):
        name = path.relative_to(before)
        if not (after / name).exists():
            yield f"{name} is in one run alone"
            continue
        first, second = (timeless(json.loads((run / name).read_text())) for run in (before, after))
        if first != second:
            yield f"{name}: {first} became {second}"


def read_draws(run: Path) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """Yield the key of each draw of a run, evaluations included, with what is compared of it."""
    for kind in ("draws", "eval"):
        for path in sorted(run.glob(f"iteration-*/{kind}/*.parquet")):
            table = pq.read_table(path)
            table = table.rename_columns([OLD_COLUMNS.get(c, c) for c in table.column_names])
            for row in table.select([*KEY, *COMPARED]).to_pylist():
                row["reason"] = OLD_REASONS.get(row["reason"], row["reason"])
                yield (kind, *(row[name] for name in KEY)), tuple(str(row[name]) for name in COMPARED)


def timeless(value: Any) -> Any:
    """Return measures without those of time, and with today's names of reasons."""
    if isinstance(value, dict):
        kept = {name: each for name, each in value.items() if not name.endswith(TIMES)}
        return {OLD_REASONS.get(name, name): timeless(each) for name, each in kept.items()}
    return [timeless(each) for each in value] if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main())
