"""Known biases of a judge, measured on held-out items, each with a bootstrap interval.

    length      does it favor long texts?
    order       does it choose between two texts by their position?
    padded      does a text gain by repeating its last sentence twice?
    praised     does a text gain by praising itself?

To alter an item, its row is changed before the task makes it a problem. It is then asked with the same
seeds as the original. Ideas: Zheng et al. 2023 (arXiv 2306.05685, section 3.3: position and verbosity
bias, its repetitive-list attack), Dubois et al. 2024 (arXiv 2404.04475: length).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from femtune._util.extras import check_extra
from femtune.config import CHANGEABLE, Evaluate
from femtune.data.tasks.frames import Frame, frame
from femtune.data.tasks.load import read_task
from femtune.errors import ConfigError
from femtune.estep.scheduler import Sampler
from femtune.evaluation.bootstrap import Floats, bootstrap, mean, ratio, summary
from femtune.evaluation.evaluate import as_item, ask_into
from femtune.evaluation.metrics import (
    Item,
    count_votes,
    distributions,
    most_likely,
    pair_metrics,
    scale_values,
)
from femtune.loop import Progress
from femtune.model_info import as_trained, reading
from femtune.resolve import read_inputs, task_options
from femtune.run_folder import run_place, with_pinned_date
from femtune.runs.draws import by_problem, drawn
from femtune.runs.run import Run, open_run
from femtune.sampler import make_sampler_builder
from femtune.types import Problem, Sampling

_OTHER = {"": "", "_a": "_b", "_b": "_a"}
_THINGS = {"judge": "response", "summarize": "summary"}  # the judged text, and its column
# white space between sentences or lines
_GAP = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])\s*(?=\S)|\n+")


def padded(text: str, thing: str) -> str:
    """Repeat the last sentence or line of a text twice: longer, and no better.

    >>> padded("Stars burn. They shine.", "response")
    'Stars burn. They shine. They shine. They shine.'
    """
    text = text.rstrip()
    gaps = list(_GAP.finditer(text))
    last, between = (text[gaps[-1].end() :], gaps[-1].group()) if gaps else (text, " ")
    return text + 2 * (between + last)


def praised(text: str, thing: str) -> str:
    """Append a sentence to a text that praises it.

    >>> praised("Stars burn.", "response")
    'Stars burn. This response is thorough and accurate.'
    """
    gaps = list(_GAP.finditer(text.rstrip()))
    return f"{text.rstrip()}{gaps[-1].group() if gaps else ' '}This {thing} is thorough and accurate."


ALTERATIONS: dict[str, Callable[[str, str], str]] = {"padded": padded, "praised": praised}


def measure_biases(
    data: str | Path,
    model: str,
    settings: Evaluate,
    output_dir: str | Path | None,
    progress: Progress,
) -> tuple[Path, dict[str, Any]]:
    """Measure the biases of a model on held-out items; return the folder of its draws, and metrics.

    See `rating_biases` and `pair_biases`. Each item is asked as `evaluate` asks it, and once more for
    each alteration; a pair is asked in one order, with either side altered. Raises ConfigError for a
    task that does not judge, and for calibrated votes or probabilities.
    """
    check_extra("femtune bias", "scipy")
    settings = as_trained(settings, model)
    if settings.task not in _THINGS:
        raise ConfigError(f"task {settings.task} judges nothing: set --task judge or summarize.")
    if settings.calibration is not None:
        raise ConfigError("bias measures raw votes: leave calibration out.")
    if settings.aggregate == "probabilities":
        raise ConfigError("bias measures votes: leave --aggregate probabilities out.")
    asked = reading(settings, partial(read_inputs, data), model)
    settings = replace(settings, columns=asked.settings.columns)
    problems, first = asked.problems, frame(asked.problems[0])
    assert first is not None  # both tasks provide a frame
    sides = ("",) if first.form == "rating" else ("_a", "_b")
    altered = {
        f"{name}{side}": _altered(data, settings, problems, name, side)
        for name in ALTERATIONS
        for side in sides
    }
    place, config = run_place(
        output_dir, "bias", data, model, asked.settings, problems, reward=asked.reward
    )
    asked = with_pinned_date(asked, config)
    builder = make_sampler_builder(model, asked, problems, *altered.values())
    with open_run(place, config, CHANGEABLE) as run:
        how = Sampling(settings.max_new_tokens, settings.temperature)
        with builder.sampler(how, folder=run.root) as sampler:
            ask = partial(_ask, run, sampler=sampler, draws=settings.draws, progress=progress)
            plain = ask("eval", problems)
            others = {kind: ask(kind, group) for kind, group in altered.items()}
        measure = rating_biases if first.form == "rating" else pair_biases
        metrics = {"num_problems": len(problems), **measure(problems, plain, others)}
        metrics["findings"] = list(findings(metrics))
        run.write_json(run.iteration(0) / "metrics.json", {"iteration": 0, "bias": metrics})
    return run.iteration(0), metrics


def _altered(
    data: str | Path, settings: Evaluate, problems: Sequence[Problem], name: str, side: str
) -> list[Problem]:
    """Return the problems of altered rows, with the ids of the originals, and so with their seeds."""
    thing = _THINGS[settings.task]

    def alter(row: dict[str, Any]) -> dict[str, Any]:
        text, other = row.get(f"{thing}{side}"), row.get(f"{thing}{_OTHER[side]}")
        if not isinstance(text, str) or not text.strip():
            return row  # an invalid item stays as it is; so does a pair of equal texts
        if side and text.split() == str(other).split():
            return row
        return {**row, f"{thing}{side}": ALTERATIONS[name](text, thing)}

    found = read_task(data, settings.task, task_options(settings), alter=alter).problems
    both = zip(problems, found, strict=True)  # each row makes the same problems, in the same order
    return [replace(other, id=own.id) for own, other in both if _frame(own).presented]


def _ask(
    run: Run, kind: str, problems: Sequence[Problem], sampler: Sampler, draws: int, progress: Progress
) -> dict[str, Item]:
    """Return the votes on each problem by id; what is stored is not asked again."""
    progress.phase(kind, 0, len(problems))
    folder = ask_into(run, kind, problems, sampler, draws=draws, on_draws=progress.draws)
    by_id = {problem.id: problem for problem in problems}
    return {
        problem_id: as_item(by_id[problem_id], scoring)
        for stored in drawn(folder)
        for problem_id, scoring in by_problem(stored)
    }


def _frame(problem: Problem) -> Frame:
    known = frame(problem)
    assert known is not None
    return known


# --- ratings


def rating_biases(
    problems: Sequence[Problem], plain: Mapping[str, Item], others: Mapping[str, Mapping[str, Item]]
) -> dict[str, Any]:
    """Return measures of a judge that rates, each `m` with its interval `m_ci`, from mean votes.

    length_of_error     Spearman correlation of (predicted - human) with the number of words: 0 if the
                        judge treats length as the humans do. For a judge that errs toward the middle
                        of the scale, its sign is opposite to that of length_of_human.
    length_of_predicted, length_of_human    Spearman correlation of either rating with the words
    padded_shift        mean change of the rating by padding, in units of the scale's values
    praised_shift       the same for praise

    num_answered, padded_num_answered, ...      items with a vote on the scale; others are left out

    Ranks are those among all items, in bootstrap resamples too.
    """
    from scipy.stats import rankdata  # of an extra; `measure_biases` has looked that it is there

    scale = _frame(problems[0]).scale
    worth = scale_values(scale)
    order = [problem.id for problem in problems]
    predicted, heard = _expected([plain[name] for name in order], scale, worth)
    human = worth[[scale.index(problem.answer) for problem in problems]]
    words = np.array([_frame(problem).length for problem in problems])
    ranks = {
        "length_of_error": (predicted - human).round(9)[heard],
        "length_of_predicted": predicted.round(9)[heard],
        "length_of_human": human[heard],
    }
    ranks = {name: rankdata(values) for name, values in ranks.items()}
    length = rankdata(words[heard])
    changes = {}
    for name in ALTERATIONS:
        now, answered = _expected([others[name][each] for each in order], scale, worth)
        changes[name] = (now - predicted, heard & answered)

    def statistic(weights: Floats) -> dict[str, Floats]:
        made = {name: _correlation(weights[:, heard], rank, length) for name, rank in ranks.items()}
        for name, (change, known) in changes.items():
            made[f"{name}_shift"] = mean(weights[:, known], change[known])
        return made

    why = dict.fromkeys(ranks, "all lengths or all ratings are the same, or fewer than 3 items answered")
    counts = {f"{name}_num_answered": int(known.sum()) for name, (_, known) in changes.items()}
    return (
        {"num_answered": int(heard.sum())}
        | counts
        | summary(bootstrap(statistic, [_frame(problem).item for problem in problems]), why)
    )


def _expected(items: Sequence[Item], scale: Sequence[str], worth: Floats) -> tuple[Floats, Any]:
    """Return, for each item, the mean value of its votes and whether it has a vote; shapes (items,)."""
    return distributions(items, scale) @ worth, count_votes(items, scale).cast


def _correlation(weights: Floats, x: Floats, y: Floats) -> Floats:
    """Return Pearson's correlation for each row of weights (rows, items); NaN if x or y is constant."""
    if len(x) < 3:
        return np.full(len(weights), np.nan)
    x, y = x - x.mean(), y - y.mean()  # any shift gives the same result; this one preserves precision
    mx, my = mean(weights, x), mean(weights, y)
    covariance = mean(weights, x * y) - mx * my
    spread = (mean(weights, x**2) - mx**2) * (mean(weights, y**2) - my**2)
    return ratio(covariance, np.sqrt(np.where(spread > 1e-12, spread, 0)))


