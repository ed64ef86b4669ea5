"""Run directories as the report needs them: settings, history, state, and groups of similar runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from femtune.data.row_report import ROWS, RowReport, read_reports
from femtune.errors import ConfigError, DataError, RunError
from femtune.evaluation.rationales import FILE as RATIONALES
from femtune.metric_types import (
    EStepMetrics,
    EvaluationMetrics,
    IterationMetrics,
    MStepMetrics,
    RationaleMetrics,
)
from femtune.reporting.page.texts import name, setting
from femtune.runs.checkpoints import best_of, is_out_of_patience
from femtune.runs.run import read_log, stored_config
from femtune.schemes.serialization import describe

BY_VOTE = ("votes", "fem-votes")  # baselines whose accuracy is that of the vote
BASELINES = {
    "majority": "the most frequent answer",
    "direct": "the base without reasons",
    "base": "the base",
    "examples": "the base with worked examples",
    "votes": "the base by vote",
    "fem-votes": "the trained model by vote",
    "answer-only": "trained on answers alone",
    "regression": "regression",
    "grpo": "GRPO",
    "rloo": "RLOO",
    "latro": "LaTRO",
}


@dataclass(frozen=True)
class Record:
    """One run in its current state, finished or not."""

    root: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    history: tuple[IterationMetrics, ...]  # metrics.json of each completed iteration, in order
    _: KW_ONLY
    events: tuple[Mapping[str, Any], ...]  # from log.jsonl, without metrics
    rows: Mapping[str, RowReport] = field(default_factory=dict)  # by problems and eval
    notes: tuple[str, ...] = ()  # what could not be read

    @property
    def scheme(self) -> str:
        """Return the name of the scheme, such as rejection(4), or baseline; "" without draws."""
        stored = self.config.get("scheme_data")
        own = stored.get("name") if isinstance(stored, Mapping) else self.config.get("scheme")
        return name(str(own or ""))

    @property
    def is_baseline(self) -> bool:
        return self.scheme in BASELINES

    @property
    def seed(self) -> int:
        return int(self.config.get("seed") or 0)

    @property
    def planned(self) -> int:
        """Return the requested iterations; for an evaluation or a baseline, the existing ones."""
        asked = self.config.get("iterations")
        if asked is None or self.is_baseline:
            return max((each["iteration"] for each in self.history), default=0)
        return int(asked)

    @property
    def num_problems(self) -> int:
        """Return the number of training problems; an iteration may ask a subset of them."""
        try:
            return int(pq.read_metadata(self.root / "problems.parquet").num_rows)
        except (OSError, pa.ArrowException):
            return max((step.get("num_problems") or 0 for step in self.e_steps().values()), default=0)

    @property
    def done(self) -> int:
        return max((each["iteration"] for each in self.history), default=0)

    @property
    def finished(self) -> bool:
        patience = int(self.config.get("patience") or 0)
        return bool(self.history) and (
            self.done >= self.planned or is_out_of_patience(self.history, patience)
        )

    def evaluations(self) -> dict[int, EvaluationMetrics]:
        """Return evaluations by iteration; 0 is the base."""
        return {m["iteration"]: m["evaluation"] for m in self.history if m.get("evaluation")}

    @property
    def shown_iteration(self) -> int:
        """Return the evaluated iteration that stands for the run: the best, else the last.

        A run without a development part has no other best one. Raises ValueError without evaluations.
        """
        best = best_of(self.history) if self.history else 0
        return best if best in self.evaluations() else max(self.evaluations())

    def with_examples(self) -> EvaluationMetrics | None:
        """Return the base's evaluation with worked examples in its prompts, or None."""
        found = (m.get("evaluation_demos") for m in self.history)
        return next((each for each in found if each), None)

    def e_steps(self) -> dict[int, EStepMetrics]:
        return {m["iteration"]: m["e_step"] for m in self.history if m.get("e_step")}

    def m_steps(self) -> dict[int, MStepMetrics]:
        return {m["iteration"]: m["m_step"] for m in self.history if m.get("m_step")}


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed: one line of a comparison."""

    label: str
    runs: tuple[Record, ...]
    is_baseline: bool = False


@dataclass(frozen=True)
class Found:
    """The runs that a report shows, grouped."""

    groups: tuple[Group, ...]
    notes: tuple[str, ...] = field(default=())  # from compare.json, and about unreadable files
    ladder: Mapping[str, Any] = field(default_factory=dict)  # ladder.json, {} without one

    @property
    def schemes(self) -> list[Group]:
        return [group for group in self.groups if not group.is_baseline]

    @property
    def runs(self) -> list[Record]:
        return [run for group in self.groups for run in group.runs]


def find(places: Sequence[Path]) -> Found:
    """Return the runs in these places: each a run directory, or a folder of run directories.

    Raises RunError if there are no runs.
    """
    records: list[Record] = []
    notes: list[str] = []
    order: list[str] = []
    climbed: dict[str, Any] = {}
    for place in places:
        roots = [place] if (place / "config.yaml").is_file() else _runs_in(place)
        records += [read_record(root) for root in roots]
        compared = _json(place / "compare.json", notes)
        order += [name for name in compared.get("table", {}) if isinstance(name, str)]
        notes += [str(note) for note in compared.get("notes", [])]
        climbed = climbed or _json(place / "ladder.json", notes)
    notes += [note for record in records for note in record.notes]
    records.sort(key=lambda run: order.index(run.scheme) if run.scheme in order else len(order))
    return Found(_grouped(records), tuple(notes), climbed)


def _runs_in(folder: Path) -> list[Path]:
    if not folder.exists():
        raise RunError(f"{folder} does not exist. Give the --output-dir of a train, compare or demo.")
    try:
        roots = sorted(config.parent for config in folder.glob("*/config.yaml"))
    except OSError as error:
        raise RunError(f"{folder} can't be read: {error.strerror or error}.") from error
    if not roots:
        raise RunError(
            f"{folder} holds no run: give the --output-dir of a train, compare or demo, "
            "which has a config.yaml, or directories with one."
        )
    return roots


def read_record(root: Path) -> Record:
    """Read a run, finished or not. Raises RunError if its configuration cannot be read."""
    config = stored_config(root)
    notes: list[str] = []
    history = [
        _with_rationales(cast(IterationMetrics, _json(path, notes)), path.with_name(RATIONALES), notes)
        for path in sorted(root.glob("iteration-*/metrics.json"))
    ]
    return Record(
        root,
        config,
        _json(root / "environment.json", notes),
        tuple(sorted((m for m in history if isinstance(m.get("iteration"), int)), key=_iteration)),
        events=_events(root),
        rows=_rows(root / ROWS, notes),
        notes=tuple(notes),
    )


def _rows(path: Path, notes: list[str]) -> dict[str, RowReport]:
    """Return the reports on a run's rows; damage is noted."""
    try:
        return read_reports(path)
    except DataError as error:
        notes.append(str(error))
        return {}


