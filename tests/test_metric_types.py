"""A run stores the names and types that metric_types.py gives, so that mypy can check readers."""

from __future__ import annotations

import re
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

import pytest

from femtune import evaluate, train
from femtune.comparison.demo import write_world
from femtune.metric_types import EvaluateMetrics, History, interval, measure


def strange(value: Any, kind: Any, place: str = "") -> list[str]:
    """Return the places in a value that are not of a type; pass@k stands beside the names."""
    if is_typeddict(kind):
        hints = get_type_hints(kind)
        named = {name: each for name, each in value.items() if not re.match(r"pass_at_\d", name)}
        lost = [f"{place}.{name}" for name in named if name not in hints]
        inner = (strange(named[n], hints[n], f"{place}.{n}") for n in named if n in hints)
        return [*lost, *(each for some in inner for each in some)]
    if get_origin(kind) is UnionType:
        return [] if any(not strange(value, each) for each in get_args(kind)) else [place]
    if get_origin(kind) in (dict, list):
        if not isinstance(value, get_origin(kind)):
            return [place]
        of = get_args(kind)[-1]
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        return [each for name, part in parts for each in strange(part, of, f"{place}.{name}")]
    if kind is type(None):
        return [] if value is None else [place]
    return [] if isinstance(value, int | float if kind is float else kind) else [place]


def test_strange_values_are_found() -> None:
    good = {"iteration": 1, "e_step": {"kept_share": None, "solved_by": {"1": 2}}}
    bad = {"iteration": "1", "e_step": {"kept_shore": 0.5, "solved_by": {"1": "2"}}}
    assert strange([good], History) == []
    assert strange([bad], History) == [".0.iteration", ".0.e_step.kept_shore", ".0.e_step.solved_by.1"]


def test_a_measure_is_a_number_or_nothing() -> None:
    metrics = {"a": 1, "b": None, "c": "x", "d": True, "a_ci": [0, 1], "b_ci": None}
    assert [measure(metrics, name) for name in "abcde"] == [1.0, None, None, None, None]
    assert [interval(metrics, name) for name in "abc"] == [(0.0, 1.0), None, None]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "task", "scheme"),
    [
        ("rubric", "judge", "rejection:2+chain"),
        ("tldr", "summarize", "pps:2+importance"),
        ("sums", "math", "rejection:2+expected"),
        ("quiz", "choice", "star"),
    ],
)
def test_what_a_run_stores_has_these_names_and_types(
    world: str, task: Any, scheme: str, tmp_path: Path
) -> None:
    data, test = (str(path) for path in write_world(world, tmp_path / "data", 12, 6))
    own: dict[str, Any] = {"raters": "named", "scale": "1,5"} if task == "judge" else {}
    asked = {"task": task, "max_new_tokens": 48, "progress": "quiet", **own}
    result = train(
        data,
        "seedling",
        scheme=scheme,
        eval_data=test,
        iterations=1,
        eval_draws=2,
        eval_temperature=1.0,
        bound_draws=2,
        reader_problems=4,
        num_train_epochs=1,
        output_dir=tmp_path / "run",
        **asked,
    )
    assert len(result.history) == 2 and {"e_step", "posterior"} < result.history[1].keys()
    assert strange(result.history, History) == []
    if task != "math":
        found = evaluate(test, result.best, draws=2, temperature=1.0, output_dir=tmp_path / "e", **asked)
        assert strange(found.metrics, EvaluateMetrics) == [] and "by_votes" in found.metrics
