"""Rules by which draws count for what the posterior pi(z | x, y*) makes of them, whatever wrote them.

log pi   log-probability of a draw, rationale and answer, under the plain prompt, by theta_{k-1}
log q    under the hinted prompt
as drawn   what the engine said as it drew it, of the prompt and weights that it drew from

Importance()         pi / q of each draw: right on average, for draws that every problem gets
Posterior()          pi itself, over distinct draws: those that are remembered, and the new ones
Metropolis()         a chain: the state of a problem is the draw that it remembers
ControlVariate(b)    takes from the gradient what is zero on average
Resample(n)          weights -> n draws of equal weight
Hard(power)          problems that took many attempts count more
Doubt(noise, n)      what a problem's answer itself is worth, where some are wrong
Wake()               the hinted prompt learns too
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
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
                "at temperature 1), or memo in place of importance."
            )
        return normalized(examples, [_log_pi(e.draw) - _log_drawn(e.draw) for e in examples])


@dataclass(frozen=True)
class Posterior:
    """Set weights pi(z, y* | x) / their sum; examples must be distinct. A problem's total is 1.

    The posterior, cut to a set S of rationales. An M-step on it raises sum_i log sum_S pi(z, y* | x) or
    leaves it (it is EM for a model that can write nothing else), which bounds sum_i log pi(y* | x) from
    below, and draws that join S raise it too. Where they came from does not matter: hinted, of an
    earlier theta, of another model.

    Source: memoised wake-sleep (Hewitt, Le and Tenenbaum 2020, arXiv 2007.03132).
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"log_pi"})

    def __call__(self, draws: Sequence[Draw], examples: Sequence[Example]) -> Sequence[Example]:
        return normalized(examples, [_log_pi(e.draw) for e in examples])


@dataclass(frozen=True)
class Metropolis:
    """Keep one draw: where the chain of this problem stands after the iteration's draws.

    The state is the remembered draw, or the first right one. Each right draw z' is a proposal, taken
    with probability min(1, pi(z') q(z) / (pi(z) q(z'))), with q = pi for plain draws: those are always
    taken. The chain's stationary law is the posterior of a theta that stands still.

    Source: Metropolis-Hastings with an independent proposal; with plain ones, TRICE (Phan et al. 2023,
    arXiv 2312.02179).
    """

    needs: ClassVar[frozenset[Need]] = frozenset(
        {"log_pi", "log_q", "temperature_1", "current_model", "plain_prompts"}
    )

    def __call__(self, draws: Sequence[Draw], examples: Sequence[Example]) -> Sequence[Example]:
        state: Example | None = None
        for example in sorted(examples, key=lambda e: e.draw.key):
            if state is None or _takes(state.draw, example.draw):
                state = example
        return [state] if state else []


def _takes(state: Draw, proposal: Draw) -> bool:
    if proposal.on_policy:
        return True
    log_ratio = _log_pi(proposal) - _log_pi(state) + _log_q(state) - _log_q(proposal)
    return math.log(uniform(f"metropolis {proposal.seed}")) < log_ratio


@dataclass(frozen=True)
class ControlVariate:
    """Add every plain draw of the iteration, right or wrong, with weight -beta / their number.

    On average they change nothing: E[grad log pi(z, y | x)] = 0 under pi itself. What they take away is
    variance, most where beta is near the chance that a draw is right: then a chain's new state and the
    draw that it came from nearly cancel, and a problem that is solved anyway adds no noise.

    Source: TRICE (Phan et al. 2023, arXiv 2312.02179), which estimates beta.

    Raises ConfigError for a beta that is not from 0 to 1.
    """

    beta: float = 0.5

    needs: ClassVar[frozenset[Need]] = frozenset(
        {"fixed_budget", "temperature_1", "current_model", "plain_prompts"}
    )

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise ConfigError(f"The control variate's beta must be in [0, 1], got {self.beta:g}.")

    def __call__(self, draws: Sequence[Draw], examples: Sequence[Example]) -> Sequence[Example]:
        newest = max((draw.key.iteration for draw in draws), default=0)
        fresh = [d for d in draws if d.key.iteration == newest and d.on_policy]
        usable = [d for d in fresh if d.completion.sampled and d.score.reason != "engine_failed"]
        return [*examples, *(Example(draw, -self.beta / len(usable)) for draw in usable if self.beta)]


