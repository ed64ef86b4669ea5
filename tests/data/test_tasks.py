"""Tasks: rows become prompts word by word, answers on a scale, and items that no split tears apart."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from femtune.config import Train
from femtune.data.answers import Scale, parse_scale
from femtune.data.leaks import JUDGE_LEAKS
from femtune.data.problems import check_disjoint, load_problems, save_problems, split
from femtune.data.row_report import RowReport
from femtune.data.rows import BadRow
from femtune.data.tasks.frames import Frame, frame, item_name, scale_of
from femtune.data.tasks.judge import JUDGE, instruction, turned, with_ids, write_pair, write_rating
from femtune.data.tasks.load import Options, TaskData, problems_of, read_task, trained_on
from femtune.data.tasks.summarize import SUMMARIZE
from femtune.errors import ConfigError, DataError
from femtune.resolve import held_out, read_inputs
from femtune.types import Problem

Row = dict[str, Any]

RATED: Row = {"prompt": "Why?", "response": "Because.", "score": 4}
PAIRED: Row = {"prompt": "Why?", "response_a": "Because.", "response_b": "So.", "preference": "A"}


def made(rows: Iterable[Row], *, task: str = "judge", **options: Any) -> TaskData:
    rows = [*rows]
    if options.get("scale") == "1,5" and "preference" in rows[0]:
        del options["scale"]  # of pairs there is none to choose
    return problems_of(rows, task, Options(**options), "rows")


def known(problem: Problem) -> Frame:
    """A problem's frame, which is there."""
    found = frame(problem)
    assert found is not None
    return found


