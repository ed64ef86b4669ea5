"""A reward as a function of TRL's trainers, for example GRPOTrainer(reward_funcs=...).

    GRPOTrainer(..., reward_funcs=as_reward("ordinal(1, 5)").for_trl())

TRL calls it with keywords: completions, prompts, and each column of the data set, a value for each
completion. Source of the signature: TRL's documentation, "Using a custom reward function".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from femtune.data.answer_format import parse_format
from femtune.errors import ConfigError
from femtune.types import Completion, Parsed, Problem

# Keywords of TRL's that are no columns of the data set
_OF_TRL = frozenset({"completion_ids", "trainer_state", "log_extra", "log_metric", "environments"})

Call = Callable[[Sequence[Problem], Sequence[Completion], Sequence[Parsed]], Sequence[float | None]]


def trl_function(
    reward: Call, name: str, *, answer_column: str, answer_format: str, reads_completions: bool = False
) -> Callable[..., list[float | None]]:
    """Return a reward in the form that TRL calls: f(completions, **columns) -> a number for each.

    A completion without an answer in `answer_format` gets 0, unless the reward reads completions itself.
    None stands for a reward that abstains, which TRL leaves out. The function raises ConfigError where
    the data set has no `answer_column`, and RewardError where the reward fails.
    """
    form = parse_format(answer_format)

    def graded(
        completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: Any
    ) -> list[float | None]:
        if answer_column not in columns:
            raise ConfigError(
                f"reward {name} needs a column {answer_column!r} of correct answers; the data set "
                f"has {sorted(columns.keys() - _OF_TRL)}. Name it: for_trl(answer_column=...)."
            )
        given = {key: value for key, value in columns.items() if key not in _OF_TRL}
        texts = [each if isinstance(each, str) else each[-1]["content"] for each in completions]
        problems = [
            Problem(
                str(row),
                "" if prompts is None else prompts[row],
                str(given[answer_column][row]),
                {key: values[row] for key, values in given.items() if key != answer_column},
            )
            for row in range(len(texts))
        ]
        parsed = [form.read(text) for text in texts]
        rows = [row for row, read in enumerate(parsed) if reads_completions or not read.error]
        written = [Completion((), texts[row], "stop", 0.0) for row in rows]
        found = reward([problems[row] for row in rows], written, [parsed[row] for row in rows])
        values = dict(zip(rows, found, strict=True))
        return [values.get(row, 0.0) for row in range(len(texts))]

    graded.__name__ = name  # TRL logs each reward by its name
    return graded
