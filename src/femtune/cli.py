"""The command line: a verb, a file of settings if there is one, and flags that override it.

femtune train judge.jsonl --model Qwen/Qwen3-1.7B --config run.yaml --iterations 4
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import yaml
from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Yaml
from rich.text import Text

from femtune.errors import ConfigError, DataError, FemtuneError

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

from femtune.config import Evaluate, Flat, Names, Sample, Train, check_new
from femtune.progress import (
    Show,
    console,
    errors,
    plain_table,
    showing,
)
from femtune.run import replacing
from femtune.training import Training

app = App(
    name="femtune",
    help="Learn to reason from questions and correct answers alone, by filtered EM.",
    default_parameter=Parameter(negative_iterable=(), negative_none=()),
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # `main` says what it means
)

Model = Annotated[str, Parameter(name=["--model", "--model-name-or-path"])]
Output = Annotated[Path | None, Parameter(name="--output-dir")]


@app.command
def demo(*, output_dir: Path = Path("runs/demo"), show: Show = "auto") -> None:
    """The paper's comparison, offline, in minutes: four schemes, the rubric world, the seedling."""
    from femtune.demo import SETTINGS, changes, write_world

    train_data, eval_data = write_world("rubric", output_dir / "data")
    settings = replace(SETTINGS, eval_data=str(eval_data))
    schemes = ("rejection:1", "rejection:4", "star", "pps")
    console.print(
        "A rater's scores of 400 responses, no reasons given. A model of 1M parameters that can write\n"
        "reasons but does not know this rater learns to reason its way to the scores, in four ways.\n"
    )
    histories = _compare(str(train_data), "seedling", schemes, 1, settings, output_dir, None, show)
    for panel in changes(histories):
        console.print(panel)
    _tell("everything is in", output_dir)
    _tell("the data", output_dir / "data")
    flags = "--model seedling --max-new-tokens 64 --learning-rate 3e-4 --iterations 12"
    _tell("go on, as with data of your own", f"femtune train {train_data} {flags}")


@app.command
def train(
    data: str,
    *,
    model: Model,
    settings: Train | None = None,
    output_dir: Output = None,
    show: Show = "auto",
) -> None:
    """Train a model to reason its way to the answers: E-step, M-step, evaluation, repeated.

    DATA has columns `prompt` and `answer` (.jsonl, .json, .csv, .tsv, .parquet). The same command goes
    on with a run that was stopped.
    """
    from femtune.commands import run_train

    with showing(show) as progress:
        result = run_train(data, model, settings or Train(), output_dir, progress)
    if show in ("auto", "lines"):
        _tell("model", result.model)
        _tell("draws, examples, metrics", result.run)


@app.command
def compare(
    data: str,
    *,
    model: Model,
    schemes: Names = ("rejection:1", "rejection:4", "star", "pps"),
    seeds: int = 1,
    settings: Train | None = None,
    output_dir: Output = None,
    workers: int | None = None,
    show: Show = "auto",
) -> None:
    """Run schemes on the same problems with the same settings, and give one table.

    With several seeds each number has its 95% interval over them.
    """
    place = output_dir or Path("runs") / f"compare-{Path(data).stem}"
    _compare(data, model, schemes, seeds, settings or Train(), place, workers, show)
    if show in ("auto", "lines"):
        _tell("runs and compare.json", place)


def _compare(
    data: str,
    model: str,
    schemes: Sequence[str],
    seeds: int,
    settings: Train,
    place: Path,
    workers: int | None,
    show: Show,
) -> Any:
    from femtune import compare as runs
    from femtune.watch import Watch

    todo = runs.jobs(schemes, seeds, settings, place)
    with Watch(show) as watch:
        histories = runs.compare(data, model, todo, workers=workers, watch=watch)
    stored = runs.save(place, histories)
    if show == "json":
        print(stored.read_text(), end="")
    elif show != "quiet":
        console.print(plain_table(*runs.table(runs.rows(histories))))
    return histories


@app.command
def sample(
    data: str,
    *,
    model: Model,
    settings: Sample | None = None,
    output_dir: Output = None,
    show: Show = "auto",
) -> None:
    """The E-step alone: rationales that lead to the correct answers, as a data set for any trainer."""
    from femtune.commands import sample as run

    with showing(show) as progress:
        folder, metrics = run(data, model, settings or Sample(), output_dir, progress)
    _report(metrics, show)
    if show in ("auto", "lines"):
        _tell("examples (prompt, completion, weight)", folder / "examples.parquet")
        _tell("all draws, kept or not", folder / "draws")


@app.command
def fit(
    examples: Path,
    *,
    model: Model,
    output_dir: Path,
    training: Flat[Training] | None = None,
    seed: int = 0,
    show: Show = "auto",
) -> None:
    """The M-step alone: fine-tune on examples (.parquet, .jsonl: prompt, completion, weight)."""
    from femtune.commands import fit as run

    with showing(show) as progress:
        progress.phase("M-step", 1, 0)
        metrics = run(examples, model, training or Training(), output_dir, seed, progress.step)
    _report(metrics, show)
    if show in ("auto", "lines"):
        _tell("model", output_dir)


