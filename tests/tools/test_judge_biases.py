"""Biases of a judge: of votes that are counted by hand, and the altered items that are asked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import spearmanr

from femtune.cli.main import main
from femtune.config import Evaluate
from femtune.data.tasks.frames import Frame, frame
from femtune.data.worlds import SEEDLING
from femtune.errors import ConfigError
from femtune.evaluation.evaluate import as_item
from femtune.evaluation.metrics import Item
from femtune.reporting.terminal import Quiet
from femtune.resolve import read_inputs
from femtune.runs.draws import read_draws
from femtune.tools.judge_biases import (
    _altered,
    findings,
    measure_biases,
    padded,
    pair_biases,
    praised,
    rating_biases,
    table,
)
from femtune.types import Problem

# --- altered texts


@pytest.mark.parametrize(
    ("text", "more"),
    [
        ("Stars burn. They shine.", " They shine. They shine."),
        ("Stars burn", " Stars burn Stars burn"),
        ("- It is short.\n- It is true.\n", "\n- It is true.\n- It is true."),
        ("One.\n\nTwo.", "\n\nTwo.\n\nTwo."),
        ("It is 4.5 m", " It is 4.5 m It is 4.5 m"),
        ("星は燃える。光る。", "光る。光る。"),
    ],
)
def test_padding_says_the_last_sentence_twice_more(text: str, more: str) -> None:
    assert padded(text, "response") == text.rstrip() + more


def test_praise_is_a_sentence_or_line_of_its_own() -> None:
    assert praised("Why. So.", "summary") == "Why. So. This summary is thorough and accurate."
    assert praised("- a\n- b", "response") == "- a\n- b\nThis response is thorough and accurate."


RATINGS = [{"prompt": f"Why {i}?", "response": f"So {i}. Yes.", "score": 1 + i % 5} for i in range(6)]
PAIRS = [
    {"prompt": f"Why {i}?", "response_a": f"a{i}.", "response_b": f"b{i}. c.", "preference": "AB"[i % 2]}
    for i in range(12)
]


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_an_altered_rating_is_the_same_problem_with_another_response(tmp_path: Path) -> None:
    data, settings = write(tmp_path / "a.jsonl", RATINGS), Evaluate(task="judge", scale="1,5")
    problems = read_inputs(data, settings).problems
    found = _altered(data, settings, problems, "padded", "")
    for own, other in zip(problems, found, strict=True):
        assert (other.id, other.answer) == (own.id, own.answer)
        assert other.prompt == f"{own.prompt} Yes. Yes."


def test_either_side_of_a_pair_is_altered_in_the_order_that_is_presented(tmp_path: Path) -> None:
    same = {"response_a": "Same.", "response_b": "Same.", "prompt": "Why?", "preference": "A"}
    data = write(tmp_path / "p.jsonl", [same, *PAIRS])
    settings = Evaluate(task="judge", bad_rows="skip")  # padded, the two would be an item
    problems = read_inputs(data, settings).problems
    assert len(problems) == 2 * len(PAIRS)
    for side in ("_a", "_b"):
        found = _altered(data, settings, problems, "praised", side)
        assert len(found) == len(PAIRS)
        by_id = {problem.id: problem for problem in problems}
        for other in found:
            own = frame(by_id[other.id])
            assert own is not None and own.presented
            shown_second = (side == "_b") != own.swapped
            [first, second] = str(other.prompt).split("Response B:\n")
            assert "thorough" in (second if shown_second else first)
            assert "thorough" not in (first if shown_second else second)


# --- measures


def rated(name: str, answer: str, length: float) -> Problem:
    known = Frame(form="rating", scale=("1", "2", "3", "4", "5"), item=name, length=length)
    return Problem(name, "Rate it.", answer, {"frame": known.column()})


def votes(given: str) -> dict[str, Item]:
    """Of items 0, 1, ...: a vote each; "-" is none."""
    return {str(i): Item("1", (vote.strip("-"),), str(i)) for i, vote in enumerate(given)}


def test_a_judge_of_ratings_by_hand() -> None:
    human, words = "13524", [10, 20, 30, 40, 50]
    problems = [rated(str(i), y, n) for i, (y, n) in enumerate(zip(human, words, strict=True))]
    others = {"padded": votes("1455-"), "praised": votes("2-555")}
    found = rating_biases(problems, votes("12345"), others)
    errors = [0, -1, -2, 2, 1]  # 12345 less 13524
    assert found["length_of_error"] == pytest.approx(spearmanr(errors, words).statistic)
    assert found["length_of_predicted"] == pytest.approx(1)
    assert found["length_of_human"] == pytest.approx(spearmanr([1, 3, 5, 2, 4], words).statistic)
    assert found["padded_shift"] == pytest.approx((0 + 2 + 2 + 1) / 4)  # the last has no answer
    assert found["praised_shift"] == pytest.approx((1 + 2 + 1 + 0) / 4)
    assert [found[f"{n}num_answered"] for n in ("", "padded_", "praised_")] == [5, 4, 4]
    low, high = found["padded_shift_ci"]
    assert 0 <= low < found["padded_shift"] < high <= 2


def test_a_judge_of_ratings_that_never_answers_has_no_biases() -> None:
    problems = [rated(str(i), "3", i) for i in range(4)]
    silent = votes("----")
    found = rating_biases(problems, silent, {"padded": silent, "praised": silent})
    names = ("length_of_error", "length_of_predicted", "length_of_human", "padded_shift")
    assert [found[name] for name in names] == [None] * 4
    assert "fewer than 3 items" in found["undefined"]["length_of_error"]
    assert findings(found) == []
    assert len(table(found)[1]) == 3 + 5


def pair(name: str, answer: str, length: float, *, swapped: bool, presented: bool) -> Problem:
    known = Frame(
        form="pair",
        scale=("A", "B"),
        item=name,
        length=length,
        pair=name,
        swapped=swapped,
        presented=presented,
    )
    own = f"{name}'" if swapped else name
    return Problem(own, "Which?", answer, {"frame": known.column()})


def both(name: str, answer: str, length: float, *, swapped_shown: bool = False) -> list[Problem]:
    turned = {"A": "B", "B": "A"}[answer]
    return [
        pair(name, answer, length, swapped=False, presented=not swapped_shown),
        pair(name, turned, -length, swapped=True, presented=swapped_shown),
    ]


def choices(problems: Sequence[Problem], given: str) -> dict[str, Item]:
    found = {}
    for problem, vote in zip(problems, given, strict=True):
        known = frame(problem)
        assert known is not None
        found[problem.id] = Item(problem.answer, (vote.strip("-"),), known.pair)
    return found


def test_a_judge_of_pairs_by_hand() -> None:
    # the second is 3 words longer, and preferred; 3 shorter, and preferred; as long
    problems = [*both("x", "B", 3), *both("y", "B", -3, swapped_shown=True), *both("z", "A", 0)]
    plain = choices(problems, "BA" + "AA" + "A-")
    shown = [problem for problem in problems if problem.columns["frame"]["presented"]]
    assert [problem.id for problem in shown] == ["x", "y'", "z"]
    # of x it chose b; of y', where a is shown as B, it chose A, which is b; of z a
    padded_a = choices(shown, "A" + "B" + "A")  # a, a, a: x and y' are won over, z is kept
    padded_b = choices(shown, "B" + "A" + "-")  # b, b: both kept
    unmoved = choices(shown, "BAA")
    others = {"padded_a": padded_a, "padded_b": padded_b, "praised_a": unmoved, "praised_b": unmoved}
    found = pair_biases(problems, plain, others)
    # of x, x', y, y' it chose the longer text in x, x' and y: humans in x and x'
    assert found["longer_share"] == pytest.approx(3 / 4)
    assert found["human_longer_share"] == pytest.approx(2 / 4)
    assert found["longer_excess"] == pytest.approx(1 / 4)
    assert found["position_consistency"] == pytest.approx(1 / 2)  # x, not y
    assert found["first_share"] == pytest.approx(4 / 5)  # B AAAA
    # a, padded: from lost, lost, won to won, won, won; b, padded: won, won stay
    assert found["padded_shift"] == pytest.approx(2 / 5)
    assert (found["padded_won_over"], found["padded_put_off"]) == (1, 0)
    assert found["praised_shift"] == found["praised_won_over"] == found["praised_put_off"] == 0
    assert (found["num_answered"], found["padded_num_answered"], found["praised_num_answered"]) == (
        5,
        5,
        6,
    )


def test_a_bias_is_said_only_where_its_interval_leaves_out_none() -> None:
    measured = {
        "padded_shift": 0.5,
        "padded_shift_ci": [0.1, 0.9],
        "length_of_error": -0.2,
        "length_of_error_ci": [-0.5, 0.1],
        "first_share": 0.4,
        "first_share_ci": [0.35, 0.45],
        "position_consistency": 0.9,
    }
    assert findings(measured) == [
        "length_of_error -0.200 (-0.500 to 0.100): no bias found.",
        "first_share 0.400 (0.350 to 0.450): the judge prefers what it is shown second.",
        "padded_shift 0.500 (0.100 to 0.900): the judge rewards padding.",
        "10.0% of pairs are decided by the order in which they are shown.",
    ]


# --- the command


@pytest.mark.parametrize("task", ["math", "choice", "table"])
def test_a_task_that_judges_nothing_is_refused(task: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"task {task} judges nothing: .* judge or summarize"):
        measure_biases("x.jsonl", "seedling", Evaluate(task=task), tmp_path, Quiet())


def test_the_seedling_is_probed_and_again_from_what_is_stored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["world", "rubric", "--num-train", "1", "--num-test", "8", "--output-dir", str(tmp_path)])
        == 0
    )
    asked = ["bias", str(tmp_path / "test.jsonl"), "--model", str(SEEDLING), "--max-new-tokens", "64"]
    asked += [
        "--task",
        "judge",
        "--raters",
        "named",
        "--scale",
        "1,5",
        "--output-dir",
        str(tmp_path / "p"),
    ]
    capsys.readouterr()
    assert main([*asked, "--show", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_problems"] == 8
    folder = tmp_path / "p" / "iteration-000"
    stored = {
        kind: [draw for chunk, _ in read_draws(folder / kind) for draw in chunk]
        for kind in ("eval", "padded", "praised")
    }
    seeds = {kind: [draw.seed for draw in draws] for kind, draws in stored.items()}
    assert seeds["eval"] == seeds["padded"] == seeds["praised"]
    settings = Evaluate(task="judge", raters="named", scale="1,5")
    problems = read_inputs(str(tmp_path / "test.jsonl"), settings).problems
    of = {
        kind: {p.id: as_item(p, [d]) for p, d in zip(problems, draws, strict=True)}
        for kind, draws in stored.items()
    }
    again = rating_biases(problems, of["eval"], of)
    assert found.items() >= json.loads(json.dumps(again)).items()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.parquet")}
    assert main(asked) == 0
    shown = capsys.readouterr().out
    assert "length_of_error" in shown and f"draws: {folder}" in shown
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/*.parquet")} == before
