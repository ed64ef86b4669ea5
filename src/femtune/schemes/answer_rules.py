"""Rules by the probability of the correct answer after a rationale, pi(y* | x, z).

ExpectedFirst()        rejection sampling with the reward's expectation in place of the reward
ExpectedImportance()   the posterior, with the answer integrated out of the proposal too
Reasoned(min_gain)     keeps rationales that raise the probability of the correct answer

A draw's answer is one sample of what its rationale leads to. The first two rules take all of that in:
each example is rationale, cue and y* (`Draw.right`), weighed by w = pi(y*, closed | x, z), whichever
answer was sampled. Rationales that a wrong answer would have thrown away count, and those that are right
by luck count little.

"Right" means here: y* as the answer format writes it, after the first cue, closed by the end token or a
line break (or by what closes the format's own form). Draws whose cue was not sampled as it stands
(another form, truncated before it, leaking, failed) have w = 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import ClassVar

from femtune.errors import ConfigError
from femtune.metric_types import EStepMetrics
from femtune.schemes.filters import rules_of
from femtune.schemes.weights import normalized
from femtune.types import Draw, Example, Need, Scheme


@dataclass(frozen=True)
class ExpectedFirst:
    """Weigh attempt m by w_m * prod_{j < m} (1 - w_j), with w = pi(y*, closed | x, z).

    Law: that is the probability, given the rationales z_1 .. z_M alone, that attempt m is the first
    right one. So each weight is the conditional expectation of the 0 or 1 that rejection(M) gives the
    same example, with "right" as above. The expected gradient is that of rejection(M); its variance is
    no higher (Rao-Blackwell), and lower unless every w is 0 or 1. A problem's total weight is
    1 - prod (1 - w_m), the probability that it is kept, and no longer 1 or 0.

    Source: Blackwell 1947, doi 10.1214/aoms/1177730497; for sampled attempts, Casella and Robert 1996,
    "Rao-Blackwellisation of sampling schemes", doi 10.1093/biomet/83.1.81.
    """

    needs: ClassVar[frozenset[Need]] = frozenset(
        {"answers", "fixed_budget", "temperature_1", "plain_prompts"}
    )

    def __call__(self, draws: Sequence[Draw], examples: Sequence[Example]) -> Sequence[Example]:
        weights, unsolved = {}, 1.0
        for draw in sorted(draws, key=lambda draw: draw.key):
            chance = _chance(draw)
            weights[draw.key] = unsolved * chance
            unsolved *= 1 - chance
        return [
            replace(e, draw=e.draw.right, weight=e.weight * weights[e.draw.key])
            for e in examples
            if e.draw.right is not None and weights[e.draw.key]
        ]


@dataclass(frozen=True)
class ExpectedImportance:
    """Set weights w / sum w, with w = pi(z, y* | x) / q(z), of total 1 for a problem.

    q is the probability of rationale and cue alone under the prompt that drew them; for a plain draw it
    is pi(z | x), and w = pi(y* | x, z). The sampled answer has no part in it.

    Law: E[w f(z)] = sum over z of pi(z, y* | x) f(z) for every draw, plain or hinted, with "right" as
    above; so sum w f / sum w tends to the mean of f under the posterior as draws grow. It has no weight
    for rationales that leak the hint. w is the expectation, given z, of `Importance`'s weight times the
    indicator of a right answer: an estimate of p from it has no higher variance.

    Source: self-normalised importance sampling (see `weights.Importance`) on the marginal of z.
    """

    needs: ClassVar[frozenset[Need]] = frozenset(
        {"answers", "ratio", "fixed_budget", "temperature_1", "plain_prompts"}
    )

    def __call__(self, draws: Sequence[Draw], examples: Sequence[Example]) -> Sequence[Example]:
        made, logs = [], []
        for example in examples:
            draw = example.draw
            if draw.right is not None and draw.log_answer is not None and _chance(draw):
                assert draw.log_ratio is not None, f"{draw.key}: pi / q was not computed"
                made.append(replace(example, draw=draw.right))
                logs.append(draw.log_ratio + draw.log_answer)
        return normalized(made, logs)


@dataclass(frozen=True)
class Reasoned:
    """Keep draws whose rationale leads to the correct answer, by the model's own probabilities.

    A draw passes where log pi(y* | x, z) - log pi(y* | x) >= min_gain, and y* is the likeliest answer
    after z. An answer that is right by luck, after a rationale that speaks for another one, does not.

    Law: that of the scheme, conditioned on rationales that pass: pi(z | x, y*, z passes) where it was
    the posterior. Unless all pass, this is no longer EM's E-step: the M-step raises the likelihood of
    (z, y*) over such rationales alone. Problems without one are left out. Rejection stops at the first
    right draw, so a problem whose first one does not pass is not asked again.

    `min_gain` is in nats. 0 is the one threshold that means the same for easy and hard problems: above
    it, a problem with pi(y* | x) > exp(-min_gain) can't be kept at all. Draws that are not accepted have
    no scores, and do not pass.
    """

    min_gain: float = 0.0

    needs: ClassVar[frozenset[Need]] = frozenset({"gain"})

    def __post_init__(self) -> None:
        if not 0 <= self.min_gain < math.inf:
            raise ConfigError(f"reasons must be at least 0 nats and finite, got {self.min_gain:g}.")

    def __call__(self, draws: Sequence[Draw], examples: Sequence[Example]) -> Sequence[Example]:
        return [example for example in examples if passes(example.draw, self.min_gain)]


def refuse_expected(scheme: Scheme, added: str) -> None:
    """Refuse an addition that weighs sampled answers to a scheme with expected. Raises ConfigError."""
    if "answers" in scheme.needs:
        raise ConfigError(
            f"Scheme {scheme.name}: {added} weighs sampled answers, and expected takes their place: "
            "drop one of them."
        )


def gain(draw: Draw) -> float | None:
    """Return by how many nats a draw's rationale raises log pi(y* | x); None where it was not scored."""
    if draw.log_answer is None or draw.log_direct is None:
        return None
    if draw.log_answer == -math.inf:  # also where both are
        return -math.inf
    return draw.log_answer - draw.log_direct


