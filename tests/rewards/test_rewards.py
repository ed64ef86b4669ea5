"""Rewards: the built-in ones, users' functions in every form, and scores with their reasons."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from femtune.data.prompts import Prompts
from femtune.errors import ConfigError, RewardError
from femtune.rewards.builtin import (
    REWARDS,
    AnswerReward,
    as_reward,
    choice,
    exact,
    load_reward,
    number,
    ordinal,
    score,
)
from femtune.types import Completion, Parsed, Problem, Score

SPECS = {
    **{"exact": "4", "number": "4", "ordinal(1, 5)": "4", "choice": "B", "math": "4"},
    'regex("{answer}")': "4",
}
CHAT = [{"role": "user", "content": "2 + 2?"}]
PROBLEMS = [
    Problem("p1", "2 + 2?", "4", {"level": "easy"}),
    Problem("p2", "2 + 3?", "5", {"level": "hard", "source": "x"}),
]


def completion(text: str = "Two and two.\nAnswer: 4", finish_reason: Any = "stop") -> Completion:
    return Completion((1, 2, 3), text, finish_reason, -1.0)


def scored(
    function: Any,
    texts: Sequence[str] = ("Two and two.\nAnswer: 4", "Two and three.\nAnswer: 4"),
    problems: Sequence[Problem] = PROBLEMS,
    **options: Any,
) -> list[Score]:
    hinted = options.pop("hinted", [False] * len(texts))
    written = [completion(text) for text in texts]
    reward = as_reward(function)
    return score(problems, written, hinted, prompts=Prompts(), reward=reward, **options)


# --- built in


def test_every_built_in_is_checked_here() -> None:
    assert {spec.partition("(")[0] for spec in SPECS} == set(REWARDS)


@pytest.mark.parametrize(("spec", "gold"), SPECS.items())
def test_gold_earns_one_and_nothing_earns_zero(spec: str, gold: str) -> None:
    reward = as_reward(spec)
    problems = [Problem("p", "x", gold)] * 2
    parsed = [Parsed("z", gold), Parsed("z", "")]
    assert list(reward(problems, [completion()] * 2, parsed)) == [1.0, 0.0]


@pytest.mark.parametrize("spec", SPECS)
@settings(deadline=None)  # math-verify takes a second to import
@given(answer=st.text(max_size=20), gold=st.text(max_size=20))
def test_any_texts_have_a_reward(spec: str, answer: str, gold: str) -> None:
    reward = as_reward(spec)
    assert isinstance(reward, AnswerReward)
    assert 0 <= reward.grade(answer, gold) <= 1
    assert reward.grade("", gold) == 0


numeric = st.text("0123456789.,/-+−eE%$ ²½٤４()*`", max_size=12)


@pytest.mark.parametrize("spec", SPECS)
@settings(deadline=None)  # math-verify takes a second to import
@given(answer=numeric, gold=numeric)
def test_any_numerals_have_a_reward(spec: str, answer: str, gold: str) -> None:
    reward = as_reward(spec)
    assert isinstance(reward, AnswerReward)
    assert 0 <= reward.grade(answer, gold) <= 1


@given(st.text("abcABC 012", max_size=6), st.text("abcABC 012", max_size=6))
def test_exact_accepts_the_same_words_only(answer: str, gold: str) -> None:
    same = answer.lower().split() == gold.lower().split() != []
    assert exact().grade(answer, gold) == same


@given(st.integers(), st.integers())
def test_exact_and_number_never_take_a_whole_number_for_another(one: int, other: int) -> None:
    for reward in (exact(), number()):
        assert reward.grade(str(one), str(other)) == (one == other)
    assert number().grade(f"{one:,}", str(one)) == 1


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [
        ("PARIS", "paris", True),
        ("  New   York\n", "New York", True),
        ("**Paris.**", "Paris", True),
        (r"$\boxed{x^{2}}$", "x^{2}", True),
        (r"\(x\)", "x", True),
        ("`__init__`", "__init__", True),
        ("\N{LATIN SMALL LETTER E}\N{COMBINING ACUTE ACCENT}", "é", True),
        ("４２", "42", True),
        ("４２", "٤٢", True),
        ("straße", "STRASSE", True),
        ("A*", "A", False),
        ("$5", "5", False),
        ("10²", "102", False),
        ("1½", "11/2", False),
        ("H₂O", "H2O", False),
        ("init", "__init__", False),
        (r"\boxed{1} or \boxed{2}", "1} or \\boxed{2", False),
        ("-4", "4", False),
        ("4.0", "4", False),
    ],
)
def test_exact(answer: str, gold: str, same: bool) -> None:
    assert exact().grade(answer, gold) == exact().grade(gold, answer) == same


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [
        ("4.0", "4", True),
        ("1,234,567.50", "1234567.5", True),
        ("1\N{NARROW NO-BREAK SPACE}234", "1234", True),
        ("−3", "-3", True),
        ("- 3", "-3", True),
        ("$1,000", "1000", True),
        ("-$5", "-5", True),
        ("50%", "50", True),
        ("50 %", "50%", True),
        ("1e3", "1000", True),
        (".5", "1/2", True),
        ("-3/4", "-0.75", True),
        ("٣٫٥", "3.5", False),  # the Arabic decimal separator is not read
        ("٤٢", "42", True),
        ("４２", "42", True),
        ("**4.**", "4", True),
        ("0.30000000000000004", "0.3", True),
        ("0.333", "1/3", False),
        ("50%", "0.5", False),
        ("12,34", "1234", False),
        ("1234567890123", "1234567890124", False),
        ("10²", "102", False),
        ("1/0", "1/0", False),
        ("nan", "nan", False),
        ("inf", "inf", False),
        ("1e999999999", "1", False),
        ("four", "4", True),
        ("4 apples", "4", True),
        ("4 apples", "4 pears", False),
        ("3 1/2", "3.5", True),
        ("3,5", "3.5", False),
        ("4 or 5", "4", False),
        ("4 5", "45", False),
        ("9" * 5000, "9" * 5000, False),
        ("", "", False),
    ],
)
def test_number(answer: str, gold: str, same: bool) -> None:
    assert number().grade(answer, gold) == number().grade(gold, answer) == same


def test_number_tolerances() -> None:
    assert number(tol=2).grade("102", "100") == 1
    assert number(tol=2).grade("103", "100") == 0
    assert number(rel=0.01).grade("100.5", "100") == 1  # .5 <= .01 * 100
    assert number(rel=0.01).grade("101.5", "100") == 0
    assert number(rel=0.01).grade("101", "100") == 0  # whole numbers are not rounded
    assert number(rel=0).grade("0.30000000000000004", "0.3") == 0


def test_ordinal() -> None:
    grade = ordinal(scale=(1, 7)).grade
    assert grade("5", "4") == 1 - 1 / 6
    assert grade("1", "7") == 0
    assert grade("4.5", "4.5") == 1
    for answer in ("0", "8", "", "good", "1e400"):
        assert grade(answer, "1") == 0
    assert grade("8", "8") == 0


def test_choice() -> None:
    for answer in ("B", "b", "(B)", "B)", "B. Paris", "B: Paris", "**B**", "`B`."):
        assert choice().grade(answer, "B") == 1, answer
    assert choice().grade("the answer is B", "B") == 1
    for answer in ("A", "", "Bob", "B Paris", "BC", "B.C.", "the answer is B or C"):
        assert choice().grade(answer, "B") == 0, answer
    assert choice().grade("b", "B. Paris") == 1


# --- specs


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("exact", "exact"),
        (" exact() ", "exact"),
        ("ordinal(1,5)", "ordinal(1, 5)"),
        ("ordinal(scale=(1, 5))", "ordinal(1, 5)"),
        ("ordinal((-1, 5))", "ordinal(-1, 5)"),
        ("number(tol=1e-6)", "number(tol=1e-06, rel=1e-09)"),
    ],
)
def test_specs(spec: str, name: str) -> None:
    reward = as_reward(spec)
    assert isinstance(reward, AnswerReward)
    assert reward.name == name
    assert as_reward(reward) is reward


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("exakt", "no reward 'exakt'. Did you mean exact? Choose one of exact, number"),
        ("ordinal", "missing 1 required positional argument: 'scale'"),
        ("ordinal", "The form is ordinal(scale)."),
        ("ordinal(5, 1)", "scale is (5, 1); give (lowest, highest)"),
        ("ordinal('a', 1)", "give (lowest, highest)"),
        ("ordinal(1, 5, 7)", "takes 1 positional argument"),
        ("number(tool=1)", "unexpected keyword argument 'tool'"),
        ("number(tol=-1)", "both tolerances must be finite and >= 0"),
        ("number(tol=nothing)", "is not understood"),
        ("number(tol=__import__('os').getpid())", "is not understood"),
        ("number(**{})", "The form is number(tol=0.0, rel=1e-09)."),
        ("exact number", "is not understood"),
        ("", "is not understood"),
        ("a.b", "is not understood"),
    ],
)
def test_wrong_specs(spec: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        as_reward(spec)


FILE = """
from dataclasses import dataclass

