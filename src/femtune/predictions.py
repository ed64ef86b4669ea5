"""Answers to new items, each by the vote of several rationales, and how sure that vote is.

    for item in predict("new.jsonl", "runs/judge/best"):
        print(item["id"], item["answer"], item["confidence"])

    {"id": "r7", "answer": "4", "confidence": 0.75, "abstained": false, "num_answered": 16,
     "votes": {"4": 12, "3": 4}, "distribution": {"1": 0.0, "2": 0.0, "3": 0.25, "4": 0.75, "5": 0.0},
     "expected": 3.75, "consistent": null, "rationale": "The response names ..."}

A pair is asked in both orders and is one item, its A and B as the data has them. Items of a stream, "-",
are asked chunk by chunk, as they come.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from itertools import groupby, islice
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from femtune.answer_format import bare
from femtune.answers import Scale, as_fraction
from femtune.asker import make_asker
from femtune.calibration import Calibration, apply, check_scale, load_calibration
from femtune.config import CHANGEABLE, Predict
from femtune.errors import ConfigError, DataError
from femtune.evaluate import as_item, ask_into, evaluation_draws
from femtune.files import replacing
from femtune.hashes import relied_on
from femtune.model_info import read_info, with_defaults
from femtune.prepare import (
    Data,
    Questions,
    base_of_adapter,
    check_new,
    fingerprint,
    load_config,
    local_model,
    read_questions,
    resolved,
    task_options,
)
from femtune.problems import check_lengths, save_problems
from femtune.reading import json_lines
from femtune.rewards import exact
from femtune.run import by_problem, check_run, open_run, read_draws
from femtune.tasks.frames import frame, scale_of
from femtune.tasks.judge import turned
from femtune.tasks.load import read_places
from femtune.tasks.schemas import SCHEMAS
from femtune.training import context_length
from femtune.types import Draw, Problem, Sampling
from femtune.words import near

T = TypeVar("T")

Prediction = dict[str, Any]
Places = list[tuple[int, Any]]
Rows = Sequence[Mapping[str, Any]]

# femtune's names of columns with answers, which items to predict may lack
ANSWERS = frozenset({"answer"}.union(*(schema.label_columns for schema in SCHEMAS)))

# settings that say what is made of votes, not how they are drawn
_OF_VOTES = CHANGEABLE | {"abstain_below"}

SHARES = pa.list_(pa.struct([("answer", pa.string()), ("share", pa.float64())]))
PREDICTIONS = pa.schema(
    [
        ("id", pa.string()),
        ("answer", pa.string()),
        ("confidence", pa.float64()),
        ("abstained", pa.bool_()),
        ("num_answered", pa.int32()),
        ("votes", pa.list_(pa.struct([("answer", pa.string()), ("count", pa.int32())]))),
        ("distribution", SHARES),  # null where any answer may be given
        ("expected", pa.float64()),
        ("consistent", pa.bool_()),
        ("rationale", pa.string()),
    ]
)


def predict(
    data: Data | Rows, model: str | Path, settings: Predict | None = None, **options: Any
) -> Iterator[Prediction]:
    """Answers to items, which need none of their own, in order of the data.

    `data` is a file, the id of a data set on the Hub, "-" for lines of JSON on standard input, rows or
    problems; `options` are the fields of config.Predict, by their names. Of an item are given:

    id              of a pair, the pair's
    answer          the most frequent one, of equals the one given first; as the scale writes it
    confidence      its share of the votes, or what the calibration makes of that; 0 without a vote
    abstained       whether that is below `abstain_below`: `answer` is then ""
    num_answered    draws with an answer, on the scale where there is one; of a pair, of both orders
    votes           answers and how many draws gave them, the most frequent first
    distribution    of ratings, pairs and choices: each answer's share, or calibrated probability
    expected        the mean of ratings, under `distribution`, or of answers that are all numbers
    consistent      of a pair, whether the same one wins in both orders; None where one has no vote
    rationale       of the draws that gave the most frequent answer, the likeliest by token; of a pair,
                    in its own order, as the other's speaks of A for B

    What is not set is taken from the model's femtune.json: its task, scale, instruction, and so on.

    Raises ConfigError, DataError or ModelError at once, but for errors that show only in a line of a
    stream or as the model is loaded.
    """
    chosen = as_trained(settings or make_settings(options), str(model))
    calibration = read_calibration(chosen)
    return _predictions(_read(data, chosen), str(model), chosen, calibration)


def make_settings(options: Mapping[str, Any]) -> Predict:
    """Settings from keywords. Raises ConfigError for a name that is none."""
    known = [field.name for field in fields(Predict)]
    for name in options.keys() - {*known}:
        raise ConfigError(f"{name} is no setting.{near(name, known)}")
    return Predict(**options)


def _predictions(
    parts: Iterable[Questions[Predict]], model: str, settings: Predict, calibration: Calibration | None
) -> Iterator[Prediction]:
    asker = setup = None
    with ExitStack() as stack:
        for asked in parts:
            check_calibration(calibration, asked.problems)
            if asker is None or setup is None:
                # nothing is graded here, and a reward of the user's own may not bear a missing answer
                asker = make_asker(model, replace(asked, reward=exact()), asked.problems)
                sampling = Sampling(settings.max_new_tokens, settings.temperature)
                setup = replace(stack.enter_context(asker.setup(sampling)), demos=asker.demos)
            else:
                context = context_length(load_config(asker.base))
                room = settings.max_new_tokens
                shown = asker.prompts.with_demos(asker.demos or asker.prompts.demos)
                check_lengths(asked.problems, shown, asker.tokenizer, context, room)
            by_id = {problem.id: problem for problem in asked.problems}
            drawn = (
                (by_id[name], tries)
                for chunk in evaluation_draws(asked.problems, setup, draws=settings.draws, iteration=0)
                for name, tries in by_problem(chunk.draws)
            )
            yield from _made(drawn, calibration, settings)


def _made(
    drawn: Iterable[tuple[Problem, Sequence[Draw]]], calibration: Calibration | None, settings: Predict
) -> Iterator[Prediction]:
    """Predictions from problems and their draws, both orders of a pair together."""
    for _, orders in groupby(drawn, key=lambda one: _item(one[0])):
        yield prediction(list(orders), calibration, settings.abstain_below)


def predict_into(data: str, model: str, settings: Predict, output: Path) -> Path | None:
    """Predictions as a file, .jsonl or .parquet; gives where their draws are, None for a stream's.

    The draws are stored first, in a run's directory beside the file, so that the same call goes on where
    one was stopped. Those of a stream, which does not come twice, are not. Raises what `predict` raises,
    and RunError where the file is there already, or the directory is of other predictions.
    """
    check_output(output)
    settings = as_trained(settings, model)
    if data == "-":
        save_predictions(predict(data, model, settings), output, settings.chunk_size)
        return None
    calibration = read_calibration(settings)
    [asked] = _read(data, settings)
    check_calibration(calibration, asked.problems)
    by_id = {problem.id: problem for problem in asked.problems}
    place = output.with_name(f"{output.name}.draws")
    marks = fingerprint(asked.problems)
    base = local_model(model)
    args = asked.settings.template_args
    relies = relied_on(base, base=base_of_adapter(base), template_args=args)
    config = resolved(asked.settings, data=data, model=model, problems=marks, relies_on=relies)
    check_run(place, config, _OF_VOTES)
    # nothing is graded here, and a reward of the user's own may not bear a missing answer
    asker = make_asker(model, replace(asked, reward=exact()), asked.problems)
    with open_run(place, config, _OF_VOTES) as run:
        if not (path := run.root / "eval.parquet").exists():
            save_problems(asked.problems, path)
            run.record(path)
        with asker.setup(Sampling(settings.max_new_tokens, settings.temperature)) as setup:
            setup = replace(setup, demos=asker.demos)
            folder = ask_into(run, "eval", asked.problems, setup, draws=settings.draws)
        drawn = (draws for chunk, _ in read_draws(folder) for draws in by_problem(chunk))
        made = _made(((by_id[name], tries) for name, tries in drawn), calibration, settings)
        save_predictions(made, output, settings.chunk_size)
    return place


# --- what is asked


def as_trained(settings: Predict, model: str) -> Predict:
    """Settings with what was left open filled in by the model's femtune.json, where it has one."""
    return with_defaults(settings, read_info(local_model(model)), graded=False)


