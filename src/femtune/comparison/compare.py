"""The paper's experiment as one command: schemes on the same problems, seeds and settings, in one table.

Baselines (`baselines`) run beside the schemes, to show whether learning to reason helps. Each run has
its own directory, made by the same code as `train` or by `run_baseline`. As many processes work on them
as the machine has room for. Stored results are not computed again.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from multiprocessing.synchronize import Event
from pathlib import Path

from femtune._util import interrupts
from femtune.comparison.baseline_draws import Baseline
from femtune.comparison.baselines import (
    ONCE,
    Reinforced,
    baseline_settings,
    check,
    run_baseline,
)
from femtune.config import RL, Train
from femtune.engines.model_files import local_model
from femtune.errors import ConfigError, EngineError, FemtuneError, NothingKept
from femtune.metric_types import History
from femtune.reporting.terminal import Quiet
from femtune.resolve import Data, held_out, make_loop_config, named_scheme, read_inputs
from femtune.run_folder import check_storable, choose_peft, run_place
from femtune.runs.run import read_log
from femtune.sampler import make_sampler_builder
from femtune.schemes.named import spelled_out
from femtune.types import Scheme
from femtune.workflows.train import run_train
from femtune.workflows.worked_examples import without_held_out

PHASES = (
    "E-step",
    "M-step",
    "evaluation",
    "bound",
    "iteration",
)  # events of a log that show the state of a run


@dataclass(frozen=True)
class Job:
    """One run of a comparison."""

    scheme: str  # or the baseline
    seed: int
    output_dir: Path
    settings: Train
    # the scheme if it was given as an object; None: its name stands in the settings
    scheme_object: Scheme | None = field(default=None, compare=False, repr=False)

    @property
    def is_baseline(self) -> bool:
        return isinstance(self.settings, Baseline)

    @property
    def iterates(self) -> bool:
        """Return True if the run has iterations: schemes, and reinforcement learning."""
        return not self.is_baseline or isinstance(self.settings, Reinforced)

    @property
    def num_iterations(self) -> int | None:
        """Return the number of iterations; None if a budget of tokens ends the run."""
        has_budget = isinstance(self.settings, Reinforced) and self.settings.rl_tokens is not None
        return None if has_budget else self.settings.iterations


@dataclass(frozen=True)
class State:
    """The current state of a run."""

    iteration: int = 0
    doing: str = "waiting"  # the current phase; "" between two
    accuracy: tuple[float, ...] = ()  # by evaluation


def jobs(
    schemes: Sequence[str | Scheme],
    seeds: int,
    settings: Train,
    output_dir: Path,
    baselines: Sequence[str] = (),
    draws: int = 16,
    rl: RL | None = None,
) -> list[Job]:
    """Return jobs for the baselines, with `draws` draws, and every scheme and seed. Raises ConfigError.

    Schemes are names or objects. `rl` holds the settings of baselines by reinforcement learning.
    """
    if seeds < 1:
        raise ConfigError(f"seeds must be at least 1, got {seeds}.")
    numbers = range(settings.seed, settings.seed + seeds)
    made: list[Job] = []
    for name in baselines:
        for seed in numbers[:1] if name in ONCE else numbers:
            own = replace(baseline_settings(name, settings, draws, rl), seed=seed)
            place = output_dir / (name if name in ONCE else f"{name}-seed{seed}")
            made.append(Job(name, seed, place, own))
    for seed in numbers:
        for spec in schemes:
            given = None if isinstance(spec, str) else spec
            if given is not None:
                check_storable(given)
            called = spelled_out(spec, settings.m_step) if isinstance(spec, str) else spec.name
            named = replace(settings, scheme=called, seed=seed)
            name = make_loop_config(replace(named, soft_accept=None), given).scheme.name
            if any((name, seed) == (job.scheme, job.seed) for job in made):
                raise ConfigError(f"scheme {name} is given twice: remove one.")
            place = output_dir / f"{folder_name(name)}-seed{seed}"
            made.append(Job(name, seed, place, named, given))
    return made


def folder_name(scheme: str) -> str:
    """Return a scheme's name as a part of a path.

    >>> folder_name("pps(4)+reasons(0.5)"), folder_name("rejection(4)")
    ('pps-4-reasons-0.5', 'rejection-4')
    """
    return re.sub(r"[^\w.]+", "-", scheme).strip("-.")


def compare(
    data: Data,
    model: str,
    todo: Sequence[Job],
    *,
    workers: int | None = None,
    watch: Callable[[dict[Job, State]], None] = lambda states: None,
) -> dict[Job, History]:
    """Run all jobs and return each one's history.

    `watch` receives the state of each run about four times a second. Problems and directories are
    checked before the first run starts. A run that keeps nothing has the history
    [{"nothing_kept": why}], and the others continue; NothingKept is raised if every scheme keeps
    nothing. If a run fails otherwise, the started runs finish, and its error is raised with the run's
    name. Raises EngineError if a run's process is killed. Raises Stopped after a stop request, once all
    runs have stored their finished work.
    """
    _check(data, model, todo)
    import torch  # after the checks: it is slow to import

    shared = torch.cuda.is_available() or any(job.settings.ray_workers for job in todo)
    workers = workers or (1 if shared else min(len(todo), os.cpu_count() or 1))
    threads = max(1, torch.get_num_threads() // workers)
    spawn = multiprocessing.get_context("spawn")  # fork and torch's threads do not go together
    others = {*multiprocessing.active_children()}
    stop = spawn.Event()
    with ProcessPoolExecutor(workers, spawn, _begin, (os.getpid(), threads, stop)) as pool:
        futures: dict[Job, Future[History]] = {job: pool.submit(_run, data, model, job) for job in todo}
        try:
            with interrupts.finishing("what the runs have in flight"):
                while not all(future.done() for future in futures.values()):
                    watch({job: state(job.output_dir) for job in todo})
                    if interrupts.stop_requested():
                        stop.set()
                    if stop.is_set() or any(map(_ended_badly, futures.values())):
                        pool.shutdown(wait=False, cancel_futures=True)
                    time.sleep(0.25)
            watch({job: state(job.output_dir) for job in todo})
            return _histories(futures)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in {*multiprocessing.active_children()} - others:  # stored results stay
                worker.kill()
            raise


class _Worker:
    """The state of a worker process: True if a run is active, True if it must end after the run."""

    busy = False
    ends = False


def _run(data: Data, model: str, job: Job) -> History:
    _Worker.busy = True
    try:
        interrupts.check()
        if isinstance(job.settings, Baseline):
            return run_baseline(data, model, job.settings, job.output_dir)
        done = run_train(data, model, job.settings, job.output_dir, Quiet(), scheme=job.scheme_object)
        return done.history
    finally:
        _Worker.busy = False
        if _Worker.ends:
            os._exit(128 + signal.SIGTERM)


def _end(number: int, frame: object) -> None:
    """Handle SIGTERM, which schedulers send to all processes: store the work in progress first."""
    _Worker.ends = True
    interrupts.request_stop(number)
    if not _Worker.busy:
        os._exit(128 + number)


def _ended_badly(future: Future[History]) -> bool:
    """Return True if this result ends the comparison."""
    return (
        future.done()
        and not future.cancelled()
        and not isinstance(future.exception(), NothingKept | None)
    )


def _begin(parent: int, threads: int, stop: Event) -> None:
    """Set up a worker: its share of the cores, and an exit if its parent is gone, for example killed.

    The parent handles Ctrl-C and notifies its workers by `stop`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    import torch

    torch.set_num_threads(threads)

    def watch() -> None:
        while os.getppid() == parent:
            if stop.wait(0.5):
                interrupts.request_stop(signal.SIGINT)
                time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _check(data: Data, model: str, todo: Sequence[Job]) -> None:
    """Refuse early what a run would refuse."""
    settings = next((job.settings for job in todo if not job.is_baseline), todo[0].settings)
    asked = read_inputs(data, settings, model=model)
    for job in todo:
        if isinstance(job.settings, Baseline):
            check(asked, data, model, job.settings, job.output_dir)
            continue
        own = replace(asked, settings=replace(asked.settings, scheme=job.settings.scheme, seed=job.seed))
        own = replace(own, settings=choose_peft(own.settings, local_model(model), job.output_dir))
        make_loop_config(own.settings, job.scheme_object)
        parts = held_out(own, data, model)
        place, demos = job.output_dir, without_held_out(own, [*parts.dev, *parts.test]).demos
        run_place(
            place,
            "train",
            data,
            model,
            own.settings,
            *parts.groups,
            reward=own.reward,
            demos=demos,
            scheme=job.scheme_object or named_scheme(own.settings),
        )
    make_sampler_builder(model, asked, *held_out(asked, data, model).groups)


