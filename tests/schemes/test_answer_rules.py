"""Weights by the probability of the answer after a rationale: sums over all that can be drawn.

`Loose` is the law of oracle.py's `Endings`, and more: an answer y12 that begins with y1, and answers
without a rationale. So closing matters, and pi(y* | x) is known. Expected weights by trained completion
are compared: where they are equal, so is the expected gradient, whatever a completion's gradient is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from femtune.config import Train
from femtune.data.tasks.frames import Frame
from femtune.data.truncation import trained_tokens
from femtune.engines.fake import END
from femtune.errors import ConfigError, EngineError, NothingKept
from femtune.estep import answer_scoring
from femtune.estep.answer_scoring import sampled_prefix
from femtune.estep.scheduler import Sampler
from femtune.estep.scoring import read_logprobs, scored_draws
from femtune.loop import Evaluation, LoopConfig
from femtune.mstep.config import Training
from femtune.reporting.terminal import Quiet
from femtune.resolve import make_loop_config
from femtune.runs.draws import read_draws
from femtune.runs.run import Run
from femtune.schemes.answer_rules import ExpectedImportance, answer_metrics, gain, passes
from femtune.schemes.filters import weigh
from femtune.schemes.named import chain, expected, importance, parse_scheme, pps, reasons, rejection
from femtune.schemes.weights import Importance
from femtune.types import Completion, Draw, Problem, Scheme

from ..oracle import RATIONALES, Endings, EndingsWorld, TableSteps, every_draw

Tokens = tuple[int, ...]
few = settings(max_examples=6, deadline=None, phases=[Phase.generate])


@dataclass(frozen=True, eq=False)
class Loose(Endings):
    """Of 10 completions, 2 answer without a rationale; half of those without an answer give y12."""

    @property
    def law(self) -> dict[Tokens, float]:
        found = {s: 0.8 * chance for s, chance in super().law.items()}
        for said in RATIONALES[: len(self.z)]:
            whole = (*said.encode(), END)
            found[whole] /= 2
            found[(*f"{said}\nAnswer: y12".encode(), END)] = found[whole]
        for y, chance in enumerate(self.direct):
            found[(*f"\nAnswer: y{y}".encode(), END)] = 0.2 * chance
        return found

    @property
    def direct(self) -> list[float]:
        """pi(y | x) of y0 and y1."""
        return [float(share) for share in self.y[:, :].mean(0)]

    def right(self, y: int) -> dict[Tokens, float]:
        return {s: 0.8 * chance for s, chance in super().right(y).items()}

    def after(self, z: int) -> list[float]:
        """pi(y | x, z) of y0, y1 and y12, closed."""
        none, ends, more, _ = self.ends[z].tolist()
        masses = [*((ends + more) * self.y[z]).tolist(), none / 2]
        return [mass / sum(masses) for mass in masses]


def loose(seed: int, num_z: int = 3) -> EndingsWorld:
    rng = torch.Generator().manual_seed(seed)
    parts = [Loose.random(rng, num_z) for _ in range(3)]
    return EndingsWorld(*parts, Problem("p", "x0", "y1"))


worlds = st.integers(0, 2**32).map(loose)


def all_draws(
    world: EndingsWorld, scheme: Scheme, made: Sampler, prompt: str = "plain"
) -> list[tuple[Draw, float]]:
    """Every draw that a request can give, with the scheme's scores, and its chance."""
    chances: dict[Completion, float] = {}
    draws: dict[Completion, Draw] = {}
    for draw, chance in every_draw(world.problem, pps() if prompt == "hinted" else rejection(), made):
        draws[draw.completion] = draw
        chances[draw.completion] = chances.get(draw.completion, 0.0) + chance
    assert math.fsum(chances.values()) == pytest.approx(1)
    numbered = [
        replace(draw, key=replace(draw.key, index=number)) for number, draw in enumerate(draws.values())
    ]
    scored = {d.key: d for d in scored_draws(numbered, [world.problem], scheme, made, 1)}
    return [(scored.get(draw.key, draw), chances[draw.completion]) for draw in numbered]