def reading(settings: Predict, read: Callable[[Predict], T]) -> T:
    """Read items, without those mappings of answer columns whose column the data lacks.

    So that the configuration that trained a model, score=human_score in it, serves for items without
    scores too. Raises what `read` raises.
    """
    while True:
        try:
            return read(settings)
        except DataError as error:
            rest = tuple(item for item in settings.columns if not _lacks(str(error), item))
            if rest == settings.columns:
                raise
            settings = replace(settings, columns=rest)


def _lacks(message: str, item: str) -> bool:
    """Whether an error says that the column of this mapping is not there, and it holds answers."""
    name, _, column = item.partition("=")
    return name in ANSWERS and f"has no column `{column}` for `{name}`" in message


def _read(data: Data | Rows, settings: Predict) -> Iterable[Questions[Predict]]:
    """What is asked, in one part; of a stream, in parts as they come."""
    if data == "-":
        return _read_stream(settings)

    def read(settings: Predict) -> Questions[Predict]:
        given: Any = data
        if isinstance(data, Sequence) and data and isinstance(data[0], Mapping):
            options = task_options(settings)
            given = read_places(enumerate(data, 1), "rows", settings.task, options, answers=False)
        return read_questions(given, settings, answers=False)

    return [reading(settings, read)]


def _read_stream(settings: Predict) -> Iterator[Questions[Predict]]:
    lines = _named(json_lines(sys.stdin), "id" in task_options(settings).columns)
    try:
        while rows := list(islice(lines, settings.chunk_size)):

            def read(settings: Predict, rows: Places = rows) -> Questions[Predict]:
                options = task_options(settings)
                found = read_places(rows, "stdin", settings.task, options, answers=False)
                return read_questions(found, settings, answers=False)

            asked = reading(settings, read)
            # ratings that are there may show the scale, which holds for all that follow
            settings = replace(settings, scale=asked.settings.scale)
            yield asked
    except UnicodeDecodeError as error:
        raise DataError(f"stdin: not UTF-8 ({error.reason}).") from error


