"""Commands that inspect data, runs and draws, estimate costs, and publish results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from femtune.cli.output import tell
from femtune.cli.stored_scheme import SchemeData, read_scheme
from femtune.cli.train import Data, Model, Output, Shown, app
from femtune.config import Evaluate, Flat, Train
from femtune.errors import ConfigError, FemtuneError, RunError
from femtune.reporting.terminal import (
    Show,
    console,
    framed,
    literal,
    plain_table,
    showing,
)
from femtune.run_folder import check_new
from femtune.tools.estimate.estimate import EstimateOptions
from femtune.tools.refilter import Change


@app.command
def check(
    data: Data,
    *,
    model: Model,
    settings: Train | None = None,
    scheme_data: SchemeData = None,
    row: int = 1,
    draws: int = 32,
    try_: Annotated[bool, Parameter(name="--try", negative="--no-try")] = True,
    show: Shown = "auto",
) -> int:
    """Check data and prompts, draw some completions from the model, and suggest settings to change.

    Takes the settings of train. Shows the prompts for --row, the tokens in the loss, and, for --draws
    completions of each prompt, how many are answered, truncated or right.
    --no-try does not load the model. --show json prints one JSON object and nothing else.
    The last line says whether training can start; the exit status is 1 if it can't.

    Args:
        row: Number of the problem whose prompts are shown, from 1.
        draws: Completions to draw of each prompt.
        try_: Load the model and draw.
    """
    from femtune.tools import check_report, check_run

    try:
        found = check_run.run_check(
            data,
            model,
            settings or Train(),
            row=row,
            num_draws=draws,
            try_=try_,
            show=show,
            scheme=read_scheme(scheme_data),
        )
    except FemtuneError as error:
        if show == "json":
            print(json.dumps(check_report.refused_json(error)))
        error.args = (f"{error}\n{check_report.NOT_READY}",)
        raise
    return int(found.ready is False)


@app.command
def verify(
    runs: Annotated[Path, Parameter(name="RUN")],
    *,
    repair: bool = False,
    show: Shown = "auto",
) -> None:
    """Compare all files of a run with their checksums, and list damaged files.

    RUN is the folder of a run, or of several. --repair moves damaged files aside, so that the run's
    command creates them again.

    Args:
        runs: Folder of a run, or of several.
        repair: Move damaged files aside.
    """
    from femtune.tools.verify import runs_in

    found = runs_in(runs) if runs.is_dir() else []
    if not found:
        raise ConfigError(
            f"{runs} holds no run. Give the folder of a run; `femtune check` is for a data set."
        )
    _check_runs(found, repair, show)


def _check_runs(runs: Sequence[Path], repair: bool, show: Show) -> None:
    """Verify runs. Raises RunError if one stays damaged."""
    from femtune.tools import verify

    num_bad = 0
    for run in runs:
        found = verify.check_up(run)
        if show == "json":
            print(verify.as_json(found))
        elif show != "quiet":
            for is_well, what, text in verify.lines(found):
                console().print(literal(f"{'✓' if is_well else '!'} {what:<16}{text}"), soft_wrap=True)
        set_aside = verify.repair(found) if repair else []
        if show in ("auto", "lines"):
            for path in set_aside:
                tell("set aside", path)
        num_bad += sum(not (repair and fault.remedy) for fault in found.faults)
        if set_aside and show in ("auto", "lines"):
            console().print(literal("The run's own command makes them again."))
    if num_bad:
        advice = "" if repair else "; --repair sets aside what can be made again"
        raise RunError(f"{num_bad} files are damaged{advice}.")


@app.command
def estimate(
    data: Data,
    *,
    model: Model,
    options: Flat[EstimateOptions] | None = None,
    settings: Train | None = None,
    scheme_data: SchemeData = None,
    show: Shown = "auto",
) -> None:
    """Estimate what `train` would take with the same settings: tokens, FLOPs, memory, time, cost.

    Loads no weights, unless --measure benchmarks some problems. For a model on the Hub it downloads
    only the config, the tokenizer and the list of weights.
    """
    from femtune.tools.estimate.estimate import look_ahead
    from femtune.tools.estimate.table import as_json, notes, table

    scheme = read_scheme(scheme_data)
    found = look_ahead(data, model, settings or Train(), options or EstimateOptions(), scheme)
    if show == "json":
        print(json.dumps(as_json(found)))
    elif show != "quiet":
        console().print(plain_table(*table(found)))
        for note in notes(found):
            console().print(literal(note), soft_wrap=True)


@app.command
def refilter(
    run: Path,
    *,
    change: Flat[Change] | None = None,
    iteration: int | None = None,
    output_dir: Annotated[Path | None, Parameter(help="Folder for the examples; default: none.")] = None,
    train: bool = False,
    model: Annotated[str | None, Parameter(name=["--model", "--model-name-or-path"])] = None,
    show: Shown = "auto",
) -> None:
    """Filter the stored draws of RUN again, with another threshold, reward or balance.

    RUN is the folder of a train or sample run; nothing is written into it. --output-dir stores the
    examples. --train trains on them, from the weights that the iteration started from, or --model.

    Args:
        run: Folder of a train or sample run.
        iteration: Iteration to filter; default: the last one.
        train: Train on the examples.
        model: Weights to train from; default: those that the iteration started from.
    """
    from femtune.tools import refilter as again
    from femtune.tools import refilter_report

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
        console().print(plain_table(*refilter_report.table(report)))
        for note in refilter_report.notes(report):
            console().print(literal(note), soft_wrap=True)
    if show in ("auto", "lines") and output_dir is not None:
        tell("examples (prompt, completion, weight)", output_dir / "examples.parquet")
        if train:
            tell("model", output_dir / "model")


@app.command
def bias(
    data: Data,
    *,
    model: Model,
    settings: Evaluate | None = None,
    output_dir: Output = None,
    show: Shown = "auto",
) -> None:
    """Measure known biases of a judge on held-out items: length, order, padding, self-praise.

    Altered items are asked beside the originals, which takes three times the draws of evaluate, for
    ratings and for pairs.
    """
    from femtune.tools.judge_biases import measure_biases, table

    with showing(show) as progress:
        folder, metrics = measure_biases(data, model, settings or Evaluate(), output_dir, progress)
    if show == "json":
        print(json.dumps(metrics))
    elif show != "quiet":
        console().print(plain_table(*table(metrics)))
        for finding in metrics["findings"]:
            console().print(literal(finding), soft_wrap=True)
    if show in ("auto", "lines"):
        tell("draws", folder)


@app.command
def replay(
    run: Path,
    *,
    draw: str,
    eval_: Annotated[bool, Parameter(name="--eval", negative=())] = False,
    device: str | None = None,
    show: Shown = "auto",
) -> None:
    """Repeat a stored draw with its seed and its weights, and compare the result.

    --draw takes ITERATION/PROBLEM/STAGE/INDEX, or ITERATION/PROBLEM for all draws of a problem. --eval
    selects draws of the evaluation.

    Args:
        run: Folder of a run.
        draw: Draw to repeat: ITERATION/PROBLEM or ITERATION/PROBLEM/STAGE/INDEX.
        eval_: Take a draw of the evaluation.
        device: Device: cpu, cuda or cuda:1; default: a GPU if there is one.
    """
    from femtune.tools import replay as again

    num_other = 0
    for found in again.replay(run, draw, kind="eval" if eval_ else "draws", device=device):
        num_other += not found.same
        if show == "json":
            print(json.dumps(again.as_json(found)))
        elif show != "quiet":
            mark = "✓" if found.same else "!"
            console().print(literal(f"{mark} {again.told(found)}"), soft_wrap=True)
            texts = [found.stored.completion.text] + [found.completion.text] * (not found.same)
            for title, text in zip(("stored", "drawn again"), texts, strict=False):
                console().print(framed(literal(text), title))
    if num_other:
        raise RunError(f"{num_other} draws differ from the stored ones.")


@app.command
def report(runs: Annotated[list[Path], Parameter(negative=())], *, output: Path | None = None) -> None:
    """Write one HTML page with the results of RUNS: accuracy, figures, and rationales to read.

    RUNS are folders of train, shown side by side, or a folder of compare or demo. The page is
    report.html in the first one, or --output. It needs no network, and an existing page is replaced.

    Args:
        runs: Folders of train runs, or one folder of compare or demo.
        output: File for the page; default: report.html in the first folder.
    """
    from femtune.reporting.page.render import report as run

    tell("report", run(runs, output))


@app.command
def demos(
    run: Path,
    *,
    output: Path,
    number: int = 4,
    iteration: int | None = None,
) -> None:
    """Choose worked examples from the draws that a run kept: right, short, and of different answers.

    RUN is the folder of a train or sample run. Use the file as --demos for another data set: an example
    whose prompt is in the data is refused there.

    Args:
        run: Folder of a train or sample run.
        output: New file for the worked examples, .jsonl.
        number: Number of worked examples.
        iteration: Iteration whose draws are taken; default: the last one.
    """
    from femtune.data.demos import save_demos
    from femtune.tools.own_demos import own_demos

    check_new(output, "--output")
    chosen = own_demos(run, number, iteration)
    save_demos(output, chosen)
    for each in chosen:
        console().print(framed(literal(each.completion), f"answer {each.answer}"))
    tell("worked examples", output)


@app.command
def view(
    *run: Path,
    port: int = 0,
    open_browser: Annotated[bool, Parameter(name="--open", negative="")] = False,
) -> None:
    """Browse all draws of runs on a local web page: filter, compare, export. Ctrl-C stops it.

    RUN is one or several folders of train, sample, evaluate or compare; nothing is written there.
    --port 0 selects a free port; --open opens a browser.

    Args:
        run: Folders of train, sample, evaluate or compare.
        port: Port of the page; 0: any free one.
        open_browser: Open a browser.
    """
    from femtune.reporting.browser.serve import view as serve

    serve(run, port, open_browser, lambda address: tell("read the draws at", address))


@app.command
def push(
    run: Path,
    repo: str,
    *,
    what: Literal["model", "data"] = "model",
    which: Literal["best", "last"] = "best",
    draws: bool = False,
    private: bool = False,
    dry_run: bool = False,
) -> None:
    """Upload a run's model, or its rationales, with a card to the Hugging Face Hub.

    RUN is the folder of a train run, or with --what data of a sample run; REPO is owner/name. The files
    are listed first; --dry-run stops there. --draws adds all draws to the data, kept or not. --private
    makes a new repository private. The token comes from `hf auth login` or HF_TOKEN.

    Args:
        run: Folder of a train run, or of a sample run for data.
        repo: Name of the repository on the Hub: owner/name.
        what: Part of the run to upload: its model, or its rationales as data.
        which: Model to upload: the best by the development part, or the last.
        draws: Add all draws to the data, kept or not.
        private: Make a new repository private.
        dry_run: List the files, and upload nothing.
    """
    from femtune.reporting import hub

    if not dry_run:
        hub.check_ready()
    upload = hub.pack(run, repo, what, which, draws=draws)
    sizes = upload.sizes()
    rows = [[name, f"{size:,}"] for name, size in [*sizes.items(), ("all", sum(sizes.values()))]]
    console().print(plain_table(["file", "bytes"], rows))
    if upload.note:
        console().print(literal(upload.note), soft_wrap=True)
    if not dry_run:
        tell("sent to", hub.send(upload, private=private))
