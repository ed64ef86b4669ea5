"""The probabilities of answers after a rationale, beside those of a model that can be enumerated."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from femtune.config import Ask
from femtune.data.answer_format import parse_format
from femtune.data.worlds import WORLDS, make_splits
from femtune.engines.fake import END
from femtune.errors import ConfigError
from femtune.estep.answer_probs import (
    AnswerLogprobs,
    answer_logprobs,
    direct_logprobs,
    prefix_of,
    score_after,
    with_answer,
    written,
)
from femtune.evaluation.evaluate import evaluation_draws
from femtune.resolve import read_inputs
from femtune.sampler import make_sampler_builder
from femtune.schemes.named import pps, rejection
from femtune.types import Draw, Problem, Sampling

from ..oracle import LINE_CUT, EndingsWorld, every_draw

ANSWERS = ("y0", "y1")
SCALE = ("1", "2", "3", "4", "5")


def both(problem: Problem) -> tuple[str, ...]:
    return ANSWERS


def draws_of(world: EndingsWorld, scheme: str = "plain") -> list[Draw]:
    asked = rejection() if scheme == "plain" else pps()
    return [draw for draw, _ in every_draw(world.problem, asked, world.sampler())]


@pytest.mark.parametrize(("seed", "scheme"), [*product(range(4), ("plain", "hinted"))])
def test_each_answer_has_the_probability_that_the_model_gives_it(seed: int, scheme: str) -> None:
    world = EndingsWorld.random(seed)
    asked = {"p": world.problem}
    right = [draw for draw in draws_of(world, scheme) if draw.score.answer]
    open_, closed = (
        answer_logprobs(right, asked, world.sampler(), answers=both, closed=closed)
        for closed in (False, True)
    )
    for draw, found, ended in zip(right, open_, closed, strict=True):
        assert found is not None and ended is not None
        begun = f"{draw.score.rationale}\nAnswer:"
        for answer in ANSWERS:
            text = f"{begun} {answer}"
            chance = begins_with(world, text) / begins_with(world, begun)
            assert math.exp(found.of(answer)) == pytest.approx(chance)
            # y0 and y1 are followed by their end or a line break in this world
            assert math.exp(ended.of(answer)) == pytest.approx(chance)
    assert len(right) >= 4


def begins_with(world: EndingsWorld, text: str) -> float:
    """The chance that what the model writes under the plain prompt begins with a text."""
    begun = tuple(text.encode())
    return math.fsum(p for whole, p in world.plain.law.items() if whole[: len(begun)] == begun)


def test_without_a_rationale_it_is_what_follows_the_cue_alone() -> None:
    world = EndingsWorld.random(0)
    prompt = (*world.sampler().tokenizer.encode_prompt("x0"), *b"\nAnswer:")
    [found] = direct_logprobs([world.problem], world.sampler(), answers=both)
    assert found is not None
    expected = world.engine().logprob([(prompt, (*b" y0",)), (prompt, (*b" y1",))])
    assert list(found.logprobs) == expected


def test_a_draw_whose_problem_has_any_answer_is_not_scored() -> None:
    world = EndingsWorld.random(0)
    draws = draws_of(world)
    assert answer_logprobs(draws, {"p": world.problem}, world.sampler()) == [None] * len(draws)


def test_the_cue_is_put_where_an_answer_is_missing_or_in_another_form() -> None:
    world = EndingsWorld.random(0)
    sampler = world.sampler()
    for draw in draws_of(world):
        before, sampled = prefix_of(draw.completion, sampler)
        text = sampler.tokenizer.decode(before)
        assert text.endswith("\nAnswer:")
        if sampled:
            assert draw.completion.tokens[: len(before)] == before
        assert not LINE_CUT.format.read(text).answer


def test_another_answer_takes_the_place_of_the_one_that_was_written() -> None:
    world = EndingsWorld.random(0)
    draw = next(draw for draw in draws_of(world) if draw.score.answer == "y0")
    made = with_answer(draw.completion, "y1", world.sampler())
    assert made.text == f"{draw.score.rationale}\nAnswer: y1"
    assert made.tokens[-1] == END


def test_answers_of_which_one_begins_another_are_scored_with_their_end() -> None:
    sampler = EndingsWorld.random(0).sampler()
    assert [len(ways) for ways in written(("1", "10"), sampler).ways] == [2, 2]
    assert [len(ways) for ways in written(("1", "2"), sampler).ways] == [1, 1]


def test_a_format_without_a_cue_is_refused() -> None:
    sampler = EndingsWorld.random(0).sampler()
    assert sampler.cut is not None
    cut = replace(sampler.cut, format=parse_format("regex:Score: (.+)"))
    with pytest.raises(ConfigError, match="format with a cue"):
        written(("1", "2"), replace(sampler, cut=cut))


@given(st.lists(st.floats(-50, 0), min_size=1, max_size=8))
def test_shares_are_probabilities(logprobs: list[float]) -> None:
    answers = tuple(map(str, range(len(logprobs))))
    shares = AnswerLogprobs(answers, tuple(logprobs)).shares()
    assert math.fsum(shares.values()) == pytest.approx(1.0)
    assert all(0 <= share <= 1 for share in shares.values())


def test_pairs_are_scored_where_an_engine_has_no_pass_for_several() -> None:
    world = EndingsWorld.random(1)
    prompt = tuple(b"x0")
    several = [tuple(b"z0"), tuple(b"z1")]
    [found] = score_after(world.engine(), [(prompt, several)])
    assert list(found) == world.engine().logprob([(prompt, each) for each in several])
    assert score_after(world.engine(), []) == []


def test_where_a_tokenizer_joins_cue_and_answer_the_sampled_answer_has_its_own_probability() -> None:
    """The seedling writes ".\\nAnswer: " as one token."""
    problems = [
        Problem(f"p{n}", problem.prompt, problem.answer, problem.columns)
        for n, problem in enumerate(make_splits(WORLDS["rubric"], 4, 4)[0])
    ]
    asked = read_inputs(problems, Ask(max_new_tokens=48))
    builder = make_sampler_builder("seedling", asked, problems)
    with builder.sampler(Sampling(48)) as sampler:
        [chunk] = evaluation_draws(problems, sampler, draws=4, iteration=0)
        free = [
            draw for draw in chunk.draws if draw.score.answer in SCALE and not draw.completion.num_forced
        ]
        found = answer_logprobs(free, {p.id: p for p in problems}, sampler)
        for draw, logprobs in zip(free, found, strict=True):
            assert logprobs is not None and math.fsum(map(math.exp, logprobs.logprobs)) <= 1.001
            # the tokens before the answer and its end are those that were sampled
            tokens, prompt = (
                draw.completion.tokens,
                sampler.prompts.plain(problems[int(draw.key.problem_id[1:])]),
            )
            place = len(tokens) - 2
            before = (*sampler.tokenizer.encode_prompt(prompt), *tokens[:place])
            [alone] = sampler.engine.logprob([(before, tokens[place : place + 1])])
            assert logprobs.of(draw.score.answer) == pytest.approx(alone, abs=1e-3)
    assert len(free) >= 8