def trained(draw: Draw, made: Sampler) -> Tokens:
    done = draw.completion
    return trained_tokens(done.tokens, done.finish_reason, END, made.tokenizer)


def moments(
    outcomes: Sequence[tuple[Draw, float]], scheme: Scheme, budget: int, made: Sampler
) -> tuple[dict[Tokens, float], np.ndarray]:
    """Mean, by trained completion, and second moments of a problem's weights in so many attempts."""
    names = sorted({trained(d, made) for draw, _ in outcomes for d in (draw, draw.right or draw)})
    at = {name: number for number, name in enumerate(names)}
    mean, second = np.zeros(len(names)), np.zeros((len(names), len(names)))
    for several in product(outcomes, repeat=budget):
        draws = [
            replace(draw, key=replace(draw.key, index=index)) for index, (draw, _) in enumerate(several)
        ]
        chance = math.prod(chance for _, chance in several)
        weights = np.zeros(len(names))
        for example in weigh(scheme.weigh, draws):
            weights[at[trained(example.draw, made)]] += example.weight
        mean += chance * weights
        second += chance * np.outer(weights, weights)
    return {name: mean[i] for name, i in at.items() if mean[i]}, second


def narrowed(draw: Draw) -> Draw:
    """A draw that is right only after its first cue."""
    first = draw.completion.text.partition("\nAnswer:")[2]
    if draw.accepted and first.strip() != "y1":
        return replace(draw, score=replace(draw.score, reason="wrong"))
    return draw


# --- expected rejection


@given(worlds, st.integers(1, 2))
@few
def test_expected_weights_are_those_of_rejection_with_less_variance(
    world: EndingsWorld, budget: int
) -> None:
    made = world.sampler()
    outcomes = all_draws(world, expected(rejection(budget)), made)
    mean, second = moments(outcomes, expected(rejection(budget)), budget, made)
    exact, more = moments(outcomes, rejection(budget), budget, made)
    assert mean == pytest.approx(exact, rel=1e-9) and len(exact) == 2  # the third is too long
    # the difference of covariances is positive: of every gradient, in every direction
    spread = np.linalg.eigvalsh(more - second)
    assert spread.min() > -1e-12 and spread.max() > 1e-3


def test_an_answer_after_a_second_cue_is_not_taken_for_right() -> None:
    world = loose(3, num_z=4)
    made = world.sampler()
    outcomes = all_draws(world, expected(rejection(2)), made)
    mean, second = moments(outcomes, expected(rejection(2)), 2, made)
    whole, _ = moments(outcomes, rejection(2), 2, made)
    exact, more = moments([(narrowed(d), p) for d, p in outcomes], rejection(2), 2, made)
    assert mean == pytest.approx(exact, rel=1e-9)
    assert whole.keys() - mean.keys() == {(*f"{RATIONALES[3]}\nAnswer: y1".encode(), END)}
    assert np.linalg.eigvalsh(more - second).min() > -1e-12


def biased(outcomes: Sequence[tuple[Draw, float]], made: Sampler) -> float:
    """The largest relative error of expected weights against rejection(2)."""
    mean, _ = moments(outcomes, expected(rejection(2)), 2, made)
    exact, _ = moments(outcomes, rejection(2), 2, made)
    return max(abs(mean.get(s, 0.0) / chance - 1) for s, chance in exact.items())


def test_other_weights_are_biased(monkeypatch: pytest.MonkeyPatch) -> None:
    world = loose(4)
    made, scheme = world.sampler(), expected(rejection(2))
    outcomes = all_draws(world, scheme, made)
    assert biased(outcomes, made) < 1e-9
    accepted_alone = [(d if d.accepted else replace(d, right=None), p) for d, p in outcomes]
    assert biased(accepted_alone, made) > 0.05
    score = answer_scoring.logprobs_of_answers
    monkeypatch.setattr(
        answer_scoring,
        "logprobs_of_answers",
        lambda *given, closed: score(*given, closed=False),
    )
    assert biased(all_draws(world, scheme, made), made) > 0.05  # y12 for y1


