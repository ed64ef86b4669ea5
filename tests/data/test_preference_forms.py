"""The forms that preferences are published in: chosen and rejected, winners, conversations, raters."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from femtune.data.rows import BadRow
from femtune.data.tasks.judge import turned
from femtune.data.tasks.load import Options, TaskData, read_places, trained_on
from femtune.data.tasks.sides import read_turns, take_apart
from femtune.errors import DataError
from femtune.types import Problem

Row = dict[str, Any]


def read(rows: list[Row], task: str = "judge", **options: Any) -> TaskData:
    return read_places(enumerate(rows, 1), "rows", task, Options(**options), unit="row")


def better(problem: Problem) -> str:
    """The text of a pair that its answer names, as the prompt shows it."""
    _, _, texts = str(problem.prompt).partition("A:\n")
    a, _, b = texts.rpartition("\n\nResponse B:\n" if "Response B:" in texts else "\n\nSummary B:\n")
    return {"A": a, "B": b}[problem.answer]


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


USER, YES, NO = message("user", "Hi?"), message("assistant", "Yes."), message("assistant", "No.")


# --- chosen and rejected


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."},
        {"prompt": [USER], "chosen": [YES], "rejected": [NO]},
        {"prompt": "Hi?", "chosen": [USER, YES], "rejected": [USER, NO]},
        {"chosen": [USER, YES], "rejected": [USER, NO]},
        {"chosen": json.dumps([USER, YES]), "rejected": json.dumps([USER, NO])},
        {
            "chosen": "\n\nHuman: Hi?\n\nAssistant: Yes.",
            "rejected": "\n\nHuman: Hi?\n\nAssistant: No.",
        },
        {
            "chosen": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yes."}],
            "rejected": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "No."}],
        },
        {"prompt": "\n\nHuman: Hi?\n\nAssistant:", "chosen": "Yes.", "rejected": "No."},
    ],
)
def test_chosen_and_rejected_in_all_their_forms(row: Row) -> None:
    for problem in read([row]).problems:
        assert "Prompt:\nHi?\n\nResponse A:" in str(problem.prompt)
        assert better(problem) == "Yes."
        assert not problem.columns.keys() & {"chosen", "rejected", "preference"}


def test_a_longer_conversation_is_shared_up_to_the_first_difference() -> None:
    more = [message("assistant", "What?"), message("user", "Say.")]
    (problem, _) = read([{"chosen": [USER, *more, YES], "rejected": [USER, *more, NO]}]).problems
    assert "Prompt:\nUser: Hi?\n\nAssistant: What?\n\nUser: Say.\n\nResponse A:" in str(problem.prompt)
    parted = [message("assistant", "Oh."), message("user", "Say."), YES]
    (problem, _) = read([{"chosen": [USER, *parted], "rejected": [USER, NO]}]).problems
    assert better(problem) == "Assistant: Oh.\n\nUser: Say.\n\nAssistant: Yes."


def test_a_and_b_are_balanced_by_the_rows_themselves() -> None:
    """Of 2,000 rows each answer has half: 5 standard deviations are 112."""
    rows = [{"prompt": f"P{n}", "chosen": "Yes.", "rejected": "No."} for n in range(2000)]
    found = read(rows)
    own = [p.answer for p in found.problems if not p.columns["frame"]["swapped"]]
    assert abs(own.count("A") - 1000) < 112
    assert abs([p.answer for p in trained_on(found.problems)].count("A") - 1000) < 112
    assert all(better(problem) == "Yes." for problem in found.problems)
    assert read(rows).problems == found.problems
    assert found.report.codings == (
        "`chosen` is the better one of each pair; A or B by a hash of the texts.",
    )


@given(st.permutations(["Yes.", "No."]), st.text("ab", min_size=1))
def test_sides_do_not_depend_on_which_one_was_chosen(texts: list[str], prompt: str) -> None:
    chosen, rejected = texts
    (one, _) = read([{"prompt": prompt, "chosen": chosen, "rejected": rejected}]).problems
    assert better(one) == chosen


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (
            {"chosen": "Yes.", "rejected": "No."},
            "`prompt` is empty, and `chosen` and `rejected` are",
        ),
        ({"chosen": [YES], "rejected": [NO]}, "`prompt` is empty, and `chosen` and `rejected` do not"),
        ({"chosen": [USER, YES], "rejected": "No."}, "is text, and the other one messages"),
        ({"chosen": [USER, YES], "rejected": [USER, YES]}, "are the same, or one begins with the other"),
        ({"chosen": [USER, YES], "rejected": [message("user", "Oh?"), NO]}, "answer different prompts"),
        ({"prompt": "Bye", "chosen": [USER, YES], "rejected": [USER, NO]}, "`prompt` is not what"),
        (
            {"prompt": "Hi?", "chosen": "Same", "rejected": " Same"},
            "have the same text",
        ),
        ({"prompt": "Hi?", "chosen": "", "rejected": "No."}, "`chosen` is empty"),
    ],
)
def test_what_cannot_be_taken_apart_is_named(row: Row, what: str) -> None:
    good = {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."}
    with pytest.raises(DataError, match="row 2") as error:
        read([good, row])
    assert what in str(error.value)
    assert read([good, row], bad_rows="skip").report.num_skipped == 1


TURNS = st.lists(st.text(st.characters(codec="ascii", exclude_characters=":\n"), min_size=1), min_size=2)


@given(TURNS.map(lambda texts: [text.strip() or "x" for text in texts]))
def test_text_with_turns_gives_its_messages_back(texts: list[str]) -> None:
    roles = [("Human", "user"), ("Assistant", "assistant")]
    said = [(roles[n % 2], text) for n, text in enumerate(texts)]
    text = "".join(f"\n\n{name}: {content}" for (name, _), content in said)
    assert read_turns(text, "chosen") == [message(role, content) for (_, role), content in said]


@given(st.recursive(st.none() | st.text() | st.integers(), lambda x: st.lists(x) | st.just({"role": 1})))
def test_any_cell_is_taken_apart_or_named(value: Any) -> None:
    row = {"prompt": "P", "chosen": value, "rejected": "No."}
    try:
        parts = take_apart(row, ("chosen", "rejected"), "prompt")
    except BadRow as fault:
        assert fault.what
    else:
        assert all(isinstance(part, str) for part in parts)


def test_summaries_are_chosen_too() -> None:
    row = {"article": "It rained.", "good": "Rain.", "bad": "Sun.", "more": 1}
    columns = {"post": "article", "chosen": "good", "rejected": "bad"}
    found = read([row], "summarize", columns=columns)
    assert [better(problem) for problem in found.problems] == ["Rain.", "Rain."]
    with pytest.raises(Exception, match=r"shows \{good\}, the correct answer"):
        read([row], "summarize", columns=columns, prompt_template="{good} {summary_a} {summary_b}")


# --- winners


def test_a_winner_may_be_a_model_of_its_row() -> None:
    row = {"prompt": "Hi?", "response_a": "Yes.", "response_b": "No.", "model_a": "m1", "model_b": "m2"}
    winners = ["m1", "m2", "model_b", "tie (bothbad)"]
    found = read([row | {"prompt": f"P{n}", "winner": each} for n, each in enumerate(winners)])
    own = [p.answer for p in found.problems if not p.columns["frame"]["swapped"]]
    assert own == ["A", "B", "B", "tie"]
    assert "`winner` as preference, by their names." in found.report.codings


@pytest.mark.parametrize(
    "names",
    [
        ("response_a", "response_b"),
        ("output_1", "output_2"),
        ("response1", "response2"),
        ("answer_a", "answer_b"),
        ("left", "right"),
    ],
)
@pytest.mark.parametrize("label", ["preference", "winner", "label"])
def test_the_two_texts_are_known_by_their_names(names: tuple[str, str], label: str) -> None:
    rows = [
        {"prompt": "P", names[0]: "Yes.", names[1]: "No.", label: names[0]},
        {"prompt": "Q", names[0]: "No.", names[1]: "Yes.", label: names[1]},
    ]
    assert [better(problem) for problem in read(rows).problems] == ["Yes."] * 4


def test_conversations_of_two_models() -> None:
    rows = [
        {"conversation_a": [USER, YES], "conversation_b": [USER, NO], "winner": "model_a"},
        {"conversation_a": [USER, NO], "conversation_b": [USER, YES], "winner": "model_b"},
    ]
    assert [better(problem) for problem in read(rows).problems] == ["Yes."] * 4


# --- several raters of a row

PAIR = {"prompt": "Hi?", "response_a": "Yes.", "response_b": "No."}


def test_raters_in_columns_are_raters() -> None:
    rows = [
        PAIR | {"ann1": 1, "ann2": 2, "ann3": 1},
        PAIR | {"prompt": "P", "ann1": 2, "ann2": "", "ann3": 2},
        PAIR | {"prompt": "Q", "ann1": 0, "ann2": 1, "ann3": 0},
    ]
    columns = {"preference": "ann1,ann2,ann3"}
    each = trained_on(read(rows, columns=columns).problems)
    assert [problem.columns["rater"] for problem in each] == [
        *("ann1", "ann2", "ann3", "ann1", "ann3", "ann1", "ann2", "ann3")
    ]
    assert len({problem.id for problem in each}) == 8
    most = read(rows, columns=columns, raters="majority")
    own = [p for p in most.problems if not p.columns["frame"]["swapped"]]
    assert [problem.answer for problem in own] == ["A", "B", "tie"]
    assert sorted(own[0].columns["ratings"]) == ["A", "A", "B"]
    assert most.report.codings == (
        "`ann1,ann2,ann3`: 0 is tie, 1 is A, 2 is B.",
        "`ann1,ann2,ann3`: 1 of 9 ratings are empty, and left out (ann2 1; for example row 2).",
    )


def test_empty_cells_of_raters_are_counted() -> None:
    rows = [PAIR | {"prompt": f"P{n}", "ann1": n % 3, "ann2": "" if n % 2 else 1} for n in range(6)]
    rows[4]["ann1"] = None
    found = read(rows, columns={"preference": "ann1,ann2"})
    assert len(trained_on(found.problems)) == found.report.num_rows == 12 - 4
    said = "`ann1,ann2`: 4 of 12 ratings are empty, and left out (ann2 3, ann1 1; for example row 2)."
    assert said in found.report.codings
    rated = {"prompt": "P", "response": "R", "score": "[5, null, 4]"}
    listed = read([rated, {**rated, "score": [1, 2]}], scale="1,5")
    assert listed.report.codings == (
        "`score`: 1 of 5 ratings are empty, and left out (rater 2 1; for example row 1).",
    )


def test_one_annotator_alone_does_not_say_what_0_is() -> None:
    rows = [PAIR | {"annotator1": n % 2, "annotator2": 2 - n % 2, "prompt": f"P{n}"} for n in range(6)]
    with pytest.raises(DataError, match="two ways"):
        read(rows, columns={"preference": "annotator1"})
    both = read(rows, columns={"preference": "annotator1,annotator2"})
    assert "0 is tie" in both.report.codings[0]


@pytest.mark.parametrize(
    ("raters", "answers"),
    [("each", "5414"), ("mean", "5"), ("median", "4"), ("majority", "4")],
)
def test_raters_in_a_list(raters: Any, answers: str) -> None:
    row = {"prompt": "P", "response": "R", "score": [5, 4, 1, 4] if raters != "mean" else [5, 5, 4, 5]}
    found = read([row], scale="1,5", raters=raters)
    assert [problem.answer for problem in found.problems] == [*answers]
    assert [p.columns.get("rater") for p in found.problems] == (
        [f"rater {n}" for n in range(1, 5)] if raters == "each" else [None]
    )


def test_raters_in_a_list_may_have_names() -> None:
    row = {"prompt": "P", "response": "R", "score": "[5, null, 4]", "who": ["Kim", "Toni", "Alex"]}
    found = read([row], scale="1,5", raters="named", columns={"rater": "who"})
    assert [str(p.prompt).splitlines()[0][-9:] for p in found.problems] == ["im would.", "ex would."]


@pytest.mark.parametrize(("rater", "names"), [(["a", "b"], "ab"), ("['a', 'b']", "ab")])
def test_a_list_of_raters_names_them(rater: Any, names: str) -> None:
    row = {"prompt": "P", "response": "R", "score": [5, 4], "rater": rater}
    assert [p.columns["rater"] for p in read([row], scale="1,5").problems] == [*names]


@pytest.mark.parametrize(("rater", "num"), [(["a"], 1), ("a", 1), (["a", "b", "c"], 3)])
def test_names_for_other_raters_are_refused(rater: Any, num: int) -> None:
    row = {"prompt": "P", "response": "R", "score": [5, 4], "rater": rater}
    with pytest.raises(DataError, match=rf"`rater` must name a rater for each label.*\({num} for 2\)"):
        read([row], scale="1,5")
    found = read([row], scale="1,5", columns={"rater": ""})
    assert [p.columns["rater"] for p in found.problems] == ["rater 1", "rater 2"]


def test_a_score_off_the_scale_is_counted_once_where_the_others_are_split() -> None:
    row = {"prompt": "P", "response": "R"}
    rows = [row | {"score": score} for score in (1, 2, 9)] + [row | {"response": "S", "score": 3}]
    found = read(rows, scale="1,5", raters="majority", bad_rows="skip")
    reasons = {reason.what.split(",")[0]: reason.count for reason in found.report.skipped}
    assert reasons == {"`score` is off the scale": 1, "raters are split evenly": 2}


def test_a_split_majority_leaves_all_rows_of_the_item_out_and_counts_them() -> None:
    rows = [
        {"prompt": "P", "response": "R", "score": [5, 5, 1, 1]},
        {"prompt": "P", "response": "S", "score": [2]},
    ]
    with pytest.raises(DataError, match=r"raters are split evenly: rows 1 \(2 to 2\)"):
        read(rows, scale="1,5", raters="majority")
    found = read(rows, scale="1,5", raters="majority", bad_rows="skip")
    assert [problem.answer for problem in found.problems] == ["2"]
    assert (found.report.num_skipped, found.report.num_rows) == (4, 5)


@given(st.lists(st.sampled_from("12"), min_size=1, max_size=7))
def test_the_order_of_raters_does_not_change_a_majority(votes: list[str]) -> None:
    rows = [PAIR | {"v": votes}, PAIR | {"prompt": "P", "v": ["1", "2", "1"]}]
    found = read(rows, columns={"preference": "v"}, raters="majority", bad_rows="skip")
    again = read(
        [rows[0] | {"v": votes[::-1]}, rows[1]],
        columns={"preference": "v"},
        raters="majority",
        bad_rows="skip",
    )
    assert [p.answer for p in found.problems] == [p.answer for p in again.problems]
    even = votes.count("1") == votes.count("2")
    assert len(found.problems) == (2 if even else 4)
    if not even:
        most = "A" if votes.count("1") > votes.count("2") else "B"
        assert {p.answer for p in found.problems[:2]} == {most, turned(most)}


# --- responses that are no text


def test_a_message_of_the_assistant_is_text() -> None:
    row = {"prompt": "Hi?", "response": [YES], "score": 3}
    (problem,) = read([row], scale="1,5").problems
    assert str(problem.prompt).endswith("Response:\nYes.")


@pytest.mark.parametrize(
    "row",
    [
        {"response": [message("user", "x")]},
        {"response": ""},
        {"response": 7},
        {"score": True},
        {"score": {"a": 1}},
    ],
)
@pytest.mark.parametrize("bad_rows", ["stop", "skip"])
def test_rows_are_blamed_before_the_scale(row: Row, bad_rows: Any) -> None:
    with pytest.raises(DataError, match=r"rows that can't be used: 1.*\n.*row 1"):
        read([{"prompt": "P", "response": "R", "score": 3} | row], scale="1,5", bad_rows=bad_rows)


def test_bad_rows_are_blamed_before_a_scale_that_they_hide() -> None:
    rows = [{"prompt": "P", "response": "R", "score": 5}, {"prompt": "P", "response": "", "score": 1}]
    with pytest.raises(DataError, match="`response` is empty: row 2"):
        read(rows)


def test_a_few_responses_that_are_no_text_are_read_and_said() -> None:
    rows = [PAIR | {"preference": "A"}, PAIR | {"response_a": True, "response_b": 4, "preference": "B"}]
    found = read(rows)
    assert str(found.problems[2].prompt).endswith("Response A:\ntrue\n\nResponse B:\n4")
    assert found.report.codings == ("1 of 2 rows have a number, true or false as a response.",)


def test_a_column_of_responses_that_is_all_numbers_is_refused_by_its_name() -> None:
    rows = [PAIR | {"response_b": 4}, PAIR | {"response_a": 5, "response_b": 6}]
    with pytest.raises(DataError, match=r"`response_b` is not text: rows 1 \(4\), 2 \(6\)"):
        read([row | {"preference": "A"} for row in rows])
    either = [PAIR | {"response_a": 5, "preference": "A"}, PAIR | {"response_b": 4, "preference": "B"}]
    assert read(either).report.codings == ("2 of 2 rows have a number, true or false as a response.",)


@pytest.mark.parametrize("won", [(1, 1, 0), (0, 0, 0)])
def test_a_pair_has_one_column_of_a_winner(won: tuple[int, int, int]) -> None:
    names = ("winner_model_a", "winner_model_b", "winner_tie")
    columns = ", ".join(f"`{name}`" for name in names)
    row = PAIR | dict(zip(names, won, strict=True))
    with pytest.raises(
        DataError, match=rf"exactly one of {columns} must be 1: row 1 \({sum(won)} are\)"
    ):
        read([row])


@pytest.mark.parametrize("texts", [("summary_a", "summary_b"), ("chosen", "rejected")])
def test_summaries_are_compared_in_the_attribute_that_a_column_names(texts: tuple[str, str]) -> None:
    one, other = texts
    row = {"post": "P", one: "S", other: "T", "preference": "A", "axis": "coverage"}
    found = read([row], "summarize", columns={"attribute": "axis"})
    assert str(found.problems[0].prompt).startswith("Which summary is better in coverage, A or B?")


def test_an_id_that_rows_share_is_left_out_or_made_of_several_columns() -> None:
    rows = [
        {"id": "a", "system": name, "prompt": "P", "response": f"R{name}", "score": [1, 2]}
        for name in ("x", "y")
    ]
    with pytest.raises(DataError, match="duplicate `id`"):
        read(rows, scale="1,5")
    own = read(rows, scale="1,5", columns={"id": "id,system"}).problems
    assert [problem.id for problem in own] == [
        *("a/x/rater 1", "a/x/rater 2", "a/y/rater 1", "a/y/rater 2")
    ]
    without = read(rows, scale="1,5", columns={"id": ""}).problems
    assert len({problem.id for problem in without}) == 4
