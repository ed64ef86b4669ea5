"""Run the rungs of a ladder, the cheapest first, and say which one to use.

Each rung is a run in its own folder, and is stored as a whole once it is measured. So a ladder that was
stopped is resumed by the same command, where the stopped rung stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from femtune._util import interrupts
from femtune._util.atomic_files import write_json
from femtune._util.text import near
from femtune.comparison.ladder.answer import answer_like
from femtune.comparison.ladder.board import Board
from femtune.comparison.ladder.budget import Budget, Metered, parse_budget
from femtune.comparison.ladder.chosen_examples import with_examples_chosen
from femtune.comparison.ladder.cost import Prices, generated_tokens
from femtune.comparison.ladder.differences import against, all_pairs
from femtune.comparison.ladder.options import LadderOptions
from femtune.comparison.ladder.result import (
    FILE,
    LadderResult,
    as_stored,
    difference_lines,
    entries,
    sentences,
    table_lines,
)
from femtune.comparison.ladder.rungs import AFTER, RUNGS, Ground, measure, unsuitable
from femtune.comparison.ladder.store import (
    Rung,
    Spent,
    check_settings,
    finished,
    read_rung,
    row,
    save_rung,
    stored_settings,
)
from femtune.comparison.ladder.use import command
from femtune.comparison.ladder.verdict import decide
from femtune.config import CHANGEABLE, Train, given
from femtune.engines.model_files import local_model
from femtune.errors import ConfigError, DataError, NothingKept
from femtune.model_info import refuse_chat
from femtune.reporting.terminal import Show
from femtune.resolve import Data, make_loop_config, part, read_inputs, read_test
from femtune.run_folder import choose_peft, dated, fingerprint, resolved, shown_data
from femtune.runs.run import locked
from femtune.sampler import make_sampler_builder
from femtune.workflows.prediction_files import check_output
from femtune.workflows.worked_examples import without_held_out

ANSWERING = "--answer NEW.jsonl --output answers.jsonl"
_OF_CHOICE = ("num_examples", "selection_requests", "selection_tokens")  # settings of one rung alone
FEW = 200  # held-out problems, below which a ladder says that it can't see much


def run_ladder(
    data: Data,
    model: str,
    settings: Train,
    output_dir: str | Path | None,
    show: Show,
    options: LadderOptions,
    *,
    reward: Callable[..., Any] | None = None,
    answer: Data | None = None,
    output: Path | None = None,
) -> LadderResult:
    """Run the rungs that suit the data, within the budget, and choose one: see `verdict`.

    With `answer`, new items are answered like the chosen rung, into the file `output`.

    Raises what a run of `train` raises for its settings and data, ConfigError for an evaluation that is
    not greedy, DataError without held-out problems, and RunError if the folder holds another ladder.
    """
    if settings.m_step == "weights":
        refuse_chat(settings, "ladder")
    folder = Path(output_dir or Path("runs") / f"ladder-{Path(shown_data(data)).stem.replace(' ', '-')}")
    prices = _check(options)
    if (answer is None) != (output is None):
        raise ConfigError("answer names the new items and output the file for them: give both or none.")
    if output is not None:
        check_output(output)
    board = Board(show, prices)
    with _each_warning_once():
        ground = _prepare(data, model, settings, folder, options, reward)
        with locked(folder):
            check_settings(folder, _settings(ground, options))
            rungs, not_run = _climb(ground, options, board)
            result = _conclude(ground, rungs, not_run, options, settings, board, prices)
            if answer is None or output is None:
                return result
            chosen = next(rung for rung in rungs if rung.name == result.chosen)
            counts = answer_like(chosen, ground, answer, output)
            board.say(f"{counts}: {output}")
            return replace(result, answers=output)


def _check(options: LadderOptions) -> Prices:
    """Return the prices of a ladder's options. Raises ConfigError for options that are not possible."""
    up_to, margin = options.up_to, options.margin
    if up_to is not None and up_to not in RUNGS:
        known = ", ".join(RUNGS)
        raise ConfigError(f"up_to is {up_to!r}, no rung.{near(up_to, RUNGS)} There are {known}.")
    if options.draws < 2:
        raise ConfigError(f"draws must be at least 2, got {options.draws}: they vote.")
    if not 0 <= margin < 1:
        raise ConfigError(f"margin must be from 0 to 1, got {margin:g}: it is of accuracy.")
    parse_budget(options.budget)
    return Prices(options.price_prompt, options.price_generated, options.price_trained)