# --- expected importance weights


def weight(draw: Draw) -> float:
    """pi / q as the rule has it: beside a draw of weight 1."""
    known = replace(draw, key=replace(draw.key, index=-1), log_ratio=0.0, log_answer=0.0)
    known = replace(known, right=known)
    made = weigh(ExpectedImportance(), [known, draw])
    return made[1].weight / made[0].weight if len(made) > 1 else 0.0


def mean_weights(outcomes: Sequence[tuple[Draw, float]], made: Sampler) -> dict[Tokens, float]:
    """E[w 1(s)] by trained completion."""
    found: dict[Tokens, float] = {}
    for draw, chance in outcomes:
        if (value := weight(draw)) and draw.right is not None:
            name = trained(draw.right, made)
            found[name] = found.get(name, 0.0) + chance * value
    return found


def posterior_mass(world: EndingsWorld) -> dict[Tokens, float]:
    """pi(z, y* | x) by trained completion, of those that can be written."""
    found: dict[Tokens, float] = {}
    for sampled, chance in world.plain.right(1).items():
        if len(sampled) <= 26:
            found[(*sampled[:-1], END)] = found.get((*sampled[:-1], END), 0.0) + chance
    return found


@given(worlds, st.sampled_from(["plain", "hinted"]))
@few
def test_expected_importance_weights_are_unbiased_with_less_variance(
    world: EndingsWorld, prompt: str
) -> None:
    made = world.sampler()
    outcomes = all_draws(world, expected(importance(pps(2))), made, prompt)
    exact = posterior_mass(world)
    assert mean_weights(outcomes, made) == pytest.approx(exact, rel=1e-9)
    # of the sampled answer: each right draw by pi / q of the whole
    sampled = all_draws(world, importance(pps(2)), made, prompt)
    square, others = (
        math.fsum(chance * weight_of(draw) ** 2 for draw, chance in drawn)
        for drawn, weight_of in ((outcomes, weight), (sampled, whole_weight))
    )
    assert square < others


def whole_weight(draw: Draw) -> float:
    if not draw.accepted:
        return 0.0
    assert draw.log_pi is not None
    known = replace(draw, key=replace(draw.key, index=-1), log_drawn=draw.log_pi)
    first, second = weigh(Importance(), [known, draw])
    return second.weight / first.weight


def test_normalised_weights_tend_to_the_posterior() -> None:
    """The mean over all that two or three draws may be is nearer than that of one."""
    world = loose(6)
    made, scheme = world.sampler(), expected(importance(pps(2)))
    outcomes = all_draws(world, scheme, made, "hinted")
    exact = posterior_mass(world)
    total = math.fsum(exact.values())
    far = []
    for budget in (1, 2, 3):
        mean, _ = moments(outcomes, scheme, budget, made)
        share = math.fsum(mean.values())
        far.append(max(abs(mean[s] / share - exact[s] / total) for s in exact))
    assert far[2] < far[1] < far[0]


def test_a_proposal_that_includes_the_answer_is_biased(monkeypatch: pytest.MonkeyPatch) -> None:
    world = loose(7)
    made = world.sampler()
    scheme = expected(importance(pps(2)))
    ratios = answer_scoring._log_ratios

    def whole(draws: Sequence[Draw], rights: Any, *more: Any) -> Mapping[Any, float]:
        return ratios(
            draws, {key: (right.completion.tokens, right) for key, (_, right) in rights.items()}, *more
        )

    monkeypatch.setattr(answer_scoring, "_log_ratios", whole)
    found = mean_weights(all_draws(world, scheme, made, "hinted"), made)
    exact = posterior_mass(world)
    assert max(abs(found[s] / exact[s] - 1) for s in exact) > 0.05


# --- what is taken for the rationale


