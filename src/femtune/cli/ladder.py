"""The command `femtune ladder`."""

from __future__ import annotations

from pathlib import Path

from femtune.cli.output import tell, write_report
from femtune.cli.train import Data, Model, Output, Shown, app
from femtune.comparison.ladder.options import LadderOptions
from femtune.config import Train


@app.command
def ladder(
    data: Data,
    *,
    model: Model,
    options: LadderOptions | None = None,
    answer: str | None = None,
    output: Path | None = None,
    settings: Train | None = None,
    output_dir: Output = None,
    show: Shown = "auto",
) -> None:
    """Say whether to train at all: run cheap ways to answer first, training last, and choose one.

    The rungs are majority, direct, base, examples, regression, votes, probabilities, chosen-examples,
    answer-only, fem, fem-votes and fem-probabilities. All are measured on the same held-out problems.
    Takes the settings of train. The same command resumes a ladder that was stopped.

    Args:
        answer: New items to answer like the chosen rung, a file or data set as DATA.
        output: File for these answers, .jsonl, .parquet or .csv.
    """
    from femtune.comparison.ladder.climb import run_ladder

    result = run_ladder(
        data,
        model,
        settings or Train(),
        output_dir,
        show,
        options or LadderOptions(),
        answer=answer,
        output=output,
    )
    if show == "json":
        print(result.stored.read_text(), end="")
    if show in ("auto", "lines"):
        tell("runs and ladder.json", result.folder)
    write_report(result.folder, show)
