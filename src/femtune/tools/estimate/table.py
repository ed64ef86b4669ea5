"""An estimate as a table with notes, or as plain values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from femtune._util.text import span
from femtune.mstep.disk import sized
from femtune.tools.estimate.estimate import RunEstimate
from femtune.tools.estimate.formulas import (
    Phase,
)
from femtune.tools.estimate.memory import Memory


def as_json(estimate: RunEstimate) -> dict[str, Any]:
    """Return the estimate as plain values: seconds, bytes, FLOPs, tokens."""
    made = asdict(estimate)
    for name in ("engine", "training"):
        memory: Memory = getattr(estimate, name)
        made[name] |= {"total": memory.total, "fits": memory.fits}
    del made["shape"]["adapter"]
    made["job"]["asking"]["draws"] = estimate.job.asking.draws
    hours = estimate.device_hours
    more = {
        "seconds": estimate.seconds,
        "device_hours": hours,
        "money": _money(estimate, estimate.seconds),
    }
    return made | more


def _money(estimate: RunEstimate, seconds: float) -> float | None:
    return None if estimate.price is None else seconds * estimate.num_devices / 3600 * estimate.price


def table(estimate: RunEstimate) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows for an iteration and the run."""
    columns = ["", "draws", "tokens", "prompt tokens", "FLOPs", "time"]
    columns += ["money"] if estimate.price is not None else []
    rows = []
    iterations = estimate.job.iterations
    for title, phases in (("an iteration", estimate.each), (f"{iterations} iterations", estimate.whole)):
        rows += [_row(estimate, f"{title}: {name}", phase) for name, phase in phases.items()]
    total = Phase()
    for phase in estimate.whole.values():
        total = total.plus(phase)
    rows.append(_row(estimate, "the run", replace(total, tokens=0.0, prompt_tokens=0.0)))
    return columns, rows


def _row(estimate: RunEstimate, name: str, phase: Phase) -> list[str]:
    counts = [
        f"{value:,.0f}" if value else "" for value in (phase.draws, phase.tokens, phase.prompt_tokens)
    ]
    row = [name, *counts, f"{phase.flops:.1e}" if phase.flops else "", span(phase.seconds)]
    money = _money(estimate, phase.seconds)
    return row if money is None else [*row, f"{money:,.2f}"]


def notes(estimate: RunEstimate) -> Iterator[str]:
    """Yield the notes below the table."""
    job, device = estimate.job, estimate.device
    asked = job.asking
    yield (
        f"{asked.draws:.2f} draws a problem, {asked.kept:.0%} of problems kept, "
        f"{job.tokens_per_draw:.0f} tokens a draw, {estimate.rows} written at a time; "
        f"{estimate.device_hours:,.2f} device-hours on {estimate.num_devices} x {device.name}"
        + ("; --price 2.5 adds the cost" if estimate.price is None else "")
    )
    yield f"memory of a device: {device.memory / 1e9:.0f} GB"
    for name, memory in (("engine", estimate.engine), ("M-step", estimate.training)):
        parts = ", ".join(f"{part} {_gigabytes(size)}" for part, size in memory.parts.items())
        verdict = "fits" if memory.fits else "DOES NOT FIT"
        yield f"  {name}: {_gigabytes(memory.total)} ({parts}): {verdict}"
    disk = estimate.disk
    yield f"disk: models {sized(disk.models)}, draws {sized(disk.draws)}"
    told = {"!": estimate.advice, "assumed:": estimate.assumed, "measured:": estimate.measured}
    for title, lines in told.items():
        yield from (f"{title} {line}" for line in lines)


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