def _named(lines: Iterator[tuple[int, Any]], renamed: bool) -> Iterator[tuple[int, Any]]:
    """Rows with an id, stdin-<line> if they have none: parts of a stream don't know of each other."""
    for place, row in lines:
        if isinstance(row, dict) and not renamed and row.get("id") in (None, ""):
            row = {**row, "id": f"stdin-{place}"}
        yield place, row


def _item(problem: Problem) -> str:
    """The id of what is predicted: both orders of a pair have one."""
    known = frame(problem)
    return (known.pair if known else "") or problem.id


# --- what is made of the draws


@dataclass(frozen=True, slots=True)
class Vote:
    """An answer that a draw gave, as the data has A and B."""

    answer: str
    draw: Draw
    swapped: bool  # of a pair: drawn in the other order


def prediction(
    orders: Sequence[tuple[Problem, Sequence[Draw]]],
    calibration: Calibration | None = None,
    abstain_below: float = 0.0,
) -> Prediction:
    """What the draws of a problem say, or of both orders of a pair; see `predict`."""
    problem, scale = orders[0][0], scale_of(orders[0][0])
    ballots = [_ballot(problem, draws) for problem, draws in orders]
    cast = [vote for ballot in ballots for vote in ballot]
    votes = Counter(vote.answer for vote in cast)
    winner = next(iter(_ranked(votes)), "")
    distribution = _distribution(ballots, scale, calibration) if scale and cast else None
    confidence = (distribution or {}).get(winner, votes[winner] / max(1, len(cast)))
    # where there is no scale, equal answers may be written in several ways: the first stands for all
    written = {vote.answer: bare(vote.draw.score.answer) for vote in reversed(cast)} if not scale else {}
    abstained = confidence < abstain_below
    return {
        "id": _item(problem),
        "answer": "" if abstained else written.get(winner, winner),
        "confidence": confidence,
        "abstained": abstained,
        "num_answered": len(cast),
        "votes": {written.get(answer, answer): count for answer, count in _ranked(votes).items()},
        "distribution": distribution,
        "expected": _expected(problem, scale, distribution, votes),
        "consistent": _consistent(ballots),
        "rationale": _rationale([vote for vote in cast if vote.answer == winner]),
    }


def _ballot(problem: Problem, draws: Sequence[Draw]) -> list[Vote]:
    known = frame(problem)
    swapped = known is not None and known.swapped
    answers = as_item(problem, draws).votes
    return [
        Vote(turned(answer) if swapped else answer, draw, swapped)
        for answer, draw in zip(answers, draws, strict=True)
        if answer
    ]


def _ranked(votes: Counter[str]) -> dict[str, int]:
    return dict(votes.most_common())


