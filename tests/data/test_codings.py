"""Codings of labels: decided for a whole column, said, and never changed by rows that are left out."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from femtune.data.tasks.codings import pair_meanings
from femtune.data.tasks.load import Options, TaskData, read_places
from femtune.errors import ConfigError, DataError

Row = dict[str, Any]


def read(rows: list[Row], task: str = "judge", **options: Any) -> TaskData:
    return read_places(enumerate(rows, 1), "rows", task, Options(**options), unit="row")


def pairs(labels: list[Any]) -> list[Row]:
    """Pairs with these labels, in which A says so."""
    return [
        {"prompt": f"P{n}", "response_a": f"first {n}", "response_b": f"other {n}", "preference": label}
        for n, label in enumerate(labels)
    ]


def preferred(found: TaskData) -> list[str]:
    """The answers in the order of the data."""
    return [p.answer for p in found.problems if not p.columns["frame"]["swapped"]]


# --- pairs


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([1, 2, 2], ["A", "B", "B"]),
        ([0, 1, 1], ["A", "B", "B"]),
        ([2, 0, 1], ["B", "tie", "A"]),
        ([1.0, 2.0], ["A", "B"]),
        (["1", "2", "tie"], ["A", "B", "tie"]),
        ([0, 1, "tie"], ["A", "B", "tie"]),
        (["A", "b", "Tie"], ["A", "B", "tie"]),
        (["B", "B"], ["B", "B"]),  # a letter is never in doubt
        (["left", "right"], ["A", "B"]),
        (["first", "second"], ["A", "B"]),
        (["model_a", "model_b", "tie (bothbad)"], ["A", "B", "tie"]),
        (["response_1", "response_2"], ["A", "B"]),
        (["Assistant A", "assistant b"], ["A", "B"]),
        (["response_a", "response_b"], ["A", "B"]),
    ],
)
def test_a_column_of_preferences_is_read_as_a_whole(labels: list[Any], expected: list[str]) -> None:
    assert preferred(read(pairs(labels))) == expected


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        ([1, 1, 1], "--labels 1=A 2=B"),
        ([0, 0], "--labels 0=A 1=B"),
        ([2, 2], "--labels 1=A 2=B"),
        ([0, 2], "--labels 1=A 2=B 0=tie"),
        ([-1, 1], "--labels=-1=<A, B or tie> --labels=1=<A, B or tie>"),
        ([1, 2, 3], "--labels 1=<A, B or tie> 2=<A, B or tie>"),
        ([0, 1, 2, "tie"], "--labels 0=<A, B or tie> 1=<A, B or tie>"),
        (["A", 1, 2], "--labels 1=<A, B or tie> 2=<A, B or tie>"),
    ],
)
@pytest.mark.parametrize("bad_rows", ["stop", "skip"])
def test_what_can_be_read_in_two_ways_is_refused(labels: list[Any], line: str, bad_rows: Any) -> None:
    with pytest.raises(DataError, match=re.escape("two ways")) as error:
        read(pairs(labels), bad_rows=bad_rows)
    assert line in str(error.value)


def test_0_and_1_of_an_annotator_may_be_a_tie_and_the_first() -> None:
    rows = [{**row, "annotator1": row.pop("preference")} for row in pairs([0, 1, 1])]
    columns = {"preference": "annotator1"}
    with pytest.raises(DataError, match=r"`annotator1` has 0 and 1 in 3 rows.*0=A 1=B if 0 is"):
        read(rows, columns=columns)
    found = read(rows, columns=columns, labels={"0": "tie", "1": "A", "2": "B"})
    assert preferred(found) == ["tie", "A", "A"]


@given(st.lists(st.sampled_from([0, 1, 2, "A", "x", None]), min_size=1, max_size=8))
def test_leaving_rows_out_never_changes_a_label(labels: list[Any]) -> None:
    """What a label means with bad rows in the file is what it means without them."""
    try:
        found = read(pairs(labels), bad_rows="skip")
    except DataError:
        return
    known = {label for label in labels if label not in ("x", None)}
    again = read([row for row in pairs(labels) if row["preference"] in known])
    assert preferred(found) == preferred(again)
    assert len(preferred(found)) + found.report.num_skipped == len(labels)


@given(st.lists(st.sampled_from(["1", "2", "0", "tie", "left", "a"]), min_size=1))
def test_the_order_of_rows_never_decides(values: list[str]) -> None:
    def decided(values: list[str]) -> Any:
        try:
            return pair_meanings(values, "label", {})
        except DataError:
            return None

    assert decided(values) == decided(values[::-1]) == decided(values * 2)


def test_the_coding_is_said() -> None:
    assert read(pairs([1, 2, 0])).report.codings == ("`preference`: 0 is tie, 1 is A, 2 is B.",)
    assert read(pairs(["A", "B"])).report.codings == ()


def test_a_value_without_a_meaning_is_a_bad_row() -> None:
    with pytest.raises(DataError, match=r"`preference` must be A, B or tie: row 2 \(C\)"):
        read(pairs(["A", "C", "B"]))
    assert preferred(read(pairs(["A", "C", "B"]), bad_rows="skip")) == ["A", "B"]


def test_a_coding_by_hand_of_pairs() -> None:
    labels = {"1": "B", "2": "A", "x": "tie"}
    assert preferred(read(pairs([1, 2, "x", 1]), labels=labels)) == ["B", "A", "tie", "B"]
    with pytest.raises(DataError, match=r"`preference` is not in --labels: row 2 \(3\)"):
        read(pairs([1, 3]), labels=labels)
    with pytest.raises(ConfigError, match="labels of pairs are A, B and tie, got C"):
        read(pairs([1]), labels={"1": "C"})


def test_a_value_is_read_as_it_is_written_first() -> None:
    assert preferred(read(pairs(["A", "a"]), labels={"A": "A", "a": "B"})) == ["A", "B"]


def test_an_unused_entry_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    read(pairs([1, 2]), labels={"1": "A", "2": "B", "3": "tie"})
    assert "no row has the label 3, which --labels names" in caplog.text


def test_items_to_predict_need_no_coding() -> None:
    rows = pairs([1, 1])
    found = read_places(enumerate(rows, 1), "rows", "judge", Options(), answers=False)
    assert {problem.answer for problem in found.problems} == {""}


# --- ratings


def test_a_coding_by_hand_of_ratings() -> None:
    rows = [
        {"prompt": "P", "response": f"R{n}", "score": score}
        for n, score in enumerate(["bad", "good", "fair"])
    ]
    by_hand = {"good": "5", "fair": "3", "bad": "1"}
    found = read(rows, scale="1,5", labels=by_hand)
    assert [problem.answer for problem in found.problems] == ["1", "5", "3"]
    assert found.report.codings == ("`score`: bad is 1, fair is 3, good is 5.",)
    with pytest.raises(DataError, match=r"`score` is not in --labels: row 3 \(fair\)"):
        read(rows, scale="1,5", labels={"good": "5", "bad": "1"})


def test_the_scale_that_the_scores_show_is_said() -> None:
    rows = [{"prompt": "P", "response": f"R{n}", "score": n} for n in (1, 2, 3)]
    assert read(rows).report.codings == ("The scale is a whole number from 1 to 3, as the scores show.",)
    assert read(rows, scale="1,5").report.codings == ()


def test_labels_are_only_for_labels(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match="labels is not for math problems"):
        read([{"prompt": "1 + 1?", "answer": 2}], "math", labels={"1": "A"})
    assert not caplog.text  # no advice on labels that are to be left out


# --- choices


def questions(answers: list[Any], choices: list[str] | None = None) -> list[Row]:
    return [
        {"question": f"Q{n}?", "choices": choices or ["red", "green", "blue"], "answer": answer}
        for n, answer in enumerate(answers)
    ]


@pytest.mark.parametrize(
    ("answers", "expected", "said"),
    [
        (["A", "c", "(B)"], "ACB", "the label of a choice"),
        ([0, 1, 1], "ABB", "a position from 0"),
        ([1, 2, 3], "ABC", "a position from 1"),
        (["1", "3"], "AC", "a position from 1"),
        (["green", "red"], "BA", "the text of a choice"),
    ],
)
def test_a_column_of_answers_is_read_as_a_whole(answers: list[Any], expected: str, said: str) -> None:
    found = read(questions(answers), "choice")
    assert [problem.answer for problem in found.problems] == [*expected]
    assert found.report.codings == (f"`answer`: each answer is {said}.",)


@pytest.mark.parametrize("bad_rows", ["stop", "skip"])
def test_positions_that_may_count_from_0_or_1_are_refused(bad_rows: Any) -> None:
    with pytest.raises(DataError, match=r"row 1 has 1, which is B as a position from 0, A as") as error:
        read(questions([1, 2]), "choice", bad_rows=bad_rows)
    assert "--labels 0=A 1=B 2=C if positions count from 0" in str(error.value)
    assert "--labels 1=A 2=B 3=C if they count from 1" in str(error.value)
    found = read(questions([1, 2]), "choice", labels={"1": "A", "2": "B", "3": "C"})
    assert [problem.answer for problem in found.problems] == ["A", "B"]


def test_what_is_said_of_a_coding_by_hand_is_what_was_read() -> None:
    found = read(questions(["x", "X"]), "choice", labels={"x": "A"}, bad_rows="skip")
    assert ([problem.answer for problem in found.problems], found.report.num_skipped) == (["A"], 1)
    assert found.report.codings == ("`answer`: x is A.",)


def test_a_value_that_is_the_text_of_another_choice_is_refused_with_its_row() -> None:
    rows = questions(["2"], ["4", "6", "8", "2"]) + questions([0], ["0", "7", "5"])
    with pytest.raises(DataError, match=r"row 1 has 2, which is D as the text of a choice, C as a pos"):
        read(rows, "choice")
    found = read(rows, "choice", labels={"text": ""})
    assert [problem.answer for problem in found.problems] == ["D", "A"]


def test_other_rows_may_show_what_a_number_means() -> None:
    """Among positions, one that is also the text of another choice is a position."""
    rows = questions([0, 2]) + questions([1], ["1", "2", "3"])
    assert [problem.answer for problem in read(rows, "choice").problems] == ["A", "C", "B"]


def test_answers_in_several_codings_are_refused() -> None:
    with pytest.raises(DataError, match=r"mixes codings: row 1 has A, the label.*row 2 has 0, a p"):
        read(questions(["A", 0]), "choice", bad_rows="skip")


def test_an_answer_that_fits_nothing_is_a_bad_row() -> None:
    with pytest.raises(DataError, match=r"not the position of a choice: row 3 \(9 of A, B, C"):
        read(questions([0, 2, 9]), "choice")
    found = read(questions([0, 2, 9]), "choice", bad_rows="skip")
    assert [problem.answer for problem in found.problems] == ["A", "C"]


def test_choices_may_differ_by_case_alone() -> None:
    (problem,) = read(questions(["B"], ["BB", "Bb", "bb"]), "choice").problems
    assert (problem.answer, problem.columns["frame"]["scale"]) == ("B", ["A", "B", "C"])
    with pytest.raises(DataError, match="another choice has the text of the right one"):
        read(questions(["A"], ["Bb", "Bb "]), "choice")


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.sampled_from([0, 1]))
def test_positions_are_read_right_or_refused(places: list[int], start: int) -> None:
    rows = questions([place + start for place in places], ["red", "green", "blue", "gray"])
    try:
        found = read(rows, "choice")
    except DataError:
        assert not (start == 0 and 0 in places) and not (start == 1 and 3 in places)
    else:
        assert [problem.answer for problem in found.problems] == ["ABCD"[place] for place in places]
