"""The command line: a verb, a file of settings if there is one, and flags that override it.

femtune train judge.jsonl --model Qwen/Qwen3-1.7B --config run.yaml --iterations 4
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Dict

from femtune import stopping
from femtune.errors import ConfigError, DataError, FemtuneError, RunError
from femtune.formats import Unreadable, read_yaml

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

from femtune.config import Calibrate, Evaluate, Flat, Names, Predict, Sample, Train
from femtune.costs.outlook import Wish
from femtune.progress import (
    Show,
    console,
    errors,
    framed,
    literal,
    plain_table,
    showing,
    summary,
)
from femtune.refilter import Change
from femtune.training import Training
from femtune.words import brief, visible

app = App(
    name="femtune",
    help="Learn to reason from questions and correct answers alone, by filtered EM.",
    default_parameter=Parameter(negative_iterable=(), negative_none=()),
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # `main` says what it means
)

Model = Annotated[str, Parameter(name=["--model", "--model-name-or-path"])]
Output = Annotated[Path | None, Parameter(name="--output-dir")]
Baselines = Annotated[tuple[str, ...] | None, Parameter(consume_multiple=True, negative_iterable="no-")]


@app.command
def demo(*, output_dir: Path = Path("runs/demo"), show: Show = "auto") -> None:
    """The paper's comparison, offline, in minutes: four schemes, the rubric world, the seedling."""
    from femtune.demo import SETTINGS, changes, write_world

    train_data, eval_data = write_world("rubric", output_dir / "data")
    settings = replace(SETTINGS, eval_data=str(eval_data))
    schemes = ("rejection:1", "rejection:4", "star", "pps")
    said = (
        "A rater's scores of 400 responses, no reasons given. A model of 1M parameters that can write\n"
        "reasons but does not know this rater learns to reason its way to the scores, in four ways.\n"
    )
    console.print(literal(said))
    histories = _compare(str(train_data), "seedling", schemes, 1, settings, output_dir, None, show)
    for panel in changes(histories):
        console.print(panel)
    _write_report(output_dir, show)
    _tell("read all draws", f"femtune view {output_dir}")
    _tell("everything is in", output_dir)
    _tell("the data", output_dir / "data")
    asked = "--task judge --raters named --scale 1,5"
    flags = "--model seedling --max-new-tokens 64 --learning-rate 3e-4 --iterations 12"
    _tell("go on, as with data of your own", f"femtune train {train_data} {asked} {flags}")


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
        for line in summary(result.history):
            console.print(literal(line), soft_wrap=True)
        _tell("model", result.model)
        _tell("draws, examples, metrics", result.run)
    _write_report(result.run, show)


@app.command
def compare(
    data: str,
    *,
    model: Model,
    schemes: Names = ("rejection:1", "rejection:4", "star", "pps"),
    seeds: int = 1,
    baselines: Baselines = None,
    baseline_draws: int = 16,
    settings: Train | None = None,
    output_dir: Output = None,
    workers: int | None = None,
    show: Show = "auto",
) -> None:
    """Run schemes on the same problems with the same settings, and give one table.

    Beside them: judges that did not learn to reason, --baselines majority votes answer-only regression
    (by default those that suit the task; --no-baselines: none); votes and regression take
    --baseline-draws rationales of each problem. With several seeds each number has its 95% interval.
    """
    place = output_dir or Path("runs") / f"compare-{Path(data).stem}"
    own = settings or Train()
    _compare(data, model, schemes, seeds, own, place, workers, show, baselines, baseline_draws)
    if show in ("auto", "lines"):
        _tell("runs and compare.json", place)
    _write_report(place, show)


