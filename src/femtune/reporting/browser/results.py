"""The result of a run, for the page of runs: read from the metrics of its iterations."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from femtune.reporting.browser.runs import Found
from femtune.reporting.browser.wording import link


@dataclass(frozen=True)
class Result:
    """A run's accuracy before and after, and the share of problems kept last; None if unknown."""

    run: Found
    last: int  # iteration with metrics; -1: none
    planned: int | None
    _: KW_ONLY
    base: float | None
    accuracy: float | None
    kept: float | None

    @property
    def state(self) -> str:
        """Return how far the run is."""
        if self.planned is None:
            return "done" if self.last >= 0 else "not finished"
        if self.last >= self.planned:
            return f"done, {self.planned} iteration{'' if self.planned == 1 else 's'}"
        return f"not finished: iteration {self.last + 1} of {self.planned}"

    def draws(self, **more: object) -> str:
        """Return the address of the draws of the last iteration that match further filters."""
        own = {"iteration": self.last} if self.last >= 0 else {}
        values: dict[str, object] = {"run": self.run.name, **own, **more}
        return link("/draws", "", **values)


def result(run: Found) -> Result:
    """Read a run's result; missing and unreadable metrics are unknown."""
    last, planned = run.progress()
    after = _metrics(run.root, last)
    base = _number(_metrics(run.root, 0), "evaluation", "accuracy") if last > 0 else None
    return Result(
        run,
        last,
        planned,
        base=base,
        accuracy=_number(after, "evaluation", "accuracy"),
        kept=_number(after, "e_step", "kept_share"),
    )


def _metrics(root: Path, iteration: int) -> Mapping[str, Any]:
    try:
        text = (root / f"iteration-{iteration:03d}" / "metrics.json").read_text(encoding="utf-8")
        found = json.loads(text)
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _number(metrics: Mapping[str, Any], part: str, name: str) -> float | None:
    """Return a finite number of a part of the metrics, or None."""
    own = metrics.get(part)
    value = own.get(name) if isinstance(own, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