@app.command
def evaluate(
    data: str,
    *,
    model: Model,
    settings: Evaluate | None = None,
    output_dir: Output = None,
    show: Show = "auto",
) -> None:
    """How well a model answers held-out problems, with intervals."""
    from femtune.commands import evaluate as run

    with showing(show) as progress:
        folder, metrics = run(data, model, settings or Evaluate(), output_dir, progress)
    _report(metrics, show)
    if show in ("auto", "lines"):
        _tell("draws", folder / "eval")


@app.command
def predict(
    data: str, *, model: Model, settings: Evaluate | None = None, output: Path | None = None
) -> None:
    """Answer new items (column `prompt`): the vote of several rationales, as JSON lines.

    Each line has id, answer, confidence, votes, expected (mean of numeric votes), rationale. They go to
    --output, or to standard output.
    """
    from femtune.commands import predict as run

    if output is not None:
        check_new(output, "--output")
    lines = (json.dumps(item, ensure_ascii=False) for item in run(data, model, settings or Evaluate()))
    if output is None:
        for line in lines:
            print(line)
    else:
        with replacing(output) as part, part.open("w") as file:
            file.writelines(f"{line}\n" for line in lines)


@app.command
def doctor(
    data: str, *, model: Model, settings: Train | None = None, row: int = 1, draw: bool = True
) -> None:
    """Check a setup in seconds, and show what the model is asked and what the loss will see.

    Looks at the problem of --row more closely; --no-draw does not load the model's weights.
    """
    from femtune import doctor as checks

    chosen = settings or Train()
    asker, problems, findings = checks.examine(data, model, chosen)
    if not 1 <= row <= len(problems):
        raise DataError(f"--row {row}: {data} has rows 1 to {len(problems)}.")
    problem = problems[row - 1]
    for finding in findings:
        console.print(_finding(finding), soft_wrap=True)
    for panel in checks.show_prompts(asker, problem):
        console.print(panel)
    if draw:
        draws, more = checks.try_out(asker, problem, chosen)
        for finding in more:
            console.print(_finding(finding), soft_wrap=True)
        console.print(checks.show_tokens(asker, problem, draws[-1]))


@app.command
def world(
    name: str,
    *,
    output_dir: Path,
    num_train: int = 400,
    num_test: int = 200,
    seed: int = 0,
    noise: float = 0.0,
    difficulty: tuple[int, int] | None = None,
) -> None:
    """Write the problems of a world (rubric, sums) as train.jsonl and test.jsonl."""
    from femtune.demo import write_world

    for path in write_world(name, output_dir, num_train, num_test, seed, noise, difficulty):
        _tell("written", path)


def _report(metrics: Mapping[str, Any], show: Show) -> None:
    if show == "json":
        print(json.dumps(metrics))
    elif show != "quiet":
        for name, value in metrics.items():
            shown = f"{value:.3f}" if isinstance(value, float) else json.dumps(value)
            console.print(Text(f"{name:<18}{shown}"))


def _finding(finding: Any) -> Text:
    text = Text(f"{'!' if finding.warning else '✓'} {finding.what:<16}{finding.found}")
    return text.append(f"\n  {finding.warning}", "yellow") if finding.warning else text


def _tell(what: str, where: object) -> None:
    console.print(Text(f"{what}: {where}"), soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit status: 1 for what femtune refuses, 130 for Ctrl-C."""
    arguments = [_dashed(word) for word in (sys.argv[1:] if argv is None else argv)]
    try:
        file = _take_config(arguments)
        app.config = () if file is None else (Yaml(str(file), use_commands_as_keys=False),)
        app(arguments, exit_on_error=False, print_error=False, result_action="return_none")
        sys.stdout.flush()  # here, where a closed pipe is caught
    except (FemtuneError, CycloptsError) as error:
        kind = type(error) if isinstance(error, FemtuneError) else ConfigError
        # cyclopts names a key of the file in brackets: "[iterationz]" from run.yaml
        text = str(error) if kind is type(error) else re.sub(r'"?\[(\w+)\]"?', r"\1", str(error))
        errors.print(Text(f"{kind.__name__}: {text}"), soft_wrap=True)
        return 1
    except BrokenPipeError:  # the reader of our output, `head` say, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        errors.print("Stopped. What is stored stays; the same command goes on from there.")
        return 130
    return 0


def _take_config(arguments: list[str]) -> Path | None:
    """The file of --config, taken out of the arguments. Raises ConfigError where it is no YAML."""
    at = next((i for i, word in enumerate(arguments) if word.partition("=")[0] == "--config"), None)
    if at is None:
        return None
    _, equals, name = arguments.pop(at).partition("=")
    if not equals:
        name = arguments.pop(at) if at < len(arguments) else ""
    if not Path(name).is_file():
        raise ConfigError(f"--config takes a YAML file, and {name or 'nothing'} is none.")
    try:
        found = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name} is no YAML: {' '.join(str(error).split())}.") from error
    if found is not None and not isinstance(found, dict):
        raise ConfigError(f"{name} holds a {type(found).__name__}, expected lines of `name: value`.")
    return Path(name)


def _dashed(word: str) -> str:
    """--output_dir as --output-dir: people of this field write both."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


if __name__ == "__main__":
    sys.exit(main())