@dataclass(frozen=True)
class Resample:
    """Turn weights into `num` draws of weight 1 / num times their total, a draw perhaps several times.

    Systematic: a draw of share w comes floor(num w) or ceil(num w) times, num w on average. The one
    random number is of the newest draw's seed, so a problem that is not asked again keeps it. Negative
    weights stay as they are.

    Source: Kitagawa 1996, "Monte Carlo filter and smoother"; Douc and Cappe 2005 on its variance.

    Raises ConfigError where `num` is less than 1.
    """

    num: int = 1

    def __post_init__(self) -> None:
        if self.num < 1:
            raise ConfigError(f"resample must be >= 1, got {self.num}.")

    def __call__(self, draws: Sequence[Draw], examples: Sequence[Example]) -> Sequence[Example]:
        # exact, so that the last one ends at num
        total = sum(Fraction(e.weight) for e in examples if e.weight > 0)
        start, below = Fraction(uniform(f"resample {draws[-1].seed}")) if draws else 0, Fraction(0)
        made = []
        for example in examples:
            if example.weight <= 0:
                made += [example] if example.weight else []
                continue
            after = below + self.num * Fraction(example.weight) / total
            times = math.ceil(after - start) - math.ceil(below - start)
            if times:
                made.append(replace(example, weight=float(times * total / self.num)))
            below = after
        return made


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


@dataclass(frozen=True)
class Doubt:
    """Multiply a problem's weights by the probability that its answer y* is right, given the draws.

    Of answers, a share `noise` is wrong, any of the others alike; so with the mass m = sum over distinct
    right draws of pi(z, y* | x), which stands for pi(y* | x),

        P(y* right | x, y*) = (1 - noise) m / ((1 - noise) m + noise (1 - m) / (num_answers - 1))

    An answer that the model finds no likely way to counts little, until it does. Where the number of
    possible answers is not known it is taken for 1,000. Negative weights stay as they are: those of a
    control variate are zero on average only where nothing is made of how a draw came out.

    m is of what was found, so it is far below pi(y* | x) where there are more ways to an answer than
    draws: for rationales of many tokens this trusts no answer at all.

    Source: EM with noisy labels, as Dawid and Skene 1979, for one rater whose errors are uniform.

    Raises ConfigError for a noise outside [0, 1), or fewer than two answers.
    """

    noise: float = 0.1
    num_answers: int | None = None

    needs: ClassVar[frozenset[Need]] = frozenset({"log_pi"})

    @property
    def _among(self) -> int:
        return 1000 if self.num_answers is None else self.num_answers

    def __post_init__(self) -> None:
        if not 0 <= self.noise < 1 or self._among < 2:
            raise ConfigError(
                f"doubt must be in [0, 1) and among at least 2 answers, got {self.noise:g} among "
                f"{self._among}."
            )

    def __call__(self, draws: Sequence[Draw], examples: Sequence[Example]) -> Sequence[Example]:
        logprobs = {d.completion.sampled: _log_pi(d) for d in draws if d.accepted}
        mass = min(1.0, math.fsum(math.exp(each) for each in logprobs.values()))
        right, wrong = (1 - self.noise) * mass, self.noise * (1 - mass) / (self._among - 1)
        trust = right / (right + wrong) if right + wrong else 1.0  # 0 / 0: no mass, and no doubt
        weighed = [replace(e, weight=e.weight * trust) if e.weight > 0 else e for e in examples]
        return [e for e in weighed if e.weight != 0]


@dataclass(frozen=True)
class Wake:
    """Add each example a second time, under the hinted prompt, with `weight` times its weight.

    So the proposal q(z | x, y*) learns to be the posterior, and the hinted prompt is not forgotten while
    the plain one learns. This is the one rule that has a say in the prompt that is trained.

    Source: the wake phase of reweighted wake-sleep (Bornschein and Bengio 2015, arXiv 1406.2751).

    Raises ConfigError where `weight` is not above 0.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ConfigError(f"wake must be > 0 and finite, got {self.weight:g}.")

    def __call__(self, draws: Sequence[Draw], examples: Sequence[Example]) -> Sequence[Example]:
        hinted = [
            replace(e, weight=self.weight * e.weight, prompt_kind="hinted")
            for e in examples
            if e.weight > 0
        ]
        return [*examples, *hinted]


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


def _log_q(draw: Draw) -> float:
    assert draw.log_q is not None, f"{draw.key}: log q was not computed"
    return draw.log_q
