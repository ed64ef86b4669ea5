"""The starts and epochs of M-steps: a part of a scheme."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from femtune.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class MStepSchedule:
    """A schedule of the M-steps' starts and epochs.

    A restart starts from the base and trains `epochs_factor` times `num_train_epochs`. Other M-steps
    train `num_train_epochs`; between restarts, a constant learning rate falls to 0 in each of them.

    >>> schedule = MStepSchedule(epochs_factor=3, restart_every=6, restart_for=2)
    >>> [schedule.restarts(iteration) for iteration in (1, 2, 3, 6, 7)]
    [True, True, False, False, True]
    """

    # the start of M-steps that are no restarts; the setting `start_from: base` overrides "previous"
    start: Literal["previous", "base"] = "previous"
    epochs_factor: float = 1.0
    restart_every: int = 0  # iterations in a period; 0: no restarts
    restart_for: int = 1  # restarts at the beginning of each period

    def __post_init__(self) -> None:
        if not 0 < self.epochs_factor < math.inf:
            raise ConfigError(f"epochs_factor must be > 0 and finite, got {self.epochs_factor:g}.")
        if self.restart_every < 0 or not 1 <= self.restart_for <= (self.restart_every or 1):
            raise ConfigError(
                "restart_every must be >= 0, and restart_for from 1 to restart_every, got "
                f"{self.restart_every} and {self.restart_for}."
            )
        if self.settles and self.start == "base":
            raise ConfigError(
                f"M-steps start from the base (start_from), but only {self.restart_for} of every "
                f"{self.restart_every} should restart: drop start_from, or settle."
            )

    def starting(self, start: Literal["previous", "base"]) -> MStepSchedule:
        """Return the schedule under a setting `start_from`. Raises ConfigError."""
        return self if start == "previous" else replace(self, start=start)

    def restarts(self, iteration: int) -> bool:
        """Return True if the M-step of an iteration, from 1 on, is a restart."""
        every = self.restart_every
        return every > 0 and (iteration - 1) % every < self.restart_for

    @property
    def settles(self) -> bool:
        """Return True if some M-steps lie between restarts."""
        return self.restart_for < self.restart_every

    def origin(self, iteration: int) -> Literal["previous", "base"]:
        """Return where the M-step of an iteration starts."""
        return "base" if self.restarts(iteration) else self.start
