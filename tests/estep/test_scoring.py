"""What the loop's E-step asks, scores, remembers and stores for schemes that weigh by the posterior."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from femtune.engines.fake import FakeEngine
from femtune.errors import ConfigError, EngineError, NothingKept, RunError
from femtune.estep.scoring import log_mass, read_logprobs, read_timing
from femtune.runs.draws import by_problem, read_draws
from femtune.schemes.contrib.memory import every, gain, memo
from femtune.schemes.filters import Accepted, Chain, weigh
from femtune.schemes.named import (
    base,
    chain,
    importance,
    mixture,
    parse_scheme,
    pps,
    rejection,
    star,
    trice,
    wake,
)
from femtune.schemes.weights import ControlVariate, Importance
from femtune.types import Draw, DrawKey, Scheme, Stage

from ..oracle import PROMPTS, Tables, TableSteps, problem, table_steps

THETAS = [Tables.random(seed=8), Tables.random(seed=9)]
PROBLEMS = [problem(f"p{i:02}", i % 3, i // 3 % 3) for i in range(30)]
ITERATIONS = 3
SPECS = [
    "star+memo+doubt+wake",
    "trice",
    "trice:0+every:2",
    "pps:2+importance+resample:1",
    "pps+base+importance",
    "pps:2+memo:2+gain:0.5",
    "mixture:1,2+chain+wake:0.5",
    "rejection:2+base+memo+resample:2",
    "rejection:2+chain+every:3+restart",
]


def steps(folder: Path, scheme: Scheme | str, **options: Any) -> TableSteps:
    folder.mkdir(exist_ok=True)
    made = parse_scheme(scheme, 3) if isinstance(scheme, str) else scheme
    return table_steps(folder, THETAS, PROBLEMS, made, chunk_size=13, **options)


def draws_of(made: TableSteps, iteration: int) -> list[Draw]:
    folder = made.run.iteration(iteration) / "draws"
    return [draw for chunk, _ in read_draws(folder) for draw in chunk]


def text_of(prompt: str, draw: Draw) -> str:
    asked = next(each for each in PROBLEMS if each.id == draw.key.problem_id)
    return PROMPTS.render(prompt, asked)[0]["content"]


# --- all schemes


@pytest.mark.parametrize("spec", SPECS)
def test_rules_get_what_is_remembered_and_what_is_new_with_logprobs_of_theta(
    spec: str, tmp_path: Path
) -> None:
    made = steps(tmp_path, spec)
    needs = made.config.scheme.needs
    left: list[Draw] = []
    for iteration in range(1, ITERATIONS + 1):
        made.e_step(iteration)
        theta = THETAS[min(iteration - 1, 1)]
        scoring, own = made.scoring(iteration), draws_of(made, iteration)
        keys = [draw.key for draw in (*left, *own)]
        assert [draw.key for draw in scoring] == sorted(keys, key=lambda key: (key.problem_id, key))
        for draw in scoring:
            for logprob, need, prompt in (
                (draw.log_pi, "log_pi", "plain"),
                (draw.log_q, "log_q", "hinted"),
            ):
                if need in needs and draw.accepted:
                    assert logprob == theta.logprob(text_of(prompt, draw), draw.completion.text)
                else:
                    assert logprob is None
        # one row of examples for each that the rule makes, in the order of the problems
        expected = [
            (e.draw.key.problem_id, e.draw.key.stage, e.draw.key.index, e.weight, e.prompt_kind)
            for _, each in by_problem(scoring)
            for e in weigh(made.config.scheme.weigh, each)
        ]
        columns = ("problem_id", "stage", "index", "weight", "trained_under")
        rows = made.examples(iteration)
        assert [tuple(row[name] for name in columns) for row in rows] == expected
        left = [
            replace(e.draw, log_pi=None, log_q=None)
            for _, each in by_problem(scoring)
            for e in weigh(made.config.scheme.remember or (lambda draws, examples: []), each)
        ]
        memory = made.run.iteration(iteration) / "memory"
        stored = [draw for chunk, _ in read_draws(memory) for draw in chunk]
        assert stored == left
        assert memory.exists() == (made.config.scheme.remember is not None)


@pytest.mark.parametrize("spec", SPECS)
def test_a_problem_counts_no_more_than_once_and_is_trained_under_its_own_prompt(
    spec: str, tmp_path: Path
) -> None:
    """But for what is negative, and the wake's hinted copies: alone these hold a hint."""
    made = steps(tmp_path, spec)
    waking_weight = {"star+memo+doubt+wake": 1.0, "mixture:1,2+chain+wake:0.5": 0.5}.get(spec)
    for iteration in range(1, ITERATIONS + 1):
        made.e_step(iteration)
        total: Counter[tuple[str, str]] = Counter()
        for row in made.examples(iteration):
            asked = next(each for each in PROBLEMS if each.id == row["problem_id"])
            assert row["prompt"] == PROMPTS.render(row["trained_under"], asked)
            assert bytes(row["prompt_tokens"]).decode() == row["prompt"][0]["content"]
            told = "The correct answer is" in row["prompt"][0]["content"]
            assert told == (row["trained_under"] == "hinted")
            if row["weight"] > 0:
                assert row["completion"][0]["content"].endswith(asked.answer)
                total[row["problem_id"], row["trained_under"]] += row["weight"]
        plain = {name: weight for (name, under), weight in total.items() if under == "plain"}
        hinted = {name: weight for (name, under), weight in total.items() if under == "hinted"}
        for name, weight in plain.items():
            assert weight == pytest.approx(1) or ("doubt" in spec and 0 < weight < 1)
            assert name not in hinted or hinted[name] == pytest.approx(waking_weight * weight)
        assert hinted.keys() == (plain.keys() if waking_weight else set())


