"""Additions by the probability of the correct answer after a rationale: see answer_rules.py."""

from __future__ import annotations

from dataclasses import replace

from femtune._util.text import without_exponent
from femtune.errors import ConfigError
from femtune.schemes.answer_rules import ExpectedFirst, ExpectedImportance, Reasoned
from femtune.schemes.filters import Chain, paper_filter
from femtune.schemes.weights import importance_filter
from femtune.types import Scheme


def expected(scheme: Scheme) -> Scheme:
    """Put pi(y* | x, z), the reward's expectation given the rationale, in the place of the reward.

    Examples are rationale and correct answer y*, whichever answer was sampled; see answer_rules.py.

    rejection(M)   all M attempts of every problem are drawn, and each counts for the probability that it
                   is the first right one: `ExpectedFirst`. The expected gradient is that of
                   rejection(M), its variance no higher. Draws: M a problem; examples: up to M
    importance     of pps(K) and mixtures: pi(z, y* | x) / q(z): `ExpectedImportance`

    Raises ConfigError for every other scheme: there the weights would be of no known law.
    """
    name = f"{scheme.name}+expected"
    if scheme.weigh == importance_filter:
        return replace(scheme, name=name, weigh=ExpectedImportance())
    asked = [(stage.prompt_kind, stage.ask) for stage in scheme.asked]
    if scheme.weigh != paper_filter or asked != [("plain", "unsolved")]:
        raise ConfigError(
            f"Scheme {scheme.name}: expected needs rejection:M, or pps:K or mixture:a,b with importance "
            "(for example pps:4+importance+expected)."
        )
    stages = (replace(scheme.stages[0], ask="all"),)
    return replace(scheme, name=name, stages=stages, weigh=ExpectedFirst())


def reasons(scheme: Scheme, min_gain: float = 0.0) -> Scheme:
    """Keep only draws whose rationale makes y* the likeliest answer, by `min_gain` nats or more.

    Law: the scheme's, conditioned on rationales that pass: see `answer_rules.Reasoned`. What is
    remembered is filtered too, by the model as it is now. With `expected`, rationales are filtered
    whatever their answer.

    Raises ConfigError where `min_gain` is negative or infinite.
    """
    keep = Reasoned(min_gain)
    remember = scheme.remember and Chain(keep, scheme.remember)
    return replace(
        scheme,
        name=f"{scheme.name}+reasons({without_exponent(min_gain)})",
        weigh=Chain(keep, scheme.weigh),
        remember=remember,
    )
