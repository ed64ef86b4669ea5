"""Trackers named by `report_to`: one experiment for each run, continued when the run is resumed.

    tensorboard   event files in RUN/tensorboard
    wandb         Weights & Biases; project WANDB_PROJECT, else femtune
    mlflow        server MLFLOW_TRACKING_URI; experiment MLFLOW_EXPERIMENT_NAME, else femtune
    trackio       project TRACKIO_PROJECT, else femtune

Each receives the loss of every optimizer step, counted over all M-steps, the numbers in each iteration's
metrics.json, and a table of some completions. Only named trackers receive anything. RUN/trackers.json
stores the name of the run in each tracker, and how many of its iterations were logged.

transformers' callbacks are not used: they treat every M-step as a new experiment or restart at step 1.
Neither are accelerate's trackers: they start a new experiment even if a run is resumed.
"""

from __future__ import annotations

import heapq
import json
import logging
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import pyarrow.parquet as pq
import yaml

from femtune._util import markdown
from femtune._util.atomic_files import write_json
from femtune.data.prompts import prompt_text
from femtune.errors import ConfigError
from femtune.loop import Progress
from femtune.metric_types import IterationMetrics, interval, measure
from femtune.runs.draws import read_draws
from femtune.types import Draw

log = logging.getLogger("femtune")

NUM_COMPLETIONS = 16  # logged in a table from each E-step and each evaluation
_PROJECT = "femtune"
Row = dict[str, Any]  # a row of a table: all rows have the same names