def _with_rationales(metrics: IterationMetrics, path: Path, notes: list[str]) -> IterationMetrics:
    """Return an iteration's metrics with those that the base's reading gave, where it is done."""
    if worth := _json(path, notes):
        metrics["rationales"] = cast(RationaleMetrics, worth)
    return metrics


def _json(path: Path, notes: list[str]) -> dict[str, Any]:
    """Return a file's JSON object, {} if the file does not exist; damage is noted."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        notes.append(f"{path} can't be read, and is left out: {error}")
        return {}
    return value if isinstance(value, dict) else {}


def _iteration(metrics: IterationMetrics) -> int:
    return metrics["iteration"]


def _events(root: Path) -> tuple[dict[str, Any], ...]:
    """Return the events of a run, without those that only mark a session."""
    names = ("time", "event", "iteration")
    events = [event for event in read_log(root) if event.get("event") != "session"]
    return tuple({name: event.get(name) for name in names} for event in events)


def _grouped(records: Sequence[Record]) -> tuple[Group, ...]:
    """Group runs: baselines first, then in the given order; runs of a group by seed."""
    together: dict[str, list[Record]] = {}
    for record in records:
        own = {key: value for key, value in record.config.items() if key not in ("seed", "scheme")}
        alike = json.dumps([record.scheme, own], sort_keys=True, default=str)
        together.setdefault(alike, []).append(record)
    groups = [sorted(runs, key=lambda run: run.seed) for runs in together.values()]
    schemes = [runs[0].scheme for runs in groups]
    made = [
        Group(_label(runs[0], schemes.count(runs[0].scheme) == 1), tuple(runs), runs[0].is_baseline)
        for runs in groups
    ]
    order = [*BASELINES]
    return tuple(
        sorted(made, key=lambda g: order.index(g.runs[0].scheme) if g.is_baseline else len(order))
    )


def _label(record: Record, alone: bool) -> str:
    """Return the scheme if it names one group; else the directory."""
    known = BASELINES.get(record.scheme, record.scheme)
    if alone and known:
        return known
    return name(record.root.resolve().name) + (f" ({known})" if known else "")


def differing(records: Sequence[Record]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return the settings that all runs share, and those that differ, with a value for each run."""
    names = list(dict.fromkeys(key for record in records for key in record.config))
    values = {key: [_shown(key, record.config.get(key)) for record in records] for key in names}
    same = {key: each[0] for key, each in values.items() if len({*each}) == 1}
    return same, {key: each for key, each in values.items() if key not in same}


def _shown(key: str, value: Any) -> str:
    """Return a setting as text, a stored scheme in words."""
    if key != "scheme_data" or not isinstance(value, Mapping):
        return setting(value)
    try:
        return describe(value)
    except ConfigError as error:
        return str(error)
