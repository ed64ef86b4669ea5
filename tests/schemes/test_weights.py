"""Rules that weigh by the posterior, as properties of any draws of a problem.

Their laws, on a model of which all is known, are in estep/test_oracle_posterior.py.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from femtune.errors import ConfigError, EngineError
from femtune.schemes.filters import Accepted, Chain, First, weigh
from femtune.schemes.weights import Hard, Importance, importance_filter, uniform
from femtune.types import Completion, Draw, DrawKey, Example, Reason, Rule, Score

NOT_ACCEPTED: tuple[Reason, ...] = ("wrong", "truncated", "parse_error", "hint_leak", "engine_failed")
logprobs = st.floats(-30, -0.01)


def made(
    key: DrawKey,
    log_pi: float,
    log_q: float = -1.0,
    *,
    reason: Reason = "",
    word: int = 0,
    seed: int = 0,
) -> Draw:
    """A draw of one token, `word`; stage 0 is plain, stage 1 hinted."""
    prompt = ("plain", "hinted")[key.stage]
    drawn = log_q if prompt == "hinted" else log_pi
    completion = Completion((word, 9), str(word), "stop", drawn)
    score = Score(1.0 if reason == "" else 0.0, "", reason)
    scored = {"log_pi": log_pi, "log_q": log_q} if reason == "" else {}
    return Draw(key, prompt, seed, completion, score, **scored)


@st.composite
def scoring(draw: st.DrawFn, most: int = 7) -> list[Draw]:
    """What rules are given: remembered draws, which were accepted, then those of iteration 3."""
    keys = st.tuples(st.sampled_from([1, 3, 3, 3]), st.integers(0, 1), st.integers(0, 4))
    log_pi, log_q = (draw(st.lists(logprobs, min_size=5, max_size=5)) for _ in range(2))
    found = []
    for iteration, stage, index in sorted(draw(st.sets(keys, max_size=most))):
        reason = "" if iteration == 1 else draw(st.sampled_from(["", "", *NOT_ACCEPTED]))
        word, seed = draw(st.integers(0, 4)), draw(st.integers(0, 2**63 - 1))
        key = DrawKey(iteration, "p", stage, index)
        found.append(made(key, log_pi[word], log_q[word], reason=reason, word=word, seed=seed))
    return found


RULES = {"importance": Importance(), "hard": Hard(0.7), "both": Chain(Importance(), Hard(2.0))}
any_rule = st.sampled_from(sorted(RULES)).map(lambda name: Chain(Accepted(), RULES[name]))


# --- all of them


@given(scoring(), st.randoms(), any_rule, any_rule)
def test_arrival_changes_nothing(draws: list[Draw], rng: random.Random, a: Rule, b: Rule) -> None:
    arrived = rng.sample(draws, len(draws))
    assert weigh(Chain(a, b), arrived) == weigh(Chain(a, b), draws)


@given(scoring(), any_rule)
def test_rules_are_pure_and_make_up_no_draws(draws: list[Draw], rule: Rule) -> None:
    examples, given_draws = [Example(draw) for draw in draws], list(draws)
    found = rule(draws, examples)
    assert (draws, examples) == (given_draws, [Example(draw) for draw in given_draws])
    assert found == rule(draws, examples)
    assert all(example.draw in draws and math.isfinite(example.weight) for example in found)


@given(scoring())
def test_a_solved_problem_counts_one_and_another_none(draws: list[Draw]) -> None:
    examples = weigh(importance_filter, draws)
    assert bool(examples) == any(draw.accepted for draw in draws)
    assert not examples or math.fsum(e.weight for e in examples) == pytest.approx(1)
    assert all(0 < e.weight <= 1 for e in examples)


def test_a_chain_needs_what_its_rules_do() -> None:
    assert Chain(Accepted(), First()).needs == frozenset()
    both = Chain(Accepted(), Importance(), Chain(Hard()))
    assert both.needs == {"log_pi", "fixed_budget", "untruncated", "temperature_1", "plain_prompts"}


def test_without_log_probabilities_there_are_no_weights() -> None:
    bare = replace(made(DrawKey(1, "p", 1, 0), -1), log_pi=None, log_q=None)
    with pytest.raises(AssertionError, match="was not computed"):
        weigh(Importance(), [bare])


# --- importance


@given(scoring())
def test_importance_weights_are_as_pi_to_what_the_draw_came_from(draws: list[Draw]) -> None:
    right = [draw for draw in draws if draw.accepted]
    ratios = [
        math.exp(d.log_pi - d.log_q) if d.prompt_kind == "hinted" else 1.0  # type: ignore[operator]  # hinted draws are scored
        for d in right
    ]
    expected = {d.key: ratio / math.fsum(ratios) for d, ratio in zip(right, ratios, strict=True)}
    found = weigh(Chain(Accepted(), Importance()), draws)
    assert {e.draw.key: e.weight for e in found} == pytest.approx(expected)


def test_logprobs_of_long_completions_do_not_underflow() -> None:
    rule = Importance()
    draws = [made(DrawKey(1, "p", 1, i), -5000.0 - i, word=i) for i in range(2)]
    weights = [e.weight for e in weigh(rule, draws)]
    assert weights == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.e)])
    hopeless = [made(DrawKey(1, "p", 1, 5), -9000.0, word=5)]  # e^-4000 of the weight: nothing
    assert len(weigh(rule, [*draws, *hopeless])) == 2


def test_importance_weights_are_not_of_draws_of_unknown_probability() -> None:
    draw = made(DrawKey(1, "p", 1, 3), -1.0)
    mute = replace(draw, completion=replace(draw.completion, logprob=math.nan))
    with pytest.raises(EngineError, match=r"did not say how likely .*index=3"):
        weigh(Chain(Accepted(), Importance()), [mute])


# --- numbers


def test_the_number_of_a_name_is_uniform_and_its_own() -> None:
    """Of 5,000 names; a false alarm in 1,000 seeds."""
    numbers = [uniform(f"some name {i}") for i in range(5000)]
    assert kstest(numbers, "uniform").pvalue > 1e-3
    assert len({*numbers}) == 5000 and min(numbers) > 0 and max(numbers) <= 1
    assert uniform("some name 7") == numbers[7]


@given(scoring(), st.floats(0.01, 3))
def test_the_a_th_attempt_counts_a_to_the_power(draws: list[Draw], power: float) -> None:
    found = weigh(Hard(power), draws)
    assert [e.draw for e in found] == draws
    assert [e.weight for e in found] == pytest.approx([(d.key.index + 1) ** power for d in draws])


@pytest.mark.parametrize("power", [0.0, -1.0, math.inf, math.nan])
def test_powers_out_of_range_are_refused(power: float) -> None:
    with pytest.raises(ConfigError, match="hard must be > 0 and finite"):
        Hard(power)
