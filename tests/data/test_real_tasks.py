"""Published files with labels by people, as they are: rows, raters and labels.

The files are in FEMTUNE_REAL_DATA, or in ../shared/data beside the repository; without them, these
tests are skipped.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from femtune.data.tasks.frames import frame
from femtune.data.tasks.load import Options, TaskData, read_task, trained_on

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("FEMTUNE_REAL_DATA", ROOT.parent / "shared" / "data"))

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no folder {DATA}")


def read(name: str, task: str, **options: Any) -> TaskData:
    file = DATA / name
    if not file.exists():
        pytest.skip(f"no file {file}")
    return read_task(file, task, Options(**options))


def own(found: TaskData) -> list[str]:
    """The answers in the data's own order of a pair."""
    known = [(problem.answer, frame(problem)) for problem in found.problems]
    return [answer for answer, each in known if each is not None and not each.swapped]


RECIPES = {"prompt": "dish", "response": "recipe_text", "score": "overall", "rater": "participant"}
ACTS = {"prompt": "mr", "response": "sys_ref", "score": "quality"}
ALIKE = {"prompt": "sentence1", "response": "sentence2", "score": "similarity"}


@pytest.mark.parametrize(
    ("name", "columns", "scale", "more", "num"),
    [
        ("nlg_ratings.csv", ACTS, "1,6,0.5", {}, 800),
        ("recipe_ratings.csv", RECIPES, None, {}, 440),
        ("recipe_ratings.csv", RECIPES, None, {"raters": "median"}, 25),
        ("stsb_train.tsv", ALIKE, "0,5", {"round_scores": True}, 1500),
        ("stsb_dev.tsv", ALIKE, "0,5", {"soft_labels": True}, 499),
    ],
)
def test_ratings(
    name: str, columns: dict[str, str], scale: str | None, more: dict[str, Any], num: int
) -> None:
    found = read(name, "judge", columns=columns, scale=scale, **more)
    assert len(found.problems) == num
    assert not found.report.skipped
    if name.startswith("recipe"):
        assert found.scale == "1,6"
    if name.startswith("recipe") and not more:
        raters = Counter(problem.columns["rater"] for problem in found.problems)
        assert len(raters) == 88
        assert Counter(p.answer for p in found.problems).most_common(1)[0][0] == "1"


def test_pairs_of_three_annotators() -> None:
    names = [f"annotator{number}" for number in (1, 2, 3)]
    columns = {"prompt": "instruction,input", "preference": ",".join(names)}
    found = read("pandalm.jsonl", "judge", columns=columns, bad_rows="skip")
    assert found.report.num_skipped == 12  # a response of theirs is empty
    each = trained_on(found.problems)
    assert len(each) == 3 * 548
    assert {problem.columns["rater"] for problem in each} == {*names}
    assert {*own(found)} == {"A", "B", "tie"}
    most = read("pandalm.jsonl", "judge", columns=columns, raters="majority", bad_rows="skip")
    items = {known.item for problem in each if (known := frame(problem))}
    assert len(own(most)) == len(items) == 505  # some rows have the same two texts
    assert most.report.num_skipped == 12  # one vote each for A, B and tie is a tie
    share = Counter(own(most)).most_common(1)[0][1] / len(own(most))
    assert share == pytest.approx(0.48, abs=0.02)
    agreed = sum(len({*problem.columns["ratings"]}) == 1 for problem in trained_on(most.problems))
    assert agreed / len(items) == pytest.approx(0.87, abs=0.02)


def test_pairs_labelled_1_and_2() -> None:
    found = read("llmbar_natural.jsonl", "judge", columns={"prompt": "input"})
    assert len(own(found)) == 100
    assert Counter(own(found)).most_common(1)[0][1] == 58
    assert "`label`: 1 is A, 2 is B." in found.report.codings


@pytest.mark.parametrize(("split", "num"), [("train", 240), ("test", 87)])
def test_pairs_of_summaries(split: str, num: int) -> None:
    found = read(f"tldr_comparisons_{split}.jsonl", "summarize")
    assert len(own(found)) == num
    assert own(found).count("A") / num == pytest.approx(0.60, abs=0.06)


def test_pairs_whose_better_one_has_its_column() -> None:
    columns = {"post": "article_sent", "chosen": "correct_sent", "rejected": "incorrect_sent"}
    name = "summary_correctness_pairs.jsonl"
    found = read(name, "summarize", columns=columns, bad_rows="skip")
    assert (len(own(found)), found.report.num_skipped) == (370, 3)  # three have the same text twice
    assert 139 < own(found).count("A") < 231  # balanced: 4.8 standard deviations


AXES = ("coherence", "consistency", "fluency", "relevance")


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(
    ("people", "raters", "num"),
    [
        ("expert", "each", 720),
        ("turker", "each", 1200),
        ("expert", "majority", None),
        ("expert", "mean", 239),  # two systems wrote the same summary
    ],
)
def test_summaries_rated_by_lists_of_people(
    axis: str, people: str, raters: str, num: int | None
) -> None:
    score = f"{people}_annotations[].{axis}"
    columns = {"id": "id,model_id", "post": "text", "summary": "decoded", "score": score}
    found = read(
        "summeval.jsonl", "summarize", columns=columns, scale="1,5", raters=raters, bad_rows="skip"
    )
    if num is None:  # three experts who all differ have no majority
        used = sum(len(problem.columns["ratings"]) for problem in found.problems)
        assert used + found.report.num_skipped == found.report.num_rows == 720
    else:
        assert (len(found.problems), found.report.skipped) == (num, ())
    assert {problem.answer for problem in found.problems} <= {*"12345"}
    if raters == "mean" and axis in ("consistency", "fluency"):
        fives = sum(problem.answer == "5" for problem in found.problems)
        assert fives / 239 > 0.75


def test_choices_in_nested_columns() -> None:
    nested = {"question": "question.stem", "choices": "question.choices", "answer": "answerKey"}
    lists = nested | {"choices": "question.choices[].text", "labels": "question.choices[].label"}
    found = [
        read("commonsenseqa_dev.jsonl", "choice", columns=each, bad_rows="skip")
        for each in (nested, lists)
    ]
    assert len(found[0].problems) == 697
    assert found[0].report.num_skipped == 3  # the right choice is there twice
    for one, other in zip(*(each.problems for each in found), strict=True):
        assert (one.prompt, one.answer) == (other.prompt, other.answer)
    assert {problem.answer for problem in found[0].problems} == {*"ABCDE"}


@pytest.mark.parametrize(("split", "num"), [("train", 500), ("test", 250)])
def test_choices(split: str, num: int) -> None:
    found = read(f"arc_easy_{split}.jsonl", "choice")
    assert len(found.problems) == num
    assert {problem.answer for problem in found.problems} <= {*"ABCDE", *"1234"}


@pytest.mark.parametrize(
    ("name", "columns", "num"),
    [
        ("gsm8k_train.jsonl", {}, 500),
        ("gsm8k_test.jsonl", {}, 250),
        ("multiarith.jsonl", {"prompt": "input", "answer": "target"}, 600),
        ("singleop.jsonl", {"prompt": "input", "answer": "target"}, 562),
    ],
)
def test_numbers(name: str, columns: dict[str, str], num: int) -> None:
    found = read(name, "math", columns=columns)
    assert len(found.problems) == num
    assert all(problem.answer for problem in found.problems)
