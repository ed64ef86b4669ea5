"""What was kept, by group, and the weights that put it right: small cases counted by hand."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.data.tasks.frames import Frame
from femtune.engines.fake import FakeEngine
from femtune.evaluation.selection_bias import (
    MAX_FACTOR,
    Weighed,
    balance_factors,
    kept_by,
    kept_scores,
    outcomes,
    weighed,
    wilson,
)
from femtune.loop import Evaluation, LoopConfig, Steps
from femtune.mstep.config import Training
from femtune.mstep.examples import read_examples
from femtune.reporting.terminal import Quiet
from femtune.runs.draws import write_draws
from femtune.runs.run import Run
from femtune.schemes.filters import paper_filter
from femtune.schemes.named import pps
from femtune.types import Balance, Completion, Draw, DrawKey, Problem, Reason, Score

from ..models import byte_tokenizer
from ..oracle import problem as plain_problem
from ..oracle import sampler

SCALE = ("1", "2", "3", "4", "5")


def rated(name: str, answer: str, length: float = 1.0, **columns: Any) -> Problem:
    frame = Frame(form="rating", scale=SCALE, item=name, length=length).column()
    return Problem(name, "Rate it.", answer, columns | {"frame": frame})


def pair(name: str, answer: str, length: float) -> Problem:
    frame = Frame(form="pair", scale=("A", "B", "tie"), item=name, length=length, pair=name).column()
    return Problem(name, "Which?", answer, {"frame": frame})


def draw(name: str, index: int, reason: Reason, reward: float = 1.0) -> Draw:
    completion = Completion((1, 2), "z\nAnswer: 1", "stop", 0.0)
    return Draw(DrawKey(1, name, 0, index), "plain", 0, completion, Score(reward, "1", reason))


def shares(groups: dict[str, Any]) -> dict[str, tuple[float, int]]:
    return {name: (group["kept_share"], group["num_problems"]) for name, group in groups.items()}


# --- kept shares


def test_a_problem_is_kept_where_one_of_its_draws_is(tmp_path: Path) -> None:
    problems = {name: rated(name, "1") for name in "abc"}
    write_draws(tmp_path / "00000.parquet", [draw("a", 0, "wrong"), draw("a", 1, "")], {})
    write_draws(tmp_path / "00001.parquet", [draw("b", 0, "truncated")], {})
    assert outcomes(tmp_path, problems) == [(problems["a"], True), (problems["b"], False)]


def test_kept_shares_by_answer_length_and_source() -> None:
    asked = [
        (rated("a", "5", 10, source="cnn", rater="Ada"), True),
        (rated("b", "5", 20, source="cnn", rater="Ada"), False),
        (rated("c", "3", 30, source="tifu", rater="Bob"), True),
        (rated("d", "1", 40, rater="Bob"), False),
    ]
    found = kept_by(asked)
    assert {kind: shares(groups) for kind, groups in found.items()} == {
        "answer": {"1": (0, 1), "3": (1, 1), "5": (0.5, 2)},
        "length": {
            "10 to 10 words": (1, 1),
            "20 to 20 words": (0, 1),
            "30 to 30 words": (1, 1),
            "40 to 40 words": (0, 1),
        },
        "source": {"cnn": (0.5, 2), "none": (0, 1), "tifu": (1, 1)},  # and no raters beside it
    }
    assert list(found["answer"]) == ["1", "3", "5"]
    assert found["answer"]["5"]["kept_share_ci"] == list(wilson(1, 2))


def test_pairs_by_whether_the_longer_text_was_preferred() -> None:
    asked = [
        (pair("a", "A", -3), True),  # the first is longer, and preferred
        (pair("b", "B", 3), True),
        (pair("c", "A", 3), False),
        (pair("d", "B", 0), True),
        (pair("e", "tie", 3), False),
    ]
    found = kept_by(asked)
    assert shares(found["preferred"]) == {
        "neither": (0, 1),
        "of two as long": (1, 1),
        "the longer": (1, 2),
        "the shorter": (0, 1),
    }
    assert "length" not in found


def test_rare_groups_are_one_and_answers_that_never_come_again_are_none() -> None:
    sources = [f"s{min(number // 3, 20)}" for number in range(60)]
    asked = [(rated(str(i), "3", source=source), True) for i, source in enumerate(sources)]
    groups = kept_by(asked)["source"]
    assert len(groups) == 12
    assert list(groups)[-1] == "others"
    assert sum(group["num_problems"] for group in groups.values()) == 60
    open_ended = [(plain_problem(f"p{i}", 0, i), True) for i in range(60)]
    assert kept_by(open_ended) == {}
    assert kept_by([]) == {}


def test_wilson_holds_the_share_that_it_is_of() -> None:
    for num in (1, 7, 1000):
        for hits in {0, num // 3, num}:
            low, high = wilson(hits, num)
            assert 0 <= low <= hits / num + 1e-12 and hits / num - 1e-12 <= high <= 1
            # its ends p solve |hits / n - p| = z sqrt(p (1 - p) / n)
            for end in {low, high} - {0.0, 1.0}:
                gap = 1.959964 * math.sqrt(end * (1 - end) / num)
                assert abs(hits / num - end) == pytest.approx(gap, abs=1e-9)


# --- human scores


def test_human_scores_of_all_and_of_the_kept() -> None:
    asked = [(rated(str(i), answer), i > 1) for i, answer in enumerate("11335")]
    found = kept_scores(asked)
    assert found["mode"] == "1"
    assert found["score_mean"] == pytest.approx((1 + 1 + 3 + 3 + 5) / 5)
    assert found["kept_score_mean"] == pytest.approx((3 + 3 + 5) / 3)
    assert found["mean_shift"] == pytest.approx(11 / 3 - 13 / 5)
    assert found["score_sd"] == pytest.approx(math.sqrt((1 + 1 + 9 + 9 + 25) / 5 - 2.6**2))
    assert found["kept_score_sd"] == pytest.approx(math.sqrt((9 + 9 + 25) / 3 - (11 / 3) ** 2))
    assert (found["mode_share"], found["kept_mode_share"]) == (pytest.approx(0.4), 0)
    low, high = found["mean_shift_ci"]
    assert low < found["mean_shift"] < high


def test_scores_of_which_none_is_kept_are_undefined_and_what_is_no_rating_has_none() -> None:
    found = kept_scores([(rated("a", "1"), False), (rated("b", "3"), False)])
    assert (found["score_mean"], found["kept_score_mean"], found["mean_shift"]) == (2, None, None)
    assert found["undefined"]["mean_shift"] == "no problem was kept"
    assert kept_scores([(plain_problem("p", 0, 1), True)]) == kept_scores([]) == {}


# --- balance


def found_of(problems: dict[str, int], weight: dict[str, float]) -> Weighed:
    return Weighed(problems, dict.fromkeys(weight, 1), weight)


def test_factors_by_hand() -> None:
    found = found_of({"1": 40, "3": 40, "5": 20}, {"1": 10.0, "3": 30.0, "5": 0.0})
    # of the kept 40, data wants 20 and 20 (nothing of 5 is there to be put back), and so does uniform
    assert balance_factors(found, "data").by_answer == pytest.approx({"1": 2, "3": 2 / 3})
    assert balance_factors(found, "uniform").by_answer == pytest.approx({"1": 2, "3": 2 / 3})
    found = found_of({"1": 10, "3": 90}, {"1": 5.0, "3": 45.0})
    assert balance_factors(found, "data").by_answer == pytest.approx({"1": 1, "3": 1})
    # 25 each of 50
    assert balance_factors(found, "uniform").by_answer == pytest.approx({"1": 5, "3": 25 / 45})
    assert balance_factors(found, "none").by_answer == {}
    assert balance_factors(found_of({"1": 3}, {"1": 0.0}), "data").by_answer == {}


def test_a_factor_that_is_too_large_is_held_and_said() -> None:
    # data wants half of the weight of 101 on "1", which has 1: a factor of 50.5
    found = found_of({"1": 100, "3": 100}, {"1": 1.0, "3": 100.0})
    factors = balance_factors(found, "data")
    assert factors.clipped == ("1",)
    assert factors.by_answer == pytest.approx({"1": 5, "3": (101 - 5) / 100})
    assert factors.metrics() == {"balance": dict(factors.by_answer), "balance_clipped": ["1"]}


@given(
    st.dictionaries(
        st.sampled_from(SCALE),
        st.tuples(st.integers(1, 200), st.floats(0.01, 1)),
        min_size=1,
    ),
    st.sampled_from(["data", "uniform"]),
)
def test_the_weights_follow_the_data_where_nothing_is_held(
    kept: dict[str, tuple[int, float]], balance: Balance
) -> None:
    """Shares of acceptance from 1% to 100%."""
    num = {answer: problems for answer, (problems, _) in kept.items()}
    weight = {answer: problems * share for answer, (problems, share) in kept.items()}
    factors = balance_factors(found_of(num, weight), balance)
    balanced = {answer: weight[answer] * factors.by_answer[answer] for answer in weight}
    total = sum(weight.values())
    assert sum(balanced.values()) == pytest.approx(total)  # the mean weight stays
    assert all(0 < factor <= MAX_FACTOR * (1 + 1e-9) for factor in factors.by_answer.values())
    wanted = num if balance == "data" else dict.fromkeys(num, 1)
    free = {answer: wanted[answer] for answer in num if answer not in factors.clipped}
    left = total - sum(balanced[answer] for answer in factors.clipped)
    for answer, share in free.items():  # all of them, where none is held
        assert balanced[answer] / left == pytest.approx(share / sum(free.values()))


def test_examples_are_weighed_by_answer() -> None:
    problems = {"a": rated("a", "1"), "b": rated("b", "3")}
    chunks = [[draw("a", 0, "wrong", 0.5), draw("a", 1, "")], [draw("b", 0, "wrong", 0.5)]]
    found = weighed(chunks, problems, paper_filter)
    assert found == Weighed({"1": 1, "3": 1}, {"1": 1, "3": 0}, {"1": 1.0, "3": 0.0})


# --- in the loop


def biased(prompt: str, seed: int) -> str:
    """Right on y0 always, on y1 one time in two, on y2 never."""
    told = prompt.partition("answer is ")[2].removesuffix(".")
    right = told == "y0" or (told == "y1" and seed % 2)
    return f"z{seed % 3}\nAnswer: {told if right else 'none'}"


def expected(tmp_path: Path, balance: Balance) -> tuple[dict[str, Any], list[float], list[str]]:
    """An E-step's metrics, and the weights and answers of its examples as the M-step reads them."""
    problems = [plain_problem(f"p{i}", 0, i % 3) for i in range(60)]
    made = sampler(FakeEngine(biased), chunk_size=16)
    plan = LoopConfig(scheme=pps(), training=Training(), evaluation=Evaluation(), balance=balance)
    tmp_path.mkdir(exist_ok=True)
    run, tokenizer = Run(tmp_path), ChatTokenizer(byte_tokenizer())
    metrics = Steps(
        run=run,
        base=tmp_path,
        problems=problems,
        eval_problems=[],
        config=plan,
        sampler=made,
        tokenizer=tokenizer,
        progress=Quiet(),
    ).e_step(1)
    data = read_examples(run.iteration(1) / "examples.parquet", tokenizer, 1024)
    texts = [made.tokenizer.decode(completion) for completion in data.completions]
    return metrics, list(data.weights), [text.partition("Answer: ")[2] for text in texts]


