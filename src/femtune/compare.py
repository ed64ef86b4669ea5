"""The paper's experiment as one command: schemes on the same problems, seeds and settings, in one table.

Each run is an ordinary run directory, made by the same code as `train`; they are worked off by as many
processes as the machine has room for. What is stored is not done again.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from femtune.commands import Result, run_place, run_train
from femtune.config import Data, Train, held_out, make_asker, plan, read_problems
from femtune.errors import ConfigError, FemtuneError
from femtune.evaluate import sound_steps
from femtune.progress import Quiet
from femtune.rewards import as_reward
from femtune.run import readable, replacing
from femtune.types import Problem

# Two-sided 95% quantiles of Student's t by degrees of freedom; beyond 10 seeds the normal one is near.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclass(frozen=True)
class Job:
    """One run of a comparison."""

    scheme: str
    seed: int
    output_dir: Path
    settings: Train


@dataclass(frozen=True)
class State:
    """Where a run is."""

    iteration: int = 0
    doing: str = "waiting"  # the phase that is on; "" between two
    accuracy: tuple[float, ...] = ()  # by evaluation


@dataclass(frozen=True)
class Row:
    """One line of the table: means over seeds, with half-widths of 95% intervals (nan for one seed)."""

    name: str
    values: dict[str, tuple[float, float]]


def jobs(schemes: Sequence[str], seeds: int, settings: Train, output_dir: Path) -> list[Job]:
    """Every scheme with every seed; longest first is not known, so as given. Raises ConfigError."""
    if seeds < 1:
        raise ConfigError(f"seeds must be at least 1, got {seeds}.")
    made: list[Job] = []
    for seed in range(settings.seed, settings.seed + seeds):
        for spec in schemes:
            name = plan(replace(settings, scheme=spec)).scheme.name
            if any((name, seed) == (job.scheme, job.seed) for job in made):
                raise ConfigError(f"scheme {name} is given twice: once is enough.")
            place = output_dir / f"{name.replace('(', '-').rstrip(')')}-seed{seed}"
            made.append(Job(name, seed, place, replace(settings, scheme=spec, seed=seed)))
    return made


def compare(
    data: Data,
    model: str,
    todo: Sequence[Job],
    *,
    workers: int | None = None,
    watch: Callable[[dict[Job, State]], None] = lambda states: None,
) -> dict[Job, list[dict[str, Any]]]:
    """Run all jobs and give each one's history.

    `watch` is told about four times a second where each run is. Problems and directories are checked
    before the first run starts. Raises what the first run that fails raises, with the run named, after
    the others that had begun are done.
    """
    _check(data, model, todo)
    import torch  # after the checks: it is slow to import

    workers = workers or (1 if torch.cuda.is_available() else min(len(todo), os.cpu_count() or 1))
    threads = max(1, torch.get_num_threads() // workers)
    spawn = multiprocessing.get_context("spawn")  # fork and torch's threads do not go together
    others = {*multiprocessing.active_children()}
    with ProcessPoolExecutor(workers, spawn, _begin, (os.getpid(), threads)) as pool:
        futures: dict[Job, Future[Result]] = {
            job: pool.submit(run_train, data, model, job.settings, job.output_dir, Quiet())
            for job in todo
        }
        try:
            while not all(future.done() for future in futures.values()):
                watch({job: state(job.output_dir) for job in todo})
                if any(future.done() and future.exception() for future in futures.values()):
                    pool.shutdown(cancel_futures=True)
                time.sleep(0.25)
            watch({job: state(job.output_dir) for job in todo})
            return _histories(futures)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in {*multiprocessing.active_children()} - others:  # what is stored stays
                worker.terminate()
            raise


def _begin(parent: int, threads: int) -> None:
    """In each worker: its share of the cores, and an end when its parent is gone, killed say.

    Ctrl-C is for the parent, which ends its workers.
    """
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _check(data: Data, model: str, todo: Sequence[Job]) -> None:
    """Refuse at once what a run would refuse."""
    settings = todo[0].settings
    reward = as_reward(settings.reward)
    problems = read_problems(data, settings, reward)
    for job in todo:
        sides = held_out(problems, job.settings, reward)
        run_place(job.output_dir, "train", data, model, job.settings, *sides)
    make_asker(model, settings, reward, *held_out(problems, settings, reward))


def _histories(futures: dict[Job, Future[Result]]) -> dict[Job, list[dict[str, Any]]]:
    """Of runs that are done or cancelled. Raises the first failure, with the run's name."""
    for job, future in futures.items():
        error = None if future.cancelled() else future.exception()
        if isinstance(error, FemtuneError):
            raise type(error)(f"{job.scheme}, seed {job.seed}: {error}") from error
        if error is not None:
            raise error
    return {job: future.result().history for job, future in futures.items()}


