"""Commands that create runs, models, predictions and synthetic tasks; inspect.py has the others."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from femtune._util.consoles import ascii_of, is_utf8
from femtune._util.text import visible
from femtune.cli.groups import OTHERS, group_options
from femtune.cli.output import show_metrics, tell, write_report
from femtune.cli.stored_scheme import SchemeData, read_scheme
from femtune.config import RL, Calibrate, Evaluate, Flat, Names, Predict, Sample, Train
from femtune.data.worlds import WORLDS
from femtune.mstep.config import Training
from femtune.reporting.terminal import (
    Show,
    console,
    errors,
    literal,
    plain_table,
    showing,
    summary,
)
from femtune.runs.checkpoints import describe_best
from femtune.workflows.merge import merge_adapter

if TYPE_CHECKING:
    from femtune.comparison.experiment import CompareResult

app = App(
    name="femtune",
    group_parameters=group_options(),
    help="Learn to reason from questions and correct answers alone, by filtered EM.",
    default_parameter=Parameter(negative_iterable=(), negative_none=()),
    group_commands=OTHERS,
    help_prologue=(
        "Settings may also stand in a YAML file, which flags override: --config run.yaml, with lines "
        "such as `iterations: 4`."
    ),
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # `main` handles it
)

_DATA = "File of rows (.jsonl, .json, .csv, .tsv, .parquet), or id of a data set on the Hub."
Data = Annotated[str, Parameter(help=_DATA)]
Model = Annotated[
    str,
    Parameter(
        name=["--model", "--model-name-or-path"],
        help="Folder or Hub id of a causal language model; seedling: the demo model.",
    ),
]
Output = Annotated[
    Path | None,
    Parameter(
        name="--output-dir",
        help="Folder for the results; default: one under runs/, named after the command and the data.",
    ),
]
Shown = Annotated[
    Show, Parameter(help="Output: auto (bars in a terminal, else lines), lines, json or quiet.")
]
Baselines = Annotated[tuple[str, ...] | None, Parameter(consume_multiple=True, negative_iterable="no-")]


@app.command
def demo(*, output_dir: Path = Path("runs/demo"), show: Shown = "auto") -> None:
    """Run the paper's comparison offline, in minutes: four schemes, a synthetic task, the demo model.

    Args:
        output_dir: Folder for data, runs and report.
    """
    from femtune.comparison.demo import SETTINGS, changes, write_world
    from femtune.comparison.experiment import run_compare

    train_data, eval_data = write_world("rubric", output_dir / "data")
    settings = replace(SETTINGS, eval_data=str(eval_data))
    schemes = ("rejection:1", "rejection:4", "star", "pps")
    said = (
        "A rater's scores of 400 responses, no reasons given. A model of 1M parameters that can write\n"
        "reasons but does not know this rater learns to reason its way to the scores, in four ways.\n"
    )
    console().print(literal(said))
    result = run_compare(str(train_data), "seedling", schemes, 1, settings, output_dir, show)
    _show_comparison(result, show)
    for panel in changes(result.histories):
        console().print(panel)
    write_report(output_dir, show)
    tell("read all draws", f"femtune view {output_dir}")
    tell("everything is in", output_dir)
    tell("the data", output_dir / "data")
    asked = "--task judge --raters named --scale 1,5"
    flags = (
        "--model seedling --max-new-tokens 64 --learning-rate 3e-4 --num-train-epochs 2 "
        "--per-device-train-batch-size 32 --iterations 12"
    )
    tell("continue, as with your own data", f"femtune train {train_data} {asked} {flags}")
    tell("next, a pretrained model in half an hour", "make demo-real (docs/guides/pretrained.md)")


@app.command
def train(
    data: Data,
    *,
    model: Model,
    settings: Train | None = None,
    scheme_data: SchemeData = None,
    output_dir: Output = None,
    show: Shown = "auto",
) -> None:
    """Train a model to reason its way to the answers: E-step, M-step, evaluation, repeated.

    femtune train ratings.csv --model Qwen/Qwen3-1.7B --task judge --scale 1,5

    DATA is a file, a folder of shards, or a data set on the Hub: see --task for its columns. The same
    command resumes a run that was stopped.
    """
    from femtune.workflows.train import run_train

    with showing(show) as progress:
        scheme = read_scheme(scheme_data)
        result = run_train(data, model, settings or Train(), output_dir, progress, scheme=scheme)
    if show in ("auto", "lines"):
        for line in summary(result.history, result.difference):
            console().print(literal(line), soft_wrap=True)
        tell(f"best model ({describe_best(result.history)})", result.best)
        tell("last model", result.last)
        tell("draws, examples, metrics", result.run)
        tell("next", f"femtune predict new.csv --model {result.run} --output scores.csv")
    write_report(result.run, show)


@app.command
def compare(
    data: Data,
    *,
    model: Model,
    schemes: Names = ("rejection:1", "rejection:4", "star", "pps"),
    seeds: int = 1,
    baselines: Baselines = None,
    baseline_draws: int = 16,
    rl: RL | None = None,
    settings: Train | None = None,
    output_dir: Output = None,
    workers: int | None = None,
    show: Shown = "auto",
) -> None:
    """Run schemes on the same problems with the same settings, and print one table.

    --baselines majority votes direct answer-only regression add models that did not learn to reason.
    By default all that suit the task run; --no-baselines runs none. Votes and regression take
    --baseline-draws rationales per problem. --baselines grpo rloo latro add reinforcement learning.
    With several seeds, each number has a 95% interval.

    Args:
        schemes: Schemes to run; default: rejection:1 rejection:4 star pps.
        seeds: Number of seeds for each scheme, from --seed on.
        baselines: Baselines beside the schemes; default: all that suit the task.
        baseline_draws: Rationales per problem for votes and regression.
        workers: Runs at the same time; default: one for each core, and 1 on a GPU.
    """
    from femtune.comparison.experiment import run_compare

    result = run_compare(
        data,
        model,
        schemes,
        seeds,
        settings or Train(),
        output_dir,
        show,
        baselines=baselines,
        draws=baseline_draws,
        rl=rl,
        workers=workers,
    )
    _show_comparison(result, show)
    if show in ("auto", "lines"):
        tell("runs and compare.json", result.folder)
    write_report(result.folder, show)


def _show_comparison(result: CompareResult, show: Show) -> None:
    """Print the table of a comparison and its notes."""
    from femtune.comparison.table import rows, table

    if show == "json":
        print(result.stored.read_text(), end="")
    elif show != "quiet":
        console().print(plain_table(*table(rows(result.histories))))
        if result.differences:
            console().print(plain_table(*result.difference_table))
        for note in result.notes:
            console().print(literal(note), soft_wrap=True)


@app.command
def sample(
    data: Data,
    *,
    model: Model,
    settings: Sample | None = None,
    scheme_data: SchemeData = None,
    output_dir: Output = None,
    show: Shown = "auto",
) -> None:
    """Run only the E-step: store rationales that lead to the correct answers as a data set."""
    from femtune.workflows.sample import run_sample

    with showing(show) as progress:
        scheme = read_scheme(scheme_data)
        result = run_sample(data, model, settings or Sample(), output_dir, progress, scheme=scheme)
    of_groups = ("kept_by", "kept_scores") if show != "json" else ()
    shown = {name: value for name, value in result.metrics.items() if name not in of_groups}
    show_metrics(shown, show)
    if show in ("auto", "lines"):
        tell("examples (prompt, completion, weight)", result.examples)
        tell("all draws, kept or not", result.draws)
        tell("what was kept, by group", f"femtune refilter {result.run}")


@app.command
def fit(
    examples: Path,
    *,
    model: Model,
    output_dir: Path,
    training: Flat[Training] | None = None,
    seed: int = 0,
    show: Shown = "auto",
) -> None:
    """Run only the M-step: fine-tune on examples (.parquet, .jsonl: prompt, completion, weight).

    On several GPUs: accelerate launch -m femtune fit, or torchrun --nproc-per-node 8 -m femtune fit.

    Args:
        examples: File of examples: prompt, completion and, optionally, weight.
        output_dir: New folder for the model.
        seed: Seed of the order of examples and of new adapters.
    """
    from femtune.workflows.fit import run_fit

    if int(os.environ.get("RANK", "0")):  # only the first process of a job prints
        show = "quiet"
    with showing(show) as progress:
        result = run_fit(examples, model, training or Training(), output_dir, seed, progress)
    show_metrics(result.metrics, show)
    if show in ("auto", "lines"):
        tell("model", output_dir)


@app.command
def evaluate(
    data: Data,
    *,
    model: Model,
    settings: Evaluate | None = None,
    reader_problems: int = 0,
    output: Path | None = None,
    output_dir: Output = None,
    show: Shown = "auto",
) -> None:
    """Measure how well a model answers held-out problems, with intervals.

    --output, .jsonl, .parquet or .csv, is a file for the prediction of each item beside its input row.

    With --reader-problems N, the base model reads the rationales of N problems. This measures how much
    they help it to the correct answer, and how much is copied from the prompt.

    Args:
        reader_problems: Problems whose rationales the base model reads; 0: none.
        output: File for the predictions, .jsonl, .parquet or .csv; default: none.
    """
    from femtune.workflows.evaluate import run_evaluate

    with showing(show) as progress:
        chosen = settings or Evaluate()
        result = run_evaluate(
            data, model, chosen, output_dir, progress, reader_problems=reader_problems, output=output
        )
    show_metrics(result.metrics, show)
    if show in ("auto", "lines"):
        if result.counts is not None:
            console().print(literal(result.counts), soft_wrap=True)
            tell("predictions", output)
        tell("draws", result.draws)


@app.command
def predict(
    data: Annotated[str, Parameter(allow_leading_hyphen=True, help=_DATA)],  # which - is
    *,
    model: Model,
    settings: Predict | None = None,
    output: Path | None = None,
) -> None:
    """Answer new items from several rationales each, with a confidence for each answer.

    DATA is a file, a data set on the Hub, or - for JSON lines on standard input, --chunk-size at a time.
    Each item gives a JSON line on standard output, or a row of --output, .jsonl, .parquet or .csv: the
    columns of its input row, then id, answer, confidence, abstained, no_answer, num_answered, votes,
    aggregate, probabilities, distribution, expected, consistent, rationale. An answer is null where
    no_answer says why. With --output the draws and probabilities are stored beside it, and the same
    command resumes a stopped one.

    Args:
        output: File for the predictions, .jsonl, .parquet or .csv; default: standard output.
    """
    from femtune.workflows import predict, prediction_files

    chosen = settings or Predict()
    if output is not None:
        result = predict.predict_into(data, model, chosen, output)
        console().print(literal(result.counts), soft_wrap=True)
        tell("predictions", result.output)
        if result.draws is not None:
            tell("their draws", result.draws)
        return
    counts = prediction_files.PredictionCounts()
    for item in predict.predictions(data, model, chosen, counts):
        line = prediction_files.as_line(item)
        line = line if is_utf8(sys.stdout) else ascii_of(line)
        print(visible(line) if console().is_terminal else line, flush=True)
    errors().print(literal(counts), soft_wrap=True)


@app.command
def calibrate(
    data: Data,
    *,
    model: Model,
    output: Path | None = None,
    settings: Calibrate | None = None,
    output_dir: Output = None,
    show: Shown = "auto",
) -> None:
    """Fit a map of votes or probabilities to calibrated ones, which predict then applies.

    DATA is a validation split, separate from training and test data. The measures after calibration are
    cross-fitted over five folds. The stored map is fitted to all items.

    Args:
        output: New file for the map, .json; default: calibration.json in the model's folder.
    """
    from femtune.workflows.calibrate import run_calibrate

    with showing(show) as progress:
        result = run_calibrate(data, model, settings or Calibrate(), output, output_dir, progress)
    show_metrics(result.metrics, show)
    if show in ("auto", "lines"):
        tell("calibration", result.calibration)
        if output is None:
            tell("predict applies it", f"femtune predict new.csv --model {model} --output scores.csv")


@app.command
def merge(model: str, *, output_dir: Path) -> None:
    """Merge a LoRA adapter into its base, for programs that take whole models only.

    The new folder is in the base's dtype, and has the settings and the calibration of the adapter's.

    Args:
        model: Folder of an adapter or of a run, or an adapter's id on the Hub.
        output_dir: New folder for the whole model.
    """
    tell("model", merge_adapter(model, output_dir))


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
    """Write the rows of a synthetic task as train.jsonl and test.jsonl.

    Use rubric and raters with --task judge, tldr and tldr-axis with summarize, sums with math, quiz with
    choice.

    Args:
        name: Synthetic task: rubric, raters, tldr, tldr-axis, sums or quiz.
        output_dir: Folder for train.jsonl and test.jsonl.
        num_train: Number of rows to train on.
        num_test: Number of held-out rows.
        seed: Seed of the rows.
        noise: Probability that an answer is wrong.
        difficulty: Smallest and largest difficulty of a problem; default: the task's.
    """
    from femtune.comparison.demo import write_world

    for path in write_world(name, output_dir, num_train, num_test, seed, noise, difficulty):
        tell("written", path)
    made = WORLDS[name]
    scale = f" --scale {made.options.scale}" if made.options.scale else ""
    raters = " --raters named" if made.options.raters == "named" else ""
    tell("read it with", f"--task {made.task}{raters}{scale}")


# --- output of commands
