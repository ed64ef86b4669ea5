"""Draws that go on while the last ones are graded and stored: three threads, a queue between each.

    engine thread     generates; takes requests of the chunk that is open, and when none of its are left
                      to hand out, of the next one
    grading thread    scores what has ended
    caller's thread   stores chunks that are done

So a slow reward, a disk's flush, and the last long completions of a chunk leave no engine idle. What a
request meets in its batch now depends on time, so draws are the same only up to rounding.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from femtune._util import interrupts
from femtune.errors import EngineError
from femtune.estep.forced_answers import Finished
from femtune.estep.journal import Journal
from femtune.estep.scheduler import Chunk, Lease, OpenChunk, Sampler
from femtune.types import Draw, Engine, Request

MOST_OPEN = 2  # chunks at a time, so that memory stays flat
_END = object()


class _Stopped(Exception):
    """The caller wants no more."""


@dataclass
class _Open:
    chunk: OpenChunk
    journal: Journal | None
    begun: float = field(default_factory=time.perf_counter)

    @property
    def spent_s(self) -> float:
        """Seconds since it was opened, and those from before a run was stopped."""
        return time.perf_counter() - self.begun + (self.journal.spent_s[1] if self.journal else 0.0)


def overlapped(
    leases: Iterator[Lease],
    sampler: Sampler,
    engine: Engine,
    on_draws: Callable[[Sequence[Draw]], None],
) -> Iterator[tuple[Lease, Chunk]]:
    """Work off leases as one stream; gives each when it is done, in order.

    All leases are sampled alike. Raises what the engine, the grading or `on_draws` raises, in the
    caller's thread, and Stopped once that is requested and what is in flight is in the chunks' journals.
    """
    first = next(leases, None)
    if first is None:
        return
    work = _Stream(first, leases, sampler, engine, on_draws)
    threads = [
        threading.Thread(target=work.guarded, args=(run,), daemon=True, name=f"femtune {name}")
        for name, run in (("engine", work.generate), ("grading", work.grade))
    ]
    for thread in threads:
        thread.start()
    try:
        while (done := work.done.get()) is not _END:
            if isinstance(done, BaseException):
                raise done
            yield done
    finally:
        work.stop()
        while any(thread.is_alive() for thread in threads):
            while not work.done.empty():  # one of them may wait for room in it
                work.done.get()
            threads[0].join(timeout=0.05)
        for opened in work.open:
            if opened.journal:
                opened.journal.close()


class _Stream:
    """State shared by the threads: queues, and chunks that only the engine's thread changes."""

    def __init__(
        self,
        first: Lease,
        leases: Iterator[Lease],
        sampler: Sampler,
        engine: Engine,
        on_draws: Callable[[Sequence[Draw]], None],
    ) -> None:
        self.sampler, self.engine, self.on_draws = sampler, engine, on_draws
        self.sampling = first.sampling
        self.leases = leases
        self.open: list[_Open] = []
        self.open_chunk(first)
        self.finished: queue.Queue[Any] = queue.Queue()  # of the engine, to be graded
        self.graded: queue.Queue[Any] = queue.Queue()  # (chunk, its draws)
        # (lease, chunk), an exception, or the end; bounded, so that chunks do not pile up
        self.done: queue.Queue[Any] = queue.Queue(maxsize=1)
        self.num_writing = self.num_grading = 0  # requests with the engine, and with the grading
        self.stopped = threading.Event()

    def open_chunk(self, lease: Lease) -> _Open:
        """Start a chunk, or resume one from its journal."""
        opened = _Open(OpenChunk(lease, self.sampler), Journal(lease.place) if lease.place else None)
        if opened.journal and (known := opened.chunk.take_up(opened.journal.draws)):
            self.on_draws(known)
        self.open.append(opened)
        return opened

    def guarded(self, run: Callable[[], None]) -> None:
        """Run a thread's work; what it raises ends the stream and goes to the caller."""
        try:
            run()
        except _Stopped:
            pass
        except BaseException as error:
            self.stop()
            self.done.put(error)

    def stop(self) -> None:
        """End both threads soon."""
        self.stopped.set()
        self.finished.put(_END)
        self.graded.put(_END)

    # --- the engine's thread

    def generate(self) -> None:
        stream = self.engine.generate(self.pull, replace(self.sampling, cut=self.sampler.cut))
        try:
            for finished in stream:
                self.num_writing -= len(finished)
                ready = [
                    pair
                    for each in self.open
                    for pair in each.chunk.settle([p for p in finished if each.chunk.asked(p[0])])
                ]
                if ready:
                    self.num_grading += len(ready)
                    self.finished.put((tuple(self.open), ready))
        finally:
            getattr(stream, "close", lambda: None)()
        if lost := [name for each in self.open for name in each.chunk.unanswered()]:
            interrupts.check()
            raise EngineError(
                f"the engine ended without an answer for {len(lost)} problems: {lost[:3]}."
            )
        self.finished.put(_END)
        self.done.put(_END)

    def pull(self, room: int) -> list[Request]:
        """Requests for the engine; waits only where it has none, and answers are being graded."""
        requests: list[Request] = []
        while True:
            self.take_graded(wait=False)
            requests += self.from_chunks(room - len(requests))
            if requests or self.num_writing:
                break
            if self.num_grading:
                self.take_graded(wait=True)
            elif not (self.open and self.open[0].chunk.is_done):  # it may be, by its journal alone
                break
        self.num_writing += len(requests)
        return requests

    def from_chunks(self, room: int) -> list[Request]:
        requests: list[Request] = []
        if interrupts.stop_requested():
            return requests
        for each in self.open:
            requests += each.chunk.pull(room - len(requests))
        while len(requests) < room and len(self.open) < MOST_OPEN:
            if (lease := next(self.leases, None)) is None:
                break
            requests += self.open_chunk(lease).chunk.pull(room - len(requests))
        return requests

    def take_graded(self, wait: bool) -> None:
        """Enter what has been graded, and hand on the chunks that are done, in their order."""
        if self.stopped.is_set():
            raise _Stopped
        while wait or not self.graded.empty():
            entered = self.graded.get()
            if entered is _END:
                raise _Stopped
            wait = False
            for opened, draws in entered:
                opened.chunk.enter(draws)
                self.num_grading -= len(draws)
        while self.open and self.open[0].chunk.is_done:
            opened = self.open.pop(0)
            total_s, lease = opened.spent_s, opened.chunk.lease
            if opened.journal:
                opened.journal.close()
            # the engine was never kept waiting: all of the time is its
            self.done.put((lease, Chunk(lease.index, opened.chunk.draws, total_s, total_s)))

    # --- the grading thread

    def grade(self) -> None:
        while (given := self.finished.get()) is not _END:
            opened, finished = given
            parts: list[tuple[_Open, list[Draw]]] = []
            for each in opened:
                own: list[Finished] = [pair for pair in finished if each.chunk.asked(pair[0])]
                if own:
                    draws = each.chunk.grade(own)
                    if each.journal:
                        each.journal.append(draws, (each.spent_s, each.spent_s))
                    parts.append((each, draws))
                    self.on_draws(draws)
            self.graded.put(parts)
