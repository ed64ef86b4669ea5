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


def as_json(outlook: RunEstimate) -> dict[str, Any]:
    """Return the estimate as plain values: seconds, bytes, FLOPs, tokens."""
    made = asdict(outlook)
    for name in ("engine", "training"):
        memory: Memory = getattr(outlook, name)
        made[name] |= {"total": memory.total, "fits": memory.fits}
    del made["shape"]["adapter"]
    made["job"]["asking"]["draws"] = outlook.job.asking.draws
    hours = outlook.device_hours
    more = {"seconds": outlook.seconds, "device_hours": hours, "money": _money(outlook, outlook.seconds)}
    return made | more


def _money(outlook: RunEstimate, seconds: float) -> float | None:
    return None if outlook.price is None else seconds * outlook.num_devices / 3600 * outlook.price


def table(outlook: RunEstimate) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows for an iteration and the run."""
    columns = ["", "draws", "tokens", "prompt tokens", "FLOPs", "time"]
    columns += ["money"] if outlook.price is not None else []
    rows = []
    iterations = outlook.job.iterations
    for title, phases in (("an iteration", outlook.each), (f"{iterations} iterations", outlook.whole)):
        rows += [_row(outlook, f"{title}: {name}", phase) for name, phase in phases.items()]
    total = Phase()
    for phase in outlook.whole.values():
        total = total.plus(phase)
    rows.append(_row(outlook, "the run", replace(total, tokens=0.0, prompt_tokens=0.0)))
    return columns, rows


def _row(outlook: RunEstimate, name: str, phase: Phase) -> list[str]:
    counts = [
        f"{value:,.0f}" if value else "" for value in (phase.draws, phase.tokens, phase.prompt_tokens)
    ]
    row = [name, *counts, f"{phase.flops:.1e}" if phase.flops else "", span(phase.seconds)]
    money = _money(outlook, phase.seconds)
    return row if money is None else [*row, f"{money:,.2f}"]


def notes(outlook: RunEstimate) -> Iterator[str]:
    """Yield the notes below the table."""
    job, device = outlook.job, outlook.device
    asked = job.asking
    yield (
        f"{asked.draws:.2f} draws a problem, {asked.kept:.0%} of problems kept, "
        f"{job.tokens_per_draw:.0f} tokens a draw, {outlook.rows} written at a time; "
        f"{outlook.device_hours:,.2f} device-hours on {outlook.num_devices} x {device.name}"
        + ("; --price 2.5 adds the cost" if outlook.price is None else "")
    )
    yield f"memory of a device: {device.memory / 1e9:.0f} GB"
    for name, memory in (("engine", outlook.engine), ("M-step", outlook.training)):
        parts = ", ".join(f"{part} {_gigabytes(size)}" for part, size in memory.parts.items())
        verdict = "fits" if memory.fits else "DOES NOT FIT"
        yield f"  {name}: {_gigabytes(memory.total)} ({parts}): {verdict}"
    disk = outlook.disk
    yield f"disk: models {sized(disk.models)}, draws {sized(disk.draws)}"
    told = {"!": outlook.advice, "assumed:": outlook.assumed, "measured:": outlook.measured}
    for title, lines in told.items():
        yield from (f"{title} {line}" for line in lines)


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
