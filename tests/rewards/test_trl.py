"""Rewards as TRL's trainers call them, by the signature that its documentation gives."""

from __future__ import annotations

from typing import Any

import pytest

from femtune import as_reward
from femtune.errors import ConfigError, RewardError


def called(function: Any, texts: list[str], chat: bool = False, **columns: list[Any]) -> Any:
    """Call a reward as GRPOTrainer does: all by keyword, with TRL's own arguments beside the columns."""
    prompts: list[Any] = ["How good is it?"] * len(texts)
    completions: list[Any] = texts
    if chat:
        prompts = [[{"role": "user", "content": each}] for each in prompts]
        completions = [[{"role": "assistant", "content": each}] for each in texts]
    return function(
        prompts=prompts,
        completions=completions,
        completion_ids=[[1, 2]] * len(texts),
        trainer_state=object(),
        log_extra=lambda column, values: None,
        log_metric=lambda name, value: None,
        **columns,
    )


@pytest.mark.parametrize("chat", [False, True])
def test_a_built_in_reward_grades_each_completion(chat: bool) -> None:
    function = as_reward("ordinal(1, 5)").for_trl()
    texts = ["Good.\nAnswer: 3", "Bad.\nAnswer: 1", "I can't tell.", "So.\nAnswer: 4"]
    # |y - y*| / 4 from 1, and 0 without an answer
    assert called(function, texts, chat, answer=["4", "5", "4", 4]) == [0.75, 0.0, 0.0, 1.0]
    assert function.__name__.startswith("ordinal")


def test_completions_alone_and_the_columns_are_enough() -> None:
    assert as_reward("exact").for_trl()(completions=["x\nAnswer: yes"], answer=["yes"]) == [1.0]
    assert as_reward("exact").for_trl()(completions=[], answer=[]) == []


def test_column_and_format_are_chosen() -> None:
    function = as_reward("math").for_trl(answer_column="solution", answer_format="boxed")
    assert called(function, [r"So \boxed{\frac{1}{2}}"], solution=["0.5"], answer=["7"]) == [1.0]


def test_a_function_of_your_own_gets_columns_and_may_abstain() -> None:
    def grade(completion: str, answer: str, level: int) -> float | None:
        return None if level > 2 else float(answer in completion)

    function = as_reward(grade).for_trl()
    found = called(function, ["it is 4", "5?", "6"], answer=["4", "4", "6"], level=[1, 2, 3])
    assert found == [1.0, 0.0, None]  # it reads completions itself: no "Answer:" is needed


def test_a_function_for_trl_comes_back_as_it_was() -> None:
    def lengths(completions: list[str], **columns: Any) -> list[float]:
        return [min(1.0, len(text) / 10) for text in completions]

    assert called(as_reward(lengths).for_trl(), ["12345", "1" * 20], answer=["", ""]) == [0.5, 1.0]


def test_a_missing_column_and_a_failure_are_named() -> None:
    with pytest.raises(ConfigError, match=r"column 'answer' .* has \['solution'\].*answer_column="):
        called(as_reward("exact").for_trl(), ["x"], solution=["x"])

    def broken(completion: str) -> float:
        raise ValueError("no")

    with pytest.raises(RewardError, match="no"):
        called(as_reward(broken).for_trl(), ["x"], answer=["x"])


def test_the_trainer_takes_it() -> None:
    """Where TRL is installed: the check of its trainer's own."""
    trl = pytest.importorskip("trl")
    import inspect

    assert "reward_funcs" in inspect.signature(trl.GRPOTrainer.__init__).parameters
    assert callable(as_reward("exact").for_trl()) and as_reward("exact").for_trl().__name__ == "exact"