def passes(draw: Draw, min_gain: float) -> bool:
    """True if a draw's rationale makes y* the likeliest answer, and so by `min_gain` nats or more."""
    found = gain(draw)
    return found is not None and found >= min_gain and draw.is_likeliest is True


def answer_metrics(chunks: Iterable[Sequence[Draw]], scheme: Scheme) -> EStepMetrics:
    """Measure the probabilities of answers after the rationales of an E-step's draws.

    Of schemes by expected reward, over all draws:

    expected_right   mean of pi(y*, closed | x, z); 0 for a draw whose cue was not sampled as it stands
    cued_share       share of draws whose cue was sampled as it stands, and which do not leak

    Of schemes with `reasons`, over the draws that were scored:

    reasons_share    share that pass: see `Reasoned`; None where none was scored
    reasons_logprob  mean of log pi(y* | x, z) - log pi(y* | x); None where one of them is infinite
    likeliest_share  share after whose rationale y* is the likeliest answer
    """
    if not scheme.needs & {"answers", "gain"}:
        return {}
    chances: list[float] = []
    cued: list[bool] = []
    gains: list[float] = []
    likeliest: list[bool] = []
    passed = 0
    least = max(
        (rule.min_gain for rule in rules_of(scheme.weigh) if isinstance(rule, Reasoned)), default=0.0
    )
    for draws in chunks:
        chances += [_chance(draw) for draw in draws]
        cued += [draw.right is not None for draw in draws]
        scored = [(draw, added) for draw in draws if (added := gain(draw)) is not None]
        gains += [added for _, added in scored]
        likeliest += [draw.is_likeliest is True for draw, _ in scored]
        passed += sum(passes(draw, least) for draw, _ in scored)
    found: EStepMetrics = {}
    if "answers" in scheme.needs:
        found |= {
            "expected_right": fmean(chances) if chances else None,
            "cued_share": fmean(cued) if cued else None,
        }
    if "gain" in scheme.needs:
        mean = fmean(gains) if gains else math.nan
        found |= {
            "reasons_share": passed / len(gains) if gains else None,
            "reasons_logprob": mean if math.isfinite(mean) else None,
            "likeliest_share": fmean(likeliest) if gains else None,
        }
    return found


def _chance(draw: Draw) -> float:
    """Return w = pi(y*, closed | x, z), at most 1 whatever rounding says; 0 without a right draw."""
    if draw.right is None or draw.log_answer is None:
        return 0.0
    return min(1.0, math.exp(draw.log_answer))
