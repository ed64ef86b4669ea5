"""Predictions by the probabilities of answers, beside those of a model that can be enumerated."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from femtune.comparison.direct import direct_metrics
from femtune.data.tasks.frames import Frame
from femtune.data.tasks.judge import turned
from femtune.estep.answer_probs import AnswerLogprobs
from femtune.evaluation.aggregate import prediction
from femtune.evaluation.answer_metrics import side_by_side
from femtune.evaluation.calibration_map import Calibration
from femtune.evaluation.scored_answers import Scored, score_draws
from femtune.schemes.named import rejection
from femtune.types import Completion, Draw, DrawKey, Problem, Sampling, Score

from ..oracle import EndingsWorld, every_draw

ANSWERS = ("y0", "y1")
WHOLE = Sampling(64)  # no rationale of the world is truncated


def closed_world(seed: int, **changes: torch.Tensor) -> EndingsWorld:
    """A world of three rationales whose answers are a closed set."""
    world = EndingsWorld.random(seed, num_z=3)
    asked = replace(world.problem, columns={"frame": Frame(form="choice", scale=ANSWERS).column()})
    ends = world.plain.ends.clone()
    ends[:, 3] = 0.0  # after "z0, and so on" no answer is possible
    changes = {"ends": ends / ends.sum(-1, keepdim=True), **changes}
    return replace(world, problem=asked, plain=replace(world.plain, **changes))


def every(world: EndingsWorld) -> list[tuple[Draw, float]]:
    sampler = replace(world.sampler(), sampling=WHOLE)
    found = every_draw(world.problem, rejection(), sampler)
    return [
        (replace(draw, key=replace(draw.key, index=index)), chance)
        for index, (draw, chance) in enumerate(found)
    ]


def predicted(world: EndingsWorld, draws: list[Draw]) -> dict[str, Any]:
    scored = score_draws(draws, {"p": world.problem}, world.sampler())
    return prediction([(world.problem, draws)], scored=scored)


def rationale_of(draw: Draw) -> int:
    return int(draw.completion.text[1])


@pytest.mark.parametrize("seed", range(4))
def test_one_rationale_gives_its_own_conditional_and_all_give_the_marginal(seed: int) -> None:
    equal = torch.full((3,), 1 / 3, dtype=torch.float64)
    world = closed_world(seed, z=equal)
    draws = [draw for draw, _ in every(world)]
    for draw in draws:  # also those that gave no answer, or wrote on after it
        made = predicted(world, [draw])
        assert [*made["probabilities"].values()] == pytest.approx(
            world.plain.y[rationale_of(draw)].tolist()
        )
        assert made["aggregate"] == "probabilities"
    one_each = list({rationale_of(draw): draw for draw in draws}.values())
    made = predicted(world, one_each)
    assert [*made["probabilities"].values()] == pytest.approx(world.plain.y.mean(0).tolist())
    assert made["distribution"] == made["probabilities"]
    assert made["confidence"] == max(made["distribution"].values())
    assert made["answer"] == max(ANSWERS, key=made["distribution"].__getitem__)


@pytest.mark.parametrize("seed", range(4))
def test_on_average_over_rationales_it_is_the_models_distribution(seed: int) -> None:
    world = closed_world(seed)
    law = every(world)
    mean = math.fsum(chance * predicted(world, [draw])["probabilities"]["y1"] for draw, chance in law)
    assert mean == pytest.approx(float(world.plain.z @ world.plain.y[:, 1]))
    assert math.fsum(chance for _, chance in law) == pytest.approx(1)


def test_a_draw_without_an_answer_has_no_vote_and_a_distribution() -> None:
    world = closed_world(0)
    silent = [draw for draw, _ in every(world) if not draw.score.answer]
    made = predicted(world, silent)
    assert (made["num_answered"], made["votes"]) == (0, {})
    assert made["answer"] in ANSWERS and sum(made["distribution"].values()) == pytest.approx(1)


# --- any probabilities

RATING = ("1", "2", "3")
logprobs_of = st.lists(st.floats(-60, 0), min_size=3, max_size=3)
pair_logprobs = st.lists(st.floats(-60, 0), min_size=2, max_size=2)


def draw(problem_id: str, index: int, answer: str) -> Draw:
    completion = Completion((1, 2), "", "stop", -1.0 - index)
    return Draw(
        DrawKey(0, problem_id, 0, index),
        "plain",
        0,
        completion,
        Score(0.0, answer, "wrong" if answer else "parse_error", rationale=f"{problem_id} z{index}"),
    )


def rated(logprobs: list[list[float]], answers: list[str], **options: Any) -> dict[str, Any]:
    problem = Problem(
        "p", "Rate it.", "2", {"frame": Frame(form="rating", scale=RATING, item="item").column()}
    )
    scored = {("p", index): AnswerLogprobs(RATING, tuple(each)) for index, each in enumerate(logprobs)}
    draws = [draw("p", index, answer) for index, answer in enumerate(answers)]
    return prediction([(problem, draws)], scored=scored, **options)


@given(st.lists(st.tuples(logprobs_of, st.sampled_from([*RATING, ""])), min_size=1, max_size=5))
def test_probabilities_sum_to_one_and_agree_with_what_is_made_of_them(
    drawn: list[tuple[list[float], str]],
) -> None:
    made = rated([logprobs for logprobs, _ in drawn], [answer for _, answer in drawn])
    shares = made["distribution"]
    assert sum(shares.values()) == pytest.approx(1)
    assert made["confidence"] == shares[made["answer"]] == max(shares.values())
    assert made["expected"] == pytest.approx(sum(float(a) * share for a, share in shares.items()))
    assert sum(made["votes"].values()) == sum(answer != "" for _, answer in drawn)


def test_by_hand() -> None:
    certain, even = [0.0, -900.0, -900.0], [-1.0, -1.0, -900.0]
    made = rated([certain, even], ["1", "2"])
    assert made["probabilities"] == pytest.approx({"1": 0.75, "2": 0.25, "3": 0.0})
    assert (made["answer"], made["expected"]) == ("1", pytest.approx(1.25))
    assert made["votes"] == {"1": 1, "2": 1}
    assert made["rationale"] == "p z0"
    # nobody gave the likeliest answer: the rationale after which it is likeliest
    assert rated([certain, even], ["3", ""])["rationale"] == "p z0"
    assert rated([certain, even], ["3", ""], abstain_below=0.8)["answer"] is None


def test_a_calibration_of_probabilities_maps_them_and_one_of_votes_does_not() -> None:
    flat = Calibration("temperature", RATING, temperature=1e9, smoothing=1e-6, of="probabilities")
    made = rated([[0.0, -900.0, -900.0]], ["1"], calibration=flat)
    assert [*made["distribution"].values()] == pytest.approx([1 / 3] * 3)
    assert made["probabilities"]["1"] == 1
    of_votes = replace(flat, of="votes")
    made = rated([[0.0, -900.0, -900.0]], ["1"], calibration=of_votes)
    assert made["distribution"]["1"] == 1


def pair(
    shown: list[tuple[list[float], str]],
    other: list[tuple[list[float], str]],
    calibration: Calibration | None = None,
) -> dict[str, Any]:
    orders, scored = [], {}
    for drawn, swapped, name in ((shown, False, "p"), (other, True, "p (swapped)")):
        frame = Frame(form="pair", scale=("A", "B"), item="item", length=0.0, pair="p", swapped=swapped)
        problem = Problem(name, "Which?", "", {"frame": frame.column()})
        orders.append((problem, [draw(name, index, answer) for index, (_, answer) in enumerate(drawn)]))
        scored |= {
            (name, i): AnswerLogprobs(("A", "B"), tuple(logprobs))
            for i, (logprobs, _) in enumerate(drawn)
        }
    return prediction(orders, calibration, scored=scored)


drawn_pair = st.lists(st.tuples(pair_logprobs, st.sampled_from(["A", "B", ""])), min_size=1, max_size=3)


@given(drawn_pair, drawn_pair, st.booleans())
def test_a_pair_whose_responses_change_places_is_answered_the_other_way(
    shown: list[tuple[list[float], str]], other: list[tuple[list[float], str]], maps: bool
) -> None:
    steps = ((0.0, 1.0), (0.1, 0.9)), ((0.0, 1.0), (0.3, 0.6))
    calibration = Calibration("isotonic", ("A", "B"), knots=steps, of="probabilities") if maps else None
    made, turned_round = pair(shown, other, calibration), pair(other, shown, calibration)
    for name in ("probabilities", "distribution"):
        expected = {turned(answer): share for answer, share in made[name].items()}
        assert turned_round[name] == pytest.approx(expected)
        assert sum(made[name].values()) == pytest.approx(1)
    assert made["consistent"] == turned_round["consistent"]


def test_each_order_of_a_pair_counts_alike_and_a_liking_for_a_place_cancels_out() -> None:
    first = [math.log(0.8), math.log(0.2)]
    made = pair([(first, "A"), (first, "A"), (first, "A")], [(first, "A")])
    assert made["distribution"] == pytest.approx({"A": 0.5, "B": 0.5})
    assert made["consistent"] is False


# --- measures


def test_measures_by_hand() -> None:
    frame = {"frame": Frame(form="rating", scale=("1", "2"), item="").column()}
    problems = {
        name: Problem(name, "Rate it.", truth, frame) for name, truth in (("a", "1"), ("b", "2"))
    }
    draws = [draw("a", 0, "1"), draw("a", 1, "2"), draw("b", 0, ""), draw("b", 1, "")]
    logprobs = {("a", 0): (0.6, 0.2), ("a", 1): (0.1, 0.1), ("b", 0): (0.9, 0.1)}
    scored: Scored = {
        key: AnswerLogprobs(("1", "2"), tuple(math.log(p) for p in each))
        for key, each in logprobs.items()
    }
    ways = side_by_side(problems, [(draws, {})], scored)
    votes, chances = ways["by_votes"], ways["by_probabilities"]
    # a: 1 vote each; b: no vote, so uniform and wrong
    assert votes["accuracy"] == 0.5
    assert votes["log_likelihood"] == pytest.approx((math.log(1.5 / 3) + math.log(0.5)) / 2)
    assert votes["brier"] == pytest.approx(0.5)
    # a: mean of (.75, .25) and (.5, .5); b: (.9, .1)
    assert chances["accuracy"] == 0.5
    assert chances["log_likelihood"] == pytest.approx((math.log(0.625) + math.log(0.1)) / 2)
    assert chances["brier"] == pytest.approx((2 * 0.375**2 + 2 * 0.9**2) / 2)
    assert chances["ece"] == pytest.approx((abs(0.625 - 1) + abs(0.9 - 0)) / 2)
    assert chances["mae"] == pytest.approx((0.375 + 0.9) / 2)
    assert side_by_side(problems, [(draws, {})], {}) == {}
    flat = Calibration("temperature", ("1", "2"), temperature=1e9, smoothing=1e-6, of="probabilities")
    mapped = side_by_side(problems, [(draws, {})], scored, flat)["calibrated"]
    assert mapped["brier"] == pytest.approx(0.5)


def test_choices_of_several_sizes_are_measured_together_and_an_impossible_truth_is_told() -> None:
    sets = {"a": ("A", "B"), "b": ("A", "B", "C")}
    problems = [
        Problem(n, "?", "B", {"frame": Frame(form="choice", scale=s).column()}) for n, s in sets.items()
    ]
    found = [AnswerLogprobs(s, tuple(-float(i) for i in range(len(s)))) for s in sets.values()]
    expected = [math.log(math.exp(-1) / (1 + math.exp(-1))), math.log(math.exp(-1) / 1.5032147)]
    metrics = direct_metrics(problems, found)
    assert metrics["log_likelihood"] == pytest.approx(sum(expected) / 2)
    never = AnswerLogprobs(("A", "B"), (0.0, -math.inf))
    assert direct_metrics(problems, [never, None])["log_likelihood"] is None
