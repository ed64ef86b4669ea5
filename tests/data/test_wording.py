"""What a user puts around a task's items: templates, rubrics, and scores between points of a scale."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from femtune.config import Ask
from femtune.data.answers import parse_scale
from femtune.data.problems import load_problems, save_problems
from femtune.data.tasks.labels import SOFT, label_of
from femtune.data.tasks.wording import check_rubric, parse_template, text_or_file
from femtune.errors import ConfigError, DataError
from femtune.resolve import read_inputs
from femtune.types import Problem

RATED = {"prompt": "Why?", "response": "So.", "score": 3}
PAIR = {"prompt": "Why?", "response_a": "So.", "response_b": "No.", "preference": "A"}
MESSAGES: list[dict[str, str]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "Answer: 2"},
    {"role": "user", "content": "2+2?"},
]


def asked(tmp_path: Path, rows: list[dict[str, Any]], **settings: Any) -> Any:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_inputs(str(file), Ask(demos="none", **settings))


# --- messages


@pytest.mark.parametrize("task", ["math", "table"])
def test_a_prompt_of_messages_stays_messages(tmp_path: Path, task: Any) -> None:
    found = asked(tmp_path, [{"prompt": MESSAGES, "answer": "4"}], task=task)
    [problem] = found.problems
    assert problem.prompt == MESSAGES
    plain = found.prompts.plain(problem)
    assert plain[:-1] == MESSAGES[:-1]
    assert plain[-1]["content"].startswith("2+2?\n\nThink step by step")


def test_choices_are_added_to_the_last_message(tmp_path: Path) -> None:
    row = {"question": MESSAGES, "choices": ["3", "4"], "answer": "B"}
    [problem] = asked(tmp_path, [row], task="choice").problems
    assert problem.prompt == [*MESSAGES[:-1], {"role": "user", "content": "2+2?\n\nA. 3\nB. 4"}]


def test_a_judge_reads_a_conversation_as_text(tmp_path: Path) -> None:
    [problem] = asked(tmp_path, [RATED | {"prompt": MESSAGES}], task="judge", scale="1,5").problems
    assert "User: 1+1?\n\nAssistant: Answer: 2\n\nUser: 2+2?" in problem.prompt


def test_text_beside_messages_becomes_a_message(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": MESSAGES, "answer": "4"},
        {"prompt": "3+3?", "answer": "6"},
    ]
    problems = asked(tmp_path, rows, task="math").problems
    assert problems[1].prompt == [{"role": "user", "content": "3+3?"}]
    save_problems(problems, tmp_path / "p.parquet")
    assert load_problems(tmp_path / "p.parquet") == problems


def test_messages_that_end_with_another_role_are_a_bad_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='last message of `prompt` is not of role "user"'):
        asked(tmp_path, [{"prompt": MESSAGES[:3], "answer": "4"}], task="math")


# --- templates


def test_every_task_takes_a_template(tmp_path: Path) -> None:
    def first(row: dict[str, Any], template: str, **settings: Any) -> Any:
        return asked(tmp_path, [row], prompt_template=template, **settings).problems[0].prompt

    table = {"prompt": "1+1?", "answer": 2, "grade": 3.0}
    assert first(table, "Grade {grade}: {prompt} {{x}}") == "Grade 3: 1+1? {x}"
    assert first(table, "Grade {grade}: {prompt}", task="math") == "Grade 3: 1+1?"
    kept = {"prompt": MESSAGES, "answer": 4}
    assert first(kept, "Now: {prompt}")[-1] == {"role": "user", "content": "Now: 2+2?"}
    assert first(kept, "Now: {prompt}")[:-1] == MESSAGES[:-1]
    row = {"question": "Q?", "choices": ["x", "y"], "answer": "A"}
    assert first(row, "{choices}\n{question}", task="choice") == "A. x\nB. y\nQ?"
    rated = first(RATED, "{response} to {prompt}, {scale}", task="judge", scale="1,5")
    assert rated == "So. to Why?, a whole number from 1 to 5"


def test_a_template_of_pairs_shows_both_orders(tmp_path: Path) -> None:
    template = "A: {response_a} B: {response_b}"
    found = asked(tmp_path, [PAIR], task="judge", prompt_template=template)
    assert {(p.prompt, p.answer) for p in found.problems} == {
        ("A: So. B: No.", "A"),
        ("A: No. B: So.", "B"),
    }


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{prompt} {respons}", "no such column. Did you mean response?"),
        ("{prompt} {score}", "the correct answer"),
        ("{prompt} {stars}", "the correct answer"),
        ("{prompt", "For a literal brace, double it"),
        ("{0} {prompt}", "not a column name"),
        ("{prompt[0]}", "not a column name"),
        ("{prompt!r}", "not a column name"),
        ("Rate it.", "shows no column"),
        ("  ", "is empty"),
        ("missing.txt", "there is no file"),
    ],
)
def test_templates_that_can_not_be_filled_are_refused(tmp_path: Path, template: str, said: str) -> None:
    row = {"prompt": "Why?", "response": "So.", "stars": 3}
    with pytest.raises(ConfigError, match=said):
        asked(
            tmp_path,
            [row],
            task="judge",
            scale="1,5",
            columns=("score=stars",),
            prompt_template=template,
        )


def test_a_row_without_what_the_template_shows_is_named(tmp_path: Path) -> None:
    rows = [{"prompt": "a?", "answer": 1, "grade": 1}, {"prompt": "b?", "answer": 1, "id": "two"}]
    with pytest.raises(DataError, match='"two": `grade` is empty'):
        asked(tmp_path, rows, prompt_template="{grade} {prompt}")
    rated = [RATED | {"attribute": "style"}, RATED | {"response": "No."}]
    settings = {"task": "judge", "scale": "1,5", "prompt_template": "{attribute} {response}"}
    with pytest.raises(DataError, match="`attribute` is empty"):
        asked(tmp_path, rated, **settings)
    found = asked(tmp_path, rated, bad_rows="skip", **settings)
    assert (len(found.problems), found.report.num_skipped) == (1, 1)


@given(st.text(max_size=30), st.text(max_size=30))
def test_a_template_gives_back_text_and_braces(before: str, value: str) -> None:
    template = parse_template(before.replace("{", "{{").replace("}", "}}") + "{prompt}")
    if value.strip():
        assert template.fill({"prompt": value}) == before + value.strip()


def test_texts_come_from_files_too(tmp_path: Path) -> None:
    file = tmp_path / "system.txt"
    file.write_text("Be fair.\n")
    found = asked(tmp_path, [{"prompt": "1+1?", "answer": 2}], system_prompt=str(file))
    assert found.settings.system_prompt == "Be fair."  # stored as text: a run needs no file of it
    assert found.prompts.plain(found.problems[0])[0] == {"role": "system", "content": "Be fair."}
    file.write_text(" \n")
    with pytest.raises(ConfigError, match=r"system\.txt is empty"):
        text_or_file("system_prompt", str(file))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="can't be read"):
        text_or_file("system_prompt", str(file))
    assert text_or_file("rubric", "x" * 5000) == "x" * 5000
    assert text_or_file("system_prompt", "/no_think") == "/no_think"
    for path in ("./rules", "/etc/no/rules", "rules.md"):
        with pytest.raises(ConfigError, match="there is no file"):
            text_or_file("system_prompt", path)


# --- rubrics


def test_a_rubric_stands_before_the_item(tmp_path: Path) -> None:
    rubric = "How alike are they?\nScore 0: not at all\nScore 5: the same"
    rows = [RATED, RATED | {"response": "No."}]
    found = asked(tmp_path, rows, task="judge", scale="0,5", rubric=rubric)
    head = f"Rate the response from 0 to 5.\n\nRubric:\n{rubric}\n\nPrompt:\nWhy?\n\nResponse:\n"
    assert [problem.prompt for problem in found.problems] == [f"{head}So.", f"{head}No."]
    placed = asked(
        tmp_path, rows, task="judge", scale="0,5", rubric=rubric, prompt_template="{rubric} {response}"
    )
    assert placed.problems[0].prompt == f"{rubric} So."
    ahead = asked(tmp_path, rows, task="judge", scale="0,5", rubric=rubric, prompt_template="{response}")
    assert ahead.problems[0].prompt == f"Rubric:\n{rubric}\n\nSo."


@pytest.mark.parametrize(
    ("rubric", "scale"),
    [
        ("Score 7: perfect", "1,5"),
        ("Give a rating of 0 where it is empty.", "1,5"),
        ("0: bad\n5: good", "1,5"),
        ("0 = bad\n1 = good", "1,5"),
        ("Score 2.5: fair", "1,5"),
        ("Score great: all is well", "bad,fair,good"),
    ],
)
def test_a_rubric_off_the_scale_is_refused(rubric: str, scale: str) -> None:
    with pytest.raises(ConfigError, match="set --scale"):
        check_rubric(rubric, parse_scale(scale))


@pytest.mark.parametrize(
    ("rubric", "scale"),
    [
        ("Score 1: bad\nScore 5: good", "1,5"),
        ("1. Accuracy\n2. Style\n7. Length", "1,5"),
        ("A score of 100% needs no change.", "1,5"),
        ("At 10: see above.", "1,5"),
        ("Score 2.5: fair", "1,5,0.5"),
        ("Score good: all is well", "bad,fair,good"),
        ("Two sentences score high if they say the same.", "1,5"),
    ],
)
def test_a_rubric_on_the_scale_is_taken(rubric: str, scale: str) -> None:
    check_rubric(rubric, parse_scale(scale))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rubric": "Be fair."}, "only for the tasks judge and summarize"),
        ({"round_scores": True}, "is only for ratings"),
        ({"soft_labels": True, "task": "math"}, "is only for ratings"),
    ],
)
def test_settings_of_ratings_are_refused_elsewhere(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        asked(tmp_path, [{"prompt": "1+1?", "answer": 2}], **settings)


# --- scores between points


def test_scores_between_points_are_rounded_and_counted(tmp_path: Path) -> None:
    rows = [RATED | {"response": f"{score}.", "score": score} for score in (3.2, 3, "3.25", 4.6, 2.5)]
    found = asked(tmp_path, rows, task="judge", scale="0,5", round_scores=True)
    assert [problem.answer for problem in found.problems] == ["3", "3", "3", "5", "2"]
    assert found.rounded == 4
    with pytest.raises(DataError, match="--round-scores or --soft-labels accepts such scores"):
        asked(tmp_path, rows, task="judge", scale="0,5")
    for score in (5.2, -0.1, 7):  # beyond the scale nothing is rounded
        with pytest.raises(DataError, match="off the scale, 0 to 5: line"):
            asked(tmp_path, [RATED | {"score": score}], task="judge", scale="0,5", round_scores=True)


def test_the_mean_of_raters_is_of_their_scores_as_they_are(tmp_path: Path) -> None:
    rows = [RATED | {"rater": str(n), "score": score} for n, score in enumerate((2.4, 2.4, 3))]
    settings = {"task": "judge", "scale": "1,5", "raters": "mean"}
    [rounded] = asked(tmp_path, rows, round_scores=True, **settings).problems
    assert rounded.answer == "3"  # 2.6, and not 2.33 of the rounded ones
    [soft] = asked(tmp_path, rows, soft_labels=True, **settings).problems
    assert soft.columns[SOFT] == pytest.approx({"2": 0.4, "3": 0.6})


def test_only_one_of_rounded_and_soft_and_only_of_numbers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="choose one"):
        asked(tmp_path, [RATED], task="judge", scale="1,5", soft_labels=True, round_scores=True)
    with pytest.raises(ConfigError, match="scale of numbers"):
        rows = [RATED | {"score": "good"}]
        asked(tmp_path, rows, task="judge", scale="bad,good", soft_labels=True)
    with pytest.raises(ConfigError, match="not for pairs"):
        asked(tmp_path, [PAIR], task="judge", soft_labels=True)


def test_a_soft_label_is_drawn_for_each_iteration_by_its_share(tmp_path: Path) -> None:
    rows = [RATED | {"response": f"{n}.", "score": 3.2} for n in range(200)]
    problems = asked(tmp_path, rows, task="judge", scale="1,5", soft_labels=True).problems
    assert {problem.answer for problem in problems} == {"3"}
    save_problems(problems, tmp_path / "p.parquet")
    stored = load_problems(tmp_path / "p.parquet")
    assert stored == problems
    drawn = Counter(label_of(p, k, seed=0).answer for p in stored for k in range(1, 21))
    assert drawn["3"] + drawn["4"] == 4000
    assert abs(drawn["4"] - 800) < 4 * (4000 * 0.8 * 0.2) ** 0.5
    # each iteration and each problem draws for itself, and the same when asked again
    mixed = [label_of(p, 1, seed=0).answer for p in problems]
    assert mixed == [label_of(p, 1, seed=0).answer for p in problems]
    assert mixed != [label_of(p, 2, seed=0).answer for p in problems]
    assert mixed != [label_of(p, 1, seed=1).answer for p in problems]


def test_a_certain_label_stays() -> None:
    problem = Problem("p", "x", "3")
    assert label_of(problem, 1, 0) is problem
    one = Problem("p", "x", "3", {SOFT: {"3": 1.0}})
    assert label_of(one, 5, 0).answer == "3"
