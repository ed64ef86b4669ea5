"""Rules, as properties of any draws of a problem."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from femtune.schemes.filters import Accepted, ByReward, Chain, Distinct, First, Share, weigh
from femtune.types import Completion, Draw, DrawKey, Example, Reason, Rule, Score

REASONS: tuple[Reason, ...] = (
    "", "", "wrong", "truncated", "parse_error", "hint_leak", "reward_failed", "engine_failed"
)  # fmt: skip


@st.composite
def problems_draws(draw: st.DrawFn) -> list[Draw]:
    """A problem's draws, in the order of their keys."""
    keys = draw(st.sets(st.tuples(st.integers(0, 2), st.integers(0, 5)), max_size=8))
    made = []
    for stage, index in sorted(keys):
        reason = draw(st.sampled_from(REASONS))
        reward = 1.0 if reason == "" else draw(st.floats(0, 1))
        tokens = tuple(draw(st.lists(st.integers(0, 2), max_size=2)))
        completion = Completion(tokens, "", "stop", -1.0)
        key = DrawKey(1, "p", stage, index)
        made.append(Draw(key, "plain", 0, completion, Score(reward, "", reason)))
    return made


any_rule = st.sampled_from([Accepted(), First(), First(3), Distinct(), ByReward(), Share()])


@given(problems_draws(), any_rule, any_rule, any_rule)
def test_chain_is_associative(draws: list[Draw], a: Rule, b: Rule, c: Rule) -> None:
    flat = weigh(Chain(a, b, c), draws)
    assert flat == weigh(Chain(Chain(a, b), c), draws) == weigh(Chain(a, Chain(b, c)), draws)
    assert flat == c(draws, b(draws, a(draws, [Example(draw) for draw in draws])))
    assert weigh(Chain(), draws) == [Example(draw) for draw in draws]


@given(problems_draws(), st.randoms(), any_rule, any_rule)
def test_arrival_changes_nothing(draws: list[Draw], rng: random.Random, a: Rule, b: Rule) -> None:
    arrived = rng.sample(draws, len(draws))
    assert weigh(Chain(a, b), arrived) == weigh(Chain(a, b), draws)


@given(problems_draws())
def test_accepted_keeps_exactly_the_accepted(draws: list[Draw]) -> None:
    kept = [example.draw for example in weigh(Accepted(), draws)]
    assert kept == [draw for draw in draws if draw.score.reason == ""]


@given(problems_draws(), st.randoms(), st.integers(1, 4))
def test_first_goes_by_key(draws: list[Draw], rng: random.Random, num: int) -> None:
    shuffled = [Example(draw) for draw in rng.sample(draws, len(draws))]
    assert [example.draw for example in First(num)(draws, shuffled)] == draws[:num]


@given(problems_draws())
def test_distinct_keeps_the_first_of_the_same_tokens(draws: list[Draw]) -> None:
    kept = [example.draw for example in weigh(Distinct(), draws)]
    tokens = [draw.completion.tokens for draw in draws]
    assert kept == [draw for i, draw in enumerate(draws) if tokens[i] not in tokens[:i]]
    assert weigh(Chain(Distinct(), Distinct()), draws) == weigh(Distinct(), draws)


@given(problems_draws())
def test_by_reward_weighs_what_ended_and_did_not_leak(draws: list[Draw]) -> None:
    weights = {e.draw.key: e.weight for e in weigh(ByReward(), draws)}
    for draw in draws:
        claim = draw.score.reward if draw.score.reason in ("", "wrong") else 0
        assert weights.get(draw.key, 0) == claim
    assert 0 not in weights.values()


@given(problems_draws())
def test_share_gives_each_solved_problem_the_same_weight(draws: list[Draw]) -> None:
    examples = weigh(Chain(ByReward(), Share()), draws)
    assert not examples or sum(e.weight for e in examples) == pytest.approx(1)
    before = weigh(ByReward(), draws)
    total = sum(example.weight for example in before)
    assert [e.weight * total for e in examples] == pytest.approx([e.weight for e in before])


@given(problems_draws(), any_rule)
def test_rules_are_pure_and_make_up_no_draws(draws: list[Draw], rule: Rule) -> None:
    examples, given_draws = [Example(draw) for draw in draws], list(draws)
    made = rule(draws, examples)
    assert (draws, examples) == (given_draws, [Example(draw) for draw in given_draws])
    assert made == rule(draws, examples)
    assert {example.draw.key for example in made} <= {draw.key for draw in draws}
