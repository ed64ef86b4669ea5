"""What a trained model's folder tells the commands that use it: names of columns, a calibration."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from femtune.config import Evaluate, Predict
from femtune.data.worlds import SEEDLING
from femtune.errors import ConfigError, DataError, RunError
from femtune.evaluation.calibration import save_calibration
from femtune.evaluation.calibration_map import Calibration
from femtune.model_info import ModelInfo, reading, with_defaults, write_info
from femtune.resolve import read_inputs
from femtune.workflows.chosen_calibration import FILE, new_place, with_own

INFO = ModelInfo(
    task="judge",
    scale="1,5",
    raters="each",
    columns=("prompt=question", "response=text", "score=stars"),
)
MAP = Calibration("temperature", tuple("12345"), 1.5, 1e-6, of="probabilities", draws=16, drawn_at=1.0)
Said = Callable[[], list[str]]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Said:
    monkeypatch.setattr(logging.getLogger("femtune"), "propagate", True)
    caplog.set_level(logging.INFO, "femtune")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def model(tmp_path: Path) -> str:
    """Return a folder of a trained model with names of columns and a calibration."""
    folder = tmp_path / "model"
    shutil.copytree(SEEDLING, folder)
    write_info(folder, INFO)
    save_calibration(MAP, folder / FILE)
    return str(folder)


def read(model: str, row: dict[str, Any], **given: Any) -> Evaluate:
    """Return the settings by which a row is read."""
    settings = with_defaults(Evaluate(**given), INFO)
    answers = frozenset({"score"})
    rows = [row | {"id": "a"}]
    return reading(settings, lambda own: read_inputs(rows, own, answers=False).settings, model, answers)


def test_names_of_columns_are_those_of_training_where_the_data_has_them(model: str, said: Said) -> None:
    assert read(model, {"question": "Why?", "text": "So.", "stars": 3}).columns == INFO.columns
    assert read(model, {"question": "Why?", "text": "So."}).columns == INFO.columns[:2]
    assert read(model, {"prompt": "Why?", "response": "So."}).columns == ()
    assert said() == []


def test_names_that_were_given_stand(model: str, said: Said) -> None:
    given = ("prompt=ask", "response=reply", "score=mark")
    row = {"ask": "Why?", "reply": "So."}
    assert read(model, row, columns=given).columns == given[:2]
    assert said() == ["No answers are in score=mark: the mapping is ignored."]
    with pytest.raises(DataError, match="has no column `ask` for `prompt`"):
        read(model, {"prompt": "Why?", "response": "So."}, columns=given)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (Predict(), ""),
        (Predict(calibration="other.json"), ""),
        (Evaluate(), "it was fitted to 16 draws at temperature 1, and these are 1 at 0"),
        (Predict(draws=8), "it was fitted to 16 draws at temperature 1, and these are 8 at 1"),
        (Predict(aggregate="votes"), "it is of probabilities, and aggregate is votes"),
        (Predict(scale="1,7"), "it is of the scale that the model was trained with"),
        (Predict(task="table"), "it is of the task that the model was trained with"),
    ],
    ids=["as fitted", "another", "greedy", "fewer", "votes", "other scale", "other task"],
)
def test_the_models_own_calibration_is_used_as_it_was_fitted(
    settings: Evaluate, reason: str, model: str, said: Said
) -> None:
    asked = with_defaults(settings, INFO)
    chosen = with_own(asked, model)
    if settings.calibration:
        assert chosen == asked
    elif reason:
        assert chosen == asked and said()[-1] == f"The model's calibration is not used: {reason}."
    else:
        assert chosen == replace(asked, calibration=str(Path(model) / FILE))


def test_a_calibration_can_be_turned_off(model: str, said: Said) -> None:
    assert with_own(Predict(calibration="none"), model) == Predict()
    assert said() == []


def test_a_calibration_replaces_none_and_is_stored_with_trained_models_alone(model: str) -> None:
    with pytest.raises(RunError, match=r"calibration.json exists already: remove it"):
        new_place(model)
    (Path(model) / FILE).unlink()
    assert new_place(model) == Path(model) / FILE
    with pytest.raises(ConfigError, match="seedling is no folder of a model that femtune trained"):
        new_place("seedling")
    with pytest.raises(ConfigError, match="no folder of a model that femtune trained"):
        new_place("Qwen/Qwen3-1.7B")
