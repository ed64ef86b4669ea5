"""Progress output of a run: bars in a terminal, lines elsewhere, JSON for programs, or nothing."""

from __future__ import annotations

import functools
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from rich.console import Console, RenderableType
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from femtune._util.consoles import make_printable
from femtune._util.text import span, visible
from femtune.evaluation.item_scores import describe_difference
from femtune.evaluation.paired import PairedDifference
from femtune.metric_types import DrawMetrics, EStepMetrics, IterationMetrics, measure
from femtune.reporting.iteration_table import SHOWN, Column, cells, columns_for, header
from femtune.runs.checkpoints import best_of
from femtune.types import Draw

log = logging.getLogger("femtune")

Show = Literal["auto", "lines", "json", "quiet"]


class PipeConsole(Console):
    """A console whose reader may go away, as `head` does."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would exit with status 1; `cli.main` ends the command well


@functools.cache
def console() -> Console:
    """Return the console of standard output, made at the first call."""
    made = PipeConsole(markup=False, emoji=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = 120  # a file or a pipe has no width: rich's 80 would break tables
    return made


@functools.cache
def errors() -> Console:
    """Return the console of standard error, made at the first call."""
    return Console(stderr=True, markup=False, emoji=False)


def literal(said: object, style: str = "") -> Text:
    """Return a text to be shown literally: without markup and without control of the terminal.

    All output goes through this, as it may contain data, model outputs or file contents.
    """
    return Text(visible(str(said)), style)


def framed(content: Text, title: str) -> Panel:
    """Return a frame with a title."""
    return Panel(content, title=literal(title), title_align="left")


class Quiet:
    """Progress without output; the base of the others."""

    def phase(self, name: str, iteration: int, total: int) -> None: ...

    def draws(self, draws: Sequence[Draw]) -> None: ...

    def step(self, step: int, steps: int, loss: float) -> None: ...

    def measured(self, iteration: int, metrics: IterationMetrics) -> None: ...


class Lines(Quiet):
    """Progress with one line per iteration."""

    def measured(self, iteration: int, metrics: IterationMetrics) -> None:
        console().print(iteration_line(metrics), soft_wrap=True)


class JsonLines(Quiet):
    """Progress with one JSON object per iteration."""

    def measured(self, iteration: int, metrics: IterationMetrics) -> None:
        print(json.dumps(metrics), flush=True)


class Done(MofNCompleteColumn):
    """Show how many are done of how many; nothing while that is unknown, as when a model loads."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.total is not None else Text("")


class Screen(Progress):
    """A bar for the current phase, with the last kept rationale below it."""

    said = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.said:
            line = literal(" ".join(self.said.split()), "dim")
            line.no_wrap, line.overflow = True, "ellipsis"
            yield line


