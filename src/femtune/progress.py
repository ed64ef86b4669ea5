"""How a run is shown: bars in a terminal, lines elsewhere, JSON for programs, or nothing."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from femtune.types import Draw
from femtune.words import visible

Show = Literal["auto", "lines", "json", "quiet"]

console = Console(markup=False, emoji=False)
errors = Console(stderr=True, markup=False, emoji=False)
if not console.is_terminal and "COLUMNS" not in os.environ:
    console.width = 120  # a file or a pipe has no width: rich's 80 would break tables


def literal(said: object, style: str = "") -> Text:
    """What is said, to be shown as it stands: its markup is text, and it can't act on the terminal.

    All that is printed goes through this, as it may hold data, a model's words or a file's.
    """
    return Text(visible(str(said)), style)


def framed(content: Text, title: str) -> Panel:
    """A frame with a title."""
    return Panel(content, title=literal(title), title_align="left")


class Quiet:
    """Tells nobody; the others tell more."""

    def phase(self, name: str, iteration: int, total: int) -> None: ...

    def draws(self, draws: Sequence[Draw]) -> None: ...

    def step(self, step: int, steps: int, loss: float) -> None: ...

    def measured(self, iteration: int, metrics: dict[str, Any]) -> None: ...


class Lines(Quiet):
    """A line an iteration."""

    def measured(self, iteration: int, metrics: dict[str, Any]) -> None:
        console.print(iteration_line(metrics), soft_wrap=True)


class JsonLines(Quiet):
    """A JSON object an iteration."""

    def measured(self, iteration: int, metrics: dict[str, Any]) -> None:
        print(json.dumps(metrics), flush=True)


class Bars(Lines):
    """A bar for the phase that is on, with rate, kept share and reasons of refusal so far."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task = bars.add_task("loading", total=None, note="")
        self._reasons: Counter[str] = Counter()
        self._problems: set[str] = set()
        self._kept: set[str] = set()
        self._grading = False

    def phase(self, name: str, iteration: int, total: int) -> None:
        self._reasons.clear()
        self._problems.clear()
        self._kept.clear()
        self._grading = name == "E-step"
        label = f"iteration {iteration} {name}"
        self._bars.reset(self._task, total=total or None, description=label, note="")

    def draws(self, draws: Sequence[Draw]) -> None:
        for draw in draws:
            self._reasons[draw.score.reason or "kept"] += 1
            self._problems.add(draw.key.problem_id)
            if draw.accepted:
                self._kept.add(draw.key.problem_id)
        shown = {
            "right" if r == "kept" and not self._grading else r: n for r, n in self._reasons.items()
        }
        note = ", ".join(f"{reason} {count}" for reason, count in sorted(shown.items()))
        self._bars.update(self._task, completed=len(self._problems), note=note)

    def step(self, step: int, steps: int, loss: float) -> None:
        self._bars.update(self._task, completed=step, total=steps, note=f"loss {loss:.3f} nats a token")


@contextmanager
def showing(show: Show) -> Iterator[Quiet]:
    """Progress as asked for; "auto" is bars where the output is a terminal, else lines."""
    if show == "auto" and console.is_terminal:
        with Progress(
            TextColumn("{task.description:<24}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            transient=True,
        ) as bars:
            yield Bars(bars)
    else:
        yield {"quiet": Quiet, "json": JsonLines}.get(show, Lines)()


_HEIGHTS = "▁▂▃▄▅▆▇█"


def sparkline(shares: Sequence[float]) -> str:
    """Shares from 0 to 1 as bars.

    >>> sparkline([0.0, 0.5, 1.0])
    '▁▅█'
    """
    return "".join(_HEIGHTS[min(7, int(share * 8))] for share in shares)


# What is shown of an evaluation beside its accuracy: title and digits.
SHOWN = {
    "spearman": ("Spearman", 3),
    "mae": ("MAE", 2),
    "position_consistency": ("consistency", 3),
    "sound_steps": ("sound steps", 3),
}


def iteration_line(metrics: dict[str, Any]) -> Text:
    """An iteration in a line: what was kept, what it cost, how good the model is now."""
    parts = ["base       " if metrics["iteration"] == 0 else f"iteration {metrics['iteration']}"]
    if e_step := metrics.get("e_step"):
        parts.append(f"kept {e_step['num_kept']}/{e_step['num_problems']} problems")
        parts.append(f"{e_step['generated_tokens']:,} tokens")
        parts.append(f"{e_step['total_s'] + metrics['m_step']['seconds']:.1f} s")
    if evaluation := metrics.get("evaluation"):
        low, high = evaluation.get("accuracy_ci", (None, None))
        interval = f" ({low:.3f} to {high:.3f})" if low is not None else ""
        parts.append(f"accuracy {evaluation['accuracy']:.3f}{interval}")
        for name, (title, digits) in SHOWN.items():
            if evaluation.get(name) is not None:
                parts.append(f"{title} {evaluation[name]:.{digits}f}")
    return literal("  ".join(parts))


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table whose first column is text and whose others are numbers."""
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(literal(column), justify="right" if number else "left", no_wrap=number == 0)
    for row in rows:
        table.add_row(*map(literal, row))
    return table
