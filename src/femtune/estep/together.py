"""Draws under several prompts at once: a lease for each set of worked examples, one stored shard.

The driver works off one lease after another. Here all are open together, so that sets of few problems
fill the engine's batches, and a server's open requests, as one set of many does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from femtune._util import interrupts
from femtune.errors import EngineError
from femtune.estep.journal import Journal, remove_journal
from femtune.estep.scheduler import Chunk, Lease, OpenChunk, Sampler
from femtune.runs.draws import write_draws
from femtune.types import Draw, Engine, Generates, Request

Keyed = TypeVar("Keyed", Request, Draw)


def work_off_together(
    leases: Sequence[Lease],
    sampler: Sampler,
    place: Path,
    on_draws: Callable[[Sequence[Draw]], None] = lambda draws: None,
) -> Chunk:
    """Draw for all leases at once, and store their draws in one shard at `place`.

    Each lease draws once for a problem, with worked examples of its own; the index in the key of a draw
    is the number of its lease. Draws are in a journal as soon as they are graded, and one that is there
    is resumed; workers of a pool store none before the shard. Raises what the engine or the grading
    raises, and Stopped where that is requested.
    """
    begun = time.perf_counter()
    if sampler.resume == "chunks":
        remove_journal(place)
    if isinstance(sampler.engine, Generates):
        with closing(Journal(place)) as journal, interrupts.finishing("the draws in flight"):
            before = journal.spent_s[1]
            draws = _drawn(leases, sampler, sampler.engine, journal, on_draws)
    else:
        before, draws = 0.0, []
        with interrupts.finishing("what the workers have in flight"):
            for part in sampler.engine.work_off(leases):
                on_draws(part.draws)
                draws += [_indexed(draw, part.index) for draw in part.draws]
    total_s = before + time.perf_counter() - begun
    chunk = Chunk(0, draws, total_s, total_s)
    write_draws(place, chunk.draws, {"engine_s": total_s, "total_s": total_s})
    remove_journal(place)
    return chunk


def _drawn(
    leases: Sequence[Lease],
    sampler: Sampler,
    engine: Engine,
    journal: Journal,
    on_draws: Callable[[Sequence[Draw]], None],
) -> list[Draw]:
    begun, before = time.perf_counter(), journal.spent_s[1]
    opened = [OpenChunk(lease, sampler) for lease in leases]
    for number, chunk in enumerate(opened):
        own = [_indexed(draw, 0) for draw in journal.draws if draw.key.index == number]
        if known := chunk.take_up(own):
            on_draws(known)

    def pull(room: int) -> list[Request]:
        requests: list[Request] = []
        for number, chunk in enumerate(opened):
            if interrupts.stop_requested() or len(requests) == room:
                break
            requests += [_indexed(each, number) for each in chunk.pull(room - len(requests))]
        return requests

    try:
        for finished in engine.generate(pull, replace(leases[0].sampling, cut=sampler.cut)):
            parts: list[tuple[int, OpenChunk, list[Draw]]] = []
            for number, chunk in enumerate(opened):
                ended = [(_indexed(r, 0), made) for r, made in finished if r.key.index == number]
                if ready := chunk.settle(ended) if ended else []:
                    parts.append((number, chunk, chunk.grade(ready)))
            if draws := [_indexed(draw, number) for number, _, own in parts for draw in own]:
                spent_s = before + time.perf_counter() - begun
                journal.append(draws, (spent_s, spent_s))  # first of all, as it is paid for
                for _, chunk, graded in parts:
                    chunk.enter(graded)
                on_draws(draws)
    except EngineError:
        interrupts.check()
        raise
    if lost := [name for chunk in opened for name in chunk.unanswered()]:
        interrupts.check()
        raise EngineError(f"the engine ended without an answer for {len(lost)} problems: {lost[:3]}.")
    return [_indexed(draw, number) for number, chunk in enumerate(opened) for draw in chunk.draws]


def _indexed(keyed: Keyed, number: int) -> Keyed:
    """Return a request or a draw with this index: its lease's number outside of the lease, 0 within."""
    return replace(keyed, key=replace(keyed.key, index=number))