def _compare(
    data: str,
    model: str,
    schemes: Sequence[str],
    seeds: int,
    settings: Train,
    place: Path,
    workers: int | None,
    show: Show,
    baselines: Sequence[str] | None = (),
    draws: int = 16,
) -> Any:
    from femtune import compare as runs
    from femtune.baselines import chosen
    from femtune.watch import Watch

    todo = runs.jobs(schemes, seeds, settings, place, chosen(baselines, settings), draws)
    with Watch(show) as watch:
        histories = runs.compare(data, model, todo, workers=workers, watch=watch)
    stored = runs.save(place, histories)
    if show == "json":
        print(stored.read_text(), end="")
    elif show != "quiet":
        console.print(plain_table(*runs.table(runs.rows(histories))))
        for note in runs.notes(histories):
            console.print(literal(note), soft_wrap=True)
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
    of_groups = ("kept_by", "kept_scores") if show != "json" else ()
    _report({name: value for name, value in metrics.items() if name not in of_groups}, show)
    if show in ("auto", "lines"):
        _tell("examples (prompt, completion, weight)", folder / "examples.parquet")
        _tell("all draws, kept or not", folder / "draws")
        _tell("what was kept, by group", f"femtune refilter {folder.parent}")


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
    """The M-step alone: fine-tune on examples (.parquet, .jsonl: prompt, completion, weight).

    On several GPUs: accelerate launch -m femtune fit, or torchrun --nproc-per-node 8 -m femtune fit.
    """
    from femtune.commands import fit as run

    if int(os.environ.get("RANK", "0")):  # one process of a job tells what all do
        show = "quiet"
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
def probe(
    data: str,
    *,
    model: Model,
    settings: Evaluate | None = None,
    output_dir: Output = None,
    show: Show = "auto",
) -> None:
    """Known biases of a judge on held-out items: length, order, padding, self-praise.

    Altered items are asked beside the originals: three times the draws of evaluate for ratings, and
    for pairs too.
    """
    from femtune.probes import probe as run
    from femtune.probes import table

    with showing(show) as progress:
        folder, metrics = run(data, model, settings or Evaluate(), output_dir, progress)
    if show == "json":
        print(json.dumps(metrics))
    elif show != "quiet":
        console.print(plain_table(*table(metrics)))
        for finding in metrics["findings"]:
            console.print(literal(finding), soft_wrap=True)
    if show in ("auto", "lines"):
        _tell("draws", folder)


@app.command
def refilter(
    run: Path,
    *,
    change: Flat[Change] | None = None,
    iteration: int | None = None,
    output_dir: Output = None,
    train: bool = False,
    model: Annotated[str | None, Parameter(name=["--model", "--model-name-or-path"])] = None,
    show: Show = "auto",
) -> None:
    """What another threshold, reward or balance would have kept of the draws that RUN has stored.

    RUN is the folder of a train or sample; nothing is written into it. --output-dir writes the
    examples, and --train fits them, from the weights that the iteration started from, or from --model.
    """
    from femtune import refilter as again

    with showing(show) as progress:
        if train:
            progress.phase("M-step", iteration or 0, 0)
        report = again.refilter(
            run,
            change or Change(),
            iteration=iteration,
            output_dir=output_dir,
            train=train,
            model=model,
            on_step=progress.step,
        )
    if show == "json":
        print(json.dumps(report))
    elif show != "quiet":
        console.print(plain_table(*again.table(report)))
        for note in again.notes(report):
            console.print(literal(note), soft_wrap=True)
    if show in ("auto", "lines") and output_dir is not None:
        _tell("examples (prompt, completion, weight)", output_dir / "examples.parquet")
        if train:
            _tell("model", output_dir / "model")


@app.command
def predict(
    data: Annotated[str, Parameter(allow_leading_hyphen=True)],  # which - is
    *,
    model: Model,
    settings: Predict | None = None,
    output: Path | None = None,
) -> None:
    """Answer new items by the vote of several rationales, and say how sure the vote is.

    DATA is a file, a data set of the Hub, or - for lines of JSON as they come, --chunk-size at a time.
    A JSON line for each item goes to standard output, or to --output, .jsonl or .parquet: id, answer,
    confidence, abstained, num_answered, votes, distribution, expected, consistent, rationale. With
    --output the draws are stored beside it, and the same command goes on where it was stopped.
    """
    from femtune.predictions import as_line, predict_into
    from femtune.predictions import predict as run

    chosen = settings or Predict()
    if output is not None:
        draws = predict_into(data, model, chosen, output)
        _tell("predictions", output)
        if draws is not None:
            _tell("their draws", draws)
        return
    for item in run(data, model, chosen):
        line = as_line(item)
        print(visible(line) if console.is_terminal else line, flush=True)