threshold = 3

@dataclass
class Settings:
    at: int = threshold

def is_four(predicted):
    return predicted == "4"
"""


def test_functions_are_loaded_from_files_and_modules(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    assert [s.reward for s in scored(f"{file}:is_four")] == [1.0, 1.0]
    (tmp_path / "made.py").write_text("from femtune.rewards.builtin import exact\nmine = exact()")
    assert isinstance(load_reward(f"{tmp_path}/made.py:mine"), AnswerReward)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("{dir}/mime.py:is_four", "no file {dir}/mime.py. Did you mean mine.py?"),
        ("{dir}/mine.py:is_for", "has no 'is_for'. Did you mean is_four?"),
        ("{dir}/mine.py:xyz", "It has dataclass, Settings, is_four"),
        ("{dir}/mine.py:threshold", "threshold is of type int, not a function"),
        ("{dir}/broken.py:f", "importing {dir}/broken.py failed with ZeroDivisionError"),
        ("{dir}/wants.py:f", "No module named 'no_such_module_at_all'"),
        ("{dir}/mine.txt:f", "mine.txt is not a Python file"),
        ("no_such_module:f", "No module named 'no_such_module'. Give the path of its file"),
        ("operator:ad", "has no 'ad'. Did you mean add?"),
        (":f", "give package.module:function"),
        ("operator:", "give package.module:function"),
    ],
)
def test_functions_that_can_not_be_loaded(tmp_path: Path, spec: str, words: str) -> None:
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "mine.txt").write_text(FILE)
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "wants.py").write_text("import no_such_module_at_all")
    with pytest.raises(ConfigError, match=re.escape(words.replace("{dir}", str(tmp_path)))):
        as_reward(spec.replace("{dir}", str(tmp_path)))


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(ConfigError, match="of type int; give a function or a name"):
        as_reward(4)  # type: ignore[arg-type]  # what is refused


# --- users' functions, as TRL's documentation writes them


def test_trl_reward_of_completions_and_the_rest() -> None:
    def short(completions: list[str], **kwargs: Any) -> list[float]:
        return [1.0 if len(c) < 24 else 0.5 for c in completions]

    assert [s.reward for s in scored(short)] == [1.0, 0.5]


def test_trl_reward_out_of_range_is_named() -> None:
    def reward_len(completions: list[str], **kwargs: Any) -> list[float]:
        return [-abs(20 - len(completion)) for completion in completions]

    words = r'reward reward_len on problem "p1", completion .*gave -2; it must give a number from 0 to 1'
    with pytest.raises(RewardError, match=words):
        scored(reward_len)


def test_trl_reward_with_a_column_and_the_ground_truth() -> None:
    def reward_func(completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
        matches = [re.search(r"Answer: (.*)", completion) for completion in completions]
        found = [match[1] if match else "" for match in matches]
        return [1.0 if one == gold else 0.0 for one, gold in zip(found, answer, strict=True)]

    assert [s.reward for s in scored(reward_func)] == [1.0, 0.0]


def test_trl_reward_gets_every_argument() -> None:
    seen: dict[str, Any] = {}

    def everything(
        prompts: Any, completions: Any, completion_ids: Any, trainer_state: Any, **kwargs: Any
    ) -> list[float]:
        kwargs["log_extra"]("golden", kwargs["answer"])
        kwargs["log_metric"]("accuracy", 0.5)
        assert trainer_state.global_step == 0
        seen.update(kwargs, prompts=prompts, completions=completions, ids=completion_ids)
        return [1.0] * len(prompts)

    scored(everything)
    assert seen["prompts"] == ["2 + 2?", "2 + 3?"]
    assert seen["completions"][0] == "Two and two.\nAnswer: 4"
    assert seen["ids"] == [[1, 2, 3], [1, 2, 3]]
    assert seen["answer"] == ["4", "5"]
    assert seen["id"] == ["p1", "p2"]
    assert seen["level"] == ["easy", "hard"]
    assert seen["source"] == [None, "x"]


def test_trl_reward_that_names_its_arguments_gets_those_only() -> None:
    def named(completion_ids: list[list[int]], level: list[str]) -> list[float]:
        return [len(ids) / 3 * (name == "easy") for ids, name in zip(completion_ids, level)]  # noqa: B905  (as users write it)

    assert [s.reward for s in scored(named)] == [1.0, 0.0]


def test_trl_reward_of_a_conversation() -> None:
    def format_reward(completions: list[list[dict[str, str]]], **kwargs: Any) -> list[float]:
        contents = [completion[0]["content"] for completion in completions]
        assert all(completion[0]["role"] == "assistant" for completion in completions)
        return [1.0 if "Answer" in content else 0.0 for content in contents]

    assert [s.reward for s in scored(format_reward, problems=[Problem("p", CHAT, "4")] * 2)] == [
        1,
        1,
    ]


def test_trl_own_rewards_work() -> None:
    rewards = pytest.importorskip("trl.rewards")
    problem = Problem("p", CHAT, "4")
    text = "<think>\nTwo and two.\n</think>\nAnswer: 4"
    (result,) = scored(rewards.think_format_reward, [text], [problem])
    assert result.reward == 1.0


def test_trl_reward_with_columns_of_some_rows() -> None:
    def by_source(completions: list[str], source: list[str | None]) -> list[float | None]:
        return [None if name is None else 1.0 for name in source]

    first, second = scored(by_source)
    assert (first.reward, first.reason) == (0.0, "reward_failed")
    assert first.detail == "the reward abstained (None)"
    assert second.reason == ""
    (alone,) = scored(by_source, ["z\nAnswer: 4"], PROBLEMS[:1])  # no row here has the column
    assert alone.detail == "the reward abstained (None)"


def test_async_rewards() -> None:
    async def batch(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        await asyncio.sleep(0.01)
        return [0.5] * len(prompts)

    async def item(predicted: str, answer: str) -> float:
        await asyncio.sleep(0.1)
        if answer == "5":
            raise ValueError("five")
        return float(predicted == answer)

    assert [s.reward for s in scored(batch)] == [0.5, 0.5]
    start = time.monotonic()
    problems = [*[PROBLEMS[0]] * 20, PROBLEMS[1]]
    results = scored(item, ["z\nAnswer: 4"] * 21, problems, on_error="skip")
    assert time.monotonic() - start < 1  # at once: 21 * .1 s would be 2.1 s
    assert [s.reward for s in results] == [1.0] * 20 + [0.0]
    assert "ValueError: five" in results[20].detail


# --- users' functions of one item


def test_one_item_functions_are_filled_by_name() -> None:
    seen: list[dict[str, Any]] = []

    def item(completion: str, answer: str, prompt: str, level: str, scale: int = 7, **row: Any) -> bool:
        seen.append({"completion": completion, "answer": answer, "prompt": prompt, **row})
        return level == "easy" and scale == 7

    assert [s.reward for s in scored(item)] == [1.0, 0.0]
    assert seen[1] == {
        "completion": "Two and three.\nAnswer: 4",
        "answer": "5",
        "prompt": "2 + 3?",
        "rationale": "Two and three.",
        "predicted": "4",
        "id": "p2",
        "source": "x",
    }


def test_objects_with_a_call_are_functions() -> None:
    class Near:
        def __call__(self, predicted: str, answer: str) -> Any:
            return np.float32(1 - abs(int(predicted) - int(answer)) / 2)

    assert [s.reward for s in scored(Near())] == [1.0, 0.5]


def test_femtune_functions_of_its_own_types() -> None:
    def own(problems: Any, completions: Any, parsed: Any) -> Any:
        return np.array([p.answer == q.answer for p, q in zip(problems, parsed, strict=True)])

    assert [s.reward for s in scored(own)] == [1.0, 0.0]


def test_a_parameter_that_nothing_fills_is_named_before_anything_is_generated() -> None:
    def item(completion: str, levle: str) -> float:
        return 1.0

    def batch(completions: list[str], solution: list[str]) -> list[float]:
        return [1.0]

    for function, words in (
        (item, r"`levle`, .*Did you mean level\? .*: level, source"),
        (batch, "`solution`, which neither femtune nor a column provides"),
    ):
        reward = as_reward(function)
        with pytest.raises(ConfigError, match=words):
            reward(PROBLEMS, [completion()] * 2, [Parsed("z", "4")] * 2)


# --- what goes wrong in users' functions


def returns(value: Any) -> Callable[..., Any]:
    def function(predicted: str) -> Any:
        return value

    return function


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (math.nan, "gave nan; it must give a number from 0 to 1"),
        (1.5, "gave 1.5; it must give a number from 0 to 1"),
        ("1", "gave '1'; it must give a number"),
        ([1.0], r"gave \[1.0\]; it must give a number"),
        (np.array([0.5, 0.5]), "it must give a number from 0 to 1"),
    ],
)
def test_what_is_no_reward(value: Any, words: str) -> None:
    with pytest.raises(RewardError, match=words):
        scored(returns(value))
    (first, second) = scored(returns(value), on_error="skip")
    assert (first.reward, first.reason) == (0.0, "reward_failed")
    assert re.search(words, first.detail)
    assert 'on problem "p2"' in second.detail


@pytest.mark.parametrize("value", [True, 1, np.float64(1), np.bool_(True)])
def test_what_is_a_reward(value: Any) -> None:
    assert [s.reward for s in scored(returns(value))] == [1.0, 1.0]


def test_one_failing_item_leaves_the_others() -> None:
    def item(predicted: str, answer: str) -> float:
        return 1 / (int(answer) - 5)

    def batch(completions: list[str], answer: list[str]) -> list[float]:
        return [abs(1 / (int(one) - 5)) for one in answer]

    for function in (lambda predicted, answer: abs(item(predicted, answer)), batch):
        first, second = scored(function, on_error="skip")
        assert (first.reward, first.reason) == (1.0, "")
        assert second.reason == "reward_failed"
        assert "ZeroDivisionError" in second.detail
        with pytest.raises(RewardError, match=r'"p2".*ZeroDivisionError') as caught:
            scored(function)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1.0], "returned 1 rewards, expected a list of 2"),
        ([1.0] * 3, "returned 3 rewards, expected a list of 2"),
        (None, "returned NoneType, expected a list of 2"),
        (1.0, "returned float, expected a list of 2"),
        ("ab", "returned 2 rewards, expected a list of 2"),
    ],
)
def test_batches_of_another_length(value: Any, words: str) -> None:
    def batch(completions: list[str]) -> Any:
        return value

    with pytest.raises(RewardError, match=words):
        scored(batch)


def test_a_timeout_of_the_function_itself_is_one_items() -> None:
    def batch(completions: list[str], answer: list[str]) -> list[float]:
        if "5" in answer:
            raise TimeoutError("no reply")
        return [1.0] * len(answer)

    first, second = scored(batch, on_error="skip")
    assert (first.reason, second.reason) == ("", "reward_failed")
    assert "TimeoutError: no reply" in second.detail


def test_slow_functions_are_given_up() -> None:
    def slow_item(answer: str) -> float:
        time.sleep(0.5 if answer == "5" else 0)
        return 1.0

    def slow_batch(completions: list[str]) -> list[float]:
        time.sleep(0.5)
        return [1.0, 1.0]

    async def slow_async(answer: str) -> float:
        await asyncio.sleep(5 if answer == "5" else 0)
        return 1.0

    for function in (slow_item, slow_async):
        first, second = scored(function, timeout_s=0.1, on_error="skip")
        assert (first.reason, second.reason) == ("", "reward_failed")
        assert second.detail.endswith("took over 0.1 s.")
    start = time.monotonic()
    with pytest.raises(RewardError, match=r'"p1".*took over 0.1 s'):
        scored(slow_batch, timeout_s=0.1)
    assert time.monotonic() - start < 0.4


def test_a_function_can_not_end_the_run() -> None:
    def exits(completion: str) -> float:
        raise SystemExit(1)

    with pytest.raises(RewardError, match="SystemExit"):
        scored(exits)


# --- scores


def test_every_reason() -> None:
    problem = Problem("p", "Rate it.", "4")
    texts = {
        "": "Good.\nAnswer: 4",
        "wrong": "Good.\nAnswer: 3",
        "parse_error": "Good.",
        "hint_leak": "The correct answer was given as 4.\nAnswer: 4",
    }
    written = [completion(text) for text in texts.values()]
    written.append(Completion((1, 2), "Good.\nAnswer: 4", "length", -1.0))
    written.append(Completion((), "", "error", 0.0, error="out of memory"))
    count = len(written)
    reward = as_reward("ordinal(1, 5)")
    found = score([problem] * count, written, [True] * count, prompts=Prompts(), reward=reward)
    assert found == [
        Score(1.0, "4", "", "", "Good."),
        Score(0.75, "3", "wrong", "answer 3, expected 4, reward 0.75 < 1", "Good."),
        Score(0.0, "", "parse_error", 'the last line is not "Answer: ..."', "Good."),
        Score(
            *(1.0, "4", "hint_leak", "correct answer was given as 4"),
            "The correct answer was given as 4.",
        ),
        Score(0.0, "", "truncated", "no end after 2 tokens", "Good.\nAnswer: 4"),
        Score(0.0, "", "engine_failed", "out of memory", ""),
    ]


def test_only_hinted_draws_can_leak_and_accept_at_counts() -> None:
    text = "The correct answer was given as 3.\nAnswer: 3"
    plain, hinted = scored(
        "ordinal(1, 5)", [text] * 2, [PROBLEMS[0]] * 2, hinted=[False, True], accept_at=0.75
    )
    assert plain.reason == ""
    assert (hinted.reason, hinted.reward) == ("hint_leak", 0.75)


def test_nothing_to_grade_is_not_asked_for() -> None:
    def of_answer(predicted: str) -> float:
        return 1.0

    def of_text(completions: list[str]) -> list[float]:
        return [1.0] * len(completions)

    assert [s.reason for s in scored(of_answer, ["no answer"] * 2)] == ["parse_error"] * 2
    assert scored(of_text, [], []) == []
    unfinished = [Completion((1,), "Rating: [[4]]", "length", 0.0), Completion((), "", "stop", 0.0)]
    unread = ["Answer: 4", "z\nAnswer: 4\nAnswer: 5", "<think>z\nAnswer: 4"]
    for one in (*unfinished, *map(completion, unread)):
        reward = as_reward(of_text)
        [found] = score(PROBLEMS[:1], [one], [False], prompts=Prompts(), reward=reward)
        assert found.reason in ("truncated", "parse_error")


OTHER_FORM = "It is clear.\nMy rating: [[4]], no less."


def test_a_function_that_reads_completions_gets_those_whose_form_the_format_does_not_know() -> None:
    def of_text(completion: str, answer: str) -> float:
        return float(f"[[{answer}]]" in completion)

    def of_texts(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        return [of_text(*pair) for pair in zip(completions, answer, strict=True)]

    def of_any(completion: str, answer: str, **columns: Any) -> float:
        return of_text(completion, answer)

    for function in (of_text, of_texts, of_any):
        right, wrong = scored(function, [OTHER_FORM] * 2)
        assert (right.reward, right.reason, right.answer) == (1, "", "")
        assert right.rationale == OTHER_FORM
        assert (wrong.reward, wrong.reason) == (0, "parse_error")
        assert wrong.detail == 'the last line is not "Answer: ..."'
        [leak, _] = scored(function, [f"I was told the answer.\n{OTHER_FORM}"] * 2, hinted=[True] * 2)
        assert (leak.reward, leak.reason) == (1, "hint_leak")


def test_a_function_of_the_parsed_answer_gets_parsed_ones_only() -> None:
    def of_answer(completion: str, predicted: str) -> float:
        return 1.0

    def own(problems: Any, completions: Any, parsed: Any) -> list[float]:
        return [1.0] * len(parsed)

    for function in (of_answer, own):
        assert [s.reason for s in scored(function, [OTHER_FORM, "z\nAnswer: 4"])] == ["parse_error", ""]


def test_a_function_that_fails_on_another_form_leaves_it_unread() -> None:
    def picky(completion: str) -> float:
        return float(completion.split("Answer:")[1].strip() == "4")

    assert [s.reason for s in scored(picky, [OTHER_FORM, "z\nAnswer: 4"])] == ["parse_error", ""]


def test_plain_callables_of_the_reward_type_are_checked_too() -> None:
    def own(p: Any, c: Any, q: Any) -> list[float]:
        return [2.0]

    with pytest.raises(RewardError, match=r"gave 2.0; it must give a number from 0 to 1"):
        score(PROBLEMS[:1], [completion()], [False], prompts=Prompts(), reward=own)


@given(st.lists(st.text(max_size=40) | st.text("Answer: 4*\n$", max_size=20), max_size=5))
def test_any_text_is_scored(texts: list[str]) -> None:
    problems = [Problem(str(i), "2 + 2?", "4") for i in range(len(texts))]
    found = scored("exact", texts, problems, hinted=[True] * len(texts))
    assert len(found) == len(texts)
    assert all(0 <= s.reward <= 1 and (s.reason == "") <= (s.reward == 1) for s in found)


# --- what fuzzing found


def test_a_pattern_that_would_take_years_is_stopped() -> None:
    endless = as_reward("regex(r'(a|aa)+b')")
    problem, written = Problem("p", "?", "4"), Completion((), f"So.\nAnswer: {'a' * 99}", "stop", 0.0)
    how = {"prompts": Prompts(), "reward": endless}
    with pytest.raises(
        RewardError, match=r"takes over a second for the answer 'aaa.*Avoid a repetition"
    ):
        score([problem], [written], [False], **how)  # type: ignore[arg-type]  # keywords of several types
    (skipped,) = score([problem], [written], [False], **how, on_error="skip")  # type: ignore[arg-type]  # keywords of several types
    assert skipped.reason == "reward_failed" and "takes over a second" in skipped.detail


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("regex('a{99999999999}')", "repeat count too big"),
        (f"regex('{'(' * 5000}')", "Give a pattern in the syntax of Python's `re`"),
        ("(" * 5000, "is not understood"),
        ("-" * 100_000 + "1", "is not understood"),
        (f"exact({'9' * 5000})", "is not understood"),
        ("ordinal('a', 'b')", "scale is ('a', 'b'); give (lowest, highest)"),
        (f"ordinal(1, {'9' * 400})", "give (lowest, highest)"),
        (f"number(tol={'9' * 400})", "both tolerances must be finite and >= 0"),
        ("number(tol=[1])", "both tolerances must be finite and >= 0"),
    ],
)
def test_specs_beyond_bounds(spec: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        as_reward(spec)
    assert len(str(caught.value)) < 1000


def test_a_pattern_that_is_not_raw_warns_of_nothing() -> None:
    """Warnings are errors in tests."""
    assert as_reward(r"regex('\d+')")([Problem("p", "?", "4")], [], [Parsed("", "42")]) == [1.0]
    assert as_reward("regex('[[a]b]?')").name  # to `re`, a possible nested set
