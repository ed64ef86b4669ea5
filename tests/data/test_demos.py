"""Worked examples: shipped ones, a file's, how they stand in a prompt, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.models import byte_tokenizer
from tests.templates import FAMILY

from femtune.data.answers import parse_scale
from femtune.data.chat_tokenizer import ChatTokenizer, fit_prompts, is_shown
from femtune.data.demos import demos_digest, load_demos, without_problems
from femtune.data.problems import check_lengths
from femtune.data.prompts import INSTRUCTION, Prompts
from femtune.data.tasks.load import Options, TaskData, problems_of
from femtune.errors import DataError, ModelError
from femtune.rewards.builtin import as_reward
from femtune.types import Completion, Demo, Parsed, Problem

THREE = Problem("p", "What is 1 + 2?", "3")
DEMOS = (Demo("1+1?", "2", "One and one.\nAnswer: 2"), Demo("2+2?", "4", "Two and two.\nAnswer: 4"))
THINKING = (Demo("1+1?", "2", "<think>\none and one\n</think>\n\nSo two.\nAnswer: 2"),)
Row = dict[str, Any]

DATA: dict[str, tuple[str, Row, str | None]] = {
    "math": ("math", {"prompt": "1+2?", "answer": "3"}, None),
    "choice": ("choice", {"question": "q", "choices": ["x", "y"], "answer": "B"}, None),
    "ratings": ("judge", {"prompt": "p", "response": "r", "score": 1}, "1,5"),
    "half points": ("judge", {"prompt": "p", "response": "r", "score": 1}, "1,2,0.5"),
    "labels": ("judge", {"prompt": "p", "response": "r", "score": "bad"}, "bad,fair,good"),
    "two labels": ("judge", {"prompt": "p", "response": "r", "score": "bad"}, "bad,good"),
    "pairs": (
        "judge",
        {"prompt": "p", "response_a": "a", "response_b": "b", "preference": "A"},
        None,
    ),
    "pairs with ties": (
        "judge",
        {"prompt": "p", "response_a": "a", "response_b": "b", "preference": "tie"},
        None,
    ),
    "summary ratings": ("summarize", {"post": "p", "summary": "r", "score": 7}, "1,7"),
    "summary pairs": (
        "summarize",
        {"post": "p", "summary_a": "a", "summary_b": "b", "preference": "A"},
        None,
    ),
}


def loaded(task: str, row: Row, scale: str | None, source: str = "auto", **more: Any) -> Any:
    options = Options(scale=scale, **more)
    data = problems_of([row], task, options, "rows")
    options = replace(options, scale=data.scale)
    reward = as_reward(data.reward)
    return data, load_demos(source, task, options, data.prompts, reward, data.problems)


# --- the shipped ones


@pytest.mark.parametrize("name", DATA)
def test_shipped_examples_are_right_and_look_like_the_items(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    task, row, scale = DATA[name]
    data, demos = loaded(task, row, scale)
    assert 2 <= len(demos) <= 5 and not caplog.records  # none was left out by a fault
    problems = [Problem("", demo.prompt, demo.answer) for demo in demos]
    parsed = [data.prompts.parse(demo.completion) for demo in demos]
    written = [Completion((), demo.completion, "stop", 0.0) for demo in demos]
    assert as_reward(data.reward)(problems, written, parsed) == [1.0] * len(demos)
    assert [read.answer for read in parsed] == [demo.answer for demo in demos]
    assert not any("{" in demo.completion for demo in demos)
    if task in ("judge", "summarize"):  # the first line is the same question
        assert {str(d.prompt).splitlines()[0] for d in demos} == {
            str(data.problems[0].prompt).splitlines()[0]
        }


def test_ratings_are_shown_from_the_lowest_to_the_highest_of_any_scale() -> None:
    for spec in ("1,5", "0,100", "1,2,0.5", "bad,fair,good"):
        answers = parse_scale(spec).answers
        _, demos = loaded("judge", {"prompt": "p", "response": "r", "score": answers[0]}, spec)
        shown = {demo.answer for demo in demos}
        assert {answers[0], answers[(len(answers) - 1) // 2], answers[-1]} <= shown
        assert len(shown) == len(demos)  # none is shown twice, so none is the likelier one


def test_choices_have_the_labels_of_the_data_and_the_right_one_stays() -> None:
    row = {"question": "q", "choices": ["x", "y", "z"], "labels": ["1", "2", "3"], "answer": "2"}
    _, demos = loaded("choice", row, None)
    assert len({demo.answer for demo in demos}) == 3
    for demo in demos:
        choices = str(demo.prompt).partition("\n\n")[2].splitlines()
        lines = dict(line.split(". ", 1) for line in choices)
        assert [*lines] == ["1", "2", "3"]
        right = ("a duck", "to measure temperature", "It evaporates.", "gravity")
        assert lines[demo.answer] in right


def test_ties_are_shown_only_where_the_data_have_them() -> None:
    assert "tie" not in {demo.answer for demo in loaded(*DATA["pairs"])[1]}
    assert {demo.answer for demo in loaded(*DATA["pairs with ties"])[1]} == {"A", "B", "tie"}


@pytest.mark.parametrize("name", ["pairs", "pairs with ties", "summary pairs"])
def test_neither_side_of_a_pair_is_better_more_often(name: str) -> None:
    shown = [demo.answer for demo in loaded(*DATA[name])[1]]
    assert shown.count("A") == shown.count("B") > 0


@pytest.mark.parametrize("task", ["judge", "summarize"])
def test_shipped_rationales_of_ratings_say_the_answer_that_they_lead_to(task: str) -> None:
    name = "ratings" if task == "judge" else "summary ratings"
    data, demos = loaded(*DATA[name])
    for demo in demos:
        rationale = data.prompts.parse(demo.completion).rationale
        assert data.prompts.parse(f"{rationale}\n").answer == demo.answer  # without its last line too
        assert len(rationale.split()) <= 25


def test_a_shipped_example_that_is_in_the_data_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    _, usual = loaded(*DATA["math"])
    row = {"prompt": f"  {usual[0].prompt}", "answer": "5"}
    _, demos = loaded("math", row, None)
    assert demos == usual[1:]
    assert "left out a shipped worked example that is in the data" in caplog.text


def test_rubric_and_template_are_those_of_the_items() -> None:
    task, row, scale = DATA["ratings"]
    _, demos = loaded(task, row, scale, rubric="Be strict.")
    assert all("Rubric:\nBe strict.\n\nPrompt:" in str(demo.prompt) for demo in demos)
    _, demos = loaded(task, row, scale, prompt_template="{prompt} | {response}")
    assert demos[1].prompt == "How can I keep bread fresh for longer? | My brother likes trains."


def test_a_template_with_columns_of_the_data_leaves_no_shipped_example(
    caplog: pytest.LogCaptureFixture,
) -> None:
    row = {"prompt": "1+2?", "answer": "3", "grade": 2}
    _, demos = loaded("math", row, None, prompt_template="Grade {grade}: {prompt}")
    assert demos == () and "give --demos FILE" in caplog.text


def test_none_and_a_plain_table_have_no_examples() -> None:
    task, row, scale = DATA["math"]
    assert loaded(task, row, scale, "none")[1] == ()
    assert load_demos("auto", "table", Options(), Prompts(), as_reward("exact")) == ()


# --- a file's


def from_file(tmp_path: Path, *rows: Any, task: str = "math", scale: str | None = None) -> Any:
    file = tmp_path / "demos.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = TaskData(problems=[THREE], reward="exact" if scale is None else f'ordinal("{scale}")')
    reward = as_reward(data.reward)
    return load_demos(str(file), task, Options(scale=scale), data.prompts, reward, data.problems)


def test_a_file_gives_completions_or_rationales(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Is 2 + 2 four?"}]
    given = (
        {"prompt": "1+1?", "answer": 2, "rationale": "One and one."},
        {"prompt": messages, "answer": "yes", "completion": "It is.\nAnswer: yes\n"},
    )
    assert from_file(tmp_path, *given) == (
        Demo("1+1?", "2", "One and one.\nAnswer: 2"),
        Demo(messages, "yes", "It is.\nAnswer: yes"),
    )


def test_a_file_may_have_the_columns_of_the_task(tmp_path: Path) -> None:
    row = {"prompt": "Why?", "response": "So.", "score": 2, "rationale": "It is short."}
    [demo] = from_file(tmp_path, row, task="judge", scale="1,5")
    assert demo.answer == "2" and demo.completion == "It is short.\nAnswer: 2"
    assert demo.prompt == "Rate the response from 1 to 5.\n\nPrompt:\nWhy?\n\nResponse:\nSo."


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "1+1?", "answer": "2", "completion": "It is.\nAnswer: 3"}, "'3' was read"),
        ({"prompt": "1+1?", "answer": "2", "completion": "It is 2."}, "no answer can be read"),
        ({"prompt": "1+1?", "answer": "2"}, "`completion` and `rationale` are both missing"),
        ({"prompt": "1+1?", "rationale": "One."}, "`prompt` or `answer` is empty"),
        ({"prompt": "What is  1 + 2?", "answer": "3", "rationale": "So."}, "also in the data"),
        ([1], "not an object with columns"),
    ],
)
def test_examples_that_can_not_be_used_are_named(tmp_path: Path, row: Any, said: str) -> None:
    good = {"prompt": "5+1?", "answer": "6", "rationale": "Five and one."}
    with pytest.raises(DataError, match=r"demos\.jsonl, line 2") as error:
        from_file(tmp_path, good, row)
    assert said in str(error.value)


def test_files_that_are_empty_or_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is empty"):
        from_file(tmp_path)
    with pytest.raises(DataError, match="no file"):
        load_demos(str(tmp_path / "x.jsonl"), "math", Options(), Prompts(), as_reward("exact"))


# --- in a prompt


def test_examples_are_turns_between_the_system_message_and_the_problem() -> None:
    prompts = Prompts(instruction="Think.", hint="It is {answer}.", system_prompt="Be brief.")
    with_demos = prompts.with_demos(DEMOS)
    assert [(m["role"], m["content"]) for m in with_demos.hinted(THREE)] == [
        ("system", "Be brief."),
        ("user", "1+1?\n\nThink.\nIt is 2."),
        ("assistant", "One and one.\nAnswer: 2"),
        ("user", "2+2?\n\nThink.\nIt is 4."),
        ("assistant", "Two and two.\nAnswer: 4"),
        ("user", "What is 1 + 2?\n\nThink.\nIt is 3."),
    ]
    plain = with_demos.plain(THREE)
    assert plain[1]["content"] == "1+1?\n\nThink."
    assert [plain[0], plain[-1]] == prompts.plain(THREE)  # without them it is what is trained under


def test_a_problems_own_system_message_comes_first() -> None:
    own = [{"role": "system", "content": "own"}, {"role": "user", "content": "x"}]
    asked = Prompts(instruction="", system_prompt="all", demos=DEMOS).plain(Problem("p", own, "3"))
    assert [m["role"] for m in asked] == ["system", *["user", "assistant"] * 2, "user"]
    assert asked[0]["content"] == "all\n\nown"


def test_the_default_prompt_is_as_ever() -> None:
    assert Prompts().plain(THREE) == [{"role": "user", "content": f"What is 1 + 2?\n\n{INSTRUCTION}"}]


def test_a_digest_depends_on_every_part_and_the_order() -> None:
    assert demos_digest(()) == ""
    seen = {
        demos_digest(demos)
        for demos in (
            DEMOS,
            DEMOS[::-1],
            DEMOS[:1],
            (replace(DEMOS[0], completion="x"), DEMOS[1]),
            (replace(DEMOS[0], prompt=[{"role": "user", "content": "1+1?"}]), DEMOS[1]),
        )
    }
    assert len(seen) == 5 and all(seen)


@pytest.mark.parametrize("name", ["llama3", "qwen2.5", "mistral"])
def test_templates_that_show_turns_keep_them(name: str) -> None:
    chat = ChatTokenizer(FAMILY[name].tokenizer())
    prompts = Prompts(demos=THINKING, system_prompt="Be brief.")
    assert fit_prompts(prompts, chat) == prompts


@pytest.mark.parametrize("name", ["qwen3", "qwen3-2507"])
def test_where_a_template_drops_thinking_examples_are_text(name: str) -> None:
    chat = ChatTokenizer(FAMILY[name].tokenizer())
    prompts = Prompts(demos=THINKING)
    assert "one and one" not in chat.prompt_text(prompts.plain(THREE))
    fitted = fit_prompts(prompts, chat)
    assert fitted.demos_as == "text" and is_shown(fitted, chat)
    [turn] = fitted.plain(THREE)
    assert turn["content"].startswith("Example 1:\n1+1?")
    assert turn["content"].endswith(f"Your turn:\n\nWhat is 1 + 2?\n\n{INSTRUCTION}")
    assert "one and one" in chat.prompt_text([turn])
    # without thinking nothing is dropped
    assert fit_prompts(Prompts(demos=DEMOS), chat).demos_as == "turns"


def test_where_a_template_refuses_system_messages_they_are_text() -> None:
    chat = ChatTokenizer(FAMILY["gemma"].tokenizer())
    fitted = fit_prompts(Prompts(demos=DEMOS, system_prompt="Be brief."), chat)
    first = fitted.plain(THREE)[0]
    assert (fitted.system_as, fitted.demos_as, first["role"]) == ("text", "turns", "user")
    assert first["content"].startswith("Be brief.\n\n1+1?")


def test_a_template_that_shows_examples_in_no_form_is_refused() -> None:
    tokenizer = FAMILY["mistral"].tokenizer()
    tokenizer.chat_template = "{{ messages[-1].content[-30:] }}"
    with pytest.raises(ModelError, match="does not show worked examples in full"):
        fit_prompts(Prompts(demos=DEMOS), ChatTokenizer(tokenizer))


def test_a_base_model_reads_examples_as_blocks_of_text() -> None:
    chat = ChatTokenizer(byte_tokenizer(template=False))
    prompts = Prompts(instruction="Think.", system_prompt="Be brief.", demos=DEMOS[:1])
    assert chat.prompt_text(prompts.plain(THREE)) == (
        "Be brief.\n\n1+1?\n\nThink.\nOne and one.\nAnswer: 2\n\nWhat is 1 + 2?\n\nThink.\n"
    )


def test_examples_that_fill_the_context_are_counted() -> None:
    chat = ChatTokenizer(byte_tokenizer())
    prompts = Prompts(instruction="", hint="{answer}")
    room = check_lengths([THREE], prompts.with_demos(DEMOS[:1]), chat, 10_000, 50) + 50
    with pytest.raises(DataError, match=r"leave out worked examples \(1 of 2 fit\)"):
        check_lengths([THREE], prompts.with_demos(DEMOS), chat, room, 50)
    with pytest.raises(DataError, match=r"leave out worked examples \(0 of 2 fit\)"):
        check_lengths([THREE], prompts.with_demos(DEMOS), chat, room - 1, 50)


def test_demo_completions_parse_with_their_rationale() -> None:
    assert Prompts().parse(DEMOS[0].completion) == Parsed("One and one.", "2")


def test_items_to_predict_may_be_worked_examples() -> None:
    _, usual = loaded(*DATA["math"])
    [item] = problems_of([{"prompt": usual[0].prompt, "answer": "5"}], "math", Options(), "r").problems
    reward = as_reward("math")
    kept = load_demos("auto", "math", Options(), Prompts(), reward, [item], in_data="allow")
    assert kept == usual


def test_an_example_of_the_held_out_problems_is_left_out_or_refused() -> None:
    seen, free = Demo("1 + 1?", "2", "So.\nAnswer: 2"), Demo("2 + 2?", "4", "So.\nAnswer: 4")
    held_out = [Problem("p", "1  +\n1?", "2")]
    assert without_problems((seen, free), held_out, given=False) == (free,)
    assert without_problems((free,), held_out, given=True) == (free,)
    with pytest.raises(DataError, match="1 worked examples are also in the data"):
        without_problems((seen, free), held_out, given=True)