def _distribution(
    ballots: Sequence[Sequence[Vote]], scale: Scale, calibration: Calibration | None
) -> dict[str, float]:
    """Shares of all votes; calibrated, the mean over the orders: a map is of one order's shares."""
    heard = [ballot for ballot in ballots if ballot]
    if calibration is None:
        heard = [[vote for ballot in heard for vote in ballot]]
    made = [_shares(ballot, scale, calibration) for ballot in heard]
    return {answer: fmean(shares[answer] for shares in made) for answer in scale.answers}


def _shares(ballot: Sequence[Vote], scale: Scale, calibration: Calibration | None) -> dict[str, float]:
    swapped = ballot[0].swapped and calibration is not None  # a map knows A as what is shown first
    shown = [turned(answer) if swapped else answer for answer in scale.answers]
    votes = Counter(vote.answer for vote in ballot)
    shares = np.array([[votes[answer] / len(ballot) for answer in shown]])
    if calibration is not None:
        shares = apply(calibration, shares)
    return dict(zip(shown, shares[0].tolist(), strict=True))


def _expected(
    problem: Problem, scale: Scale | None, distribution: Mapping[str, float] | None, votes: Counter[str]
) -> float | None:
    if scale is not None:
        known = frame(problem)
        if known is None or known.form != "rating" or distribution is None:
            return None
        return sum(scale.value(answer) * share for answer, share in distribution.items())
    numbers = [number for answer in votes.elements() if (number := as_fraction(answer)) is not None]
    if not numbers or len(numbers) < votes.total():
        return None
    try:
        return float(sum(numbers) / len(numbers))
    except OverflowError:  # 1e999
        return None


def _consistent(ballots: Sequence[Sequence[Vote]]) -> bool | None:
    if len(ballots) != 2 or not all(ballots):
        return None
    winners = [next(iter(_ranked(Counter(vote.answer for vote in ballot)))) for ballot in ballots]
    return winners[0] == winners[1]


def _rationale(votes: Sequence[Vote]) -> str:
    """Of the likeliest draw by token, the first of equals; "" where only a swapped order has any."""
    draws = [vote.draw for vote in votes if not vote.swapped]
    best = max(draws, key=_likelihood, default=None)
    return best.score.rationale if best else ""


def _likelihood(draw: Draw) -> float:
    """Nats a token: summed over tokens, the shortest would be the likeliest."""
    return draw.completion.logprob / max(1, len(draw.completion.tokens))


# --- calibration


def read_calibration(settings: Any) -> Calibration | None:
    """The map that settings name. Raises DataError where it can't be read."""
    return None if settings.calibration is None else load_calibration(Path(settings.calibration))


def check_calibration(calibration: Calibration | None, problems: Sequence[Problem]) -> None:
    """Raises ConfigError where problems have another scale than the map, or none."""
    if calibration is None:
        return
    for scale in {scale_of(problem) for problem in problems}:
        if scale is None:
            raise ConfigError("a calibration is of answers on a scale, and these have none.")
        check_scale(calibration, scale.answers)


# --- where it goes


def check_output(path: Path) -> None:
    """Refuse, before any work, a file that is there, can't be written, or is of unknown kind."""
    check_new(path, "--output")
    if path.suffix not in (".jsonl", ".parquet"):
        raise ConfigError(f"--output {path}: its name must end in .jsonl or .parquet.")


def save_predictions(predictions: Iterator[Prediction], path: Path, at_once: int = 1024) -> None:
    """Write them as they come, `at_once` to a row group, to a file that is there once all are.

    Lines of JSON, or Parquet with votes and distribution as lists: see `PREDICTIONS`. Raises RunError
    where it can't be written.
    """
    with replacing(path) as part:
        if path.suffix == ".jsonl":
            with part.open("w", encoding="utf-8") as lines:
                lines.writelines(f"{as_line(one)}\n" for one in predictions)
            return
        with part.open("wb") as file, pq.ParquetWriter(file, PREDICTIONS) as writer:
            while rows := [_columns(one) for one in islice(predictions, at_once)]:
                writer.write_table(pa.Table.from_pylist(rows, schema=PREDICTIONS))


def as_line(one: Prediction) -> str:
    """A prediction as a line of JSON."""
    return json.dumps(one, ensure_ascii=False)


def _columns(one: Prediction) -> Prediction:
    votes = [{"answer": answer, "count": count} for answer, count in one["votes"].items()]
    shares = one["distribution"]
    listed = [{"answer": answer, "share": share} for answer, share in (shares or {}).items()]
    return {**one, "votes": votes, "distribution": listed if shares else None}