def file_of(path: Path, rows: Iterable[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- prompts


@pytest.mark.parametrize(
    ("more", "scale", "rater", "head"),
    [
        ({}, "1,5", "", "Rate the response from 1 to 5."),
        ({}, "1,5", "Robin", "Rate the response from 1 to 5, as Robin would."),
        ({}, "1,5,0.5", "", "Rate the response from 1 to 5."),
        ({}, "bad,fair,good", "", "Rate the response as bad, fair or good."),
        ({}, "no,yes", "Robin", "Rate the response as no or yes, as Robin would."),
        ({"attribute": "coherence"}, "0,4", "", "Rate the coherence of the response from 0 to 4."),
        (
            {"attribute": "instruction_following"},
            "1,5",
            "",
            "Rate the instruction following of the response from 1 to 5.",
        ),
        ({"attribute": "overall"}, "1,7", "", "Rate the overall quality of the response from 1 to 7."),
    ],
)
def test_what_is_asked_of_a_rating(more: Row, scale: str, rater: str, head: str) -> None:
    prompt = write_rating(RATED | more, parse_scale(scale), JUDGE, rater)
    assert prompt == f"{head}\n\nPrompt:\nWhy?\n\nResponse:\nBecause."


def test_a_criterion_and_a_reference_stand_before_the_response() -> None:
    row = RATED | {"criterion": "Is it short?\n1: no\n5: yes", "reference": "As it is."}
    assert write_rating(row, parse_scale("1,5"), JUDGE) == (
        "Rate the response from 1 to 5.\n\nPrompt:\nWhy?\n\nCriterion:\nIs it short?\n1: no\n5: yes\n\n"
        "Reference answer:\nAs it is.\n\nResponse:\nBecause."
    )


@pytest.mark.parametrize(
    ("more", "asked", "head"),
    [
        ({}, {}, "Which response is better, A or B?"),
        ({}, {"tie": True}, "Which response is better, A, B, or is it a tie?"),
        ({}, {"rater": "Robin"}, "Which response would Robin prefer, A or B?"),
        ({"attribute": "tone"}, {}, "Which response is better in tone, A or B?"),
        ({"attribute": "overall"}, {}, "Which response is better, A or B?"),
        ({"attribute": "tone"}, {"rater": "Kim"}, "Which response would Kim prefer in tone, A or B?"),
    ],
)
def test_what_is_asked_of_a_pair(more: Row, asked: Any, head: str) -> None:
    texts = ("Because.", "So.")
    for swapped in (False, True):
        first, second = reversed(texts) if swapped else texts
        assert write_pair(PAIRED | more, JUDGE, swapped=swapped, **asked) == (
            f"{head}\n\nPrompt:\nWhy?\n\nResponse A:\n{first}\n\nResponse B:\n{second}"
        )


def test_summaries_have_posts() -> None:
    row = {"title": "Cat", "post": "My cat is fat. ", "summary": "Cat fat."}
    assert write_rating(row, parse_scale("1,7"), SUMMARIZE, "w7") == (
        "Rate the summary from 1 to 7, as w7 would.\n\nTitle:\nCat\n\nPost:\nMy cat is fat.\n\n"
        "Summary:\nCat fat."
    )
    pair = {"post": "My cat is fat.", "summary_a": "Cat fat.", "summary_b": "Cat."}
    assert write_pair(pair, SUMMARIZE) == (
        "Which summary is better, A or B?\n\nPost:\nMy cat is fat.\n\nSummary A:\nCat fat.\n\n"
        "Summary B:\nCat."
    )


@pytest.mark.parametrize(
    ("scale", "what"),
    [
        ("1,5", "the rating, a whole number from 1 to 5"),
        ("1,5,0.5", "the rating, from 1 to 5 in steps of 0.5"),
        ("bad,fair,good", "bad, fair or good"),
        ("A,B,tie", "A, B or tie"),
    ],
)
def test_the_instruction_says_which_answers_there_are(scale: str, what: str) -> None:
    expected = f'Think step by step, then end with the line "Answer: " and {what}.'
    assert instruction(parse_scale(scale)) == expected


# --- ratings


@pytest.mark.parametrize(
    ("scores", "scale", "spec", "answers", "reward"),
    [
        ([4, 1, 2, 5, 3], None, "1,5", "41253", 'ordinal("1,5")'),
        ([4, 1.0, "2"], "1,5", "1,5", "412", 'ordinal("1,5")'),
        ([2, 0, 1], None, "0,2", "201", 'ordinal("0,2")'),
        ([0.5, 1], "0,1,0.5", "0,1,0.5", ["0.5", "1"], 'ordinal("0,1,0.5")'),
        (["Good", "bad"], "bad,fair,good", "bad,fair,good", ["good", "bad"], 'ordinal("bad,fair,good")'),
    ],
)
def test_ratings_on_their_scale(
    scores: list[Any], scale: str | None, spec: str, answers: Any, reward: str
) -> None:
    found = made(({**RATED, "response": f"R{i}", "score": s} for i, s in enumerate(scores)), scale=scale)
    assert [problem.answer for problem in found.problems] == [*answers]
    assert (found.scale, found.reward, found.leaks) == (spec, reward, JUDGE_LEAKS)
    assert found.instruction == instruction(parse_scale(spec))
    assert {scale_of(problem) for problem in found.problems} == {parse_scale(spec)}


@pytest.mark.parametrize("scores", [[1, 2, 3, 3.5], ["bad", "fair", "good"], [1, 5], [3, 4, 5]])
def test_a_scale_that_the_data_do_not_show_is_asked_for(scores: list[Any]) -> None:
    with pytest.raises(
        DataError, match=r"Set --scale 1,5, or with a step --scale 1,5,0\.5, or with labels"
    ):
        made({**RATED, "response": f"R{i}", "score": s} for i, s in enumerate(scores))


def test_items_without_scores_need_a_scale(tmp_path: Path) -> None:
    file = file_of(tmp_path / "items.jsonl", [{"prompt": "Why?", "response": "So."}])
    with pytest.raises(
        ConfigError, match="no scores to infer a scale from: set it, for example --scale 1,5"
    ):
        read_task(file, "judge", answers=False)
    (item,) = read_task(file, "judge", Options(scale="1,5"), answers=False).problems
    assert item.answer == ""
    assert known(item).scale == ("1", "2", "3", "4", "5")


def test_a_published_scale_holds_and_a_score_off_it_is_refused() -> None:
    five = dict.fromkeys(("helpfulness", "correctness", "coherence", "complexity", "verbosity"), 3)
    row = {"prompt": "Why?", "response": "So.", **five}
    assert made([row]).scale == "0,4"
    with pytest.raises(DataError, match=r"`score` is off the scale, 0 to 4: row 1 \(5\)"):
        made([row | {"helpfulness": 5}])
    assert made([row | {"helpfulness": 5}], scale="0,5").scale == "0,5"  # the user knows better


FAULTS = [
    ({"score": 6}, {"scale": "1,5"}, "`score` is off the scale, 1 to 5", "6"),
    ({"score": 3.5}, {"scale": "1,5"}, "`score` is off the scale, 1 to 5", "3.5"),
    ({"score": "great"}, {"scale": "1,5"}, "`score` is off the scale, 1 to 5", "great"),
    ({"score": "ok"}, {"scale": "bad,good"}, "`score` is off the scale, bad or good", "ok"),
    ({"response": " "}, {"scale": "1,5"}, "`response` is empty", ""),
    ({"rater": None}, {"scale": "1,5", "raters": "named"}, "no `rater`, which --raters named needs", ""),
    ({"id": "0"}, {"scale": "1,5"}, "duplicate `id`", '"0"'),
]


@pytest.mark.parametrize(("changes", "options", "what", "detail"), FAULTS)
def test_one_bad_rating_among_good_ones(changes: Row, options: Any, what: str, detail: str) -> None:
    rows = [
        RATED | {"id": str(i), "response": f"R{i}", "score": options["scale"][0], "rater": "Kim"}
        for i in range(10)
    ]
    if options["scale"].startswith("bad"):
        rows = [row | {"score": "bad"} for row in rows]
    good = made(rows, **options)
    rows[6] = rows[6] | changes
    with pytest.raises(DataError) as error:
        made(rows, **options)
    said = str(error.value)
    assert said.startswith(
        "rows: rows that can't be used: 1. Correct or remove them. Or skip them with --bad-rows"
    )
    assert what in said and "row 7" in said and detail in said
    skipped = made(rows, bad_rows="skip", **options)
    assert skipped.problems == good.problems[:6] + good.problems[7:]
    assert skipped.report.num_skipped == 1


def test_where_no_row_is_good_there_is_nothing_to_skip() -> None:
    with pytest.raises(DataError, match=r"can't be used: 2.*\n.*off the scale, 1 to 3: rows 1 \(4\), 2"):
        made([RATED, RATED], scale="1,3", bad_rows="skip")


def test_attributes_are_chosen_and_an_unknown_one_gets_the_nearest() -> None:
    rows = [RATED | {"attribute": name} for name in ("tone", "clarity", "length")]
    some = made(rows, scale="1,5", attributes=("tone", "length"))
    assert [problem.columns["attribute"] for problem in some.problems] == ["tone", "length"]
    assert len({problem.id for problem in some.problems}) == 2
    assert len({known(problem).item for problem in some.problems}) == 1
    with pytest.raises(DataError, match=r"no attribute 'tune'; it has tone, clarity, length\. Did you"):
        made(rows, scale="1,5", attributes=("tune",))
    with pytest.raises(DataError, match="no attribute 'tone'; it has none"):
        made([RATED], scale="1,5", attributes=("tone",))


def test_a_frame_says_what_was_judged() -> None:
    (problem,) = made([RATED | {"response": "It is so.", "mine": [1]}], scale="1,5").problems
    assert known(problem) == Frame(
        form="rating", scale=("1", "2", "3", "4", "5"), item=item_name("Why?", "It is so."), length=3
    )
    assert problem.columns["mine"] == [1]
    assert not problem.columns.keys() & {"prompt", "response", "score", "id", "item"}
    assert frame(Problem("p", "Why?", "4", {"frame": "oak"})) is None  # a column of the user's own
    assert scale_of(Problem("p", "Why?", "4")) is None


@pytest.mark.parametrize("rows", [[RATED, RATED | {"response": "No."}], [PAIRED]])
def test_frames_are_stored_with_problems(rows: list[Row], tmp_path: Path) -> None:
    problems = made(rows, scale="1,5").problems
    save_problems(problems, tmp_path / "problems.parquet")
    stored = load_problems(tmp_path / "problems.parquet")
    assert stored == problems
    assert [*map(known, stored)] == [*map(known, problems)]


# --- several raters

SIX = [("Kim", 5), ("Kim", 1), ("Toni", 4), ("Toni", 1), ("Alex", 2), ("Alex", 2)]
RATERS = [RATED | {"rater": who, "score": s, "response": f"R{i % 2}"} for i, (who, s) in enumerate(SIX)]


@pytest.mark.parametrize(
    ("raters", "answers"),
    [
        ("each", ["5", "1", "4", "1", "2", "2"]),
        ("named", ["5", "1", "4", "1", "2", "2"]),
        ("mean", ["4", "1"]),  # 11/3 and 4/3
        ("median", ["4", "1"]),
    ],
)
def test_of_several_raters(raters: Any, answers: list[str]) -> None:
    problems = made(RATERS, scale="1,5", raters=raters).problems
    assert [problem.answer for problem in problems] == answers
    assert len({problem.id for problem in problems}) == len(problems)
    assert len({known(problem).item for problem in problems}) == 2
    names = [str(problem.prompt).partition(", as ")[2][:3] for problem in problems]
    assert names == ([who[:3] for who, _ in SIX] if raters == "named" else [""] * len(answers))
    if raters in ("mean", "median"):
        assert [problem.columns["ratings"] for problem in problems] == [["5", "4", "2"], ["1", "1", "2"]]
        assert not any("rater" in problem.columns for problem in problems)
    else:
        assert [problem.columns["rater"] for problem in problems] == [who for who, _ in SIX]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=7))