class Killed(BaseException):
    """Not an Exception: nothing may catch it."""


@pytest.mark.parametrize("spec", [*SPECS[:4], SPECS[-1]])
def test_a_run_that_is_killed_at_every_event_gives_the_same_examples(spec: str, tmp_path: Path) -> None:
    """Killed as it scores, draws or stores for the first time, begun again, the second, and so on."""
    whole = steps(tmp_path / "whole", spec)
    for iteration in (1, 2, 3):
        whole.e_step(iteration)
    kills, root = 0, tmp_path / "killed"
    while True:
        made, left = steps(root, spec), [kills]

        def burn(left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed

        engine = made.sampler.engine
        assert isinstance(engine, FakeEngine)
        score, record = engine.logprob, type(made.run).record
        engine.logprob = lambda pairs, score=score, burn=burn: (burn(), score(pairs))[1]  # type: ignore[method-assign]  # in place of the method
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                type(made.run),
                "record",
                lambda run, path, burn=burn, record=record: (burn(), record(run, path)),
            )
            patch.setattr(made.progress, "draws", lambda draws, burn=burn: burn())
            try:
                for iteration in (1, 2, 3):
                    made.e_step(iteration)
                break
            except Killed:
                kills += 2
    assert kills > 10
    for iteration in (1, 2, 3):
        assert made.scoring(iteration) == whole.scoring(iteration)
        files = [each.run.iteration(iteration) / "examples.parquet" for each in (made, whole)]
        first, second = (pq.read_table(file).to_pylist() for file in files)
        assert first == second


@pytest.mark.parametrize("kind", ["recalled", "scored", "memory", "examples.parquet"])
def test_what_is_missing_is_made_again_and_the_same(kind: str, tmp_path: Path) -> None:
    made = steps(tmp_path, "star+memo")
    for iteration in (1, 2):
        made.e_step(iteration)
    before = (made.scoring(2), made.examples(2))
    path = made.run.iteration(2) / kind
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = steps(tmp_path, "star+memo")
    again.e_step(2)
    assert path.exists()
    assert (again.scoring(2), again.examples(2)) == before
    assert not again.sampler.engine.asked  # no draw is asked for a second time


def test_damaged_log_probabilities_are_told(tmp_path: Path) -> None:
    made = steps(tmp_path, "star+memo")
    made.e_step(1)
    path = made.run.shard(1, "scored", 0)
    assert read_timing(path)["tokens"] > 0
    shutil.copy(made.run.shard(1, "draws", 0), path)
    with pytest.raises(RunError, match="holds no log-probabilities as they are stored"):
        read_logprobs(path)
    path.write_bytes(b"PAR1")
    with pytest.raises(RunError, match=r"00000\.parquet .*femtune verify"):
        made.scoring(1)


# --- whom it asks


def asked(made: TableSteps, iteration: int) -> dict[str, list[tuple[int, int]]]:
    """(stage, index) of each problem's draws."""
    found: dict[str, list[tuple[int, int]]] = {}
    for draw in draws_of(made, iteration):
        found.setdefault(draw.key.problem_id, []).append((draw.key.stage, draw.key.index))
    return found


def test_first_stages_are_of_problems_of_which_nothing_is_remembered(tmp_path: Path) -> None:
    """trice: plain and hinted until a draw is right, one plain from then on."""
    made = steps(tmp_path, trice())
    known: set[str] = set()
    for iteration in range(1, 5):
        made.e_step(iteration)
        expected = {each.id: [(2, 0)] if each.id in known else [(0, 0), (1, 0)] for each in PROBLEMS}
        assert asked(made, iteration) == expected
        known = {
            name for name, each in by_problem(made.scoring(iteration)) if any(d.accepted for d in each)
        }
        assert made.e_step(iteration)["covered_share"] == len(known) / len(PROBLEMS)
    prompts = {(draw.key.stage, draw.prompt_kind) for k in (1, 4) for draw in draws_of(made, k)}
    assert prompts >= {(0, "plain"), (1, "hinted"), (2, "plain")}
    assert len(prompts) == 3


