"""Rules that weigh by the posterior, as properties of any draws of a problem.

Their laws, on a model of which all is known, are in estep/test_oracle_posterior.py.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import kstest

from femtune.errors import ConfigError, EngineError
from femtune.schemes import weights as module
from femtune.schemes.filters import Above, Accepted, Chain, Distinct, First, Heaviest, Share, weigh
from femtune.schemes.weights import (
    ControlVariate,
    Doubt,
    Importance,
    Metropolis,
    Posterior,
    Resample,
    Wake,
    uniform,
)
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


@st.composite
def weighted(draw: st.DrawFn, least: float = 0.0) -> list[Example]:
    """Examples with weights, some of them perhaps negative, of a problem's accepted draws."""
    draws = [d for d in draw(scoring()) if d.accepted]
    weights = st.floats(least, 10).filter(lambda w: abs(w) > 1e-6)
    return [Example(d, draw(weights)) for d in draws]


def drawn(examples: Sequence[Example]) -> list[Draw]:
    return [example.draw for example in examples]


RULES = {
    "importance": Importance(),
    "posterior": Chain(Distinct(), Posterior()),
    "metropolis": Metropolis(),
    "control_variate": ControlVariate(0.5),
    "resample": Chain(Share(), Resample(3)),
    "doubt": Doubt(0.1, 5),
    "wake": Wake(0.5),
    "heaviest": Chain(Posterior(), Heaviest(2)),
    "above": Chain(Posterior(), Above(0.2)),
}
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


@given(scoring(), any_rule)
def test_only_control_variates_are_not_accepted_and_only_wake_examples_are_hinted(
    draws: list[Draw], rule: Rule
) -> None:
    for example in weigh(rule, draws):
        assert example.draw.accepted or example.weight < 0
        assert example.prompt_kind == "plain" or example.weight > 0


@given(scoring(), st.sampled_from(["importance", "posterior", "metropolis"]))
def test_a_solved_problem_counts_one_and_another_none(draws: list[Draw], name: str) -> None:
    examples = weigh(Chain(Accepted(), RULES[name]), draws)
    assert bool(examples) == any(draw.accepted for draw in draws)
    assert not examples or math.fsum(e.weight for e in examples) == pytest.approx(1)
    assert all(0 < e.weight <= 1 for e in examples)


def test_a_chain_needs_what_its_rules_do() -> None:
    assert Chain(Accepted(), First()).needs == frozenset()
    both = Chain(Accepted(), Metropolis(), Chain(Doubt(), ControlVariate()))
    assert both.needs == {
        "log_pi", "log_q", "fixed_budget", "temperature_1", "current_model", "plain_prompts"
    }  # fmt: skip


def test_without_log_probabilities_there_are_no_weights() -> None:
    bare = replace(made(DrawKey(1, "p", 1, 0), -1), log_pi=None, log_q=None)
    other = replace(made(DrawKey(1, "p", 1, 1), -1), log_pi=None, log_q=None)
    for rule in (Importance(), Posterior(), Metropolis(), Doubt()):
        with pytest.raises(AssertionError, match="was not computed"):
            weigh(rule, [bare, other])


# --- importance, posterior


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


@given(scoring())
def test_posterior_weights_are_as_pi_of_distinct_draws(draws: list[Draw]) -> None:
    masses = {d.completion.tokens: math.exp(d.log_pi) for d in draws if d.log_pi is not None}
    found = weigh(Chain(Accepted(), RULES["posterior"]), draws)
    total = math.fsum(masses.values())
    expected = {tokens: mass / total for tokens, mass in masses.items()}
    assert {e.draw.completion.tokens: e.weight for e in found} == pytest.approx(expected)


@pytest.mark.parametrize("rule", [Importance(), Posterior()])
def test_logprobs_of_long_completions_do_not_underflow(rule: Rule) -> None:
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


# --- metropolis


@given(scoring(), st.randoms())
def test_the_chain_moves_over_right_draws_in_order_of_their_keys(
    draws: list[Draw], rng: random.Random
) -> None:
    """The definition, step by step."""
    state: Draw | None = None
    for draw in draws:
        if not draw.accepted:
            continue
        if state is None or draw.prompt_kind == "plain":
            state = draw
        else:
            assert draw.log_pi is not None and draw.log_q is not None
            assert state.log_pi is not None and state.log_q is not None
            ratio = math.exp(draw.log_pi - draw.log_q - state.log_pi + state.log_q)
            # rounding decides nothing here
            assume(abs(ratio - uniform(f"metropolis {draw.seed}")) > 1e-9)
            state = draw if uniform(f"metropolis {draw.seed}") < ratio else state
    examples = [Example(draw) for draw in draws if draw.accepted]
    rng.shuffle(examples)
    assert Metropolis()(draws, examples) == ([Example(state)] if state else [])