def test_means_and_medians_are_the_nearest_answers(scores: list[int]) -> None:
    rows = [RATED | {"rater": f"r{i}", "score": score} for i, score in enumerate(scores)]
    (mean,) = made(rows, scale="1,5", raters="mean").problems
    best = min(abs(sum(scores) / len(scores) - answer) for answer in range(1, 6))
    assert abs(sum(scores) / len(scores) - int(mean.answer)) == pytest.approx(best)
    (median,) = made(rows, scale="1,5,0.5", raters="median").problems
    below = sum(score < float(median.answer) for score in scores)
    above = sum(score > float(median.answer) for score in scores)
    assert max(below, above) <= len(scores) / 2


def test_a_mean_is_of_the_ratings_that_can_be_used() -> None:
    rows = [*RATERS, RATED | {"response": "R0", "rater": "Noor", "score": 9}]
    with pytest.raises(DataError, match="`score` is off the scale, 1 to 5: row 7"):
        made(rows, scale="1,5", raters="mean")
    found = made(rows, scale="1,5", raters="mean", bad_rows="skip")
    assert found.problems == made(RATERS, scale="1,5", raters="mean").problems
    assert found.report.num_skipped == 1


def test_each_attribute_has_a_mean_of_its_own() -> None:
    rows = [
        RATED | {"rater": who, "attribute": name, "score": score}
        for who, name, score in [("a", "tone", 5), ("a", "wit", 1), ("b", "tone", 3), ("b", "wit", 1)]
    ]
    problems = made(rows, scale="1,5", raters="mean").problems
    assert [(p.columns["attribute"], p.answer) for p in problems] == [("tone", "4"), ("wit", "1")]