def test_a_problem_is_asked_in_every_nth_iteration_and_in_between_weighed_anew(tmp_path: Path) -> None:
    made = steps(tmp_path, every(memo(pps(2)), 3))
    whole = {problem.id for problem in PROBLEMS}
    due: list[set[str]] = []
    weights: list[dict[tuple[str, int], float]] = []
    for iteration in range(1, 8):
        metrics = made.e_step(iteration)
        due.append({*asked(made, iteration)})
        assert metrics["num_draws"] == 2 * len(due[-1])
        assert abs(len(due[-1]) - len(PROBLEMS) / 3) < 1
        weights.append({(r["problem_id"], r["index"]): r["weight"] for r in made.examples(iteration)})
    assert due[:3] == due[3:6] and due[0] == due[6]
    assert due[0] | due[1] | due[2] == whole and sum(map(len, due[:3])) == len(whole)
    waiting = [key for key in weights[0].keys() & weights[1].keys() if key[0] not in due[1]]
    assert any(weights[0][key] != weights[1][key] for key in waiting)  # another theta


def test_a_chain_of_plain_draws_is_the_newest_right_one_and_needs_no_scoring(tmp_path: Path) -> None:
    made = steps(tmp_path, "rejection:2+chain+every:2")
    newest: dict[str, DrawKey] = {}
    for iteration in range(1, 6):
        metrics = made.e_step(iteration)
        newest |= {draw.key.problem_id: draw.key for draw in draws_of(made, iteration) if draw.accepted}
        scoring = dict(by_problem(made.scoring(iteration)))
        kept = [e.draw.key for each in scoring.values() for e in weigh(made.config.scheme.weigh, each)]
        assert {key.problem_id: key for key in kept} == newest and len(kept) == len(newest)
        assert metrics["covered_share"] == len(newest) / len(PROBLEMS)
        assert not metrics.keys() & {"log_mass", "scored_tokens"}
        assert not (made.run.iteration(iteration) / "scored").exists()
    assert len({key.iteration for key in newest.values()}) > 1
    assert gain(made.config.scheme).needs == {"log_pi"}  # which problems are asked hangs on it


def test_only_problems_that_have_something_to_gain_are_asked(tmp_path: Path) -> None:
    made = steps(tmp_path, gain(memo(pps(2)), 2.0))
    known: dict[str, float] = {}
    for iteration in range(1, 6):
        made.e_step(iteration)
        recalled = dict(by_problem(made.recalled(iteration)))
        known = {name: log_mass(each) or 0.0 for name, each in recalled.items()}
        expected = [each.id for each in PROBLEMS if -known.get(each.id, -math.inf) > 2.0]
        assert list(asked(made, iteration)) == expected
        if iteration > 2:
            assert 0 < len(expected) < len(PROBLEMS)
        trained = {row["problem_id"] for row in made.examples(iteration)}
        assert trained >= known.keys()  # also of those that are not asked


def test_a_scheme_from_the_base_draws_from_it_and_is_weighed_by_theta(tmp_path: Path) -> None:
    made = steps(tmp_path, importance(base(pps(3))))
    for iteration in (1, 2):
        made.e_step(iteration)
        for draw in draws_of(made, iteration):
            hinted = text_of("hinted", draw)
            assert draw.completion.text == THETAS[0].write(hinted, draw.seed)
            assert draw.completion.logprob == THETAS[0].logprob(hinted, draw.completion.text)
        for _, scoring in by_problem(made.scoring(iteration)):
            right = [d for d in scoring if d.accepted]
            ratios = [
                math.exp(
                    THETAS[iteration - 1].logprob(text_of("plain", d), d.completion.text)
                    - THETAS[0].logprob(text_of("hinted", d), d.completion.text)
                )
                for d in right
            ]
            found = [e.weight for e in weigh(made.config.scheme.weigh, scoring)]
            assert found == pytest.approx([ratio / sum(ratios) for ratio in ratios])
    loaded = [path.name for path in made.sampler.engine.loaded]
    assert loaded == ["0", "1"] or loaded == ["0", "0", "1"]


