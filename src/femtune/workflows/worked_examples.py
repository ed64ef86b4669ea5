"""Choose the worked examples that a run shows, and store them with it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from femtune.data.demos import save_demos, without_problems
from femtune.resolve import TaskInputs
from femtune.runs.run import Run
from femtune.sampler import SamplerBuilder
from femtune.types import Demos, Problem, Scheme

log = logging.getLogger("femtune")


def without_held_out(asked: TaskInputs[Any], test: Sequence[Problem]) -> TaskInputs[Any]:
    """Return the inputs without worked examples that are held-out problems. Raises DataError."""
    given = asked.settings.demos != "auto"
    return replace(asked, demos=without_problems(asked.demos, test, given=given))


def usable_demos(demos: Demos, scheme: Scheme) -> Demos:
    """Return the worked examples for a scheme's prompts: none if it needs plain prompts."""
    if demos and "plain_prompts" in scheme.needs:
        log.warning(
            "scheme %s needs draws of the plain prompt: worked examples are not shown in its E-steps.",
            scheme.name,
        )
        return ()
    return demos


def store_demos(run: Run, builder: SamplerBuilder) -> None:
    """Copy the worked examples into a run."""
    demos, path = builder.demos or builder.prompts.demos, run.root / "demos.jsonl"
    if demos and not path.exists():
        save_demos(path, demos)
        run.record(path)