def _histories(futures: dict[Job, Future[History]]) -> dict[Job, History]:
    """Return the histories of finished runs. Raises the first failure, with the run's name."""
    errors = {job: None if each.cancelled() else each.exception() for job, each in futures.items()}
    all_empty = all(isinstance(e, NothingKept) for job, e in errors.items() if not job.is_baseline)
    any_scheme = not all(job.is_baseline for job in futures)
    for job, error in errors.items():
        if isinstance(error, BrokenProcessPool):
            raise EngineError(
                f"the process of a run was killed, probably of {job.scheme}, seed {job.seed}. The usual "
                "cause is lack of memory: give fewer --workers. In a script, call compare below "
                '`if __name__ == "__main__":`. Finished work is stored; run the same command to '
                "resume."
            ) from error
        if isinstance(error, NothingKept) and not (all_empty and any_scheme):
            continue
        if isinstance(error, FemtuneError):
            raise type(error)(f"{job.scheme}, seed {job.seed}: {error}") from error
        if error is not None:
            raise error
    return {
        job: [{"nothing_kept": str(errors[job])}] if errors[job] else future.result()
        for job, future in futures.items()
    }


def state(folder: Path) -> State:
    """Return the state of a run, from its log."""
    if not (folder / "log.jsonl").exists():
        return State()
    events = [
        event
        for event in read_log(folder)
        if event.get("event") in PHASES and isinstance(event.get("iteration"), int)
    ]
    done = [event for event in events if event["event"] == "iteration"]
    measured = [event["evaluation"] for event in done if isinstance(event.get("evaluation"), dict)]
    accuracy = [each["accuracy"] for each in measured if isinstance(each.get("accuracy"), float)]
    if not events:
        return State(0, "loading")
    doing = "" if events[-1]["event"] == "iteration" else events[-1]["event"]
    return State(events[-1]["iteration"], str(doing), tuple(accuracy))