def test_scoring_asks_the_engine_only_for_what_it_has_not_said(tmp_path: Path) -> None:
    """Plain draws of theta_{k-1} are known by log pi; remembered and hinted ones are not."""
    made = steps(tmp_path, "star+memo")
    pairs: list[tuple[str, str]] = []
    engine = made.sampler.engine
    score = engine.logprob

    def noted(given: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
        pairs.extend(tuple(map(engine.tokenizer.decode, each)) for each in given)
        return score(given)

    engine.logprob = noted
    for iteration in (1, 2):
        pairs.clear()
        metrics = made.e_step(iteration)
        own = [d for d in draws_of(made, iteration) if d.accepted]
        recalled = made.recalled(iteration)
        wanted = [*recalled, *(d for d in own if d.prompt_kind == "hinted")]
        assert Counter(pairs) == Counter((text_of("plain", d), d.completion.text) for d in wanted)
        tokens = sum(len(d.completion.tokens) for d in (*own, *recalled))
        assert metrics["scored_tokens"] == tokens > 0


def test_an_engine_that_gives_no_log_probabilities_is_told(tmp_path: Path) -> None:
    made = steps(tmp_path, "pps+memo")
    made.sampler.engine.logprob = lambda pairs: [math.nan] * len(pairs)
    with pytest.raises(EngineError, match=r"gives no log-probability for \d+ draws, such as"):
        made.e_step(1)


def test_an_iteration_without_new_right_draws_trains_on_what_is_remembered(tmp_path: Path) -> None:
    made = steps(tmp_path, "star+memo")
    made.e_step(1)
    made.sampler.engine.write = lambda prompt, seed: "z0: none"
    metrics = made.e_step(2)
    assert metrics["num_kept"] == 0 and metrics["covered_share"] > 0.5
    rows = {(row["problem_id"], tuple(row["completion_tokens"])) for row in made.examples(2)}
    remembered = {(d.key.problem_id, d.completion.tokens) for d in made.recalled(2)}
    assert rows and rows <= remembered

    empty = steps(tmp_path / "none", "star+memo")
    empty.sampler.engine.write = lambda prompt, seed: "z0: none"
    with pytest.raises(NothingKept, match="iteration 1 kept no draw of 30 problems"):
        empty.e_step(1)


# --- what is refused

PLAIN, HINTED = Stage("plain", 1, "all"), Stage("hinted", 1, "all")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: importance(star()), "a stage asks the unsolved alone"),
        (lambda: importance(rejection(2)), "a stage asks the unsolved alone"),
        (lambda: importance(trice()), "it remembers draws"),
        (lambda: importance(memo(pps(2))), "it remembers draws"),
        (lambda: gain(star()), "remembers no draws, and min_gain and every need that"),
        (lambda: every(importance(pps(2)), 2), "remembers no draws, and min_gain and every need that"),
        (lambda: every(memo(star()), 0), "every must be >= 1, got 0"),
        (lambda: every(trice(), 2), "min_gain or every leaves some out"),
        (lambda: gain(trice()), "min_gain or every leaves some out"),
        (lambda: base(trice()), "and these are the base's"),
        (lambda: chain(base(pps())), "and these are the base's"),
        (lambda: base(chain(pps())), "and these are the base's"),
        (lambda: memo(star(), 0), "memo must be >= 1 draw, got 0"),
        (lambda: mixture(0, 1), "draws at least 1"),
        (lambda: trice(2.0), r"beta must be in \[0, 1\], got 2"),
        (
            lambda: Scheme("s", (Stage("plain", 2),), weigh=Chain(Accepted(), Importance())),
            "a stage asks the unsolved alone",
        ),
        (
            lambda: Scheme("s", (PLAIN,), weigh=ControlVariate(), first=(PLAIN, Stage("hinted"))),
            "a stage asks the unsolved alone",
        ),
    ],
)
def test_schemes_whose_weights_would_not_be_right_are_refused(make: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make()


def test_schemes_that_are_right_are_not_refused() -> None:
    for scheme in (pps(), pps(4), rejection(1), mixture(2, 2)):
        assert "fixed_budget" in importance(scheme).needs
    assert not Scheme(
        "s", (Stage("plain"), HINTED), weigh=Importance()
    ).is_adaptive  # the first is asked anyway
    assert every(trice(0), 2).every == 2 and gain(trice(0)).min_gain == 0.1
    assert wake(base(memo(star()))).proposal == "base"


def test_what_is_known_for_certain_counts_as_covered(tmp_path: Path) -> None:
    """A mass of 1 is a log mass of 0, which is not the same as none."""
    world = Tables.random(seed=1)
    sure = replace(
        world,
        z=torch.tensor([[1e4, 0.0, 0.0, 0.0]] * 3, dtype=torch.float64),
        y=torch.tensor([[[1e4, 0.0, 0.0]] * 4] * 3, dtype=torch.float64),
    )
    problems = [problem(f"{i}", i % 3, 0) for i in range(6)]
    steps = table_steps(tmp_path, [sure], problems, parse_scheme("rejection:2+memo"))
    metrics = steps.e_step(1)
    assert (metrics["covered_share"], metrics["log_mass"]) == (1.0, 0.0)