def test_the_remembered_draw_is_the_state() -> None:
    old = made(DrawKey(1, "p", 1, 0), -1.0, -1.0, word=1)
    unlikely = made(DrawKey(2, "p", 1, 0), -60.0, -1.0, word=2)
    likely = made(DrawKey(2, "p", 1, 1), -0.5, -1.0, word=3)
    assert drawn(weigh(Metropolis(), [old, unlikely])) == [old]
    assert drawn(weigh(Metropolis(), [old, unlikely, likely])) == [likely]
    plain = made(DrawKey(2, "p", 0, 0), -60.0, -1.0, word=4)
    assert drawn(weigh(Metropolis(), [old, plain])) == [plain]


# --- control variate


@given(scoring(), st.floats(0.01, 1))
def test_all_plain_draws_of_the_iteration_share_minus_beta(draws: list[Draw], beta: float) -> None:
    before = weigh(Accepted(), draws)
    examples = ControlVariate(beta)(draws, before)
    assert list(examples[: len(before)]) == before
    newest = max((draw.key.iteration for draw in draws), default=0)
    wanted = [
        draw
        for draw in draws
        if draw.prompt_kind == "plain"
        and draw.key.iteration == newest
        and draw.score.reason != "engine_failed"
    ]
    added = list(examples[len(before) :])
    assert drawn(added) == wanted
    assert all(e.weight == pytest.approx(-beta / len(wanted)) for e in added)


@given(scoring())
def test_a_beta_of_zero_adds_nothing(draws: list[Draw]) -> None:
    assert weigh(ControlVariate(0), draws) == [Example(draw) for draw in draws]


def test_a_draw_without_tokens_is_no_control() -> None:
    draw = made(DrawKey(1, "p", 0, 0), -1.0, reason="parse_error")
    empty = replace(draw, completion=Completion((), "", "stop", 0.0))
    assert ControlVariate(1)([empty], []) == []


# --- resample


def times(examples: Sequence[Example], total: float, num: int) -> Counter[DrawKey]:
    """How often each draw came."""
    found = {e.draw.key: e.weight * num / total for e in examples}
    assert all(each == pytest.approx(round(each)) for each in found.values())
    return Counter({key: round(each) for key, each in found.items()})


@given(weighted(), st.integers(1, 6))
def test_a_draw_comes_as_often_as_its_share_says_up_to_one(examples: list[Example], num: int) -> None:
    total = math.fsum(e.weight for e in examples)
    found = Resample(num)(drawn(examples), examples)
    assert math.fsum(e.weight for e in found) == pytest.approx(total)
    counts = times(found, total, num)
    assert counts.total() == (num if examples else 0)
    for example in examples:
        share = num * Fraction(example.weight) / sum(Fraction(e.weight) for e in examples)
        assert math.floor(share) <= counts[example.draw.key] <= math.ceil(share)


@given(weighted(), st.integers(1, 6))
def test_resampling_gives_the_weights_on_average(examples: list[Example], num: int) -> None:
    """The integral over the uniform number, exact: between its breakpoints nothing changes."""
    exact = [Fraction(e.weight) for e in examples]
    ends = [num * sum(exact[:i], Fraction(0)) / sum(exact) for i in range(1, len(exact) + 1)]
    cuts = sorted({Fraction(0), Fraction(1), *(end - math.floor(end) for end in ends)})
    total, mean = math.fsum(e.weight for e in examples), Counter[DrawKey]()
    with pytest.MonkeyPatch.context() as patch:
        for low, high in pairwise(cuts):
            patch.setattr(module, "uniform", lambda name, at=(low + high) / 2: at)
            found = Resample(num)(drawn(examples), examples)
            for key, count in times(found, total, num).items():
                mean[key] += (high - low) * count  # type: ignore[assignment]  # a Counter of floats
    for example, weight in zip(examples, exact, strict=True):
        assert mean[example.draw.key] == num * weight / sum(exact)


@given(weighted(least=-10))
def test_resampling_leaves_negative_weights(examples: list[Example]) -> None:
    found = Resample(2)(drawn(examples), examples)
    assert [e for e in found if e.weight < 0] == [e for e in examples if e.weight < 0]
    positive = [e for e in examples if e.weight > 0]
    assert [e for e in found if e.weight > 0] == Resample(2)(drawn(examples), positive)


@given(scoring())
def test_one_draw_of_a_problem_is_resampled_with_all_its_weight(draws: list[Draw]) -> None:
    examples = weigh(Chain(Accepted(), Importance(), Resample(1)), draws)
    assert len(examples) == any(draw.accepted for draw in draws)
    assert all(e.weight == pytest.approx(1) for e in examples)


# --- doubt


def trust(draws: Sequence[Draw], noise: float, num_answers: int | None) -> float:
    """What is left of a weight of 1."""
    examples = weigh(Chain(Accepted(), First(), Doubt(noise, num_answers)), draws)
    return examples[0].weight if examples else 0.0