def rows(histories: dict[Job, list[dict[str, Any]]]) -> list[Row]:
    """The base and each scheme, in the order of the jobs."""
    by_scheme: dict[str, list[list[dict[str, Any]]]] = {}
    for job, history in histories.items():
        by_scheme.setdefault(job.scheme, []).append(history)
    first = next(iter(by_scheme.values()))
    base = Row("base", _mean([_measures(history[:1]) for history in first]))
    return [
        base,
        *(Row(name, _mean([_measures(h) for h in group])) for name, group in by_scheme.items()),
    ]


def _measures(history: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The numbers of a run: of its last evaluation, and summed over its iterations."""
    evaluations: list[dict[str, float]] = [h["evaluation"] for h in history if "evaluation" in h]
    last = evaluations[-1] if evaluations else {}
    names = ("accuracy", "mae", "sound_steps", "tokens_per_draw")
    measures = {name: last[name] for name in names if name in last}
    steps = [h for h in history if "e_step" in h]
    if steps:
        measures["kept_share"] = fmean(h["e_step"]["kept_share"] for h in steps)
        measures["generated_tokens"] = sum(h["e_step"]["generated_tokens"] for h in steps)
        measures["seconds"] = sum(h["e_step"]["total_s"] + h["m_step"]["seconds"] for h in steps)
    return measures


def _mean(runs: Sequence[dict[str, float]]) -> dict[str, tuple[float, float]]:
    return {
        name: (fmean(run[name] for run in runs), _half_width([run[name] for run in runs]))
        for name in runs[0]
        if all(name in run for run in runs)  # no sound steps, say, where nothing could be parsed
    }


def _half_width(values: Sequence[float]) -> float:
    """Half the 95% interval of a mean over seeds, by Student's t."""
    if len(values) < 2:
        return math.nan
    return _T.get(len(values) - 1, 1.96) * stdev(values) / math.sqrt(len(values))


TITLES = {
    "accuracy": "accuracy",
    "mae": "MAE",
    "sound_steps": "sound steps",
    "kept_share": "kept",
    "generated_tokens": "tokens drawn",
    "seconds": "seconds",
    "tokens_per_draw": "rationale tokens",
}


def table(lines: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Titles and cells, as text: numbers with their half-width where there are several seeds."""
    names = [name for name in TITLES if any(name in line.values for line in lines)]
    cells = [[line.name, *(_cell(name, line.values.get(name)) for name in names)] for line in lines]
    return ["", *(TITLES[name] for name in names)], cells


def _cell(name: str, value: tuple[float, float] | None) -> str:
    if value is None:
        return "–"
    digits = {"generated_tokens": 0, "seconds": 0, "tokens_per_draw": 1, "mae": 2}.get(name, 3)
    mean, half = value
    return f"{mean:,.{digits}f}" + ("" if math.isnan(half) else f" ±{half:,.{digits}f}")


def save(output_dir: Path, histories: dict[Job, list[dict[str, Any]]]) -> Path:
    """Store the table, and each run's numbers by seed, as compare.json."""
    path = output_dir / "compare.json"
    value = {
        "table": {row.name: {k: v[0] for k, v in row.values.items()} for row in rows(histories)},
        "runs": [
            {"scheme": job.scheme, "seed": job.seed, "base": _measures(h[:1]), **_measures(h)}
            for job, h in histories.items()
        ],
    }
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=2) + "\n")
    return path


def telling(
    problems: Sequence[Problem], before: Sequence[Any], after: Sequence[Any], num: int
) -> list[Any]:
    """Problems whose draws show the change best: wrong before, right after, sound, of many steps."""
    old = {draw.key.problem_id: draw for draw in before}
    new = {draw.key.problem_id: draw for draw in after}

    def merit(problem: Problem) -> tuple[bool, bool, int]:
        draw = new[problem.id]
        steps = sound_steps(draw, problem)
        mended = draw.accepted and not old[problem.id].accepted
        return mended, steps is None or all(steps), len(steps or ())

    chosen = sorted(problems, key=merit, reverse=True)[:num]
    return [(problem, old[problem.id], new[problem.id]) for problem in chosen]


def state(folder: Path) -> State:
    """What a run is doing, from its log."""
    try:
        with (folder / "log.jsonl").open() as file:
            events = [*readable(file)]
    except OSError:
        return State()
    done = [event for event in events if event["event"] == "iteration"]
    accuracy = [event["evaluation"]["accuracy"] for event in done if "evaluation" in event]
    if not events:
        return State(0, "loading")
    doing = "" if events[-1]["event"] == "iteration" else events[-1]["event"]
    return State(events[-1]["iteration"], doing, tuple(accuracy))