# --- pairs


def test_a_pair_is_a_problem_in_each_order() -> None:
    found = made([PAIRED | {"response_b": "So it is said.", "id": "p1"}])
    one, other = found.problems
    assert (one.id, one.answer, known(one).swapped, known(one).length) == ("p1", "A", False, 3)
    assert (other.id, other.answer, known(other).swapped) == ("p1 (swapped)", "B", True)
    assert known(other).length == -3
    assert known(one).pair == known(other).pair == "p1"
    assert known(one).item == known(other).item
    assert known(one).presented != known(other).presented
    assert (found.scale, found.reward) == ("A,B", 'choice("A,B")')
    assert found.instruction.endswith('"Answer: " and A or B.')


def test_a_tie_is_a_tie_in_both_orders_and_all_are_asked_for_one() -> None:
    rows = [PAIRED, PAIRED | {"response_b": "No.", "preference": "tie"}]
    found = made(rows)
    assert [problem.answer for problem in found.problems] == ["A", "B", "tie", "tie"]
    assert all("or is it a tie?" in str(problem.prompt) for problem in found.problems)
    assert {known(problem).scale for problem in found.problems} == {("A", "B", "tie")}
    assert (found.scale, found.reward) == ("A,B,tie", 'choice("A,B,tie")')
    assert made(rows[:1], scale="A,B,tie").reward == 'choice("A,B,tie")'  # in a test set without ties


