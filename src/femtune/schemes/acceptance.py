"""What is accepted of ratings that are near the human one."""

from __future__ import annotations

import math
from dataclasses import dataclass

from femtune.errors import ConfigError
from femtune.schemes.weights import uniform
from femtune.types import Request


@dataclass(frozen=True)
class SoftAcceptance:
    """Accept an answer that is d off with probability exp(-d / T), T = temperature * decay^(k - 1).

    For ordinal rewards r = 1 - d / span, d and T in points of the scale: a draw is accepted where
    r >= 1 + T log(u) / span, with u uniform from the draw's own seed. So what is kept follows the
    posterior under the noise model p(y* | y) ~ exp(-|y* - y| / T), in place of an exact y*; with a decay
    below 1 iteration k comes ever nearer to that. The rewards are stored as they are.

    Raises ConfigError for an impossible temperature or decay.
    """

    temperature: float
    span: float
    decay: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0 or not 0 < self.decay <= 1:
            raise ConfigError(
                f"soft_accept must be > 0 and soft_decay in (0, 1], got {self.temperature:g} and "
                f"{self.decay:g}."
            )

    def __call__(self, request: Request) -> float:
        """Return the least reward at which the draw of this request is accepted."""
        now = self.temperature * self.decay ** (request.key.iteration - 1)
        return 1 + now * math.log(uniform(f"accept {request.seed}")) / self.span
