"""The check after every load: right weights pass, old and half-old ones do not."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from femtune.engines.fake import FakeEngine
from femtune.engines.weight_check import (
    MOST,
    ROUNDING,
    WeightCheck,
    check_served,
    read_check,
    serve,
    write_check,
)
from femtune.errors import EngineError, ModelError
from femtune.types import Capabilities

EXACT = ROUNDING["float32"]
WEIGHT_CHECK = WeightCheck(
    [[1, 2], [3]], [[4, 5, 6], [7, 256]], logprobs=[-3.0, -2.0], logprobs_before=[-3.6, -2.4]
)


def engine_of(*logprobs: float) -> FakeEngine:
    values = iter(logprobs)
    return FakeEngine(lambda prompt, seed: "", logprob_of=lambda prompt, completion: next(values))


def test_the_weights_of_the_m_step_pass() -> None:
    check_served(engine_of(-3.001, -2.002), WEIGHT_CHECK, EXACT)


def test_the_old_weights_are_told_apart_and_named() -> None:
    with pytest.raises(EngineError, match="still serves the weights from before"):
        check_served(engine_of(-3.6, -2.4), WEIGHT_CHECK, EXACT)


def test_new_weights_with_something_old_in_them_are_refused() -> None:
    with pytest.raises(EngineError, match="does not serve the weights"):
        check_served(engine_of(-3.35, -2.2), WEIGHT_CHECK, EXACT)


def test_a_nan_is_no_pass() -> None:
    with pytest.raises(EngineError):
        check_served(engine_of(math.nan, -2.0), WEIGHT_CHECK, EXACT)


def test_rounding_is_allowed_where_training_moved_little() -> None:
    still = WeightCheck(WEIGHT_CHECK.prompts, WEIGHT_CHECK.completions, [-3.0, -2.0], [-3.0, -2.0])
    check_served(engine_of(-3.05, -2.05), still, ROUNDING["bfloat16"])
    with pytest.raises(EngineError):
        check_served(engine_of(-3.05, -2.05), still, EXACT)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_old_weights_never_pass_for_new_ones_beyond_rounding(dtype: str) -> None:
    """Whatever an engine's own rounding adds, up to its mean for short completions."""
    rounding = ROUNDING[dtype]
    for moved in (2.1, 3.0, 10.0):  # times the tolerance
        step = moved * rounding * WEIGHT_CHECK.num_tokens / 2  # of each completion
        check = WeightCheck(
            WEIGHT_CHECK.prompts, WEIGHT_CHECK.completions, [-3.0 + step, -2.0 + step], [-3.0, -2.0]
        )
        for noise in (0.0, 0.45 * rounding * WEIGHT_CHECK.num_tokens / 2):
            check_served(engine_of(*(logprob + noise for logprob in check.logprobs)), check, rounding)
            with pytest.raises(EngineError, match="still serves the weights from before"):
                check_served(engine_of(-3.0 + noise, -2.0 + noise), check, rounding)


def test_what_training_moved_far_does_not_excuse_another_model() -> None:
    far = WeightCheck(WEIGHT_CHECK.prompts, WEIGHT_CHECK.completions, [-3.0, -2.0], [-30.0, -20.0])
    with pytest.raises(EngineError):
        check_served(engine_of(-3.0 - 6 * MOST, -2.0), far, EXACT)


def test_a_check_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_check(tmp_path) is None
    write_check(tmp_path, WEIGHT_CHECK)
    assert set(json.loads((tmp_path / "weight_check.json").read_text())) == {
        "prompts",
        "completions",
        "logprobs",
        "logprobs_before",
    }
    assert read_check(tmp_path) == WEIGHT_CHECK


def test_a_check_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    old = asdict(WEIGHT_CHECK)
    old |= {"nats": old.pop("logprobs"), "nats_before": old.pop("logprobs_before")}
    (tmp_path / "weight_probe.json").write_text(json.dumps(old))
    assert read_check(tmp_path) == WEIGHT_CHECK
    with pytest.raises(EngineError, match="still serves the weights from before"):
        serve(engine_of(-3.6, -2.4), tmp_path, EXACT)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"nats": [1]}', '{"prompts": [], "more": 1}'])
@pytest.mark.parametrize("name", ["weight_check.json", "weight_probe.json"])
def test_a_file_that_is_no_check_is_named(text: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match=f"{name} holds no weight check"):
        read_check(tmp_path)


def test_a_server_that_cannot_score_is_trusted_with_the_base_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_of()
    engine.capabilities = Capabilities(scores=False)
    serve(engine, tmp_path, EXACT, base_check=WEIGHT_CHECK)
    assert "is not checked" in caplog.text and engine.loaded == [tmp_path]
    write_check(tmp_path, WEIGHT_CHECK)
    engine.logprob = refuse  # type: ignore[method-assign]  # in place of the method
    with pytest.raises(EngineError, match="can't score"):
        serve(engine, tmp_path, EXACT, base_check=WEIGHT_CHECK)


def refuse(pairs: Any) -> list[float]:
    raise EngineError("the server can't score completions")