def test_the_prefix_depends_on_no_token_after_it() -> None:
    world = loose(0, num_z=4)
    made = world.sampler()
    for draw, _ in all_draws(world, expected(rejection()), made):
        prefix = sampled_prefix(draw.completion, made)
        if prefix is None:
            assert b"\nAnswer:" not in bytes(t for t in draw.completion.tokens if t != END)
            continue
        for more in ((), tuple(b" 7"), tuple(b" y1\n"), (*b" no\nAnswer: y1", END)):
            changed = replace(draw.completion, tokens=(*prefix, *more))
            assert sampled_prefix(changed, made) == prefix


def test_the_cue_counts_as_it_was_tokenized_and_not_within_thoughts_or_after_an_answer() -> None:
    made = loose(0).sampler()

    def prefix(text: str) -> str | None:
        found = sampled_prefix(Completion(tuple(text.encode()), text, "stop", 0.0), made)
        return None if found is None else bytes(found).decode()

    assert prefix("so\n\nAnswer: 4") == "so\n\nAnswer:"
    thoughts = "<think>It may be\nAnswer: 3\n</think>Two and two make it."
    assert prefix(f"{thoughts}\nAnswer: 4") == f"{thoughts}\nAnswer:"
    assert prefix("The answer is 4.\nAnswer: 4") is None
    assert prefix("**Answer:** 4") is None


@pytest.mark.parametrize("reason", ["leaks", "empty", "long", "error"])
def test_draws_of_no_use_have_no_right_one(reason: str) -> None:
    world = loose(0)
    made = world.sampler()
    text = {"leaks": "by the hint\nAnswer: y0", "empty": "\nAnswer: y0"}.get(reason, "z0\nAnswer: y0")
    done = Completion((*text.encode(), END), text, "error" if reason == "error" else "stop", -1.0)
    draws = [replace(draw, completion=done) for draw, _ in all_draws(world, rejection(), made)][:1]
    draws[0] = replace(draws[0], prompt_kind="hinted")
    if reason == "long":
        made = replace(made, sampling=replace(made.sampling, max_new_tokens=len(text)))
    problems = {"p": world.problem}
    assert answer_scoring.right_draws(draws, problems, made) == {}
    if reason == "long":
        made = replace(made, sampling=replace(made.sampling, max_new_tokens=len(text) + 1))
        assert len(answer_scoring.right_draws(draws, problems, made)) == 1


# --- reasons


def enumerated(world: EndingsWorld, z: int) -> tuple[float, bool]:
    """What rationale z adds to log pi(y1 | x), and whether y1 is the likeliest of y0, y1 and y12."""
    law = world.plain
    assert isinstance(law, Loose)
    after = law.after(z)
    return math.log(after[1] / law.direct[1]), after[1] >= max(after)


@given(worlds, st.sampled_from([0.0, 0.2, math.log(2)]))
@settings(few, max_examples=30)
def test_reasons_keeps_what_the_model_says(world: EndingsWorld, min_gain: float) -> None:
    scheme, made = reasons(rejection(), min_gain), world.sampler()
    for draw, _ in all_draws(world, scheme, made):
        if not draw.accepted:
            assert gain(draw) is None and not weigh(scheme.weigh, [draw])
            continue
        more, is_likeliest = enumerated(world, int(draw.score.rationale[1]))
        assert gain(draw) == pytest.approx(more, abs=1e-9) and draw.is_likeliest == is_likeliest
        assert bool(weigh(scheme.weigh, [draw])) == (more >= min_gain and is_likeliest)


def test_reasons_refuses_some_and_keeps_some() -> None:
    kept = {
        passes(draw, 0.0)
        for seed in range(8)
        for draw, _ in all_draws(loose(seed), reasons(rejection()), loose(seed).sampler())
        if draw.accepted
    }
    assert kept == {True, False}


def test_answers_are_compared_over_the_closed_set_or_what_draws_gave() -> None:
    world = loose(1)
    draws = [draw for draw, _ in all_draws(world, rejection(), world.sampler())]
    assert set(answer_scoring._compared(draws, {"p": world.problem})["p"]) == {"y1", "y0", "y12"}
    other = replace(draws[0], score=replace(draws[0].score, answer="Y1", reason=""))  # right, too
    assert answer_scoring._compared([other], {"p": world.problem})["p"] == ("y1",)
    rated = Problem("p", "x0", "3", {"frame": Frame(form="rating", scale=("1", "2", "3")).column()})
    assert answer_scoring._compared(draws, {"p": rated})["p"] == ("1", "2", "3")


