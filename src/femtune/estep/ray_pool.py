"""Many engines at once: Ray actors that take chunks of problems as leases and store the draws.

    driver   hands out leases, one to each worker that is free; asks for workers until there are enough,
             also in place of those that died, and takes in late ones when the cluster has room
    worker   has an engine of its own; loads the weights that a lease names, draws, grades, stores

Log-probabilities are handed out as slices of the pairs to score, in the same way. A worker that crashes
loses its lease, which goes to another, with the journal of what was drawn: a chunk's
draws do not depend on who makes them. A run that is to stop leaves a file beside the shards, at whose
sight workers finish what they have in flight. All machines see the run directory, by which weights
reach the workers and draws come back.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from femtune._util import interrupts
from femtune._util.atomic_files import make_folder
from femtune.engines.weight_check import WeightCheck, serve
from femtune.errors import EngineError, FemtuneError, RunError
from femtune.estep.driver import work_off
from femtune.estep.ray_cluster import WorkerSpec, free_resources, send_user_files, start_ray
from femtune.estep.scheduler import Chunk, Lease, Sampler
from femtune.runs.draws import read_shard
from femtune.types import Asked, Capabilities, Engine, Generates

log = logging.getLogger("femtune")

MOST_DEATHS = 3  # of workers over one lease, before it is taken to be the cause
SLICE = 64  # pairs, or prefixes; fixed, so that numbers do not depend on the number of workers
AHEAD = 4  # chunks a worker that may start before the first of them is done
STARTING = -1  # stands for a lease in the count of deaths
STOPPED = "stopped"  # what a worker gives for a lease that it did not work off to its end


@dataclass(frozen=True)
class ScoreBatch:
    """Some pairs of prompt and completion, to be scored."""

    index: int
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]]


@dataclass(frozen=True)
class AskedSlice:
    """Some prefixes, whose continuations are to be scored."""

    index: int
    asked: Sequence[Asked]

    @property
    def pairs(self) -> list[tuple[Sequence[int], Sequence[int]]]:
        """Each prefix with its longest continuation."""
        return [(prefix, max(several, key=len, default=())) for prefix, several in self.asked]


Work = Lease | ScoreBatch | AskedSlice


@dataclass(frozen=True)
class Task:
    """Work, with the weights that it is to be done by."""

    work: Work
    weights: Path | None  # None: those that the engine was made with
    base_check: WeightCheck | None = None


class Worker:
    """Code that runs in an actor. Its errors reach the driver unchanged."""

    def start(self, make_engine: Callable[[], Sampler]) -> Capabilities:
        """Load the engine; return what it can do."""
        self.sampler = make_engine()
        if not isinstance(self.sampler.engine, Generates):
            raise TypeError("A worker needs an engine of its own; got a pool.")
        self.engine: Engine = self.sampler.engine
        self.serving: Path | None = None
        return self.engine.capabilities

    def do(self, task: Task) -> Chunk | list[float] | list[list[float]] | str:
        """Work by the weights that are ordered; gives what `_draw` or the engine's scoring does."""
        if task.weights != self.serving and task.weights is not None:
            if not task.weights.exists():
                raise RunError(_unseen(task.weights))
            serve(self.engine, task.weights, self.sampler.rounding, task.base_check)
            self.serving = task.weights
        work = task.work
        if isinstance(work, Lease):
            return self._draw(work)
        if isinstance(work, AskedSlice):
            return self.engine.logprobs_after(work.asked)
        return self.engine.logprob(work.pairs)

    def _draw(self, lease: Lease) -> Chunk | str:
        """Draw for a lease; gives the chunk without its draws where these are stored.

        STOPPED where the run is to stop: what was in flight is in the chunk's journal.
        """
        place = lease.place

        def on_signal(draws: object) -> None:
            if place is not None and _stop_file(place).exists():
                interrupts.request_stop()

        try:
            chunk = work_off(lease, self.sampler, self.engine, on_signal)
        except interrupts.Stopped:
            return STOPPED
        return chunk if place is None else replace(chunk, draws=[])

    def release(self) -> None:
        """Give the device's memory back."""
        self.engine.release()
        self.serving = None


@dataclass
class _WorkerHandle:
    """A worker as the driver knows it."""

    actor: Any
    doing: Any = None  # what is awaited of it
    task: Task | None = None  # None while it starts


