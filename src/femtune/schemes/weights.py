"""Rules by which draws count for what the posterior pi(z | x, y*) makes of them, whatever wrote them.

log pi   log-probability of a draw, rationale and answer, under the plain prompt, by theta_{k-1}
as drawn   what the engine said as it drew it, of the prompt and weights that it drew from

Importance()    pi / q of each draw: right on average, for draws that every problem gets
Hard(power)     problems that took many attempts count more
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from femtune.errors import ConfigError, EngineError
from femtune.schemes.filters import Accepted, Chain
from femtune.types import Draw, Example, Need


@dataclass(frozen=True)
class Importance:
    """Set weights w / sum w, with w = pi(z, y* | x) / q(z, y* | x, hint), of total 1 for a problem.

    q is the law that the draw was drawn by: prompt, worked examples, temperature, forced answer. w is 1
    for an on-policy one. sum w f / sum w tends to the mean of f under the posterior as draws grow. So
    PPS becomes EM, and a rationale that can only be written with the answer in view loses its weight.

    Source: self-normalised importance sampling; for latent variables of models, reweighted wake-sleep
    (Bornschein and Bengio 2015, arXiv 1406.2751).

    Raises EngineError for a draw of which the engine did not say how likely it was.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"log_pi", "fixed_budget", "untruncated"})

    def __call__(self, draws: Sequence[Draw], examples: Sequence[Example]) -> Sequence[Example]:
        if mute := [e.draw.key for e in examples if math.isnan(_log_drawn(e.draw))]:
            raise EngineError(
                f"importance: the engine did not say how likely the draw {mute[0]} was. Choose an "
                "engine that gives log-probabilities at the sampling temperature (transformers; others "
                "at temperature 1)."
            )
        return normalized(examples, [_log_pi(e.draw) - _log_drawn(e.draw) for e in examples])


@dataclass(frozen=True)
class Hard:
    """Multiply the weight of a problem's draw by a^power, a the number of attempts that it took.

    With p = pi(y* | x) and up to M plain attempts until one is right, the gradient is on average that of

        -sum_{m <= M} m^(power - 1) (1 - p)^m

    Power 0 is rejection(M) itself: the first terms of log p. Power 1 is minus the number of attempts
    that a problem needs. So hard problems count more, and a mistake that pays for most of them, a
    maximum where EM stays for long, does not last.

    A wrong y* takes many attempts, and counts most: not for noisy answers.

    Source: a power of p in place of its log as the objective, maximum Lq-likelihood (Ferrari and Yang
    2010, arXiv 1002.4533); more weight for hard problems, there by more draws of them, DART-Math (Tong
    et al. 2024, arXiv 2407.13690).

    Raises ConfigError where `power` is not above 0.
    """

    power: float = 0.7

    needs: ClassVar[frozenset[Need]] = frozenset({"temperature_1", "plain_prompts"})

    def __post_init__(self) -> None:
        if not 0 < self.power < math.inf:
            raise ConfigError(f"hard must be > 0 and finite, got {self.power:g}.")

    def __call__(self, draws: Sequence[Draw], examples: Sequence[Example]) -> Sequence[Example]:
        return [replace(e, weight=e.weight * (e.draw.key.index + 1) ** self.power) for e in examples]


importance_filter = Chain(Accepted(), Importance())


def uniform(name: str) -> float:
    """Return a number above 0 and at most 1, the same for the same name."""
    number = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
    return (number + 1) / 2**64


def normalized(examples: Sequence[Example], log_weights: Sequence[float]) -> list[Example]:
    """Return examples with weights exp(log_weights) / their sum."""
    if not examples:
        return []
    top = max(log_weights)
    weights = [math.exp(each - top) for each in log_weights]
    total = math.fsum(weights)
    return [replace(e, weight=w / total) for e, w in zip(examples, weights, strict=True) if w]


def _log_pi(draw: Draw) -> float:
    assert draw.log_pi is not None, f"{draw.key}: log pi was not computed"
    return draw.log_pi


def _log_drawn(draw: Draw) -> float:
    if draw.log_drawn is not None:
        return draw.log_drawn
    made = draw.completion
    if math.isnan(made.drawn_logprob) and draw.temperature == 1 and not made.num_forced:
        return made.logprob
    return made.drawn_logprob