def test_reasons_and_expected_go_together() -> None:
    """Weights are the expectation of keeping the first right draw, where it passes."""
    world = loose(35)
    made = world.sampler()
    both, each = reasons(expected(rejection(2))), reasons(rejection(2))
    outcomes = all_draws(world, both, made)
    mean, _ = moments(outcomes, both, 2, made)
    first = moments(all_draws(world, each, made), rejection(2), 2, made)[0]
    exact = {
        s: chance
        for s, chance in first.items()
        if (found := enumerated(world, int(bytes(s[1:2]))))[0] >= 0 and found[1]
    }
    assert mean == pytest.approx(exact, rel=1e-9) and 0 < len(exact) < len(first)


# --- the loop's E-step


SPECS = [
    "rejection:3+expected",
    "pps:3+importance+expected",
    "rejection:3+expected+reasons",
    "rejection:4+reasons",
    "pps:4+importance+reasons:0.1",
]


def steps(folder: Path, spec: str, world: EndingsWorld, num: int = 40) -> TableSteps:
    problems = [replace(world.problem, id=f"{number:02}") for number in range(num)]
    made = replace(world.sampler(), chunk_size=16)
    what = LoopConfig(
        scheme=parse_scheme(spec), training=Training(), evaluation=Evaluation(), force="never"
    )
    tokenizer: Any = made.tokenizer
    return TableSteps(
        run=Run(folder),
        base=Path("tables/0"),
        problems=problems,
        eval_problems=[],
        config=what,
        sampler=made,
        tokenizer=tokenizer,
        progress=Quiet(),
    )