def screen() -> Screen:
    """Return a bar that is removed at its end."""
    return Screen(
        TextColumn("{task.description:<24}", markup=False),
        BarColumn(bar_width=24),
        Done(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console(),
        transient=True,
    )


class Bars(Lines):
    """Progress as a bar with rates, the kept share, reasons of refusal and the last kept draw."""

    def __init__(self, bars: Screen) -> None:
        self._bars = bars
        self._task = bars.add_task("loading", total=None, note="")
        self._begin("")
        self._columns: list[Column] = []  # of the table of iterations, once its first row is known

    def _begin(self, phase: str) -> None:
        self._grading = phase == "E-step"
        self._reasons: Counter[str] = Counter()
        self._problems: set[str] = set()
        self._kept: set[str] = set()
        self._tokens = 0
        self._begun = time.monotonic()
        self._bars.said = ""

    def phase(self, name: str, iteration: int, total: int) -> None:
        self._begin(name)
        label = f"iteration {iteration} {name}"
        self._bars.reset(self._task, total=total or None, description=label, note="")

    def draws(self, draws: Sequence[Draw]) -> None:
        for draw in draws:
            self._reasons[draw.score.reason] += 1
            self._tokens += draw.completion.num_tokens
            self._problems.add(draw.key.problem_id)
            if draw.accepted:
                self._kept.add(draw.key.problem_id)
                self._bars.said = draw.completion.text if self._grading else ""
        name = "kept" if self._grading else "right"
        rate = self._tokens / max(time.monotonic() - self._begun, 1e-3)
        parts = [f"{len(self._kept) / max(1, len(self._problems)):.0%} {name}", f"{rate:,.0f} tokens/s"]
        parts += [
            f"{reason.replace('_', ' ')} {count}"
            for reason, count in sorted(self._reasons.items())
            if reason
        ]
        self._bars.update(self._task, completed=len(self._problems), note=", ".join(parts))

    def measured(self, iteration: int, metrics: IterationMetrics) -> None:
        if not self._columns:
            self._columns = columns_for(metrics, console().width)
            console().print(literal(header(self._columns), "bold"), soft_wrap=True)
        console().print(literal(cells(metrics, self._columns)), soft_wrap=True)
        for note in notes(metrics):
            console().print(literal(f"  {note}", "dim"), soft_wrap=True)

    def step(self, step: int, steps: int, loss: float) -> None:
        self._bars.update(self._task, completed=step, total=steps, note=f"loss {loss:.3f} nats a token")


@contextmanager
def showing(show: Show) -> Iterator[Quiet]:
    """Yield the requested progress; "auto" means bars if the output is a terminal, else lines.

    "quiet" leaves warnings and errors.
    """
    make_printable()  # for Python's own callers
    if show == "auto" and console().is_terminal:
        with screen() as bars:
            yield Bars(bars)
    elif show == "quiet":
        with _warnings_only():
            yield Quiet()
    else:
        yield JsonLines() if show == "json" else Lines()


@contextmanager
def _warnings_only() -> Iterator[None]:
    level = log.level
    log.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        log.setLevel(level)


_HEIGHTS = "▁▂▃▄▅▆▇█"


def sparkline(shares: Sequence[float]) -> str:
    """Return shares from 0 to 1 as bars.

    >>> sparkline([0.0, 0.5, 1.0])
    '▁▅█'
    """
    return "".join(_HEIGHTS[min(7, int(share * 8))] for share in shares)


def iteration_line(metrics: IterationMetrics) -> Text:
    """Return an iteration as a line: kept problems, cost and accuracy."""
    parts = ["base       " if metrics["iteration"] == 0 else f"iteration {metrics['iteration']}"]
    if e_step := metrics.get("e_step"):
        parts.append(f"kept {e_step['num_kept']}/{e_step['num_problems']} problems")
        if (covered := e_step.get("covered_share")) is not None:
            parts.append(f"{covered:.0%} covered")  # including remembered draws
        parts += answer_parts(e_step)
        parts += endings(e_step)
        parts.append(f"{e_step['generated_tokens']:,} tokens")
        parts.append(f"{e_step['total_s'] + metrics['m_step']['seconds']:.1f} s")
    if development := metrics.get("development"):
        parts.append(f"development {development['accuracy']:.3f}")
    if evaluation := metrics.get("evaluation"):
        low, high = evaluation.get("accuracy_ci", (None, None))
        interval = f" ({low:.3f} to {high:.3f})" if low is not None else ""
        parts.append(f"accuracy {evaluation['accuracy']:.3f}{interval}")
        for name, (title, digits) in SHOWN.items():
            if (value := measure(evaluation, name)) is not None:
                parts.append(f"{title} {value:.{digits}f}")
        parts += endings(evaluation)
    if shown := metrics.get("evaluation_demos"):
        parts += [f"with worked examples: accuracy {shown['accuracy']:.3f}", *endings(shown)]
    if posterior := metrics.get("posterior"):
        parts.append(f"bound {posterior['bound']:.2f} nats ({posterior['total_s']:.1f} s)")
    return literal("  ".join(parts))


def notes(metrics: IterationMetrics) -> list[str]:
    """Return what is unusual in an iteration and has no column, as lines."""
    e_step, evaluation = metrics.get("e_step"), metrics.get("evaluation")
    lines = []
    if e_step:
        covered = e_step.get("covered_share")
        parts = [f"{covered:.0%} covered"] if covered is not None else []
        parts += [*answer_parts(e_step), *endings(e_step)]
        lines += [f"E-step: {', '.join(parts)}"] * bool(parts)
    if evaluation and (parts := endings(evaluation)):
        lines.append(f"evaluation: {', '.join(parts)}")
    if shown := metrics.get("evaluation_demos"):
        parts = [f"accuracy {shown['accuracy']:.3f}", *endings(shown)]
        lines.append(f"with worked examples: {', '.join(parts)}")
    return lines


def answer_parts(e_step: EStepMetrics) -> list[str]:
    """Return the probability of answers after rationales, if the scheme computes it."""
    parts = []
    if (right := e_step.get("expected_right")) is not None:
        parts.append(f"right with probability {right:.3f}")
    if (share := e_step.get("reasons_share")) is not None:
        logprob = e_step.get("reasons_logprob")
        mean = f" (mean {logprob:+.2f} nats)" if logprob is not None else ""
        parts.append(f"{share:.0%} of rationales lead to the answer{mean}")
    return parts


def endings(metrics: DrawMetrics) -> list[str]:
    """Return the shares of answered, forced and truncated draws, if they are unusual."""
    answered, forced = metrics.get("answered", 1.0), metrics.get("forced_share", 0.0)
    truncated = metrics.get("truncated_share", 0.0)
    return [
        *([f"answered {answered:.0%}"] if answered < 0.95 or forced >= 0.005 else []),
        *([f"forced {forced:.0%}"] if forced >= 0.005 else []),
        *([f"truncated {truncated:.0%}"] if truncated > 0.05 else []),
    ]


def summary(
    history: Sequence[IterationMetrics], difference: PairedDifference | None = None
) -> list[str]:
    """Return a run in a few lines: accuracy against the base, kept problems, and cost.

    `difference` is that of the best iteration to the base, on the same held-out problems.
    """
    e_steps = [each["e_step"] for each in history if "e_step" in each]
    lines = [*_outcome(history)]
    if difference is not None:
        apart = "" if difference.p_value < 0.05 else ": not told apart from the base"
        lines.append(f"less the base on the same problems: {describe_difference(difference)}{apart}")
    if e_steps:
        covered = [each["covered_share"] for each in e_steps if each.get("covered_share") is not None]
        asked = [each for each in e_steps if each["num_problems"]]
        shares = covered or [each["num_kept"] / each["num_problems"] for each in asked]
        does = "covered" if covered else "kept"
        lines += [
            f"{does} {shares[0]:.0%} of problems at first, {shares[-1]:.0%} at last  {sparkline(shares)}"
        ] * bool(shares)
        tokens = sum(each["generated_tokens"] for each in e_steps)
        drawing = sum(each["total_s"] for each in e_steps)
        m_steps = [each["m_step"] for each in history if "m_step" in each]
        fitting = sum(each["seconds"] for each in m_steps)
        requests = sum(each.get("num_requests", 0) for each in m_steps)
        doing = f"for {requests:,} requests to choose examples by" if requests else "of training"
        bounding = sum(each["posterior"]["total_s"] for each in history if "posterior" in each)
        bound = f", {span(bounding)} for the bound (--bound-draws 0: none)" if bounding else ""
        lines.append(
            f"{tokens:,} tokens drawn in {span(drawing)} ({tokens / max(drawing, 1e-3):,.0f} a second), "
            f"{span(fitting)} {doing}{bound}"
        )
    return lines


def _outcome(history: Sequence[IterationMetrics]) -> Iterator[str]:
    """Yield the held-out accuracy of the base and of the best iteration, and of the last if another."""
    by_iteration = {each["iteration"]: each for each in history if "evaluation" in each}
    last, number = int(history[-1]["iteration"]), best_of(history)
    best, base = by_iteration.get(number), by_iteration.get(0)
    if best is None or base is None or not number:
        return
    found = best["evaluation"]
    low, high = found.get("accuracy_ci", (found["accuracy"], found["accuracy"]))
    shown = base.get("evaluation_demos")
    with_them = f" ({shown['accuracy']:.3f} with worked examples)" if shown else ""
    yield (
        f"accuracy {base['evaluation']['accuracy']:.3f}{with_them} -> {found['accuracy']:.3f} "
        f"({low:.3f} to {high:.3f}) by iteration {number} of {last}" + _choice(best)
    )
    if last != number and last in by_iteration:
        yield f"the last iteration, {last}: accuracy {by_iteration[last]['evaluation']['accuracy']:.3f}"


def _choice(best: IterationMetrics) -> str:
    found = best.get("development")
    return f", the best on {found['num_problems']} development problems" if found else ""


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table whose first column is text and whose other columns are numbers."""
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(literal(column), justify="right" if number else "left", no_wrap=number == 0)
    for row in rows:
        table.add_row(*map(literal, row))
    return table
