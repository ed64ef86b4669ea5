"""What the loop's E-step asks, scores, remembers and stores for schemes that weigh by the posterior."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from femtune.engines.fake import FakeEngine
from femtune.errors import ConfigError, EngineError, NothingKept, RunError
from femtune.estep.scoring import read_logprobs, read_timing
from femtune.runs.draws import by_problem, read_draws
from femtune.schemes.filters import Accepted, Chain, Last, weigh
from femtune.schemes.named import chain, every, importance, parse_scheme, pps, reasons, rejection, star
from femtune.schemes.weights import Importance
from femtune.types import Draw, DrawKey, Scheme, Stage

from ..oracle import PROMPTS, Tables, TableSteps, problem, table_steps

THETAS = [Tables.random(seed=8), Tables.random(seed=9)]
PROBLEMS = [problem(f"p{i:02}", i % 3, i // 3 % 3) for i in range(30)]
ITERATIONS = 3
SPECS = [
    "pps:2+importance",
    "rejection:2+chain",
    "rejection:2+chain+every:3+restart",
    "rejection:8+chain+every:3+hard+restart",
]


def steps(folder: Path, scheme: Scheme | str, **options: Any) -> TableSteps:
    folder.mkdir(exist_ok=True)
    made = parse_scheme(scheme) if isinstance(scheme, str) else scheme
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
            if "log_pi" in needs and draw.accepted:
                assert draw.log_pi == theta.logprob(text_of("plain", draw), draw.completion.text)
            else:
                assert draw.log_pi is None
        # one row of examples for each that the rule makes, in the order of the problems
        expected = [
            (e.draw.key.problem_id, e.draw.key.stage, e.draw.key.index, e.weight)
            for _, each in by_problem(scoring)
            for e in weigh(made.config.scheme.weigh, each)
        ]
        columns = ("problem_id", "stage", "index", "weight")
        rows = made.examples(iteration)
        assert [tuple(row[name] for name in columns) for row in rows] == expected
        left = [
            e.draw
            for _, each in by_problem(scoring)
            for e in weigh(made.config.scheme.remember or (lambda draws, examples: []), each)
        ]
        memory = made.run.iteration(iteration) / "memory"
        stored = [draw for chunk, _ in read_draws(memory) for draw in chunk]
        assert stored == left
        assert memory.exists() == (made.config.scheme.remember is not None)


@pytest.mark.parametrize("spec", SPECS)
def test_examples_have_the_plain_prompt_and_those_of_a_problem_count_one(
    spec: str, tmp_path: Path
) -> None:
    made = steps(tmp_path, spec)
    for iteration in range(1, ITERATIONS + 1):
        made.e_step(iteration)
        total: Counter[str] = Counter()
        for row in made.examples(iteration):
            asked = next(each for each in PROBLEMS if each.id == row["problem_id"])
            assert row["prompt"] == PROMPTS.render("plain", asked)
            assert bytes(row["prompt_tokens"]).decode() == row["prompt"][0]["content"]
            assert "The correct answer is" not in row["prompt"][0]["content"]
            assert row["completion"][0]["content"].endswith(asked.answer)
            total[row["problem_id"]] += row["weight"] / (row["index"] + 1) ** (0.7 * ("hard" in spec))
        assert total and all(weight == pytest.approx(1) for weight in total.values())


class Killed(BaseException):
    """Not an Exception: nothing may catch it."""


@pytest.mark.parametrize("spec", SPECS)
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


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("pps:2+importance", "scored"),
        ("pps:2+importance", "examples.parquet"),
        ("rejection:2+chain", "memory"),
    ],
)
def test_what_is_missing_is_made_again_and_the_same(spec: str, kind: str, tmp_path: Path) -> None:
    made = steps(tmp_path, spec)
    for iteration in (1, 2):
        made.e_step(iteration)
    before = (made.scoring(2), made.examples(2))
    path = made.run.iteration(2) / kind
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = steps(tmp_path, spec)
    again.e_step(2)
    assert path.exists()
    assert (again.scoring(2), again.examples(2)) == before
    assert not again.sampler.engine.asked  # no draw is asked for a second time


def test_damaged_log_probabilities_are_told(tmp_path: Path) -> None:
    made = steps(tmp_path, "pps:2+importance")
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


def test_a_problem_is_asked_in_every_nth_iteration_alone(tmp_path: Path) -> None:
    made = steps(tmp_path, "rejection:16+chain+every:3")
    whole = {problem.id for problem in PROBLEMS}
    due: list[set[str]] = []
    for iteration in range(1, 8):
        metrics = made.e_step(iteration)
        due.append({*asked(made, iteration)})
        assert metrics["num_problems"] == len(due[-1])
        assert abs(len(due[-1]) - len(PROBLEMS) / 3) < 1
    assert due[:3] == due[3:6] and due[0] == due[6]
    assert due[0] | due[1] | due[2] == whole and sum(map(len, due[:3])) == len(whole)


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
        assert "scored_tokens" not in metrics
        assert not (made.run.iteration(iteration) / "scored").exists()
    assert len({key.iteration for key in newest.values()}) > 1


def test_scoring_asks_the_engine_only_for_what_it_has_not_said(tmp_path: Path) -> None:
    """Plain draws of theta_{k-1} are known by log pi; hinted ones are not."""
    both = (Stage("plain", 2, "all"), Stage("hinted", 2, "all"))
    made = steps(tmp_path, Scheme("both", both, weigh=Chain(Accepted(), Importance())))
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
        wanted = [d for d in own if d.prompt_kind == "hinted"]
        assert Counter(pairs) == Counter((text_of("plain", d), d.completion.text) for d in wanted)
        assert metrics["scored_tokens"] == sum(len(d.completion.tokens) for d in own) > 0


def test_an_engine_that_gives_no_log_probabilities_is_told(tmp_path: Path) -> None:
    made = steps(tmp_path, "pps+importance")
    made.sampler.engine.logprob = lambda pairs: [math.nan] * len(pairs)
    with pytest.raises(EngineError, match=r"gives no log-probability for \d+ draws, such as"):
        made.e_step(1)


def test_an_iteration_without_new_right_draws_trains_on_what_is_remembered(tmp_path: Path) -> None:
    made = steps(tmp_path, "rejection:4+chain")
    made.e_step(1)
    made.sampler.engine.write = lambda prompt, seed: "z0: none"
    metrics = made.e_step(2)
    assert metrics["num_kept"] == 0 and metrics["covered_share"] > 0.5
    rows = {(row["problem_id"], tuple(row["completion_tokens"])) for row in made.examples(2)}
    remembered = {(d.key.problem_id, d.completion.tokens) for d in made.remembered(2)}
    assert rows and rows <= remembered

    empty = steps(tmp_path / "none", "rejection:4+chain")
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
        (lambda: importance(chain(rejection())), "remembers draws"),
        (lambda: reasons(chain(rejection())), "remembers draws"),
        (lambda: chain(pps()), "chain needs plain draws alone"),
        (lambda: chain(star()), "chain needs plain draws alone"),
        (lambda: every(importance(pps(2)), 2), "remembers no draws, and every needs that"),
        (lambda: every(chain(rejection()), 0), "every must be >= 1, got 0"),
        (
            lambda: Scheme("s", (Stage("plain", 2),), weigh=Chain(Accepted(), Importance())),
            "a stage asks the unsolved alone",
        ),
        (
            lambda: Scheme("s", (PLAIN,), weigh=Importance(), remember=Chain(Accepted(), Last())),
            "known of new draws alone",
        ),
    ],
)
def test_schemes_whose_weights_would_not_be_right_are_refused(make: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make()


def test_schemes_that_are_right_are_not_refused() -> None:
    for scheme in (pps(), pps(4), rejection(1)):
        assert "fixed_budget" in importance(scheme).needs
    assert not Scheme(
        "s", (Stage("plain"), HINTED), weigh=Importance()
    ).is_adaptive  # the first is asked anyway
    assert every(chain(rejection(4)), 2).every == 2