@pytest.mark.parametrize("spec", SPECS)
def test_scores_are_stored_and_a_killed_run_goes_on_with_them(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = loose(35)
    made = steps(tmp_path, spec, world, 20)
    found = [made.e_step(iteration) for iteration in (1, 2)]
    rows = [made.examples(iteration) for iteration in (1, 2)]
    assert all(rows)
    folder = made.run.iteration(2)
    # killed in scoring
    (folder / "scored/00001.parquet").unlink()
    (folder / "examples.parquet").unlink()
    again = steps(tmp_path, spec, world, 20)
    assert timeless(again.e_step(2)) == timeless(found[1]) and again.examples(2) == rows[1]
    # killed after it: nothing is scored again
    (folder / "examples.parquet").unlink()
    third = steps(tmp_path, spec, world, 20)
    monkeypatch.setattr(third.sampler.engine, "logprob", pytest.fail)
    assert timeless(third.e_step(2)) == timeless(found[1]) and third.examples(2) == rows[1]


def timeless(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if not name.endswith("_s")}


def test_examples_have_the_right_answer_and_are_weighed_as_the_model_says(tmp_path: Path) -> None:
    world = loose(1)
    made = steps(tmp_path, "rejection:3+expected", world)
    metrics = made.e_step(1)
    law = world.plain
    assert isinstance(law, Loose)
    draws = [draw for chunk, _ in read_draws(made.run.iteration(1) / "draws") for draw in chunk]
    assert len(draws) == 3 * 40
    left, weights, chances = dict.fromkeys((draw.key.problem_id for draw in draws), 1.0), {}, []
    for draw in draws:
        text = draw.completion.text
        known = text.startswith(("z0\nAnswer:", "z1\nAnswer:"))
        chance = law.after(int(text[1]))[1] if known else 0.0
        chances.append(chance)
        if chance:
            key = draw.key
            weights[key.problem_id, key.index] = left[key.problem_id] * chance
        left[draw.key.problem_id] *= 1 - chance
    rows = made.examples(1)
    given = {(row["problem_id"], row["index"]): row["weight"] for row in rows}
    assert given == pytest.approx(weights, rel=1e-9)
    assert {row["completion"][0]["content"][2:] for row in rows} == {"\nAnswer: y1"}
    assert all(row["completion_tokens"][-1] == END and row["reward"] == 1 for row in rows)
    assert any(
        draw.score.answer == "y0" and (draw.key.problem_id, draw.key.index) in given for draw in draws
    )
    assert metrics["expected_right"] == pytest.approx(sum(chances) / len(chances))
    assert metrics["cued_share"] == pytest.approx(sum(map(bool, chances)) / len(chances))


def test_the_share_that_passes_is_measured(tmp_path: Path) -> None:
    world = loose(35)
    made = steps(tmp_path, "rejection:4+reasons", world)
    metrics = made.e_step(1)
    right = [draw for draw in made.scoring(1) if draw.accepted]
    known = [enumerated(world, int(draw.score.rationale[1])) for draw in right]
    passing = [more >= 0 and likeliest for more, likeliest in known]
    assert 0 < metrics["reasons_share"] < 1
    assert metrics["reasons_share"] == pytest.approx(sum(passing) / len(passing))
    assert metrics["reasons_logprob"] == pytest.approx(sum(more for more, _ in known) / len(known))
    assert metrics["likeliest_share"] == pytest.approx(sum(like for _, like in known) / len(known))
    assert len(made.examples(1)) == sum(passing)
    logprobs = read_logprobs(made.run.shard(1, "scored", 0))
    assert all(found[3] is not None and found[4] is not None for found in logprobs.values())


def test_where_no_rationale_passes_the_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(NothingKept, match="makes the correct answer the likeliest one"):
        steps(tmp_path, "rejection:4+reasons:50", loose(1)).e_step(1)


def test_an_engine_without_log_probabilities_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = steps(tmp_path, "rejection:2+expected", loose(1))
    monkeypatch.setattr(made.sampler.engine, "logprob", lambda pairs: [math.nan] * len(pairs))
    with pytest.raises(EngineError, match="gives no log-probability"):
        made.e_step(1)


def test_schemes_without_these_rules_have_no_such_metrics() -> None:
    assert answer_metrics([[]], pps(2)) == {}


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"accept_at": 0.5}, "correct answer alone for right"),
        ({"answer_format": "regex:Score: (.+)"}, "has no cue"),
        ({"temperature": 0.7}, "needs temperature 1"),
        ({"top_k": 5}, "needs temperature 1"),
        ({"force_answers": "always"}, "needs draws of the plain prompt"),
        ({"demos": "shown.jsonl"}, "needs draws of the plain prompt"),
    ],
)
@pytest.mark.parametrize("spec", ["rejection:2+expected", "pps:2+importance+expected"])
def test_draws_of_another_law_are_refused(spec: str, changes: dict[str, Any], told: str) -> None:
    make_loop_config(Train(scheme=spec))
    with pytest.raises(ConfigError, match=told):
        make_loop_config(Train(scheme=spec, **changes))


@pytest.mark.parametrize("change", [{"answer_format": "regex:Score: (.+)"}])
def test_reasons_needs_a_cue_and_takes_any_temperature(change: dict[str, Any]) -> None:
    make_loop_config(Train(scheme="star+reasons", temperature=0.7))
    with pytest.raises(ConfigError, match="has no cue"):
        make_loop_config(Train(scheme="star+reasons", **change))


@pytest.mark.parametrize(
    "make",
    [
        lambda: chain(expected(rejection(2))),
        lambda: reasons(chain(rejection(2))),
        lambda: importance(expected(rejection(1))),
        lambda: expected(expected(rejection(2))),
        lambda: expected(pps(2)),
        lambda: expected(reasons(rejection(2))),
        lambda: reasons(rejection(), -1.0),
        lambda: reasons(rejection(), math.inf),
    ],
)
def test_what_has_no_law_is_refused(make: Callable[[], Scheme]) -> None:
    with pytest.raises(ConfigError):
        make()