def test_an_e_step_says_what_it_kept_and_weighs_it(tmp_path: Path) -> None:
    metrics, weights, answers = expected(tmp_path / "none", "none")
    assert set(weights) == {1.0}
    assert "balance" not in metrics and "kept_scores" not in metrics
    kept = Counter(answers)
    assert kept["y0"] == 20 and 0 < kept["y1"] < 20
    by_answer = {"y0": (1, 20), "y1": (kept["y1"] / 20, 20), "y2": (0, 20)}
    assert shares(metrics["kept_by"]["answer"]) == by_answer

    metrics, weights, answers = expected(tmp_path / "data", "data")
    total = Counter[str]()
    for weight, answer in zip(weights, answers, strict=True):
        total[answer] += weight  # type: ignore[assignment]  # a Counter of floats
        assert weight == pytest.approx(metrics["balance"][answer])
    assert total["y0"] == pytest.approx(total["y1"]) == pytest.approx(len(answers) / 2)


def test_an_e_step_that_is_gone_on_with_gives_the_same_weights(tmp_path: Path) -> None:
    whole, weights, _ = expected(tmp_path, "uniform")
    (tmp_path / "iteration-001" / "examples.parquet").unlink()
    again, same, _ = expected(tmp_path, "uniform")
    assert (again["balance"], again["kept_by"], same) == (whole["balance"], whole["kept_by"], weights)