class Pool:
    """A pool of Ray actors (see `scheduler.EnginePool`), each with an engine from `make_engine`.

    Raises ConfigError where Ray is not installed, can't be reached, or can never give what a worker
    needs.
    """

    def __init__(
        self, make_engine: Callable[[], Sampler], spec: WorkerSpec, base_check: WeightCheck | None = None
    ) -> None:
        self.ray = start_ray(spec)
        if spec.gpus is None:
            spec = replace(spec, gpus=min(1.0, self.ray.cluster_resources().get("GPU", 0.0)))
        self.spec = spec
        self.base_check = base_check
        self.weights: Path | None = None
        send_user_files(self.ray)
        self._make_engine = self.ray.put(make_engine)
        self._workers: list[_WorkerHandle] = []
        self._told = time.monotonic()
        self._capabilities: Capabilities | None = None  # None until a worker has started
        self._start_workers()

    @property
    def capabilities(self) -> Capabilities:
        """Return what the workers' engines can do; waits until one of them has started.

        Raises what a worker raises, and EngineError where MOST_DEATHS workers die as they start.
        """
        deaths = 0
        while self._capabilities is None:
            interrupts.check()
            self._start_workers()
            for worker in self._ended():
                if self._result(worker) is None:
                    self._workers.remove(worker)
                    deaths += 1
            if deaths >= MOST_DEATHS:
                raise EngineError(_too_many(None))
        return self._capabilities

    def load(self, weights: Path) -> None:
        """Name the weights of the leases to come; each worker loads and checks them with its next."""
        self.weights = weights.absolute()

    def work_off(self, leases: Iterable[Lease]) -> Iterator[Chunk]:
        """Draw for each lease; gives chunks in the order of leases, stored if these have a place.

        Raises what a worker raises, and EngineError where a lease ends MOST_DEATHS workers.
        """
        given = list(leases)  # chunks are few, and hold no copies of problems
        places = {lease.place.parent: lease.place for lease in given if lease.place is not None}
        for place in places.values():
            _stop_file(place).unlink(missing_ok=True)  # of a run that was stopped before
        yield from self._deal(given, [*places.values()])

    def logprob(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
        """Nats of each completion given its prompt, in order: see `types.Engine`.

        Raises what a worker raises, EngineError where a slice ends MOST_DEATHS workers, and Stopped
        on request, once workers have finished what they started.
        """
        slices = [
            ScoreBatch(i, pairs[at : at + SLICE]) for i, at in enumerate(range(0, len(pairs), SLICE))
        ]
        return [logprob for part in self._deal(slices, []) for logprob in part]

    def logprobs_after(self, asked: Sequence[Asked]) -> list[list[float]]:
        """Nats of each continuation after its prefix, in order; raises as `logprob` does."""
        places = enumerate(range(0, len(asked), SLICE))
        slices = [AskedSlice(i, asked[at : at + SLICE]) for i, at in places]
        return [logprob for part in self._deal(slices, []) for logprob in part]

    def _deal(self, works: Sequence[Work], places: Sequence[Path]) -> Iterator[Any]:
        """Hand out work; yield the results in order. A request to stop is written at `places`."""
        fresh = deque(works)
        again: deque[Task] = deque()
        deaths: Counter[int] = Counter()
        begun: deque[int] = deque()  # work that is not given yet, in its order
        done: dict[int, Any] = {}
        for worker in self._workers:
            worker.task = None  # a caller that stopped has no use for it
        while fresh or begun:
            if interrupts.stop_requested():
                fresh.clear()
                again.clear()
                for place in places:
                    make_folder(place.parent)
                    _stop_file(place).touch()
                if not any(worker.task is not None for worker in self._workers):
                    interrupts.check()
            self._start_workers()
            for worker in self._workers:
                if worker.doing is None and (again or fresh):
                    if not again and len(begun) >= AHEAD * self.spec.workers:
                        break  # what is done waits in memory for the work before it
                    task = again.popleft() if again else self._task(fresh.popleft())
                    if task.work.index not in deaths:
                        begun.append(task.work.index)
                    worker.task, worker.doing = task, worker.actor.do.remote(task)
            for worker in self._ended():
                given, result = worker.task, self._result(worker)
                if result == STOPPED:
                    continue
                if result is not None and given is not None:
                    done[given.work.index] = self._stored(given.work, result)
                elif result is None:
                    self._workers.remove(worker)
                    number = given.work.index if given else STARTING
                    deaths[number] += 1
                    if deaths[number] >= MOST_DEATHS:
                        raise EngineError(_too_many(given))
                    if given is not None and not interrupts.stop_requested():
                        again.append(given)
            while begun and begun[0] in done:
                yield done.pop(begun.popleft())

    def release(self) -> None:
        """Give the workers' devices' memory back until their next lease."""
        asked = {worker.actor.release.remote(): worker.doing is None for worker in self._workers}
        for answer, waits in asked.items():
            if waits:  # the others are starting still, and come to it afterwards
                with suppress(self.ray.exceptions.RayActorError):  # dead ones are found out when used
                    self.ray.get(answer)

    def close(self) -> None:
        """End the workers, and the cluster if it was started here."""
        for worker in self._workers:
            self.ray.kill(worker.actor)
        self._workers.clear()
        if self.spec.address is None:
            self.ray.shutdown()

    def _start_workers(self) -> None:
        """Ask for workers until there are enough; Ray starts them where and when there is room."""
        while len(self._workers) < self.spec.workers:
            remote = self.ray.remote(num_cpus=self.spec.cpus, num_gpus=self.spec.gpus, max_restarts=0)
            worker = _WorkerHandle(remote(Worker).remote())
            worker.doing = worker.actor.start.remote(self._make_engine)
            self._workers.append(worker)

    def _task(self, work: Work) -> Task:
        if isinstance(work, Lease) and work.place is not None:  # a worker's folder is not ours
            work = replace(work, place=work.place.absolute())
        return Task(work, self.weights, self.base_check)

    def _ended(self) -> list[_WorkerHandle]:
        """Workers that have done what they were asked, or died of it; waits a second at most."""
        awaited = {worker.doing: worker for worker in self._workers if worker.doing is not None}
        ended, _ = self.ray.wait([*awaited], num_returns=1, timeout=1.0)
        self._warn_of_missing_workers()
        return [awaited[doing] for doing in ended]

    def _result(self, worker: _WorkerHandle) -> Any:
        """Return the result of a worker, or None if it died, and free it. Raises its error."""
        starting, doing = worker.task is None, worker.doing
        worker.doing = worker.task = None
        try:
            value = self.ray.get(doing)
        except self.ray.exceptions.RayTaskError as error:
            raise _cause(error) from None
        except self.ray.exceptions.RayActorError as error:
            what = "as it started" if starting else "over its work, which is done again"
            log.warning("a worker died %s: another takes its post (%s)", what, _brief(error))
            return None
        if starting:
            self._capabilities = value
        return True if value is None else value

    def _stored(self, work: Work, result: Any) -> Any:
        """Return the result of a task; for a chunk, its draws, read back from where they were stored."""
        if not isinstance(work, Lease) or work.place is None:
            return result
        for _ in range(50):  # a network's file system may show a new file late
            if work.place.exists():
                return replace(result, draws=read_shard(work.place)[0])
            time.sleep(0.1)
        raise RunError(_unseen(work.place))

    def _warn_of_missing_workers(self) -> None:
        """Say once a minute which workers are not there yet, as nothing else would."""
        if time.monotonic() - self._told > 60:
            self._told = time.monotonic()
            waiting = sum(w.task is None and w.doing is not None for w in self._workers)
            if waiting:
                log.warning(
                    "%d of %d workers have not started: each needs %g CPUs and %g GPUs, and of the "
                    "cluster's are free: %s",
                    *(waiting, self.spec.workers, self.spec.cpus, self.spec.gpus),
                    free_resources(self.ray),
                )


def _stop_file(place: Path) -> Path:
    """Return the file that tells workers to stop, beside the shards that they store."""
    return place.with_name(".stopping")


def _cause(error: Any) -> BaseException:
    """Return the error that a worker raised."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, FemtuneError):
        return cause
    return EngineError(f"a worker failed: {_brief(cause or error)}")


def _brief(error: Any) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


def _unseen(path: Path) -> str:
    return (
        f"{path} is not to be seen from {socket.gethostname()}: put models and the run directory on a "
        "file system that all machines share."
    )


def _too_many(task: Task | None) -> str:
    doing = "while starting"
    work = task.work if task is not None else None
    if isinstance(work, Lease):
        names = f"problems {work.problems[0].id} to {work.problems[-1].id}"
        doing = f"over chunk {work.index} ({names})"
    elif work is not None:
        longest = max(len(prompt) + len(written) for prompt, written in work.pairs)
        doing = f"scoring {len(work.pairs)} draws (the longest: {longest:,} tokens)"
    return (
        f"{MOST_DEATHS} workers died {doing}: look at Ray's logs. Out of memory is the usual cause: "
        "lower max_batch."
    )
