"""Outcomes of an E-step's draws: counts, lengths and a sample, read from columns of its shards.

Only the draws shown become objects, and at most one batch of rows is in memory, so millions of draws
take seconds. Each problem takes a few bytes: how often it was right, and whether a draw was kept.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

BATCH = 1 << 14  # rows at once
COUNTED = ("problem_id", "stage", "index", "prompt_kind", "seed", "reason", "reward", "tokens")
SHOWN = (*COUNTED, "text", "answer", "detail")
MAX_TOKENS = 1 << 17  # of one draw; longer ones count as this long

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tally:
    """Draws of one iteration."""

    counts: Mapping[tuple[int, int, str, str], int]  # by stage, attempt, prompt, reason; "" is kept
    lengths: Mapping[bool, Ints]  # by kept or not: numbers of draws with 0, 1, 2 ... tokens
    num_problems: int
    # one row per problem, None if not needed: problem_id; plain, its draws under the plain prompt;
    # right, the right ones among them; kept, 1 if any draw was kept, else 0
    problems: Any

    def quantile(self, kept: bool, share: float) -> float | None:
        """Return a quantile of tokens per draw, of kept or refused draws; None if there are no draws."""
        counts = self.lengths[kept]
        total = counts.sum()
        return float(np.searchsorted(counts.cumsum(), share * total)) if total else None

    def mean_length(self, kept: bool) -> float:
        """Return the mean number of tokens per draw; nan if there are no draws."""
        counts = self.lengths[kept]
        return float(counts @ np.arange(len(counts)) / counts.sum()) if counts.sum() else math.nan

    @property
    def num_draws(self) -> int:
        return sum(self.counts.values())


@dataclass(frozen=True)
class Pick:
    """A draw shown in the report."""

    iteration: int
    problem_id: str
    prompt_kind: str
    stage: int
    _: KW_ONLY
    index: int
    text: str
    answer: str
    reason: str
    detail: str
    reward: float
    num_tokens: int


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


def batches(
    paths: Sequence[Path], columns: Sequence[str], notes: list[str]
) -> Iterator[tuple[Path, int, Any]]:
    """Yield the rows of shards in batches: path, number of the first row, record batch.

    Unreadable shards are noted and skipped.
    """
    for path in paths:
        try:
            with pq.ParquetFile(pa.memory_map(str(path))) as file:
                missing = {*columns} - {*file.schema_arrow.names}
                if missing:
                    raise pa.ArrowInvalid(f"no column {', '.join(sorted(missing))}")
                start = 0
                for batch in file.iter_batches(BATCH, columns=list(columns)):
                    yield path, start, batch
                    start += batch.num_rows
        except (OSError, pa.ArrowException) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            notes.append(f"{path} can't be read, and its draws are left out: {reason}")


def tally(folder: Path, iteration: int, notes: list[str], picker: DrawPicker | None = None) -> Tally:
    """Count the draws of a folder of shards; the picker sees each batch."""
    counts: Counter[tuple[int, int, str, str]] = Counter()
    lengths = {kept: np.zeros(MAX_TOKENS + 1, np.int64) for kept in (False, True)}
    problems = []
    for path, start, batch in batches(shards(folder), COUNTED, notes):
        table = pa.table(batch)
        by = ("stage", "index", "prompt_kind", "reason")
        grouped = table.group_by(list(by)).aggregate([([], "count_all")])
        names = [grouped[name].to_pylist() for name in (*by, "count_all")]
        for stage, index, prompt, reason, number in zip(*names, strict=True):
            counts[stage, index, prompt, reason] += number
        kept = pc.equal(table["reason"], "")
        long = pc.fill_null(pc.list_value_length(table["tokens"]), 0).to_numpy()
        for accepted, held in lengths.items():
            own = long[kept.to_numpy() == accepted]
            held += np.bincount(np.minimum(own, MAX_TOKENS), minlength=MAX_TOKENS + 1)
        problems.append(_by_problem(table, kept))
        if picker is not None:
            picker.look(path, start, iteration, table)
    together = _together(problems)
    return Tally(counts, lengths, together.num_rows if together else 0, together)


def _by_problem(table: Any, kept: Any) -> Any:
    plain = pc.equal(table["prompt_kind"], "plain")
    # as in evaluate.is_right
    full = pc.and_(
        pc.greater_equal(table["reward"], 1.0), pc.is_in(table["reason"], pa.array(["", "wrong"]))
    )
    columns = {"plain": plain, "right": pc.and_(plain, full), "kept": kept}
    numbers = {name: pc.cast(column, pa.int32()) for name, column in columns.items()}
    return _summed(pa.table({"problem_id": table["problem_id"], **numbers}))


def _summed(table: Any) -> Any:
    found = table.group_by("problem_id").aggregate([("plain", "sum"), ("right", "sum"), ("kept", "max")])
    names = [name.removesuffix("_sum").removesuffix("_max") for name in found.column_names]
    return found.rename_columns(names)


def _together(parts: Sequence[Any]) -> Any:
    return _summed(pa.concat_tables(parts, promote_options="permissive")) if parts else None


# --- the sample


@dataclass
class DrawPicker:
    """A picker of the draws with the smallest seeds of each prompt and reason: a reproducible sample."""

    each: int
    found: dict[tuple[str, str], list[tuple[int, Path, int, int]]] = field(default_factory=dict)

    def look(self, path: Path, start: int, iteration: int, table: Any) -> None:
        seeds = table["seed"].to_numpy()
        for key, rows in _rows_by(table["prompt_kind"], table["reason"]).items():
            first = rows[np.argsort(seeds[rows], kind="stable")[: self.each]]
            own = [(int(seeds[row]), path, start + int(row), iteration) for row in first]
            self.found[key] = sorted([*self.found.get(key, []), *own])[: self.each]

    def picks(self, notes: list[str]) -> list[Pick]:
        """Return the picked draws by prompt and reason, kept ones first."""
        wanted: dict[Path, list[int]] = defaultdict(list)
        for _, path, row, _ in (each for found in self.found.values() for each in found):
            wanted[path].append(row)
        rows: dict[tuple[Path, int], Mapping[str, Any]] = {}
        for path, start, batch in batches([*wanted], SHOWN, notes):
            own = [row for row in wanted[path] if start <= row < start + batch.num_rows]
            taken = batch.take(pa.array([row - start for row in own], pa.int64())).to_pylist()
            rows |= {(path, row): values for row, values in zip(own, taken, strict=True)}
        return [
            _pick(rows[path, row], iteration)
            for key in sorted(self.found, key=lambda key: (key[1] != "", key[0] != "plain", key))
            for _, path, row, iteration in self.found[key]
            if (path, row) in rows
        ]


def _rows_by(prompts: Any, reasons: Any) -> dict[tuple[str, str], Ints]:
    """Return the row numbers of each prompt and reason."""
    first, second = (pc.dictionary_encode(each.combine_chunks()) for each in (prompts, reasons))
    names = [(p, r) for p in first.dictionary.to_pylist() for r in second.dictionary.to_pylist()]
    codes = first.indices.to_numpy() * len(second.dictionary) + second.indices.to_numpy()
    made = {name: np.flatnonzero(codes == code) for code, name in enumerate(names)}
    return {name: rows for name, rows in made.items() if len(rows)}


def _pick(row: Mapping[str, Any], iteration: int) -> Pick:
    names = (
        "problem_id",
        "prompt_kind",
        "stage",
        "index",
        "text",
        "answer",
        "reason",
        "detail",
        "reward",
    )
    own = {name: row[name] for name in names}
    return Pick(iteration, **own, num_tokens=len(row["tokens"] or ()))


# --- difficulty

DIFFICULTY = ("never", "up to half", "over half", "always")


def by_difficulty(base: Any, later: Any) -> dict[str, tuple[int, int]]:
    """Count the problems that a later iteration kept, and all of them, by the base's success rate.

    `base` and `later` are `Tally.problems`; a level is a range of the share of right draws of the base
    under the plain prompt. Empty levels are left out, and so are problems missing in either iteration.
    """
    asked = base.filter(pc.greater(base["plain"], 0))
    share = pc.divide(pc.cast(asked["right"], pa.float64()), asked["plain"])
    level = np.searchsorted([1e-9, 0.5 + 1e-9, 1.0], share.to_numpy(), side="right")
    known = pa.table({"problem_id": asked["problem_id"], "level": level})
    both = known.join(later.select(["problem_id", "kept"]), "problem_id", join_type="inner")
    levels, kept = both["level"].to_numpy(), both["kept"].to_numpy()
    return {
        name: (int(kept[levels == number].sum()), int((levels == number).sum()))
        for number, name in enumerate(DIFFICULTY)
        if (levels == number).any()
    }
