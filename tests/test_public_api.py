"""The public face: what `femtune` exports, and that Python and the command line say the same."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import typing
from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import femtune
from femtune import api, config
from femtune.cli.main import app
from femtune.comparison.ladder import options
from femtune.errors import ConfigError, DataError
from femtune.mstep.config import Training
from femtune.workflows import keywords

VERBS = (*("calibrate", "check", "compare", "evaluate", "fit", "ladder", "predict", "sample", "train"),)
ERRORS = (
    *("ConfigError", "DataError", "EngineError", "FemtuneError", "ModelError", "NothingKept"),
    *("RewardError", "RunError"),
)
RESULTS = tuple(f"{verb.title()}Result" for verb in VERBS)
SETTINGS = {
    "AskSettings": (config.Ask,),
    "CalibrateSettings": (config.Calibrate,),
    "CompareSettings": (config.Train, Training, config.RL),
    "EvaluateSettings": (config.Evaluate,),
    "LadderSettings": (config.Train, Training, options.LadderOptions),
    "PredictSettings": (config.Predict,),
    "SampleSettings": (config.Sample,),
    "TrainSettings": (config.Train, Training),
    "TrainingSettings": (Training,),
}
REWARDS = ("as_reward", "choice", "exact", "math", "number", "ordinal", "regex")
NOUNS = ("Draw", "Example", "MStepSchedule", "Problem", "Scheme", "Stage", "TrainedModel")
SCHEMES = (
    *("chain", "every", "expected", "hard", "importance", "parse_scheme", "pps", "reasons", "rejection"),
    *("restart", "scheme_from_data", "scheme_to_data", "settle", "star"),
)
OBJECTS = {"scheme", "reward", "eval_data"}  # parameters of their own, as they may be objects


def test_what_is_public_is_listed_here() -> None:
    public = {*VERBS, *ERRORS, *RESULTS, *SETTINGS, *REWARDS, *NOUNS, *SCHEMES, "load_problems"}
    assert {*femtune.__all__} == public
    assert len(femtune.__all__) == len(public)
    assert {*dir(femtune)} == public | {"__version__"}


@pytest.mark.parametrize("name", femtune.__all__)
def test_each_public_name_is_there_and_documented(name: str) -> None:
    found = getattr(femtune, name)
    assert inspect.getdoc(found)
    if name in VERBS:
        first = inspect.getdoc(found).split()[0]  # type: ignore[union-attr]  # all are documented
        assert first in {"Answer", "Check", "Draw", "Fine-tune", "Fit", "Measure", "Run", "Train"}
        assert "    " in inspect.getdoc(found)  # type: ignore[operator]  # an example


def test_a_type_checker_sees_the_names_that_are_imported_late() -> None:
    tree = ast.parse(Path(femtune.__file__).read_text())
    [guarded] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: node.module
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    late = {name: home for home, names in femtune._HOMES.items() for name in names.split()}
    assert seen == late


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'tarin'"):
        _ = femtune.tarin  # type: ignore[attr-defined]  # what is refused
    assert femtune.__version__.count(".") >= 2


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, femtune\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pyarrow', 'cyclopts', 'rich'}\n"
        "assert not heavy & {*sys.modules}, heavy & {*sys.modules}\n"
        "from femtune import *\n"
        "assert not {'torch', 'transformers'} & {*sys.modules}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(("name", "kinds"), SETTINGS.items())
def test_typed_keywords_are_the_settings_with_their_types(name: str, kinds: tuple[type, ...]) -> None:
    typed = get_type_hints(getattr(keywords, name))
    fields = {field: get_type_hints(kind)[field] for kind in kinds for field in keywords.names_of(kind)}
    names = tuple[str, ...]
    expected = {
        field: _given(field) if hint == names else hint
        for field, hint in fields.items()
        if field not in OBJECTS
    }
    assert typed == expected
    assert getattr(keywords, name).__required_keys__ == frozenset()


PAIRS = ("columns", "labels", "engine_args", "template_args", "prices")


def _given(field: str) -> Any:
    """The types that stand for a tuple of texts; of name=value a dict does too."""
    names = list[str] | tuple[str, ...]
    return names | dict[str, str] if field in PAIRS else names


@pytest.mark.parametrize("verb", VERBS)
def test_keywords_are_the_flags_of_the_same_command(verb: str) -> None:
    function: Callable[..., Any] = getattr(femtune, verb)
    parameters = inspect.signature(function).parameters.values()
    hints = get_type_hints(function, vars(api))
    rest = next(each.name for each in parameters if each.kind is each.VAR_KEYWORD)
    [typed] = typing.get_args(hints[rest])
    own = {
        each.name.rstrip("_").replace("progress", "show")
        for each in parameters
        if each.kind is each.KEYWORD_ONLY
    }
    flags = {
        argument.name.removeprefix("--").replace("-", "_")
        for argument in app[verb].assemble_argument_collection()
        if argument.name.startswith("--") and argument.parse is not False
    }
    flags -= {"scheme_data"}  # of a run's config.yaml; in Python `scheme` is the object
    if verb == "compare":
        flags.remove("scheme")  # the flag serves other commands' files; `schemes` names several
    given = {each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD}
    assert own | {*get_type_hints(typed)} == flags - given


@pytest.mark.parametrize("name", RESULTS)
def test_results_are_frozen_and_say_what_they_hold(name: str) -> None:
    kind = getattr(femtune, name)
    assert is_dataclass(kind) and kind.__dataclass_params__.frozen
    documented = ast.parse(inspect.cleandoc(inspect.getsource(kind))).body[0]
    assert isinstance(documented, ast.ClassDef)
    body = documented.body
    for place, node in enumerate(body):
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) != "num_problems":
            assert isinstance(body[place + 1], ast.Expr), ast.unparse(node)


def test_values_are_checked_before_anything_else() -> None:
    with pytest.raises(ConfigError, match=r"iterationz is no setting\. Did you mean iterations"):
        femtune.train("nowhere.jsonl", "seedling", iterationz=2)  # type: ignore[call-arg]  # what is refused
    with pytest.raises(ConfigError, match="iterations is 'two', expected int"):
        femtune.train("nowhere.jsonl", "seedling", iterations="two")  # type: ignore[arg-type]  # what is refused
    with pytest.raises(ConfigError, match="progress is 'loud'"):
        femtune.train("nowhere.jsonl", "seedling", progress="loud")  # type: ignore[arg-type]  # what is refused
    with pytest.raises(DataError, match="no file"):
        femtune.train("nowhere.jsonl", "seedling")


@pytest.mark.parametrize("verb", ["check", "compare", "ladder"])
def test_an_unknown_way_to_show_progress_is_refused(verb: str) -> None:
    loud: Any = "loud"
    with pytest.raises(ConfigError, match=r"progress is 'loud'\. Choose auto, lines, json, quiet"):
        getattr(femtune, verb)("nowhere.jsonl", "seedling", progress=loud)


ROWS = [
    {"prompt": f"Rate the response {number}.", "response": "It is fine.", "score": 1 + number % 5}
    for number in range(40)
]


def test_rows_are_read_like_a_file() -> None:
    result = femtune.check(
        ROWS, "seedling", task="judge", scale="1,5", max_new_tokens=40, try_=False, progress="quiet"
    )
    assert result.ready is None and result.verdict.startswith("Ready")
    assert any(each.found.startswith("40;") for each in result.findings if each.what == "problems")


@pytest.mark.parametrize("data", [["a", "b"], 7, [{"prompt": "a"}, "b"]])
def test_other_data_is_refused_with_what_is_taken(data: Any) -> None:
    with pytest.raises(DataError, match="Give a path"):
        femtune.check(data, "seedling", progress="quiet")


def test_a_run_goes_from_rows_to_predictions(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("femtune.evaluation.advice.MUCH_TIME", 0.0)
    caplog.set_level("INFO", logger="femtune")
    asked: dict[str, Any] = {"task": "judge", "scale": "1,5", "max_new_tokens": 40}
    result = femtune.train(
        ROWS,
        "seedling",
        output_dir=tmp_path / "run",
        progress="lines",
        scheme=femtune.rejection(4),
        reward=femtune.ordinal((1, 5)),
        accept_at=0.5,
        iterations=1,
        use_cpu=True,
        bound_draws=0,
        **asked,
    )
    assert "accuracy" in capsys.readouterr().out
    assert "Measuring took" in caplog.text
    assert (result.best.path.resolve(), result.last.path.resolve()) == (
        (tmp_path / "run/iteration-001/model").resolve(),
    ) * 2
    assert result.best_iteration == 1 and len(result.history) == 2
    assert f"best: {result.best} (iteration 1, the last: there is no development" in repr(result)
    again = femtune.evaluate(ROWS, result.best, output_dir=tmp_path / "eval", progress="quiet")
    assert again.accuracy == again.metrics["accuracy"] and again.draws.is_dir()
    assert not capsys.readouterr().out
    output = tmp_path / "made.jsonl"
    stored = femtune.predict(ROWS[:3], result.best, output=output, draws=2)
    assert stored.output == output and len(output.read_text().splitlines()) == 3
    assert len(list(femtune.predict(ROWS[:3], result.best, draws=2))) == 3
    [item] = result.best.predict(ROWS[:1], draws=2)
    [same] = femtune.predict(ROWS[:1], result.best.path, draws=2)
    assert item == same and item["response"] == ROWS[0]["response"]