def _prepare(
    data: Data,
    model: str,
    settings: Train,
    folder: Path,
    options: LadderOptions,
    reward: Callable[..., Any] | None,
) -> Ground:
    """Read the inputs once for all rungs, and refuse what a rung would refuse."""
    if settings.eval_draws != 1 or settings.eval_temperature != 0:
        raise ConfigError(
            "a ladder compares greedy answers with greedy ones: leave out eval_draws and "
            "eval_temperature. --draws is the number of rationales for its votes."
        )
    # measured at each iteration by default; a ladder does not need them
    known = given(settings)
    settings = replace(
        settings,
        bound_draws=settings.bound_draws if "bound_draws" in known else 0,
        reader_problems=settings.reader_problems if "reader_problems" in known else 0,
    )
    if settings.engine != "chat":
        base = local_model(model)
        # the date of the ladder's first day, also for rungs of another day
        args = dated(settings.template_args, base, stored_settings(folder).get("template_args", ()))
        settings = choose_peft(replace(settings, template_args=tuple(args)), base, folder / "fem")
    examples = with_examples_chosen(settings)
    if settings.m_step == "weights":  # the numbers of the rung that chooses examples are not of `fem`
        settings = replace(settings, **{name: getattr(Train, name) for name in _OF_CHOICE})
    asked = read_inputs(data, settings, reward, model=model)
    make_loop_config(asked.settings)
    other = read_test(asked, data, model)
    part(asked, other)  # refuses a development part that fem can't have
    # as in `compare`, the others learn from the development part too: they choose no iteration by it
    whole = replace(asked, settings=replace(asked.settings, dev_share=0.0, patience=0))
    train, _, test = part(whole, other)
    if not test:
        raise DataError(
            "a ladder needs held-out problems: give --eval-data, or an --eval-share above 0."
        )
    asked = without_held_out(asked, test)
    return Ground(
        data=data,
        model=model,
        settings=settings,
        asked=asked,
        train=train,
        test=test,
        folder=folder,
        draws=options.draws,
        builder=make_sampler_builder(model, asked, train, test),
        examples=examples,
        reward=reward,
    )


def _settings(ground: Ground, options: LadderOptions) -> dict[str, Any]:
    """Return what a ladder is known by: what changes no rung is left out."""
    free = CHANGEABLE - {"iterations"}
    known = resolved(
        ground.settings,
        data=shown_data(ground.data),
        model=ground.model,
        problems=fingerprint(ground.train, ground.test),
        draws=options.draws,
    )
    known |= {name: getattr(ground.examples, name) for name in _OF_CHOICE}
    return {name: value for name, value in known.items() if name not in free}


def _climb(ground: Ground, options: LadderOptions, board: Board) -> tuple[list[Rung], dict[str, str]]:
    """Run rung after rung; return the finished ones, and why others were not run."""
    done: dict[str, Rung] = {}
    not_run: dict[str, str] = {}
    spent, budget = Spent(ground.folder), parse_budget(options.budget)
    last = [*RUNGS].index(options.up_to) if options.up_to else len(RUNGS)
    board.say(f"{len(ground.train)} problems to train on, {len(ground.test)} held out.")
    board.begin()
    for number, name in enumerate(RUNGS):
        needs = AFTER.get(name)
        if number > last:
            not_run[name] = f"after --up-to {options.up_to}"
        elif why := unsuitable(name, ground):
            not_run[name] = why
        elif needs is not None and needs in not_run:
            not_run[name] = f"{needs} was not run"
        elif (rung := read_rung(ground.folder, name)) is not None:
            done[name] = rung
            board.add(rung)
        elif (left := _left(budget, spent, ground.folder)).is_spent:
            not_run[name] = "the budget is spent"
        else:
            earlier = done[needs] if needs is not None else None
            found = _one(name, ground, board, spent, left, earlier)
            if isinstance(found, str):
                not_run[name] = found
            else:
                done[name] = found
                board.add(found)
    return [*done.values()], not_run