@given(scoring(), st.floats(0, 0.99), st.one_of(st.none(), st.integers(2, 1000)))
def test_trust_is_bayes_rule_over_distinct_right_draws(
    draws: list[Draw], noise: float, num_answers: int | None
) -> None:
    masses = {d.completion.tokens: math.exp(d.log_pi) for d in draws if d.log_pi is not None}
    assume(masses)
    mass = min(1.0, math.fsum(masses.values()))  # of any numbers; a model's sum to 1 at most
    right = (1 - noise) * mass
    wrong = noise * (1 - mass) / ((num_answers or 1000) - 1)
    assert trust(draws, noise, num_answers) == pytest.approx(right / (right + wrong))


@given(weighted())
def test_no_doubt_changes_nothing(examples: list[Example]) -> None:
    assert list(Doubt(0.0)(drawn(examples), examples)) == examples


@given(st.floats(0, 0.99), st.integers(2, 100))
def test_an_answer_that_the_model_always_gives_is_not_doubted(noise: float, num_answers: int) -> None:
    halves = [made(DrawKey(1, "p", 0, i), math.log(0.5), word=i) for i in range(2)]
    assert trust(halves, noise, num_answers) == 1.0
    assert trust([made(DrawKey(1, "p", 0, 0), 0.0)], noise, num_answers) == 1.0


@given(st.lists(logprobs, min_size=2, max_size=5, unique=True), st.floats(0.01, 0.9))
def test_doubt_lessens_with_each_further_rationale_and_with_fewer_errors(
    masses: list[float], noise: float
) -> None:
    draws = [made(DrawKey(1, "p", 0, i), mass - 2, word=i) for i, mass in enumerate(masses)]
    found = [trust(draws[: i + 1], noise, 5) for i in range(len(draws))]
    assert found == sorted(found)
    assert trust(draws, noise * 0.9, 5) >= trust(draws, noise, 5)
    repeated = replace(draws[0], key=DrawKey(2, "p", 0, 0))  # the same tokens once more: nothing new
    assert trust([*draws, repeated], noise, 5) == trust(draws, noise, 5)


def test_an_answer_of_no_mass_is_dropped_and_a_control_variate_kept() -> None:
    lost = made(DrawKey(1, "p", 0, 0), -9000.0)
    assert Doubt(0.1, 5)([lost], [Example(lost), Example(lost, -0.5)]) == [Example(lost, -0.5)]
    assert Doubt(0.0, 5)([lost], [Example(lost)]) == [Example(lost)]


# --- wake, heaviest, above


@given(weighted(least=-10), st.floats(0.01, 3))
def test_wake_adds_what_is_learnt_once_more_and_says_that_it_is_hinted(
    examples: list[Example], weight: float
) -> None:
    found = list(Wake(weight)(drawn(examples), examples))
    assert found[: len(examples)] == examples
    assert all(e.prompt_kind == "plain" for e in examples)
    positive = [e for e in examples if e.weight > 0]
    assert found[len(examples) :] == [
        replace(e, weight=weight * e.weight, prompt_kind="hinted") for e in positive
    ]


@given(weighted(), st.integers(1, 4))
def test_the_heaviest_are_as_heavy_as_any_that_are_left_out(examples: list[Example], num: int) -> None:
    kept = Heaviest(num)(drawn(examples), examples)
    assert len(kept) == min(num, len(examples))
    left = [e for e in examples if e not in kept]
    assert all(k.weight >= e.weight for k in kept for e in left)
    equal = [replace(e, weight=1.0) for e in examples]
    assert list(Heaviest(num)(drawn(equal), equal[::-1])) == equal[:num]


@given(weighted(), st.floats(0, 0.5))
def test_above_leaves_out_what_has_less_than_that_share(examples: list[Example], least: float) -> None:
    total = sum(e.weight for e in examples)
    kept = Above(least)(drawn(examples), examples)
    assert kept == [e for e in examples if e.weight / total >= least - 1e-15 and e in kept]
    assert all(e in kept or e.weight / total < least + 1e-12 for e in examples)
    assert bool(kept) == bool(examples) or least > 0.2  # one of at most five has a fifth


# --- numbers


def test_the_number_of_a_name_is_uniform_and_its_own() -> None:
    """Of 5,000 names; a false alarm in 1,000 seeds."""
    numbers = [uniform(f"some name {i}") for i in range(5000)]
    assert kstest(numbers, "uniform").pvalue > 1e-3
    assert len({*numbers}) == 5000 and min(numbers) > 0 and max(numbers) <= 1
    assert uniform("some name 7") == numbers[7]


@pytest.mark.parametrize(
    ("make", "numbers", "told"),
    [
        (ControlVariate, [(-0.1,), (1.1,), (math.nan,)], r"beta must be in \[0, 1\], got "),
        (Resample, [(0,), (-3,)], "resample must be >= 1, got "),
        (Doubt, [(1.0,), (-0.1,), (math.nan,), (0.1, 1)], r"doubt must be in \[0, 1\) and among"),
        (Wake, [(0.0,), (-1.0,), (math.inf,), (math.nan,)], "wake must be > 0 and finite"),
    ],
)
def test_numbers_that_are_none_are_refused(
    make: type[Rule], numbers: list[tuple[float]], told: str
) -> None:
    for each in numbers:
        with pytest.raises(ConfigError, match=told):
            make(*each)