class Tracker(Protocol):
    """One experiment in a tracker. An exception disables the tracker, and the run continues."""

    key: str  # the tracker's id of the experiment

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Log an optimizer step, number `step` of the run."""

    def iteration(self, iteration: int, step: int, values: Mapping[str, float], rows: list[Row]) -> None:
        """Log a completed iteration, after `step` optimizer steps of the run."""

    def close(self, failed: bool) -> None:
        """Close the experiment for this process."""


def check_trackers(names: Sequence[str]) -> None:
    """Raise ConfigError for a tracker that is not installed, before a run starts."""
    for name in names:
        found = find_spec(name)
        if found is None or found.origin is None:  # wandb leaves a folder ./wandb, which is no package
            raise ConfigError(f"report_to {name} needs {name}: pip install {name}.")


@contextmanager
def tracking(
    names: Sequence[str], root: Path, config: Mapping[str, Any], progress: Progress
) -> Iterator[Progress]:
    """Yield a progress that also logs to trackers; without trackers, `progress` itself.

    `root` is the run's directory, which may not exist yet. Raises ConfigError if a tracker cannot start.
    """
    if not names:
        yield progress
        return
    state = root / "trackers.json"
    known = json.loads(state.read_text()) if state.exists() else {}
    told = {name: known.get(name, {}).get("told", 0) for name in names}
    found: dict[str, Tracker] = {}
    failed = True
    try:
        for name in names:
            found[name] = _opened(name, known.get(name, {}).get("key"), root, config)
        yield Tracked(progress, found, root, told)
        failed = False
    finally:
        for name, tracker in found.items():
            _try(name, partial(tracker.close, failed))


def _opened(name: str, key: str | None, root: Path, config: Mapping[str, Any]) -> Tracker:
    try:
        with redirect_stdout(sys.stderr):
            return _OPEN[name](key, root, config)
    except Exception as error:  # each tracker has its own exception classes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"report_to {name} could not start: {reason}") from error


def _try(name: str, tell: Callable[[], None]) -> bool:
    try:
        with redirect_stdout(sys.stderr):  # a tracker's messages are not part of the output
            tell()
    except Exception as error:
        log.warning("%s failed; logging to it is disabled for this run: %r", name, error)
        return False
    return True


class Tracked:
    """Progress that is shown first and then logged to trackers."""

    def __init__(
        self, shown: Progress, trackers: dict[str, Tracker], root: Path, told: dict[str, int]
    ) -> None:
        self._shown, self._trackers, self._root, self._told = shown, trackers, root, told
        self._steps = 0  # optimizer steps of completed M-steps

    def phase(self, name: str, iteration: int, total: int) -> None:
        self._shown.phase(name, iteration, total)

    def draws(self, draws: Sequence[Draw]) -> None:
        self._shown.draws(draws)

    def step(self, step: int, steps: int, loss: float) -> None:
        self._shown.step(step, steps, loss)
        self._tell(lambda tracker: tracker.step(self._steps + step, {"train/loss": loss}))

    def measured(self, iteration: int, metrics: IterationMetrics) -> None:
        self._shown.measured(iteration, metrics)
        self._steps += metrics.get("m_step", {}).get("num_steps", 0)
        late = [name for name in self._trackers if self._told[name] <= iteration]
        if late:
            values, rows = numbers(metrics), completions(self._root, iteration)
            self._tell(lambda tracker: tracker.iteration(iteration, self._steps, values, rows), late)
            self._told |= dict.fromkeys(set(late) & self._trackers.keys(), iteration + 1)
            self._store()

    def _tell(self, tell: Callable[[Tracker], None], names: Sequence[str] | None = None) -> None:
        for name in list(self._trackers if names is None else names):
            tracker = self._trackers[name]
            if not _try(name, partial(tell, tracker)):
                del self._trackers[name]

    def _store(self) -> None:
        path = self._root / "trackers.json"
        before = json.loads(path.read_text()) if path.exists() else {}
        now = {name: {"key": t.key, "told": self._told[name]} for name, t in self._trackers.items()}
        write_json(path, before | now)


# --- logged values


def numbers(metrics: IterationMetrics) -> dict[str, float]:
    """Return the numbers of an iteration's metrics by section, with both ends of intervals.

    >>> numbers({"evaluation": {"accuracy": 0.5, "accuracy_ci": [0.4, 0.6]}})
    {'evaluation/accuracy': 0.5, 'evaluation/accuracy_low': 0.4, 'evaluation/accuracy_high': 0.6}
    """
    found: dict[str, float] = {}
    sections: dict[str, Mapping[str, object]] = {
        "e_step": metrics.get("e_step", {}),
        "m_step": metrics.get("m_step", {}),
        "development": metrics.get("development", {}),
        "evaluation": metrics.get("evaluation", {}),
        "posterior": metrics.get("posterior", {}),
    }
    for section, values in sections.items():
        for name in values:
            if (value := measure(values, name)) is not None:
                found[f"{section}/{name}"] = value
            if ends := interval(values, name):
                found |= {f"{section}/{name}_low": ends[0], f"{section}/{name}_high": ends[1]}
    for prompt, reasons in metrics.get("e_step", {}).get("reasons", {}).items():
        found |= {f"e_step/reasons/{prompt}/{reason}": float(n) for reason, n in reasons.items()}
    return found


def completions(root: Path, iteration: int) -> list[Row]:
    """Return the draws of an iteration with the smallest seeds: a random sample, as seeds are hashes."""
    rows = []
    for phase, kind, data in (("E-step", "draws", "problems"), ("evaluation", "eval", "eval")):
        folder = root / f"iteration-{iteration:03}" / kind
        every = (draw for draws, _ in read_draws(folder) for draw in draws)
        chosen = heapq.nsmallest(NUM_COMPLETIONS, every, key=lambda draw: draw.seed)
        if not chosen:
            continue
        ids = [draw.key.problem_id for draw in chosen]
        columns = ["id", "prompt", "answer"]
        table = pq.read_table(root / f"{data}.parquet", columns=columns, filters=[("id", "in", ids)])
        problems = {row["id"]: row for row in table.to_pylist()}
        rows += [_row(draw, problems[draw.key.problem_id], phase) for draw in chosen]
    return rows


def _row(draw: Draw, problem: Mapping[str, Any], phase: str) -> Row:
    return {
        "iteration": draw.key.iteration,
        "phase": phase,
        "problem": draw.key.problem_id,
        "question": prompt_text(problem["prompt"]),
        "correct": problem["answer"],
        "asked": draw.prompt_kind,
        "rationale": draw.score.rationale or draw.completion.text,
        "answer": draw.score.answer,
        "reward": draw.score.reward,
        "refused": draw.score.reason,
    }


# --- trackers


class TensorBoard:
    """TensorBoard: metrics are plotted over iterations, the loss over steps."""

    def __init__(self, key: str | None, root: Path, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.key = "tensorboard"
        self.writer: Any = SummaryWriter(str(root / "tensorboard"))
        if key is None:
            settings = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
            self.writer.add_text("config", "\n".join(f"    {line}" for line in settings.splitlines()))

    def step(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def iteration(self, iteration: int, step: int, values: Mapping[str, float], rows: list[Row]) -> None:
        self.step(iteration, values)
        if rows:
            self.writer.add_text("completions", _markdown_table(rows), iteration)
        self.writer.flush()

    def close(self, failed: bool) -> None:
        self.writer.close()


def _markdown_table(rows: list[Row]) -> str:
    cells = [
        ["<br>".join(map(markdown.text, str(v).splitlines())) for v in row.values()] for row in rows
    ]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


class Wandb:
    """Weights & Biases: a resumed run continues the same experiment."""

    def __init__(self, key: str | None, root: Path, config: Mapping[str, Any]) -> None:
        import wandb

        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=root.name,
            id=key or uuid.uuid4().hex[:12],
            resume="allow",
            dir=str(root),
            config=dict(config),
            settings=wandb.Settings(console="off", quiet=True),  # console output is not sent
        )
        self.key = str(self.run.id)
        self.run.define_metric("train/*", step_metric="step")
        for section in ("e_step", "m_step", "evaluation", "posterior"):
            self.run.define_metric(f"{section}/*", step_metric="iteration")

    def step(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log({**values, "step": step})

    def iteration(self, iteration: int, step: int, values: Mapping[str, float], rows: list[Row]) -> None:
        import wandb

        told: dict[str, Any] = {**values, "iteration": iteration, "step": step}
        if rows:
            told["completions"] = wandb.Table(list(rows[0]), [list(row.values()) for row in rows])
        self.run.log(told)

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


class Mlflow:
    """MLflow through its client, which has no global active run that other code could log to."""

    def __init__(self, key: str | None, root: Path, config: Mapping[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        from mlflow import MlflowClient

        self.client: Any = MlflowClient()
        if key is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
            there = self.client.get_experiment_by_name(name)
            experiment = there.experiment_id if there else self.client.create_experiment(name)
            key = str(self.client.create_run(experiment, run_name=root.name).info.run_id)
            self.client.log_dict(key, dict(config), "config.yaml")
            for setting, value in config.items():
                self.client.log_param(key, setting, str(value)[:500])
        else:
            self.client.update_run(key, status="RUNNING")
        self.key = key

    def step(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self.client.log_batch(
            self.key, [Metric(name, value, now, step) for name, value in values.items()]
        )

    def iteration(self, iteration: int, step: int, values: Mapping[str, float], rows: list[Row]) -> None:
        self.step(iteration, values)
        if rows:
            columns = {name: [row[name] for row in rows] for name in rows[0]}
            self.client.log_table(self.key, columns, "completions.json")  # adds to the file's rows

    def close(self, failed: bool) -> None:
        self.client.set_terminated(self.key, "FAILED" if failed else "FINISHED")


class Trackio:
    """trackio: its runs have one axis, the steps."""

    def __init__(self, key: str | None, root: Path, config: Mapping[str, Any]) -> None:
        import trackio

        self.key = key or f"{root.name}-{uuid.uuid4().hex[:6]}"
        self.run: Any = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", _PROJECT),
            name=self.key,
            resume="allow",
            config=dict(config),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def step(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def iteration(self, iteration: int, step: int, values: Mapping[str, float], rows: list[Row]) -> None:
        import trackio

        told: dict[str, Any] = {**values, "iteration": iteration}
        if rows:
            told["completions"] = trackio.Table(
                columns=list(rows[0]), data=[list(row.values()) for row in rows], allow_mixed_types=True
            )
        self.run.log(told, step=step)

    def close(self, failed: bool) -> None:
        import trackio

        trackio.finish()  # not the run's own finish, which would run again at exit


_OPEN: dict[str, Callable[[str | None, Path, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": Mlflow,
    "trackio": Trackio,
}
