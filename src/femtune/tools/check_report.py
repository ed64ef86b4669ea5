"""Report of a check: tables and lines for a terminal, or JSON."""

from __future__ import annotations

import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from statistics import median
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import RenderableType
from rich.text import Text

from femtune._util.text import span, visible
from femtune.data.tasks.frames import scale_of
from femtune.evaluation.chance import is_closed
from femtune.reporting.terminal import Show, console, literal, plain_table
from femtune.tools.check import Examined, prompt_texts, show_prompts, show_tokens
from femtune.tools.check_data import MOST_LABELS, Finding, labels_of
from femtune.tools.check_model import COOLER, Planned, Trial, Tried, percentile
from femtune.tools.unanswered import written
from femtune.types import Draw, Problem, Scheme

SECONDS = 15.0  # between two lines of progress
HEAD = ("prompt", "draws", "answered", "truncated", "right", "tokens", "99th")


def data_lines(examined: Examined, problem: Problem) -> Iterator[RenderableType]:
    """Yield what is known before the model is loaded: the findings, and the prompts of a problem."""
    yield from map(finding_line, examined.findings)
    yield from show_prompts(examined.builder, problem)


def planned_lines(planned: Planned, max_new_tokens: int) -> Iterator[Text]:
    """Yield what will be drawn, before the draws start."""
    draws = f"{planned.num_draws} completions of at most {max_new_tokens} tokens"
    yield literal(f"drawing for each prompt: {draws}")
    yield literal(f"prompts: {'; '.join(planned.names)}")
    if planned.cooler:
        yield literal(f"if few are right: {planned.num_draws} more at temperature {COOLER:g}")


def model_lines(
    examined: Examined, tried: Tried | None, problem: Problem, scheme: Scheme
) -> Iterator[RenderableType]:
    """Yield the results of the draws and the verdict; `tried` is None if the model was skipped."""
    if tried is None:
        yield literal(verdict(examined.findings), "bold")
        return
    problems = examined.problems
    yield from map(finding_line, tried.findings)
    yield plain_table(*table(tried))
    if (labels := label_table(tried, problems)) is not None:
        yield plain_table(*labels)
    for trial in tried.trials:
        yield from written_lines(trial, problems)
    if (shown := example_draw(tried, problem)) is not None:
        asked = next(each for each in problems if each.id == shown.key.problem_id)
        yield show_tokens(examined.builder, asked, shown)
    else:
        yield literal("No draw was kept, so there is no training example to show.")
    took = f"{len(tried.draws)} draws in {span(tried.seconds)}, loading included"
    if flags := pasted(tried):
        yield literal(f"Settings to try: {flags}")
    yield literal(f"{verdict([*examined.findings, *tried.findings])} {took}.", "bold")


def finding_line(finding: Finding) -> Text:
    mark = "✗" if finding.error else "!" if finding.warning else "✓"
    text = literal(f"{mark} {finding.what:<16}{finding.found}")
    text.append_text(literal("".join(f"\n    {line}" for line in finding.details)))
    for said, style in ((finding.warning, "yellow"), (finding.error, "red")):
        lines = textwrap.wrap(said, 78, break_long_words=False, break_on_hyphens=False)
        text.append_text(literal("".join(f"\n  {line}" for line in lines), style))
    return text


class Counting:
    """Logs the progress of draws: in a terminal one line that changes, else a line now and then."""

    def __init__(self, planned: Planned, say: Callable[[str], None], every_s: float) -> None:
        self._total, self._say, self._every_s = planned.num_draws, say, every_s
        self._begun = self._said = time.monotonic()

    def __call__(self, name: str, done: int) -> None:
        now = time.monotonic()
        if not done:
            self._begun = self._said = now
        # always log the end of a prompt's draws
        if done < self._total and now - self._said < self._every_s:
            return
        self._said = now
        self._say(f"{name}: {done} of {self._total} draws, {span(now - self._begun)}")


@contextmanager
def counting(planned: Planned, show: Show) -> Iterator[Callable[[str, int], None]]:
    """Show the current prompt, the number of its finished draws, and the time."""
    if show not in ("auto", "lines"):
        yield lambda name, done: None
    elif show == "auto" and console().is_terminal:
        with console().status(literal("loading the model")) as status:
            yield Counting(planned, lambda said: status.update(literal(said)), 0)
    else:
        console().print(literal("loading the model"))
        yield Counting(planned, lambda said: console().print(literal(said)), SECONDS)


def table(tried: Tried) -> tuple[Sequence[str], list[list[str]]]:
    """Return columns and rows: one row for each trial, tokens as median and 99th percentile."""
    rows = []
    for trial in tried.trials:
        lengths = sorted(draw.completion.num_tokens for draw in trial.draws)
        rows.append(
            [
                trial.name,
                f"{len(trial.draws)}",
                *(f"{share:.0%}" for share in (trial.answered, trial.truncated, trial.right)),
                f"{median(lengths):.0f}" if lengths else "–",
                f"{percentile(lengths, 0.99)}" if lengths else "–",
            ]
        )
    return HEAD, rows


