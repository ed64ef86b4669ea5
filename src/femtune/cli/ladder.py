"""The command `femtune ladder`."""

from __future__ import annotations

from pathlib import Path

from femtune.cli.output import tell, write_report
from femtune.cli.train import Data, Model, Output, Shown, app
from femtune.config import Train


@app.command
def ladder(
    data: Data,
    *,
    model: Model,
    up_to: str | None = None,
    budget: str | None = None,
    draws: int = 16,
    margin: float = 0.02,
    price_prompt: float | None = None,
    price_generated: float | None = None,
    price_trained: float | None = None,
    answer: str | None = None,
    output: Path | None = None,
    settings: Train | None = None,
    output_dir: Output = None,
    show: Shown = "auto",
) -> None:
    """Say whether to train at all: run cheap ways to answer first, training last, and choose one.

    The rungs are majority, direct, base, examples, regression, votes, probabilities, answer-only, fem,
    fem-votes and fem-probabilities. All are measured on the same held-out problems. Takes the settings
    of train. The same command resumes a ladder that was stopped.

    Args:
        up_to: Last rung to run, for example votes; default: all.
        budget: Most time or generated tokens, for example 30m or "200k tokens"; default: no limit.
        draws: Rationales per held-out problem for votes and probabilities.
        margin: Accuracy by which a rung must be better to be worth its cost.
        price_prompt: Price of a million prompt tokens, which scored ones cost too.
        price_generated: Price of a million generated tokens.
        price_trained: Price of a million trained tokens.
        answer: New items to answer like the chosen rung, a file or data set as DATA.
        output: File for these answers, .jsonl, .parquet or .csv.
    """
    from femtune.comparison.ladder.climb import LadderOptions, run_ladder

    options = LadderOptions(
        up_to=up_to,
        budget=budget,
        draws=draws,
        margin=margin,
        price_prompt=price_prompt,
        price_generated=price_generated,
        price_trained=price_trained,
    )
    chosen = settings or Train()
    result = run_ladder(data, model, chosen, output_dir, show, options, answer=answer, output=output)
    if show == "json":
        print(result.stored.read_text(), end="")
    if show in ("auto", "lines"):
        tell("runs and ladder.json", result.folder)
    write_report(result.folder, show)