@pytest.mark.parametrize(
    ("changes", "raters", "what"),
    [
        (
            {"response_b": " Because.\n"},
            "each",
            "`response_a` and `response_b` have the same text",
        ),
        ({"response_a": ""}, "each", "`response_a` is empty"),
        ({"preference": "C"}, "each", "`preference` must be A, B or tie"),
        ({"rater": ""}, "named", "no `rater`, which --raters named needs"),
        ({"id": "x (swapped)"}, "each", "`id` ends in (swapped)"),
        ({"id": "3"}, "each", "duplicate `id`"),
    ],
)
def test_one_bad_pair_among_good_ones(changes: Row, raters: Any, what: str) -> None:
    rows = [PAIRED | {"id": str(i), "response_b": f"R{i}", "rater": "Kim"} for i in range(9)]
    rows[4] = rows[4] | changes
    with pytest.raises(DataError) as error:
        made(rows, raters=raters)
    assert f"{what}" in str(error.value) and "row 5" in str(error.value)
    skipped = made(rows, raters=raters, bad_rows="skip")
    assert [known(problem).pair for problem in trained_on(skipped.problems)] == [*"01235678"]
    assert skipped.report.num_skipped == 1


def voted(votes: str) -> list[Row]:
    """A pair, and a rater for each letter; a small one was shown the pair the other way round."""
    turned_round = {"response_a": PAIRED["response_b"], "response_b": PAIRED["response_a"]}
    said = {"A": "A", "B": "B", "t": "tie"}
    rows = []
    for number, vote in enumerate(votes):
        row = PAIRED | {"rater": f"r{number}", "preference": said.get(vote, vote.upper())}
        rows.append(row | turned_round if vote in "ab" else row)
    return rows


@pytest.mark.parametrize(
    ("votes", "answer", "ratings"),
    [
        ("A", "A", ["A"]),
        ("AAB", "A", ["A", "A", "B"]),
        ("BAB", "B", ["B", "B", "A"]),
        ("ttA", "tie", ["tie", "tie", "A"]),
        ("tA", "tie", ["tie", "A"]),  # split evenly, and there is a word for it
        ("ABt", "tie", ["A", "B", "tie"]),
        ("Ab", "A", ["A", "A"]),  # both chose the same text
        ("Bab", "B", ["B", "B", "A"]),
    ],
)
@pytest.mark.parametrize("raters", ["mean", "median", "majority"])
def test_of_several_raters_most_win(votes: str, answer: str, ratings: list[str], raters: Any) -> None:
    one, other = made(voted(votes), raters=raters).problems
    assert (one.answer, other.answer) == (answer, turned(answer))
    assert sorted(one.columns["ratings"]) == sorted(ratings)
    assert "rater" not in one.columns
    assert len(made(voted(votes)).problems) == 2 * len(votes)  # each for itself


def test_an_even_split_is_no_answer() -> None:
    rows = [*voted("AABB"), PAIRED | {"response_a": "R"}]
    with pytest.raises(DataError, match=r"raters are split evenly: rows 1 \(2 to 2\), 2"):
        made(rows, raters="mean")
    found = made(rows, raters="mean", bad_rows="skip")
    assert (len(found.problems), found.report.num_skipped) == (2, 4)


def test_the_order_that_is_presented_is_a_fair_coin() -> None:
    """10,000 coins: a standard deviation of 50; 5 of them, a false alarm in 1.7 million."""
    rows = [PAIRED | {"response_b": f"R{i}"} for i in range(10_000)]
    for named in (rows, [row | {"id": f"pair-{i}"} for i, row in enumerate(rows)]):
        shown = trained_on(made(named).problems)
        assert len(shown) == 10_000
        assert abs(sum(known(problem).swapped for problem in shown) - 5000) < 250
        assert sum(problem.answer == "B" for problem in shown) == sum(known(p).swapped for p in shown)


def test_the_order_is_the_same_in_every_process(tmp_path: Path) -> None:
    file = file_of(tmp_path / "pairs.jsonl", (PAIRED | {"response_b": f"R{i}"} for i in range(64)))
    code = (
        "import sys\n"
        "from femtune.data.tasks.load import read_task, trained_on\n"
        "print([problem.id for problem in trained_on(read_task(sys.argv[1], 'judge').problems)])\n"
    )
    here = [problem.id for problem in trained_on(read_task(file, "judge").problems)]
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(file)],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == f"{here}\n"


# --- ids and items