@app.command
def calibrate(
    data: str,
    *,
    model: Model,
    output: Path,
    settings: Calibrate | None = None,
    output_dir: Output = None,
    show: Show = "auto",
) -> None:
    """Fit what shares of votes are worth as probabilities, for evaluate and predict --calibration.

    DATA is a validation split: neither trained on nor tested on. The measures after are cross-fitted:
    of each fifth of the items under a map of the others. What is stored is the map of all items.
    """
    from femtune.commands import calibrate as run

    with showing(show) as progress:
        metrics = run(data, model, settings or Calibrate(), output, output_dir, progress)
    _report(metrics, show)
    if show in ("auto", "lines"):
        _tell("calibration", output)


@app.command
def doctor(
    data: str,
    *,
    model: Annotated[str | None, Parameter(name=["--model", "--model-name-or-path"])] = None,
    settings: Train | None = None,
    row: int = 1,
    draw: bool = True,
    mend: bool = False,
    show: Show = "auto",
) -> None:
    """Check a setup in seconds, and show what the model is asked and what the loss will see.

    Looks at the problem of --row more closely; --no-draw does not load the model's weights.

    Of a run's folder in place of data: verify all that is stored against its checksums, and say what is
    damaged and what can be made again. --mend sets damaged files aside, so that the run's command makes
    them.
    """
    from femtune import doctor as checks
    from femtune.checkup import runs_in

    if Path(data).is_dir() and (runs := runs_in(Path(data))):
        _check_runs(runs, mend, show)
        return
    if model is None:
        raise ConfigError(f"doctor {data} needs --model; or give it the folder of a run to verify.")
    if mend:
        raise ConfigError(f"--mend is for the folder of a run, and {data} is none.")
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


def _check_runs(runs: Sequence[Path], mend: bool, show: Show) -> None:
    """Verify runs. Raises RunError where one stays damaged."""
    from femtune import checkup

    num_bad = 0
    for run in runs:
        found = checkup.check_up(run)
        if show == "json":
            print(checkup.as_json(found))
        elif show != "quiet":
            for is_well, what, text in checkup.lines(found):
                console.print(literal(f"{'✓' if is_well else '!'} {what:<16}{text}"), soft_wrap=True)
        set_aside = checkup.mend(found) if mend else []
        if show in ("auto", "lines"):
            for path in set_aside:
                _tell("set aside", path)
        num_bad += sum(not (mend and fault.remedy) for fault in found.faults)
        if set_aside and show in ("auto", "lines"):
            console.print(literal("The run's own command makes them again."))
    if num_bad:
        advice = "" if mend else "; --mend sets aside what can be made again"
        raise RunError(f"{num_bad} files are damaged{advice}.")


@app.command
def replay(
    run: Path,
    *,
    draw: str,
    eval_: Annotated[bool, Parameter(name="--eval", negative=())] = False,
    device: str | None = None,
    show: Show = "auto",
) -> None:
    """Draw a stored draw once more, with its seed and the weights that drew it, and compare.

    --draw takes ITERATION/PROBLEM/STAGE/INDEX, or ITERATION/PROBLEM for all draws of a problem; --eval
    looks for it among the evaluation's.
    """
    from femtune import replay as again

    num_other = 0
    for found in again.replay(run, draw, kind="eval" if eval_ else "draws", device=device):
        num_other += not found.same
        if show == "json":
            print(json.dumps(again.as_json(found)))
        elif show != "quiet":
            mark = "✓" if found.same else "!"
            console.print(literal(f"{mark} {again.told(found)}"), soft_wrap=True)
            texts = [found.stored.completion.text] + [found.completion.text] * (not found.same)
            for title, text in zip(("stored", "drawn again"), texts, strict=False):
                console.print(framed(literal(text), title))
    if num_other:
        raise RunError(f"{num_other} draws are not what was stored.")