def label_table(
    tried: Tried, problems: Sequence[Problem]
) -> tuple[Sequence[str], list[list[str]]] | None:
    """Return the frequency of each label in data and trials; None if the answers are no closed set."""
    labels = labels_of(problems) if is_closed(problems) else []
    if not 0 < len(labels) <= MOST_LABELS:
        return None
    given = Counter(problem.answer for problem in problems)
    by_id = {problem.id: problem for problem in problems}
    plain_ones = [trial for trial in tried.trials if trial.prompt == "plain"][:3]
    votes = [_votes(trial, by_id) for trial in plain_ones]
    rows = [
        [
            set_cell_size(label, 16).rstrip(),
            f"{given[label] / len(problems):.0%}",
            *(f"{own[label] / own.total():.0%}" if own else "–" for own in votes),
        ]
        for label in labels
    ]
    return ("label", "data", *(trial.name for trial in plain_ones)), rows


def _votes(trial: Trial, by_id: dict[str, Problem]) -> Counter[str]:
    votes = Counter[str]()
    for draw in trial.draws:
        scale = scale_of(by_id[draw.key.problem_id])
        if scale and draw.score.answer and (label := scale.read(draw.score.answer)) is not None:
            votes[label] += 1
    return votes


def written_lines(trial: Trial, problems: Sequence[Problem], width: int = 80) -> Iterator[Text]:
    """Yield a line for each form of draws without a usable answer, at most `width` cells wide."""
    found = written(trial.draws, problems)
    total = sum(count for _, count, _ in found)
    if not found:
        return
    yield literal(f"No usable answer in {total} of {len(trial.draws)} draws ({trial.name}):", "bold")
    for form, count, text in found:
        start = f"{count:>5}  {form:<32}  "
        yield literal(start + fitted(visible(text), width - len(start)))


def fitted(text: str, width: int) -> str:
    """Return a text on one line of at most `width` terminal cells.

    >>> fitted("one\\ntwo three", 9), fitted("日本語のテキスト", 9)
    ('one tw...', '日本語...')
    """
    line = " ".join(text.split())
    return line if cell_len(line) <= width else set_cell_size(line, width - 3).rstrip() + "..."


def as_json(examined: Examined, tried: Tried | None, problem: Problem) -> dict[str, Any]:
    """Return the results of a check as plain values; `tried` is None if the model was skipped."""
    problems = examined.problems
    every = [*examined.findings, *(tried.findings if tried is not None else ())]
    found: dict[str, Any] = {
        "ready": is_ready(every) if tried is not None else None,
        "verdict": verdict(every),
        "findings": [asdict(finding) for finding in every],
        "rows": examined.rows.to_data(),
        "problem": problem.id,
        "prompts": prompt_texts(examined.builder, problem),
    }
    if tried is None:
        return found
    shown = example_draw(tried, problem)
    labels = label_table(tried, problems)
    return found | {
        "trials": [_as_numbers(trial, problems) for trial in tried.trials],
        "labels": None if labels is None else [dict(zip(labels[0], r, strict=True)) for r in labels[1]],
        "example": None if shown is None else _as_example(shown),
        "changes": tried.changes,
        "seconds": round(tried.seconds, 1),
    }


def refused_json(error: Exception) -> dict[str, Any]:
    """Return what `as_json` does for a check that ended with an error."""
    return {"ready": False, "verdict": NOT_READY, "findings": [], "error": str(error)}


def _as_numbers(trial: Trial, problems: Sequence[Problem]) -> dict[str, Any]:
    lengths = sorted(draw.completion.num_tokens for draw in trial.draws)
    return {
        "name": trial.name,
        "prompt": trial.prompt,
        "num_demos": len(trial.demos),
        "temperature": trial.temperature,
        "num_draws": len(trial.draws),
        "answered": round(trial.answered, 4),
        "truncated": round(trial.truncated, 4),
        "right": round(trial.right, 4),
        "kept": round(trial.share(lambda draw: draw.accepted), 4),
        "tokens_median": median(lengths) if lengths else None,
        "tokens_99th": percentile(lengths, 0.99) if lengths else None,
        "unanswered": [
            {"form": form, "count": count, "shown": text}
            for form, count, text in written(trial.draws, problems)
        ],
    }


def _as_example(draw: Draw) -> Mapping[str, Any]:
    return {
        "problem": draw.key.problem_id,
        "completion": draw.completion.text,
    }


NOT_READY = "Not ready: 1 error."  # the verdict on data that can't be read


def is_ready(findings: Sequence[Finding]) -> bool:
    """Return True if training can start."""
    return not any(finding.error for finding in findings)


def verdict(findings: Sequence[Finding]) -> str:
    """Return the closing line: whether training can start, the number of errors and warnings.

    >>> verdict([]), verdict([Finding("x", "", "Do it."), Finding("y", "", error="Stop.")])
    ('Ready.', 'Not ready: 1 error, 1 warning.')
    """
    errors = sum(bool(finding.error) for finding in findings)
    warnings = sum(bool(finding.warning) for finding in findings)
    counts = [(errors, "error"), (warnings, "warning")]
    said = ", ".join(f"{num} {name}{'s' * (num != 1)}" for num, name in counts if num)
    return f"Not ready: {said}." if errors else f"Ready, {said}." if said else "Ready."


def pasted(tried: Tried) -> str:
    """Return the suggested settings as flags of a command; "" without suggestions."""
    order = ("max-new-tokens", "temperature", "demos", "answer-format", "scheme")
    return " ".join(f"--{name} {tried.changes[name]}" for name in order if name in tried.changes)


def example_draw(tried: Tried, problem: Problem) -> Draw | None:
    """Return a draw that training would keep, of this problem if there is one; None without any."""
    mine = [draw for draw in tried.kept if draw.key.problem_id == problem.id]
    return next(iter([*mine, *tried.kept]), None)
