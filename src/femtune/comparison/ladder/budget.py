"""A limit on what a ladder may spend, in time or in generated tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from femtune._util.interrupts import OwnStop
from femtune.errors import ConfigError
from femtune.loop import Progress
from femtune.metric_types import IterationMetrics
from femtune.types import Draw

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_TOKENS = {"": 1.0, "k": 1e3, "M": 1e6}


@dataclass(frozen=True)
class Budget:
    """Most seconds, or most generated tokens, of all rungs together; None: no limit."""

    seconds: float | None = None
    tokens: float | None = None

    @property
    def is_spent(self) -> bool:
        return any(left is not None and left <= 0 for left in (self.seconds, self.tokens))


def parse_budget(text: str | None) -> Budget:
    """Return a budget from text; None sets no limit. Raises ConfigError.

    >>> parse_budget("30m"), parse_budget("200k tokens")
    (Budget(seconds=1800.0, tokens=None), Budget(seconds=None, tokens=200000.0))
    """
    if text is None:
        return Budget()
    if found := re.fullmatch(r"(\d+(?:\.\d+)?) *([smh])", text.strip()):
        return Budget(seconds=float(found[1]) * _SECONDS[found[2]])
    if found := re.fullmatch(r"(\d+(?:\.\d+)?) *([kM]?)[ -]*tokens", text.strip()):
        return Budget(tokens=float(found[1]) * _TOKENS[found[2]])
    raise ConfigError(f'budget is {text!r}: give a time (90s, 30m, 2h) or generated "200k tokens".')


class Metered:
    """Progress that counts generated tokens, and stops the rung once they are spent."""

    def __init__(self, inner: Progress, left: float | None, stop: OwnStop) -> None:
        self.inner, self.left, self.stop = inner, left, stop

    def phase(self, name: str, iteration: int, total: int) -> None:
        self.inner.phase(name, iteration, total)

    def draws(self, draws: Sequence[Draw]) -> None:
        self.inner.draws(draws)
        if self.left is not None:
            self.left -= sum(draw.completion.num_tokens for draw in draws)
            if self.left < 0:
                self.stop.fire()

    def step(self, step: int, steps: int, loss: float) -> None:
        self.inner.step(step, steps, loss)

    def measured(self, iteration: int, metrics: IterationMetrics) -> None:
        self.inner.measured(iteration, metrics)