@app.command
def plan(
    data: str,
    *,
    model: Model,
    wish: Flat[Wish] | None = None,
    settings: Train | None = None,
    show: Show = "auto",
) -> None:
    """What `train` would take with the same settings: draws, tokens, FLOPs, memory, time, money.

    Loads no weights, unless --measure tries some problems out. Of a model on the Hub only config,
    tokenizer and the list of its weights are fetched.
    """
    from femtune.costs import outlook

    found = outlook.look_ahead(data, model, settings or Train(), wish or Wish())
    if show == "json":
        print(json.dumps(outlook.as_json(found)))
    elif show != "quiet":
        console.print(plain_table(*outlook.table(found)))
        for note in outlook.notes(found):
            console.print(literal(note), soft_wrap=True)


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
    """Write the rows of a world as train.jsonl and test.jsonl, in the form of its task's data sets.

    rubric and raters are for the task judge, tldr and tldr-axis for summarize, sums for math, quiz for
    choice.
    """
    from femtune.demo import write_world
    from femtune.worlds import WORLDS

    for path in write_world(name, output_dir, num_train, num_test, seed, noise, difficulty):
        _tell("written", path)
    made = WORLDS[name]
    scale = f" --scale {made.options.scale}" if made.options.scale else ""
    raters = " --raters named" if made.options.raters == "named" else ""
    _tell("read it with", f"--task {made.task}{raters}{scale}")


@app.command
def push(
    run: Path,
    repo: str,
    *,
    what: Literal["model", "data"] = "model",
    which: Literal["best", "last"] = "last",
    draws: bool = False,
    private: bool = False,
    dry_run: bool = False,
) -> None:
    """Send a run's model, or its rationales, with their card to the Hugging Face Hub.

    RUN is the folder of a train, or for --what data of a sample; REPO is owner/name. What is sent is
    shown first; --dry-run ends there. --draws sends all draws with the data, kept or not; --private
    makes a new repository private. The token is that of `hf auth login` or of HF_TOKEN.
    """
    from femtune import push as hub

    if not dry_run:
        hub.check_ready()
    parcel = hub.pack(run, repo, what, which, draws=draws)
    sizes = parcel.sizes()
    rows = [[name, f"{size:,}"] for name, size in [*sizes.items(), ("all", sum(sizes.values()))]]
    console.print(plain_table(["file", "bytes"], rows))
    if parcel.note:
        console.print(literal(parcel.note), soft_wrap=True)
    if not dry_run:
        _tell("sent to", hub.send(parcel, private=private))


@app.command
def report(runs: Annotated[list[Path], Parameter(negative=())], *, output: Path | None = None) -> None:
    """One HTML page of what RUNS learnt: the result, figures, and rationales to read.

    RUNS are directories of train, which then stand side by side, or a folder of compare or demo. The
    page is report.html there, or --output; it is made of the runs' files, needs no network, and is
    replaced where it is there already.
    """
    from femtune.report.page import report as run

    _tell("report", run(runs, output))


def _write_report(place: Path, show: Show) -> None:
    """The report of a run that has just ended: where it fails, the run has not."""
    try:
        from femtune.report.page import report as run

        written = run([place])
    except Exception as error:
        logging.getLogger("femtune").warning(f"the report could not be made: {error}")
        return
    if show in ("auto", "lines"):
        _tell("report", written)


@app.command
def view(
    *run: Path,
    port: int = 0,
    open_browser: Annotated[bool, Parameter(name="--open", negative="")] = False,
) -> None:
    """Read what a model drew, all of it, on a local page: filter, compare, export. Ctrl-C ends it.

    RUN is the folder of a train, sample, evaluate or compare, or several; nothing is written there.
    --port 0 is a free one; --open opens a browser.
    """
    from femtune.view.serve import view as serve

    serve(run, port, open_browser, lambda address: _tell("read the draws at", address))


def _report(metrics: Mapping[str, Any], show: Show) -> None:
    """Metrics, a line each: with their interval, or why they are undefined."""
    if show == "json":
        print(json.dumps(metrics))
    elif show != "quiet":
        why = metrics.get("undefined", {})
        for name, value in metrics.items():
            if name.endswith("_ci") or name == "undefined":
                continue
            shown = f"{value:.3f}" if isinstance(value, float) else json.dumps(value)
            if (interval := metrics.get(f"{name}_ci")) is not None:
                shown += f"  {interval[0]:.3f} to {interval[1]:.3f}"
            console.print(literal(f"{name:<22}{f'undefined: {why[name]}' if name in why else shown}"))


