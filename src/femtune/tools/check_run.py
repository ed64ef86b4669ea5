"""Run a whole check of data and model, and show it as it goes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from femtune.config import Train
from femtune.errors import ConfigError, DataError
from femtune.reporting.terminal import Show, console
from femtune.resolve import Data, named_scheme
from femtune.run_folder import check_storable, shown_data
from femtune.tools import check_model, check_report
from femtune.tools.check import examine
from femtune.tools.check_data import Finding
from femtune.types import Scheme


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """Findings of a check."""

    ready: bool | None
    """True if no finding has an error; None without draws."""
    verdict: str
    """The conclusion in a sentence."""
    warnings: Sequence[Finding]
    """Findings that look wrong; each has a `warning`, or an `error`, that says what to do."""
    changes: Mapping[str, str]
    """Settings to try, by the name of their flag."""
    findings: Sequence[Finding] = field(repr=False)
    """All that was looked at."""
    details: Mapping[str, Any] = field(repr=False)
    """Prompts, trials and an example, as `femtune check --show json` prints them."""


def run_check(
    data: Data,
    model: str,
    settings: Train,
    *,
    row: int = 1,
    num_draws: int = 32,
    try_: bool = True,
    show: Show = "quiet",
    scheme: Scheme | None = None,
) -> CheckResult:
    """Check data, then the model unless `tries` is False. Raises what train would raise.

    `scheme` stands in place of the one that the settings name.
    """
    if num_draws < 1:
        raise ConfigError(f"--draws must be at least 1, got {num_draws}. --no-try draws none.")
    if scheme is not None:
        check_storable(scheme)
    scheme = scheme or named_scheme(settings)
    examined = examine(data, model, settings, scheme)
    builder, problems = examined.builder, examined.problems
    if not 1 <= row <= len(problems):
        raise DataError(f"--row {row}: {shown_data(data)} has rows 1 to {len(problems)}.")
    problem = problems[row - 1]
    shows = show in ("auto", "lines")
    if shows:  # all that is cheap, before the model is loaded
        _print(check_report.data_lines(examined, problem))
    tried = None
    if try_:
        planned = check_model.plan_trials(builder, settings, len(problems), num_draws, scheme)
        if shows:
            _print(check_report.planned_lines(planned, settings.max_new_tokens))
        with check_report.counting(planned, show) as on_draws:
            tried = check_model.try_model(
                builder, problems, settings, num_draws, row=problem, on_draws=on_draws, scheme=scheme
            )
    details = check_report.as_json(examined, tried, problem)
    if show == "json":
        print(json.dumps(details))
    elif shows:
        _print(check_report.model_lines(examined, tried, problem, scheme))
    every = [*examined.findings, *(tried.findings if tried is not None else ())]
    return CheckResult(
        ready=details["ready"],
        verdict=details["verdict"],
        warnings=[each for each in every if each.warning or each.error],
        changes=dict(tried.changes) if tried is not None else {},
        findings=every,
        details=details,
    )


def _print(lines: Iterable[RenderableType]) -> None:
    """Print texts unwrapped, and tables and frames as wide as the terminal."""
    for line in lines:
        console().print(line, soft_wrap=isinstance(line, Text))