RATINGS = st.fixed_dictionaries(
    {
        "prompt": st.sampled_from(["P", "Q"]),
        "response": st.sampled_from(["X", "Y  y", "Y y", "Z"]),
        "score": st.integers(1, 5),
        "attribute": st.sampled_from(["", "tone", "wit"]),
        "rater": st.sampled_from(["", "Kim", "Toni"]),
    }
)
PAIRS = st.fixed_dictionaries(
    {
        "prompt": st.sampled_from(["P", "Q"]),
        "response_a": st.sampled_from(["X", "Y"]),
        "response_b": st.sampled_from(["Z", "W", "V"]),
        "preference": st.sampled_from(["A", "B", "tie"]),
        "rater": st.sampled_from(["", "Kim", "Toni"]),
        "turn": st.booleans(),
    }
)


def either_way(rows: list[Row]) -> list[Row]:
    """Pairs, some of them with their texts the other way round."""
    sides = {True: ("response_b", "response_a"), False: ("response_a", "response_b")}
    texts = [
        {"response_a": row[sides[row["turn"]][0]], "response_b": row[sides[row["turn"]][1]]}
        for row in rows
    ]
    return [
        {key: value for key, value in {**row, **own}.items() if key != "turn"}
        for row, own in zip(rows, texts, strict=True)
    ]


some_rows = st.one_of(
    st.lists(RATINGS, min_size=1, max_size=12), st.lists(PAIRS, min_size=1, max_size=12).map(either_way)
)


@given(some_rows, st.sampled_from(["each", "mean", "median"]))
def test_ids_are_unique_and_pairs_stand_in_both_orders(rows: list[Row], raters: Any) -> None:
    try:
        problems = made(rows, scale="1,5", raters=raters, bad_rows="skip").problems
    except DataError:  # of each pair the raters are split evenly
        return
    assert len({problem.id for problem in problems}) == len(problems)
    orders: dict[str, list[Frame]] = defaultdict(list)
    for problem in problems:
        orders[known(problem).pair].append(known(problem))
    orders.pop("", None)
    for one, other in orders.values():
        assert one.presented != other.presented and one.swapped != other.swapped
        assert one.item == other.item


@given(some_rows, st.integers(0, 5), st.floats(0.2, 0.8))
def test_no_item_straddles_a_split(rows: list[Row], seed: int, share: float) -> None:
    problems = made(rows, scale="1,5").problems
    try:
        train, test = split(problems, share, seed)
    except DataError:  # so few items that one side is empty
        return
    sides = [{known(problem).item for problem in side} for side in (train, test)]
    assert not sides[0] & sides[1]
    texts = [
        {frozenset(str(p.prompt).partition("\n\n")[2].replace(" B:", " A:").split("\n\n")) for p in side}
        for side in (train, test)
    ]
    assert not texts[0] & texts[1]  # by the texts themselves, in any order
    check_disjoint(train, test)


def test_a_pair_that_is_trained_on_is_refused_in_the_other_order() -> None:
    rows = [PAIRED | {"response_b": f"R{i}"} for i in range(4)]
    train = trained_on(made(rows[:2]).problems)
    check_disjoint(train, made(rows[2:]).problems)
    back = {"response_a": "R0", "response_b": "Because.", "preference": "B"}
    (shown,) = trained_on(made([PAIRED | back]).problems)
    for test in (made([PAIRED | back]).problems, [shown]):
        with pytest.raises(
            DataError, match=f"{len(test)} of {len(test)} test .* are also training problems"
        ):
            check_disjoint(train, test)


def test_a_response_that_another_rater_rated_is_no_test_problem() -> None:
    train = made([RATED | {"rater": "Kim"}], scale="1,5", raters="named").problems
    test = made([RATED | {"rater": "Toni", "attribute": "wit"}], scale="1,5", raters="named").problems
    with pytest.raises(DataError, match="1 of 1 test problems are also training problems"):
        check_disjoint(train, test)


def test_rows_get_ids_of_what_they_are() -> None:
    def ids(rows: list[Row]) -> list[str]:
        return [row["id"] for _, row in with_ids(enumerate(rows), JUDGE)]

    one, other = RATED | {"rater": "Kim"}, RATED | {"response": "No."}
    assert ids([one, other]) == [*reversed(ids([other, one]))]
    assert ids([one, one, one]) == [ids([one])[0] + end for end in ("", "#2", "#3")]
    assert ids([one | {"id": "mine"}]) == ["mine"]
    (_, fault) = [*with_ids(enumerate([one | {"id": 7}, other | {"id": "7"}]), JUDGE)]
    assert isinstance(fault[1], BadRow) and fault[1].detail == '"7"'