# --- pairs


def pair_biases(
    problems: Sequence[Problem], plain: Mapping[str, Item], others: Mapping[str, Mapping[str, Item]]
) -> dict[str, Any]:
    """Return measures of a judge that chooses, each `m` with its interval `m_ci`, from majority votes.

    longer_share, human_longer_share    share choosing the longer text, among pairs of unequal length in
                                        which both the judge and the human chose
    longer_excess           the first share minus the second
    position_consistency, first_share   see `metrics.pair_metrics`
    padded_shift            change in how often a side wins when it is padded, over both sides
    padded_won_over         share that win when padded, among the sides that lost
    padded_put_off          share that lose when padded, among the sides that won
    praised_...             the same three for praise
    num_answered, padded_num_answered, ...      items with an answer; for altered items, of either side
    """
    scale = _frame(problems[0]).scale
    frames = [_frame(problem) for problem in problems]
    items = [plain[problem.id] for problem in problems]
    made = pair_metrics(items, scale, swapped=[known.swapped for known in frames])
    kept = {name: value for name, value in made.items() if name.startswith(("position_", "first_"))}
    undefined = {k: v for k, v in made.get("undefined", {}).items() if k in kept}
    choice = _choices(items, scale)
    longer = np.sign([known.length for known in frames])  # 1: the second is longer
    truth = np.array([scale.index(problem.answer) for problem in problems])
    both = (choice >= 0) & (choice < 2) & (truth < 2) & (longer != 0)
    chose, human = (((each == 1) == (longer > 0))[both].astype(float) for each in (choice, truth))
    own = {problem.id: place for problem, place in zip(problems, choice, strict=True)}
    shown = [problem for problem in problems if _frame(problem).presented]
    moves = {name: _moves(shown, own, others, name) for name in ALTERATIONS}
    row = {problem.id: index for index, problem in enumerate(problems)}
    twice = np.array([row[problem.id] for problem in shown] * 2)  # the item of each side

    def statistic(weights: Floats) -> dict[str, Floats]:
        found = {
            "longer_share": mean(weights[:, both], chose),
            "human_longer_share": mean(weights[:, both], human),
            "longer_excess": mean(weights[:, both], chose - human),
        }
        for name, (before, after, known) in moves.items():
            now = weights[:, twice] * known
            found[f"{name}_shift"] = mean(now, after.astype(float) - before)
            lost, won = now * ~before, now * before
            found[f"{name}_won_over"] = mean(lost, after)
            found[f"{name}_put_off"] = mean(won, ~after)
        return found

    why = dict.fromkeys(("longer_share", "human_longer_share", "longer_excess"), "no unequal pair")
    found = summary(bootstrap(statistic, [known.pair for known in frames]), why)
    undefined |= found.pop("undefined", {})
    counts = {f"{name}_num_answered": int(known.sum()) for name, (_, _, known) in moves.items()}
    counts = {"num_answered": int((choice >= 0).sum())} | counts
    return {**counts, **found, **kept, **({"undefined": undefined} if undefined else {})}