def _one(
    name: str, ground: Ground, board: Board, spent: Spent, left: Budget, earlier: Rung | None
) -> Rung | str:
    """Run a rung, and store it; return it, or why it did not come to its end."""
    try:
        with (
            interrupts.own_stop(left.seconds) as stop,
            spent.counting(name),
            board.running(name) as shown,
        ):
            try:
                measured = measure(name, ground, Metered(shown, left.tokens, stop))
            except interrupts.Stopped:
                if not stop.fired:
                    raise
                return "the budget ended in it; what it has is stored"
    except NothingKept as error:
        return f"nothing was kept: {error}"
    rung = finished(name, measured, spent.of(name), earlier)
    save_rung(ground.folder, rung)
    return rung


def _left(budget: Budget, spent: Spent, folder: Path) -> Budget:
    """Return what is left of a budget, after rungs that were stopped too."""
    return Budget(
        seconds=None if budget.seconds is None else budget.seconds - spent.seconds,
        tokens=None if budget.tokens is None else budget.tokens - generated_tokens(folder),
    )


def _conclude(
    ground: Ground,
    rungs: Sequence[Rung],
    not_run: dict[str, str],
    options: LadderOptions,
    given_settings: Train,
    board: Board,
    prices: Prices,
) -> LadderResult:
    """Apply the rule to the finished rungs, store the table, and say what it gives."""
    if not rungs:
        raise ConfigError("no rung was run within the budget: give a larger --budget.")
    ids, groups = [problem.id for problem in ground.test], ground.groups
    pairs = all_pairs(rungs, ids, groups)
    decision = decide(entries(rungs, prices), pairs, options.margin)
    compared = against(decision.chosen, rungs, ids, groups)
    chosen = next(rung for rung in rungs if rung.name == decision.chosen)
    said = sentences(rungs, decision, compared, prices, options.margin)
    use = command(chosen, ground.model, given_settings, ground.asked.settings.scale, options.draws)
    lines = _closing(ground, chosen, use, not_run)
    stored = ground.folder / FILE
    content = as_stored(
        rungs,
        pairs,
        decision,
        compared,
        prices,
        data=shown_data(ground.data),
        model=ground.model,
        num_train=len(ground.train),
        num_held_out=len(ground.test),
        draws=options.draws,
        margin=options.margin,
        not_run=not_run,
        verdict=" ".join(said),
        command=use,
    )
    write_json(stored, content)
    shown = difference_lines(chosen.name, compared)
    for text in ("", *shown, "", " ".join(said), *lines):
        board.say(text, "bold" if text == " ".join(said) else "")
    table = table_lines(rungs, prices)
    return LadderResult(
        folder=ground.folder,
        stored=stored,
        chosen=chosen.name,
        verdict=" ".join(said),
        command=use,
        table={rung.name: row(rung, prices) for rung in rungs},
        not_run=not_run,
        text="\n".join([*table, "", *shown, "", " ".join(said), *lines]),
    )


def _closing(ground: Ground, chosen: Rung, use: str, not_run: dict[str, str]) -> list[str]:
    """Return the lines after the verdict: its command, what was not run, and what can't be seen."""
    lines = []
    if chosen.name == "majority":
        lines.append(f"Use it: answer {chosen.detail['answer']} to every item; no model is needed.")
    elif use:
        lines.append(f"Use it: {use}")
    else:
        lines.append(f"Use it: the same command with {ANSWERING}")
    by_reason: dict[str, list[str]] = {}
    for name, why in not_run.items():
        by_reason.setdefault(why, []).append(name)
    lines += [f"Not run: {', '.join(names)} ({why})" for why, names in by_reason.items()]
    if len(ground.test) < FEW:
        lines.append(
            f"{len(ground.test)} held-out problems are few: give {FEW} or more (--eval-data, "
            "--eval-share) to tell smaller differences apart."
        )
    return lines


@contextmanager
def _each_warning_once() -> Iterator[None]:
    """Log a message once, though each rung reads the same data and model."""
    seen: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        said = record.getMessage()
        is_known = said in seen
        seen.add(said)
        return not is_known

    log = logging.getLogger("femtune")
    log.addFilter(is_new)
    try:
        yield
    finally:
        log.removeFilter(is_new)
