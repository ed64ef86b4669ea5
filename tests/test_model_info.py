"""What a model's folder says of how it is asked, and what commands make of it."""

from __future__ import annotations

import json
import logging
import tempfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as each
from hypothesis import strategies as st

from femtune.config import Evaluate, Predict, Train, given
from femtune.errors import ModelError
from femtune.model_info import (
    ASKED,
    FILE,
    ModelInfo,
    info_of,
    is_trained,
    read_info,
    with_defaults,
    write_info,
)
from femtune.resolve import read_inputs

JUDGE = ModelInfo(
    femtune="1.0",
    task="judge",
    scale="1,5",
    raters="named",
    reward='ordinal("1,5")',
    instruction="Rate it from 1 to 5.",
    hint="It is {answer}.",
    max_new_tokens=64,
    template_args=("enable_thinking=false",),
    from_task=("instruction", "reward"),
)


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(logging.getLogger("femtune"), "propagate", True)
    caplog.set_level(logging.WARNING, "femtune")
    return lambda: [record.getMessage() for record in caplog.records]


def test_what_is_not_set_is_as_in_training(warned: Any) -> None:
    made = with_defaults(Predict(draws=4), JUDGE)
    for name in ("task", "scale", "raters", "instruction", "hint", "max_new_tokens", "template_args"):
        assert getattr(made, name) == getattr(JUDGE, name)
    assert (made.draws, made.reward) == (4, JUDGE.reward)
    assert with_defaults(Predict(), JUDGE, graded=False).reward is None
    assert with_defaults(Evaluate(), None) == Evaluate()
    assert warned() == []


def test_what_is_set_stands_and_is_warned_of_where_it_differs(warned: Any) -> None:
    made = with_defaults(Predict(scale="1,7", max_new_tokens=64), JUDGE)
    assert warned() == ["the model was trained with scale 1,5; asked for 1,7."]
    assert (made.scale, made.raters, made.hint) == ("1,7", "named", JUDGE.hint)
    # the task has its own words for another scale; what a user had written stays
    assert (made.instruction, made.reward) == (None, None)
    same = with_defaults(Predict(scale="1,5"), JUDGE)
    assert same.instruction == JUDGE.instruction


def test_a_default_that_was_given_counts_as_given(warned: Any) -> None:
    """--raters each differs from nothing that a comparison with defaults could see."""
    assert with_defaults(Evaluate(raters="each"), JUDGE).raters == "each"
    assert warned() == ["the model was trained with raters named; asked for each."]
    assert with_defaults(Evaluate(), JUDGE).raters == "named"


@each(st.dictionaries(st.sampled_from(["task", "scale", "draws", "seed"]), st.none(), max_size=4))
def test_the_names_that_were_given_are_known(names: dict[str, None]) -> None:
    values = {"task": "table", "scale": None, "draws": 1, "seed": 0}  # all of them the defaults
    made = Evaluate(**{name: values[name] for name in names})  # type: ignore[arg-type]  # values of several types
    assert given(made) == {*names}
    assert given(replace(made, seed=5)) == {"seed"}  # a copy: by its values


@each(
    st.fixed_dictionaries(
        {},
        optional={
            "task": st.sampled_from(["judge", "table"]),
            "scale": st.none() | st.text(),
            "attributes": st.lists(st.text()).map(tuple),
            "template_args": st.lists(st.text()).map(tuple),
            "max_new_tokens": st.integers(1, 10**6),
            "demos": st.none() | st.lists(st.dictionaries(st.text(), st.text())).map(tuple),
        },
    )
)
def test_a_folder_gives_back_what_was_stored(values: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as name:
        info = ModelInfo(femtune="1.0", **values)
        assert not is_trained(Path(name)) and read_info(Path(name)) is None
        write_info(Path(name), info)
        assert is_trained(Path(name)) and read_info(Path(name)) == info


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds a list, expected names and values"),
        ('{"format": 2}', "has format 2; this femtune reads up to 1"),
        ("{}", "has format None"),
    ],
)
def test_a_damaged_or_newer_file_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ModelError, match=said):
        read_info(tmp_path)


def test_a_value_of_a_wrong_type_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"format": 1, "max_new_tokens": "64", "unknown": 1}')
    with pytest.raises(ModelError, match="not as it was stored: max_new_tokens is '64'"):
        with_defaults(Evaluate(), read_info(tmp_path))


def test_every_setting_that_is_stored_has_a_place() -> None:
    """So that a setting that is added to ASKED is not dropped without a word."""
    assert {*ASKED} <= {field.name for field in fields(ModelInfo)}


def test_words_of_the_task_are_told_from_a_user_s(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"prompt": f"p{n}", "response": f"r{n}", "score": 1 + n % 5}) + "\n"
            for n in range(10)
        )
    )
    settings = Train(task="judge", scale="1,5", hint="It is {answer}.")
    info = info_of(settings, read_inputs(rows, settings).settings, "base", "0" * 64)
    assert info.from_task == ("instruction", "reward")
    assert (info.base, info.scale, info.hint, info.reward) == (
        *("base", "1,5", "It is {answer}.", 'ordinal("1,5")'),
    )
    assert info.instruction and "1" in info.instruction
    # asked the same way again, from the file alone
    again = with_defaults(Evaluate(), info)
    assert read_inputs(rows, again).prompts == read_inputs(rows, settings).prompts