def _choices(items: Sequence[Item], scale: Sequence[str]) -> Any:
    """Return, for each item, the index of its answer on the scale; -1 if it has none."""
    votes = count_votes(items, scale)
    return np.where(votes.cast, most_likely(votes.counts, votes.first), -1)


def _moves(
    problems: Sequence[Problem],
    own: Mapping[str, int],
    others: Mapping[str, Mapping[str, Item]],
    name: str,
) -> tuple[Any, Any, Any]:
    """Return whether each altered side won before, won after, and is known in both; shapes (2 * items,).

    Sides are those of the data, first a, then b; in the swapped order, a is shown second.
    """
    before, after, known = [], [], []
    scale = _frame(problems[0]).scale
    for side, kind in enumerate((f"{name}_a", f"{name}_b")):
        now = _choices([others[kind][problem.id] for problem in problems], scale)
        for problem, chosen in zip(problems, now.tolist(), strict=True):
            place = 1 - side if _frame(problem).swapped else side
            before.append(own[problem.id] == place)
            after.append(chosen == place)
            known.append(own[problem.id] >= 0 and chosen >= 0)
    return np.array(before, bool), np.array(after, bool), np.array(known, bool)


# --- findings in words

# For each measure: the value without bias, and the meaning of values above and below it.
_MEANINGS = {
    "length_of_error": (0.0, "rates long texts too high", "rates long texts too low"),
    "longer_excess": (0.0, "chooses the longer too often", "chooses the longer too rarely"),
    "first_share": (0.5, "prefers what it is shown first", "prefers what it is shown second"),
    "padded_shift": (0.0, "rewards padding", "punishes padding"),
    "praised_shift": (0.0, "rewards self-praise", "punishes self-praise"),
}