def _finding(finding: Any) -> Any:
    text = literal(f"{'!' if finding.warning else '✓'} {finding.what:<16}{finding.found}")
    warning = f"\n  {finding.warning}" if finding.warning else ""
    return text.append_text(literal(warning, "yellow"))


def _tell(what: str, where: object) -> None:
    console.print(literal(f"{what}: {where}"), soft_wrap=True)


class _Warn(logging.Handler):
    """Shows warnings as the rest is shown, above a bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        errors.print(literal(f"! {record.getMessage()}", "yellow"), soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit status: 1 for what femtune refuses, 130 for Ctrl-C.

    After the first Ctrl-C, or a SIGTERM, what is in flight is finished and stored: see stopping.py.
    """
    log = logging.getLogger("femtune")
    if not any(isinstance(handler, _Warn) for handler in log.handlers):
        log.addHandler(_Warn(logging.WARNING))
        log.propagate = False
    arguments = [_dashed(word) for word in (sys.argv[1:] if argv is None else argv)]
    try:
        name, settings = _take_config(arguments)
        known = _for_command(settings, arguments[:1])
        app.config = (Dict(known, source=name, use_commands_as_keys=False),) if known else ()
        with stopping.graceful():
            app(arguments, exit_on_error=False, print_error=False, result_action="return_none")
        sys.stdout.flush()  # here, where a closed pipe is caught
    except (FemtuneError, CycloptsError) as error:
        kind = type(error) if isinstance(error, FemtuneError) else ConfigError
        # cyclopts names a key of the file in brackets, "[iterationz]" from run.yaml, and its whole value
        text = str(error)
        if kind is not type(error):
            text = brief(re.sub(r'"?\[(\w+)\]"?', r"\1", text), 1000)
        errors.print(literal(f"{kind.__name__}: {text}"), soft_wrap=True)
        return 1
    except BrokenPipeError:  # the reader of our output, `head` say, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as stop:
        errors.print(literal("Stopped. What is stored stays; the same command goes on from there."))
        return stop.status if isinstance(stop, stopping.Stopped) else 130
    return 0


def _take_config(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """Name and content of the file of --config, taken out of the arguments; "" and {} without one.

    Raises ConfigError where it is no YAML of names and values.
    """
    at = next((i for i, word in enumerate(arguments) if word.partition("=")[0] == "--config"), None)
    if at is None:
        return "", {}
    _, equals, name = arguments.pop(at).partition("=")
    if not equals:
        name = arguments.pop(at) if at < len(arguments) else ""
    if not Path(name).is_file():
        raise ConfigError(f"--config takes a YAML file, and {name or 'nothing'} is none.")
    try:
        found = read_yaml(Path(name))
    except Unreadable as error:
        raise ConfigError(f"{name} {error}.") from error
    if found is not None and not isinstance(found, dict):
        raise ConfigError(f"{name} holds a {type(found).__name__}, expected lines of `name: value`.")
    if strange := [key for key in found or {} if not isinstance(key, str)]:
        raise ConfigError(f"{name} has the name {strange[0]!r}, expected words: lines of `name: value`.")
    return name, found or {}


def _for_command(settings: Mapping[str, Any], command: Sequence[str]) -> dict[str, Any]:
    """Settings without those of other commands, so that one file serves all, a run's own too.

    What no command knows stays, to be refused.
    """
    if not settings or not command or command[0].startswith("-") or command[0] not in app:
        return dict(settings)
    verbs = [verb for verb in app if not verb.startswith("-")]
    names = {
        verb: {name for each in app[verb].assemble_argument_collection() for name in each.names}
        for verb in verbs
    }
    others = {"--problems"}.union(*names.values()) - names[command[0]]  # a run's hash of its problems
    return {key: value for key, value in settings.items() if f"--{key.replace('_', '-')}" not in others}


def _dashed(word: str) -> str:
    """--output_dir as --output-dir: people of this field write both."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


if __name__ == "__main__":
    sys.exit(main())
