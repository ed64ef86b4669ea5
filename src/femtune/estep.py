"""The E-step's one driver, the same for every scheme.

Problems are worked off in chunks; a chunk's draws are stored before the next begins. A chunk is also
the unit of a resume, and of a worker's lease: the same chunk gives the same requests in the same order,
hence the same batches, bit for bit. (With `overlap` chunks run into each other, and draws are the same
up to rounding.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from femtune.chunks import Chunk, Lease, OpenChunk, Setup
from femtune.errors import EngineError
from femtune.overlap import overlapped
from femtune.run import write_draws
from femtune.types import Draw, Engine, Problem, Request, Scheme

Told = Callable[[Sequence[Draw]], None]


def e_step(
    problems: Sequence[Problem],
    scheme: Scheme,
    setup: Setup,
    *,
    iteration: int,
    place: Callable[[int], Path] | None = None,
    on_draws: Told = lambda draws: None,
) -> Iterator[Chunk]:
    """Draw from q(. | x, y*) chunk by chunk.

    `place(index)` says where a chunk is stored: one that is there already is left out, another is there
    before it is given. `on_draws` sees draws as they are graded, for progress; of several workers, a
    chunk at a time. Holds one chunk's draws, with overlap a few. Chunks come in their order. Raises what
    the engine or the grading raises.
    """
    leases = missing(problems, scheme, setup, iteration, place)
    if not isinstance(setup.engine, Engine):
        for chunk in setup.engine.work_off(leases):
            on_draws(chunk.draws)
            yield chunk
    elif setup.overlap:
        for lease, chunk in overlapped(leases, setup, setup.engine, on_draws):
            store(lease, chunk)
            yield chunk
    else:
        for lease in leases:
            chunk = work_off(lease, setup, setup.engine, on_draws)
            store(lease, chunk)
            yield chunk


def missing(
    problems: Sequence[Problem],
    scheme: Scheme,
    setup: Setup,
    iteration: int,
    place: Callable[[int], Path] | None,
) -> Iterator[Lease]:
    """The chunks that are not stored yet."""
    for index, begin in enumerate(range(0, len(problems), setup.chunk_size)):
        where = place(index) if place else None
        if where is None or not where.exists():
            some = problems[begin : begin + setup.chunk_size]
            yield Lease(index, some, scheme, setup.sampling, iteration, where)


def work_off(lease: Lease, setup: Setup, engine: Engine, on_draws: Told = lambda draws: None) -> Chunk:
    """Draw for a chunk's problems, by themselves."""
    opened = OpenChunk(lease, setup)
    started = time.perf_counter()
    own_s = 0.0

    def pull(room: int) -> list[Request]:
        nonlocal own_s
        begun = time.perf_counter()
        requests = opened.pull(room)
        own_s += time.perf_counter() - begun
        return requests

    for finished in engine.generate(pull, lease.sampling):
        begun = time.perf_counter()
        draws = opened.grade(finished)
        opened.enter(draws)
        on_draws(draws)
        own_s += time.perf_counter() - begun

    if lost := opened.unanswered():
        raise EngineError(f"the engine ended without an answer for {len(lost)} problems: {lost[:3]}.")
    total_s = time.perf_counter() - started
    return Chunk(lease.index, opened.draws, total_s - own_s, total_s)


def store(lease: Lease, chunk: Chunk) -> None:
    """Write a chunk's draws where its lease says."""
    if lease.place is not None:
        timing = {"engine_s": chunk.engine_s, "total_s": chunk.total_s}
        write_draws(lease.place, chunk.draws, timing)