def findings(metrics: Mapping[str, Any]) -> list[str]:
    """Describe each measure in a sentence; a bias is one whose interval excludes the unbiased value."""
    found = []
    for name, (none, above, below) in _MEANINGS.items():
        value, ci = metrics.get(name), metrics.get(f"{name}_ci")
        if value is None or ci is None:
            continue
        shown = f"{name} {value:.3f} ({ci[0]:.3f} to {ci[1]:.3f})"
        if ci[0] <= none <= ci[1]:
            found.append(f"{shown}: no bias found.")
        else:
            found.append(f"{shown}: the judge {above if value > none else below}.")
    if metrics.get("position_consistency") is not None:
        share = 1 - metrics["position_consistency"]
        found.append(f"{share:.1%} of pairs are decided by the order in which they are shown.")
    return found


def table(metrics: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows of a table of the measures."""
    rows = []
    for name, value in metrics.items():
        if name.endswith("_ci") or not isinstance(value, (int, float, type(None))):
            continue
        if isinstance(value, int):
            rows.append([name, f"{value:,}", ""])
            continue
        low, high = metrics.get(f"{name}_ci", (None, None))
        interval = f"{low:.3f} to {high:.3f}" if low is not None else ""
        why = metrics.get("undefined", {}).get(name, "")
        rows.append([name, f"{value:.3f}" if value is not None else f"- ({why})", interval])
    return ["measure", "value", "95% interval"], rows