# --- into a run


def test_a_run_trains_on_one_order_and_is_tested_on_both(tmp_path: Path) -> None:
    file = file_of(tmp_path / "pairs.jsonl", (PAIRED | {"response_b": f"R{i}"} for i in range(60)))
    settings = Train(task="judge", eval_share=0.3)
    asked = read_inputs(file, settings)
    assert (asked.settings.scale, asked.settings.reward) == ("A,B", 'choice("A,B")')
    train, _, test = held_out(asked, file)
    assert all(known(problem).presented for problem in train)
    assert len(train) + len(test) // 2 == 60
    by_pair = defaultdict(set)
    for problem in test:
        by_pair[known(problem).pair].add(known(problem).swapped)
    assert all(orders == {False, True} for orders in by_pair.values())
    # with a file of its own, too; and it must not hold what is trained on
    other = file_of(tmp_path / "test.jsonl", (PAIRED | {"response_b": f"T{i}"} for i in range(5)))
    with_file = replace(asked, settings=replace(asked.settings, eval_data=str(other)))
    train, _, test = held_out(with_file, file)
    assert (len(train), len(test)) == (60, 10)
    same = replace(asked, settings=replace(asked.settings, eval_data=str(file)))
    with pytest.raises(DataError, match="120 of 120 test problems are also training problems"):
        held_out(same, file)


def test_words_of_the_users_own_come_before_the_tasks(tmp_path: Path) -> None:
    file = file_of(tmp_path / "rated.jsonl", [RATED])
    settings = Train(task="judge", scale="1,5")
    asked = read_inputs(file, settings)
    assert asked.prompts.instruction == instruction(parse_scale("1,5"))
    assert asked.settings.instruction == asked.prompts.instruction  # nothing is left open
    own = replace(settings, instruction="Say it.", reward="exact", hint="It is {answer}.")
    asked = read_inputs(file, own)
    assert (asked.prompts.instruction, asked.prompts.hint) == ("Say it.", "It is {answer}.")
    assert asked.settings.reward == "exact"


def test_an_unknown_task_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        ConfigError, match=r"no task 'jugde'\. Did you mean judge\? Choose one of judge, summ"
    ):
        read_task("rows.jsonl", "jugde")


def test_a_table_is_what_it_was(tmp_path: Path) -> None:
    file = file_of(tmp_path / "table.jsonl", [{"prompt": "2 + 2?", "answer": 4}])
    found = read_task(file, "table")
    known = {"places": {"table-1": 1}, "report": RowReport(num_rows=1, unit="line")}
    assert found == TaskData(problems=load_problems(file), **known)
    assert frame(found.problems[0]) is None


def test_a_scale_is_known_again_from_a_stored_frame() -> None:
    (problem,) = made([RATED | {"score": "fair"}], scale="bad,fair,good").problems
    assert scale_of(problem) == Scale(("bad", "fair", "good"))


@pytest.mark.parametrize("scale", ["1,5", "A,B,C", "B,A", "A"])
def test_pairs_have_no_scale_but_their_own(scale: str) -> None:
    with pytest.raises(ConfigError, match=r"for pairs it is A,B or A,B,tie|at least two different"):
        problems_of([PAIRED], "judge", Options(scale=scale), "rows")
    made_ = problems_of([PAIRED], "judge", Options(scale="A, B, tie"), "rows")
    assert (made_.scale, made_.reward) == ("A,B,tie", 'choice("A,B,tie")')


@pytest.mark.parametrize(
    "change",
    [{"form": "essay"}, {"scale": 5}, {"scale": [1, 2]}, {"item": None}, {"swapped": 1}, {"more": 1}],
)
def test_a_column_that_only_is_called_frame_is_no_tasks(change: Row) -> None:
    column = Frame(form="rating", scale=("1", "2"), item="a", length=2.0).column()
    assert frame(Problem("a", "x", "2", {"frame": column})) == Frame(
        form="rating", scale=("1", "2"), item="a", length=2.0
    )
    assert frame(Problem("a", "x", "2", {"frame": column | change})) is None
    assert frame(Problem("a", "x", "3", {"frame": column})) is None  # off the scale
    assert frame(Problem("a", "x", "2", {"frame": {"form": "rating"}})) is None
