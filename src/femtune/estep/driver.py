"""The E-step's one driver, the same for every scheme.

Problems are worked off in chunks; a chunk's draws are stored before the next begins. A chunk is also
a worker's lease: the same chunk gives the same requests in the same order, hence the same batches, bit
for bit. (With `overlap` chunks run into each other, and draws are the same up to rounding.) Draws of the
chunk that is open are in its journal as soon as they are graded, so that a kill costs none of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from femtune._util import interrupts
from femtune.errors import EngineError
from femtune.estep.journal import Journal, remove_journal
from femtune.estep.pipeline import overlapped
from femtune.estep.scheduler import Chunk, Lease, OpenChunk, Sampler
from femtune.runs.draws import write_draws
from femtune.types import Draw, Engine, Generates, Problem, Request, Scheme

RunFacts = Callable[[Sequence[Draw]], None]
Choose = Callable[[int, Sequence[Problem]], Sequence[Problem]]  # of a chunk: those that are asked


def e_step(
    problems: Sequence[Problem],
    scheme: Scheme,
    sampler: Sampler,
    *,
    iteration: int,
    place: Callable[[int], Path] | None = None,
    on_draws: RunFacts = lambda draws: None,
    choose: Choose = lambda index, problems: problems,
) -> Iterator[Chunk]:
    """Draw from q(. | x, y*) chunk by chunk, for the problems that `choose` says, by default all.

    `place(index)` says where a chunk is stored: one that is there already is left out, another is there
    before it is given. `on_draws` sees draws as they are graded, for progress; of several workers, a
    chunk at a time. Holds one chunk's draws, with overlap a few. Chunks come in their order. Raises what
    the engine or the grading raises, and Stopped where that is requested: see interrupts.py.
    """
    leases = missing(problems, scheme, sampler, iteration, place, choose)
    if not isinstance(sampler.engine, Generates):
        with interrupts.finishing("what the workers have in flight"):
            for chunk in sampler.engine.work_off(leases):
                on_draws(chunk.draws)
                yield chunk
    elif sampler.overlap:
        with interrupts.finishing("the draws in flight"):
            for lease, chunk in overlapped(leases, sampler, sampler.engine, on_draws):
                store(lease, chunk)
                yield chunk
    else:
        for lease in leases:
            whole = sampler.resume == "chunks"
            with interrupts.finishing("this chunk of problems" if whole else "the draws in flight"):
                yield work_off(lease, sampler, sampler.engine, on_draws)


def missing(
    problems: Sequence[Problem],
    scheme: Scheme,
    sampler: Sampler,
    iteration: int,
    place: Callable[[int], Path] | None,
    choose: Choose,
) -> Iterator[Lease]:
    """The chunks that are not stored yet; those that are have no journal afterwards."""
    for index, begin in enumerate(range(0, len(problems), sampler.chunk_size)):
        where = place(index) if place else None
        if where is not None and where.exists():
            remove_journal(where)  # a kill came between the shard and this
        else:
            yield Lease(
                index,
                choose(index, problems[begin : begin + sampler.chunk_size]),
                scheme,
                sampler.sampling,
                iteration,
                place=where,
                demos=sampler.demos,
                force=sampler.force,
            )


def work_off(
    lease: Lease, sampler: Sampler, engine: Engine, on_draws: RunFacts = lambda draws: None
) -> Chunk:
    """Draw for a chunk's problems, by themselves, and store the draws where the lease says.

    Resumes the chunk's journal, where there is one. Raises Stopped once that is requested and what is in
    flight is stored.
    """
    opened = OpenChunk(lease, sampler)
    started = time.perf_counter()
    own_s = 0.0
    with open_journal(lease, sampler) as journal:
        engine_s, total_s = journal.spent_s if journal else (0.0, 0.0)
        if journal and (known := opened.take_up(journal.draws)):
            on_draws(known)

        def spent_s() -> tuple[float, float]:
            passed = time.perf_counter() - started
            return engine_s + passed - own_s, total_s + passed

        def pull(room: int) -> list[Request]:
            nonlocal own_s
            if interrupts.stop_requested() and sampler.resume == "draws":
                return []  # the engine ends when it has written what it has
            begun = time.perf_counter()
            requests = opened.pull(room)
            own_s += time.perf_counter() - begun
            return requests

        try:
            for finished in engine.generate(pull, replace(lease.sampling, cut=sampler.cut)):
                begun = time.perf_counter()
                draws = opened.grade(opened.settle(finished))
                if journal:
                    journal.append(draws, spent_s())
                opened.enter(draws)
                on_draws(draws)
                own_s += time.perf_counter() - begun
        except EngineError:
            interrupts.check()  # an engine whose own processes a Ctrl-C has reached, too
            raise

    if lost := opened.unanswered():
        interrupts.check()
        raise EngineError(f"the engine ended without an answer for {len(lost)} problems: {lost[:3]}.")
    chunk = Chunk(lease.index, opened.draws, *spent_s())
    store(lease, chunk)
    return chunk


def open_journal(lease: Lease, sampler: Sampler) -> Journal | nullcontext[None]:
    """Return the journal of a chunk that is stored somewhere, unless the whole chunk is redrawn."""
    if lease.place is None:
        return nullcontext()
    if sampler.resume == "chunks":
        remove_journal(lease.place)
        return nullcontext()
    return Journal(lease.place)


def store(lease: Lease, chunk: Chunk) -> None:
    """Write a chunk's draws where its lease says, and end its journal."""
    if lease.place is not None:
        timing = {"engine_s": chunk.engine_s, "total_s": chunk.total_s}
        write_draws(lease.place, chunk.draws, timing)
        remove_journal(lease.place)
