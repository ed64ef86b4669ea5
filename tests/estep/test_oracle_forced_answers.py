"""The laws of draws that end at their answer, are forced to give one, are shown worked examples, or are
drawn at another temperature: sums over all that can be drawn, by the real driver; see oracle.py.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from femtune.data.truncation import trained_tokens
from femtune.engines.fake import END
from femtune.errors import EngineError
from femtune.estep import scoring
from femtune.estep.driver import e_step
from femtune.estep.scheduler import Sampler
from femtune.estep.scoring import logprobs_under, scored_draws
from femtune.evaluation.likelihood_bound import mixture_draws
from femtune.loop import Evaluation, LoopConfig
from femtune.mstep.config import Training
from femtune.reporting.terminal import Quiet
from femtune.runs.draws import read_draws
from femtune.runs.run import Run
from femtune.schemes.filters import weigh
from femtune.schemes.named import importance, parse_scheme, pps, rejection
from femtune.schemes.weights import Importance
from femtune.types import Completion, Draw, DrawKey, Scheme, Score

from ..oracle import (
    DEMOS,
    RATIONALES,
    EndingsWorld,
    TableSteps,
    every_draw,
)

worlds = st.integers(0, 2**32).map(EndingsWorld.random)
PLAIN = importance(replace(rejection(1), name="plain"))
HINTED = importance(pps(1))
few = settings(max_examples=8, deadline=None, phases=[Phase.generate])


def weight(draw: Draw) -> float:
    """pi / q as the rule has it: beside a draw whose q is pi."""
    assert draw.log_pi is not None
    key = replace(draw.key, index=-1)  # first in order
    known = replace(draw, key=key, log_drawn=draw.log_pi)
    a, b = weigh(Importance(), [known, draw])
    return b.weight / a.weight


def expected_weights(
    world: EndingsWorld,
    scheme: Scheme,
    made: Sampler,
    change: Callable[[Draw], Draw] = lambda draw: draw,
) -> Counter[tuple[int, ...]]:
    """E[w 1(s)] of each right completion s, over all draws that there can be."""
    drawn = list(every_draw(world.problem, scheme, made))
    assert math.fsum(chance for _, chance in drawn) == pytest.approx(1)
    right = [(draw, chance) for draw, chance in drawn if draw.accepted]
    scored = scored_draws([draw for draw, _ in right], [world.problem], scheme, made, 1)
    found: Counter[tuple[int, ...]] = Counter()
    for draw, (_, chance) in zip(scored, right, strict=True):
        found[draw.completion.tokens] += chance * weight(change(draw))  # type: ignore[assignment]  # a Counter of floats
    return found


def assert_unbiased(
    world: EndingsWorld, found: Counter[tuple[int, ...]], *, forced: bool = False
) -> None:
    """E[w 1(s)] = pi(s | x) of each completion s that can be drawn, so that E[w 1(y*)] = pi(y* | x)."""
    exact = world.plain.right(1)
    if not forced:  # too long to be written: truncated before its answer
        exact = {s: chance for s, chance in exact.items() if len(s) <= 26}
    assert dict(found) == pytest.approx(exact, rel=1e-9)


def bias(world: EndingsWorld, found: Counter[tuple[int, ...]]) -> float:
    """The largest relative error of E[w 1(s)]."""
    exact = world.plain.right(1)
    return max(abs(value / exact[s] - 1) for s, value in found.items())


# --- cut draws


@given(worlds, st.sampled_from([PLAIN, HINTED]), st.booleans())
@few
def test_importance_weights_of_cut_draws_are_unbiased(
    world: EndingsWorld, scheme: Scheme, early: bool
) -> None:
    assert_unbiased(world, expected_weights(world, scheme, world.sampler(early=early)))


def test_scoring_what_is_trained_in_place_of_what_was_sampled_biases_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = EndingsWorld.random(seed=1)
    made = world.sampler()
    assert bias(world, expected_weights(world, HINTED, made)) < 1e-9
    score = scoring.logprobs

    def mutated(how: Callable[[Completion], Sequence[int]]) -> Counter[tuple[int, ...]]:
        def changed(draws: Sequence[Draw], *more: Any) -> list[float]:
            tokens = [tuple(how(draw.completion)) for draw in draws]
            return score(
                [
                    replace(draw, completion=replace(draw.completion, tokens=each))
                    for draw, each in zip(draws, tokens, strict=True)
                ],
                *more,
            )

        with monkeypatch.context() as patch:
            patch.setattr(scoring, "logprobs", changed)
            return expected_weights(world, HINTED, made)

    trained = mutated(lambda done: trained_tokens(done.tokens, done.finish_reason, END, made.tokenizer))
    without = mutated(lambda done: done.tokens[: -1 if done.finish_reason == "answered" else None])
    for found in (trained, without):
        assert bias(world, found) > 0.2
        with pytest.raises(AssertionError):
            assert_unbiased(world, found)


# --- forced answers


@given(worlds, st.sampled_from([PLAIN, HINTED]), st.booleans())
@few
def test_importance_weights_of_forced_answers_are_unbiased(
    world: EndingsWorld, scheme: Scheme, early: bool
) -> None:
    made = world.sampler(force="ended", early=early)
    assert_unbiased(world, expected_weights(world, scheme, made), forced=True)


def test_weights_by_one_of_two_ways_count_a_forced_answer_twice() -> None:
    world = EndingsWorld.random(seed=2)
    made = world.sampler(force="ended")
    found = expected_weights(world, HINTED, made, lambda draw: replace(draw, log_drawn=None))
    assert bias(world, found) > 0.2
    with pytest.raises(AssertionError):
        assert_unbiased(world, found, forced=True)
    # each way by itself is right, so that both together are twice it
    both = [tokens for tokens in found if len(tokens) <= 26]
    assert any(found[s] == pytest.approx(2 * world.plain.right(1)[s]) for s in both)


def test_a_completion_is_forced_in_as_many_ways_as_its_cue_stands_in_it() -> None:
    """After "z0" the answer may be "...", another cue and y1; after "z0, Answer: ..." it is y1."""
    world = EndingsWorld.random(seed=3)
    made = world.sampler(force="ended")
    text = f"{RATIONALES[3]}\nAnswer: y1"
    ways = [
        (draw, chance)
        for draw, chance in every_draw(world.problem, PLAIN, made)
        if draw.completion.text == text and draw.completion.finish_reason == "stop"
    ]
    assert sorted(draw.completion.num_forced for draw, _ in ways) == [
        0,
        len("\nAnswer: y1") + 1,
        len("\nAnswer: ...\nAnswer: y1") + 1,
    ]
    [draw, *_] = scored_draws([draw for draw, _ in ways], [world.problem], PLAIN, made, 1)
    assert draw.log_drawn is not None
    assert math.exp(draw.log_drawn) == pytest.approx(math.fsum(chance for _, chance in ways))


@given(worlds, st.sampled_from(["plain", "hinted"]))
@few
def test_log_drawn_is_the_chance_of_every_right_draw(world: EndingsWorld, prompt: str) -> None:
    scheme, made = (PLAIN if prompt == "plain" else HINTED), world.sampler(force="ended")
    chances: Counter[tuple[int, ...]] = Counter()
    right: dict[tuple[int, ...], Draw] = {}
    for draw, chance in every_draw(world.problem, scheme, made):
        if draw.accepted:
            chances[draw.completion.tokens] += chance  # type: ignore[assignment]  # a Counter of floats
            right[draw.completion.tokens] = draw
    for draw in scored_draws([*right.values()], [world.problem], scheme, made, 1):
        assert draw.log_drawn is not None
        assert math.exp(draw.log_drawn) == pytest.approx(chances[draw.completion.tokens], rel=1e-9)


# --- worked examples in the proposal


@given(worlds, st.sampled_from(["never", "ended"]))
@few
def test_importance_weights_of_draws_with_worked_examples_are_unbiased(
    world: EndingsWorld, force: Any
) -> None:
    made = world.sampler(demos=DEMOS, force=force)
    found = expected_weights(world, PLAIN, made)
    assert_unbiased(world, found, forced=force == "ended")


def test_taking_draws_with_worked_examples_for_plain_ones_biases_them() -> None:
    world = EndingsWorld.random(seed=4)
    made = world.sampler(demos=DEMOS)

    def plain(draw: Draw) -> Draw:
        return replace(draw, log_drawn=draw.log_pi)

    assert bias(world, expected_weights(world, PLAIN, made)) < 1e-9
    assert bias(world, expected_weights(world, PLAIN, made, plain)) > 0.2


# --- temperatures


@given(worlds, st.sampled_from([PLAIN, HINTED]), st.sampled_from([0.7, 1.3]))
@few
def test_importance_weights_are_unbiased_at_any_temperature(
    world: EndingsWorld, scheme: Scheme, temperature: float
) -> None:
    made = world.sampler(temperature=temperature)
    assert_unbiased(world, expected_weights(world, scheme, made))


def test_log_probabilities_at_temperature_1_are_not_those_of_draws_at_another() -> None:
    world = EndingsWorld.random(seed=5)
    made = world.sampler(temperature=0.7)

    def naive(draw: Draw) -> Draw:
        return replace(draw, log_drawn=draw.completion.logprob)

    assert bias(world, expected_weights(world, PLAIN, made, naive)) > 0.2


def test_an_engine_that_does_not_say_how_likely_it_drew_is_refused_by_importance() -> None:
    """What the driver cuts at another temperature has no known log-probability."""
    world = EndingsWorld.random(seed=5)
    made = world.sampler(temperature=0.7, early=False)
    with pytest.raises(EngineError, match="did not say how likely"):
        expected_weights(world, PLAIN, made)


# --- what rejection keeps


def kept(world: EndingsWorld, made: Sampler, num: int = 3000) -> Counter[tuple[int, ...]]:
    """What rejection(3) keeps of so many problems, by completion, drawn by the real E-step."""
    problems = [replace(world.problem, id=f"{i}") for i in range(num)]
    found: Counter[tuple[int, ...]] = Counter()
    scheme = rejection(3)
    for chunk in e_step(problems, scheme, made, iteration=1):
        by_id: dict[str, list[Draw]] = {}
        for draw in chunk.draws:
            by_id.setdefault(draw.key.problem_id, []).append(draw)
        for draws in by_id.values():
            found.update(e.draw.completion.tokens for e in weigh(scheme.weigh, draws))
    return found


def assert_law(found: Counter[tuple[int, ...]], law: dict[tuple[int, ...], float]) -> None:
    """False alarms: 1 in 1,000."""
    assert found.keys() <= law.keys()
    num, total = found.total(), math.fsum(law.values())
    likely = {s: chance / total for s, chance in law.items() if num * chance / total > 5}
    observed = [found[s] for s in likely]
    expected = [num * chance for chance in likely.values()]
    rest = num - sum(observed), num - math.fsum(expected)
    if rest[1] > 5:
        observed, expected = [*observed, rest[0]], [*expected, rest[1]]
    scale = sum(observed) / math.fsum(expected)
    assert abs(scale - 1) < 0.02 and len(likely) > 2
    assert chisquare(observed, [each * scale for each in expected]).pvalue > 1e-3


def short(law: dict[tuple[int, ...], float]) -> dict[tuple[int, ...], float]:
    return {s: chance for s, chance in law.items() if len(s) <= 26}


def test_rejection_keeps_the_posterior_of_cut_draws() -> None:
    world = EndingsWorld.random(seed=6)
    assert_law(kept(world, world.sampler()), short(world.plain.right(1)))


def tempered(world: EndingsWorld, temperature: float) -> dict[tuple[int, ...], float]:
    """The law of right completions at a temperature, of two rationales: token by token by hand.

    "z" is sure, then 0 or 1; then the end, a comma or an answer; then y0 or y1; then the end or a line
    break, at which it is cut.
    """

    def at(chances: Sequence[float], place: int) -> float:
        return chances[place] ** (1 / temperature) / sum(p ** (1 / temperature) for p in chances)

    law, found = world.plain, {}
    for z in range(2):
        none, ends, more, long = law.ends[z].tolist()
        begun = at(law.z.tolist(), z) * at([ends + more, none, long], 0) * at(law.y[z].tolist(), 1)
        text = f"{RATIONALES[z]}\nAnswer: y1".encode()
        found[(*text, END)] = begun * at([ends, more], 0)
        found[(*text, 10)] = begun * at([ends, more], 1)
    return found


@pytest.mark.parametrize("temperature", [0.5, 1.5])
def test_rejection_keeps_the_posterior_of_the_tempered_law(temperature: float) -> None:
    world = EndingsWorld.random(seed=7, num_z=2)
    law = tempered(world, temperature)
    found = kept(world, world.sampler(temperature=temperature))
    assert_law(found, law)
    with pytest.raises(AssertionError):  # which is not the posterior itself
        assert_law(found, world.plain.right(1))


def test_rejection_with_forced_answers_keeps_the_posterior_of_that_proposal() -> None:
    """(pi(z, answers) + pi(z, end)) pi(y* | z), of two rationales."""
    world = EndingsWorld.random(seed=26, num_z=2)
    law, found = world.plain, kept(world, world.sampler(force="ended"))
    exact = {}
    for z in range(2):
        none, ends, more, _ = law.ends[z].tolist()
        text = f"{RATIONALES[z]}\nAnswer: y1".encode()
        begun = (law.z[z] * law.y[z, 1]).item() * (ends + more + none) / (ends + more)
        exact[(*text, END)], exact[(*text, 10)] = begun * ends, begun * more
    assert_law(found, exact)
    with pytest.raises(AssertionError):
        assert_law(found, law.right(1))


# --- the loop's E-step


@pytest.mark.parametrize("force", ["always", "never"])
def test_the_loop_weighs_by_what_was_sampled_and_trains_what_ends(tmp_path: Path, force: Any) -> None:
    world = EndingsWorld.random(seed=9)
    problems = [replace(world.problem, id=f"{i}") for i in range(60)]
    made, scheme = world.sampler(demos=DEMOS), parse_scheme("pps:4+importance")
    plan = LoopConfig(
        scheme=scheme,
        training=Training(),
        evaluation=Evaluation(),
        demos=DEMOS,
        demo_iterations=0,
        force=force,
    )
    tokenizer: Any = made.tokenizer
    steps = TableSteps(
        run=Run(tmp_path),
        base=Path("tables/0"),
        problems=problems,
        eval_problems=[],
        config=plan,
        sampler=made,
        tokenizer=tokenizer,
        progress=Quiet(),
    )
    steps.e_step(1)
    [(draws, _)] = read_draws(steps.run.iteration(1) / "draws")
    assert not any(draw.demos for draw in draws)  # of no iteration, by the plan
    assert any(draw.completion.num_forced for draw in draws) == (force == "always")
    by_key = {draw.key: draw for draw in draws}
    rows = pq.read_table(steps.run.iteration(1) / "examples.parquet").to_pylist()
    assert {(r["problem_id"], r["stage"], r["index"]) for r in rows} == {
        (d.key.problem_id, d.key.stage, d.key.index) for d in draws if d.accepted
    }
    chances = {
        name: _chances(world, name, world.sampler(force="ended" if force == "always" else "never"))
        for name in ("plain", "hinted")
    }
    exact, totals = world.plain.right(1), Counter[str]()
    for row in rows:
        draw = by_key[DrawKey(1, row["problem_id"], row["stage"], row["index"])]
        totals[row["problem_id"]] += (
            exact[draw.completion.tokens] / chances[draw.prompt_kind][draw.completion.tokens]
        )  # type: ignore[assignment]  # a Counter of floats
    for row in rows:
        draw = by_key[DrawKey(1, row["problem_id"], row["stage"], row["index"])]
        sampled = draw.completion.tokens
        share = exact[sampled] / chances[draw.prompt_kind][sampled] / totals[row["problem_id"]]
        assert row["weight"] == pytest.approx(share, rel=1e-9)
        assert row["completion_tokens"] == [*sampled[:-1], END]
        assert bytes(row["prompt_tokens"]) == b"x0"
    cut = [draw for draw in draws if draw.completion.finish_reason == "answered"]
    assert cut and all(draw.completion.tokens[-1] == 10 for draw in cut)


def _chances(world: EndingsWorld, prompt: str, made: Sampler) -> Counter[tuple[int, ...]]:
    """The chance of each right draw."""
    found: Counter[tuple[int, ...]] = Counter()
    for draw, chance in every_draw(world.problem, PLAIN if prompt == "plain" else HINTED, made):
        if draw.accepted:
            found[draw.completion.tokens] += chance  # type: ignore[assignment]  # a Counter of floats
    return found


def made_draw(**changes: Any) -> Draw:
    text = "z0\nAnswer: y1"
    completion = Completion((*text.encode(), END), text, "stop", -1.0, drawn_logprob=-1.0)
    key, score = DrawKey(2, "p", 0, 0), Score(1.0, "y1", rationale="z0")
    return replace(Draw(key, "plain", 7, completion, score, log_pi=-1.0, log_q=-9.0), **changes)


FORCED = Completion(tuple(b"z0\nAnswer: y1\n"), "z0\nAnswer: y1\n", "answered", -1.0, num_forced=12)
OFF_POLICY = {
    "hinted": {"prompt_kind": "hinted"},
    "examples": {"demos": "a1b2"},
    "forced": {"completion": FORCED},
    "temperature": {"temperature": 0.7},
}


def test_log_probabilities_are_taken_only_of_the_prompt_that_they_are_of() -> None:
    """What the engine said of a forced draw, or one with worked examples, is of another prompt."""
    world = EndingsWorld.random(seed=1)
    made = world.sampler()
    exact = world.engine().logprob([(tuple(b"x0"), made_draw().completion.tokens)])
    problems = {"p": world.problem}
    for name, known in {"examples": False, "forced": False, "temperature": True}.items():
        draw = made_draw(**OFF_POLICY[name])
        expected = [-1.0] if known else world.engine().logprob([(b"x0", draw.completion.tokens)])
        assert logprobs_under("plain", [draw], problems, made) == expected
    hinted = made_draw(prompt_kind="hinted")
    assert logprobs_under("plain", [hinted], problems, made) == exact
    assert logprobs_under("hinted", [hinted], problems, made) == [-1.0]
    assert exact != [-1.0]


def test_draws_for_the_bound_are_plain_or_hinted_at_temperature_1_and_free() -> None:
    world = EndingsWorld.random(seed=1)
    made = world.sampler(temperature=0.7, demos=DEMOS, force="all")
    problems = [replace(world.problem, id=f"{i}") for i in range(20)]
    [chunk] = mixture_draws(problems, made, draws=4, iteration=1)
    assert len(chunk.draws) == 80
    for draw in chunk.draws:
        assert (draw.demos, draw.temperature, draw.completion.num_forced) == ("", 1.0, 0)


@pytest.mark.parametrize("spec", ["rejection:4+hard", "rejection:4+expected"])
def test_rules_that_need_on_policy_draws_say_so(spec: str) -> None:
    """So that `prepare` refuses other ones, and the command leaves worked examples out."""
    needs = parse_scheme(spec).needs
    assert {"plain_prompts", "temperature_1"} <= needs
