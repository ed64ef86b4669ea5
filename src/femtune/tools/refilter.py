"""Refilter a run's stored draws with another threshold, reward or balance.

    femtune refilter runs/judge --accept-at 0.75 --balance data

Nothing is sampled again, and nothing is written into the run. Draws that the other filter would not have
requested are left out: with a laxer filter, all draws after the first kept one. Draws that a stricter
filter would have added are counted as missing: see `replayed`. Weights that depend on log-probabilities
or on remembered draws are known only for the run's own filter. For such a scheme both sides use the
iteration's own right draws with equal weights, and total weight 1 per problem.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from femtune._util.atomic_files import write_json
from femtune._util.text import first
from femtune.config import Train
from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.data.tasks.load import TaskData
from femtune.engines.model_files import base_of_adapter, load_tokenizer, local_model
from femtune.errors import ConfigError, ModelError, NothingKept, RunError
from femtune.estep.scheduler import Grade, upcoming
from femtune.evaluation.advice import nothing_kept
from femtune.evaluation.chance import plain_attempts
from femtune.evaluation.evaluate import as_number, estep_metrics
from femtune.evaluation.rationales import scored
from femtune.evaluation.selection_bias import (
    Factors,
    balance_factors,
    kept_by,
    kept_scores,
    outcomes,
    weighed,
)
from femtune.loop import LoopConfig
from femtune.model_info import info_of, write_info
from femtune.mstep.examples import write_examples
from femtune.resolve import make_loop_config, read_inputs
from femtune.rewards.builtin import score
from femtune.run_folder import check_new
from femtune.runs.draws import by_problem, drawn, read_draws, write_draws
from femtune.runs.hashes import hash_weights
from femtune.schemes.answer_rules import gain
from femtune.schemes.filters import Accepted, Chain, Share
from femtune.tools.stored_run import Stored, open_stored, stored_scheme
from femtune.types import SCORED, Balance, Draw, DrawKey, Problem, Request, Scheme, Score


@dataclass(frozen=True)
class Change:
    """Changes to a run's filter; None keeps the run's setting."""

    reward: str | None = None
    """Grade the stored texts again with this reward."""
    accept_at: float | None = None
    """Keep a draw if its reward is at least this."""
    soft_accept: float | None = None
    """Temperature T: keep a rating that is d points off with probability exp(-d / T)."""
    balance: Balance | None = None
    """Balance of answers by weight: none, data (frequencies of the data), or uniform."""

    def of(self, settings: Train) -> Train:
        """Return the settings with these changes. Raises ConfigError for impossible ones."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if "accept_at" in given:  # threshold and probability exclude each other
            given.setdefault("soft_accept", None)
        elif "soft_accept" in given:
            given["accept_at"] = 1.0
        return replace(settings, **given)


# --- draws, filtered again


def regraded(
    draws: Sequence[Draw], problems: Mapping[str, Problem], scheme: Scheme, grade: Grade | None
) -> list[Draw]:
    """Return draws as the scheme accepts them; graded again, or by their stored rewards."""
    at = scheme.accept_at
    least = [at(Request(draw.key, (), draw.seed)) if callable(at) else at for draw in draws]
    if grade is None:
        scores: Sequence[Score] = [_accepted(d.score, bar) for d, bar in zip(draws, least, strict=True)]
    else:
        scores = grade(
            [problems[draw.key.problem_id] for draw in draws],
            [draw.completion for draw in draws],
            hinted=[draw.prompt_kind == "hinted" for draw in draws],
            accept_at=least,
        )
    return [replace(draw, score=made) for draw, made in zip(draws, scores, strict=True)]


def _accepted(found: Score, least: float) -> Score:
    """Return a score under another threshold. Leaks and ungraded draws stay refused."""
    if found.reason == "" and found.reward < least:
        return replace(found, reason="wrong", detail=f"reward {found.reward:g} < {least:g}")
    if found.reason == "wrong" and found.reward >= least:
        return replace(found, reason="", detail="")
    return found


def replayed(scheme: Scheme, scoring: Sequence[Draw]) -> tuple[list[Draw], bool]:
    """Return a problem's stored draws that its E-step would request, and True if any are missing.

    A draw's text depends only on its key, not on other draws. So these are exactly the first draws of a
    run with the other filter.
    """
    stored = {(draw.key.stage, draw.key.index): draw for draw in scoring}
    asked: list[Draw] = []
    while wanted := upcoming(scheme.stages, asked):
        found = [stored[name] for name in wanted if name in stored]
        asked += found
        if len(found) < len(wanted):
            return asked, True
    return asked, False


def _write_again(stored: Stored, scheme: Scheme, grade: Grade | None, folder: Path) -> tuple[int, int]:
    """Write refiltered draws; return how many problems miss draws, and how many draws are dropped."""
    asked_again = left_out = 0
    for index, (chunk, timing) in enumerate(read_draws(stored.draws)):
        if strange := [d.key.problem_id for d in chunk if d.key.problem_id not in stored.problems]:
            raise RunError(
                f"{stored.run.root} has draws of {first(strange)}, which are not in its "
                "problems.parquet. Restore the original file."
            )
        kept: list[Draw] = []
        for _, scoring in by_problem(regraded(chunk, stored.problems, scheme, grade)):
            asked, more = replayed(scheme, scoring)
            kept += asked
            asked_again += more
            left_out += len(scoring) - len(asked)
        write_draws(folder / f"{index:05}.parquet", kept, timing)
    return asked_again, left_out


# --- the command


def refilter(
    root: Path,
    change: Change,
    *,
    iteration: int | None = None,
    output_dir: Path | None = None,
    train: bool = False,
    model: str | None = None,
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> dict[str, Any]:
    """Compare what a run kept in an iteration with what it would have kept with the changes.

    stored, refiltered      `evaluate.estep_metrics` of each, with `kept_by`, `kept_scores`,
                            `num_examples`, `weight_by_answer` (shares, balance included), and
                            `mean_trained_score`, the mean human score by those; of schemes with
                            `reasons`, of the kept rationales `num_rationales` that were scored, and
                            of these `rationale_gain` and `helpful_share`: see `answer_rules.gain`
    problems_by_answer      the share of the problems
    not_asked               problems without a draw: the run was stopped in this E-step
    alike                   True if right draws have equal weights here, unlike in the run
    asked_again             problems that would have been asked more often: their draws are missing
    left_out                stored draws that would not have been requested

    With `output_dir` the examples are written there. With `train` a model is trained on them, from the
    weights that the iteration started from, or from `model`, into its folder model/. Raises RunError if
    the run is unsuitable, ConfigError for impossible changes, NothingKept if no draw is kept.
    """
    _check_output(output_dir, trains=train or model is not None)
    stored = open_stored(root, iteration)
    settings = change.of(stored.settings)
    own = stored_scheme(stored.config, root)
    loop = make_loop_config(settings, own)
    old, new = make_loop_config(stored.settings, own).scheme, loop.scheme
    alike = new.remember is not None or bool(new.needs & SCORED)
    if alike:
        old, new = (replace(each, weigh=Chain(Accepted(), Share())) for each in (old, new))
    place = _place(stored, model, train) if output_dir else None
    grade = _grade(stored, settings) if change.reward else None
    with tempfile.TemporaryDirectory() as scratch:
        again = Path(scratch)
        report, factors = _report(stored, settings, old, new, grade, again)
        report["alike"] = alike
        kept, other = report["stored"], report["refiltered"]
        if not kept["num_problems"]:
            raise RunError(f"{root} has no draws in iteration {stored.iteration}: choose another.")
        if output_dir is None or place is None:
            return report
        if not other["num_kept"]:
            raise NothingKept(nothing_kept(stored.iteration, other, new))
        tokenizer = place[1]
        rule, prompts = new.weigh, stored.trained_prompts(tokenizer)
        examples = output_dir / "examples.parquet"
        by_teacher = settings.teacher is not None and stored.iteration == 1  # its tokens are its own
        how = (prompts, None if by_teacher else tokenizer, factors.by_answer)
        write_examples(examples, drawn(again), stored.problems, rule, *how)
        write_json(output_dir / "refilter.json", report)
    if train:
        report["m_step"] = _fit(stored, settings, loop, examples, place, output_dir / "model", on_step)
    return report


def _check_output(output_dir: Path | None, *, trains: bool) -> None:
    """Refuse a folder that is taken, and training without one. Raises RunError, ConfigError."""
    if output_dir is not None:
        check_new(output_dir)
    elif trains:
        raise ConfigError("train needs a place for the model: give --output-dir too.")


def _report(
    stored: Stored, settings: Train, old: Scheme, new: Scheme, grade: Grade | None, again: Path
) -> tuple[dict[str, Any], Factors]:
    """Write the draws as they would have been graded to `again`, and measure both sides."""
    asked_again, left_out = _write_again(stored, new, grade, again)
    shares, kept, _ = _side(stored.draws, stored.problems, old, stored.settings.balance)
    _, other, factors = _side(again, stored.problems, new, settings.balance)
    gains = _gains(stored)
    kept |= _worth(stored.draws, gains)
    other |= _worth(again, gains)
    report = {
        "iteration": stored.iteration,
        "problems_by_answer": shares,
        "stored": kept,
        "refiltered": other,
        "not_asked": len(stored.problems) - other["num_problems"],
        "asked_again": asked_again,
        "left_out": left_out,
    }
    return report, factors


def _fit(
    stored: Stored,
    settings: Train,
    loop: LoopConfig,
    examples: Path,
    place: tuple[Path, ChatTokenizer],
    out: Path,
    on_step: Callable[[int, int, float], None],
) -> dict[str, Any]:
    """Train on the examples as the run's M-step would have, and describe the model in its folder."""
    from femtune.mstep.fit import m_step  # torch is slow to import

    start, tokenizer = place
    seed = settings.seed + stored.iteration  # as in the run
    _, training = loop.m_step(stored.iteration)
    done = m_step(examples, start, out, training, tokenizer, seed=seed, on_step=on_step)
    base = local_model(stored.model)
    weights = hash_weights(base, base_of_adapter(base))
    write_info(out, info_of(settings, settings, stored.model, weights))
    return asdict(done)


def _place(stored: Stored, model: str | None, train: bool) -> tuple[Path, ChatTokenizer]:
    """Return the weights to train from, and the run's tokenizer; refuse them if they do not match."""
    if train and stored.settings.m_step == "examples":
        raise ConfigError(
            f"{stored.run.root} trains no weights, it chooses examples: leave --train out. Run `femtune "
            "train` with other settings to choose again."
        )
    if stored.settings.engine == "chat":
        raise ConfigError(
            f"{stored.run.root} was drawn by --engine chat, whose draws have no tokens: leave out "
            "--output-dir and --train. `femtune fit` trains on the run's own examples.parquet."
        )
    tokenizer = load_tokenizer(local_model(stored.model), stored.settings.template_args)
    start = local_model(model) if model else stored.start()
    if train and not start.exists():
        raise RunError(
            f"{start}, which iteration {stored.iteration} started from, does not exist: give --model, "
            "or leave out --train."
        )
    if model and load_tokenizer(start).tokenizer.get_vocab() != tokenizer.tokenizer.get_vocab():
        raise ModelError(
            f"{model} reads other tokens than {stored.model}, which wrote the draws: give a model of "
            "its kind."
        )
    return start, tokenizer


def _grade(stored: Stored, settings: Train) -> Grade:
    """Return the new reward over the run's prompts, after a check that it accepts correct answers."""
    prompts = stored.prompts()
    data = TaskData(
        problems=list(stored.problems.values()),
        instruction=prompts.instruction,
        hint=prompts.hint,
        leaks=prompts.leaks,
        scale=settings.scale,
    )
    asked = read_inputs(data, settings)
    return partial(
        score,
        prompts=prompts,
        reward=asked.reward,
        timeout_s=settings.reward_timeout,
        on_error=settings.on_reward_error,
    )


def _side(
    folder: Path, problems: Mapping[str, Problem], scheme: Scheme, balance: Balance
) -> tuple[dict[str, float], dict[str, Any], Factors]:
    """Return the problems' shares by answer, a folder's metrics, and the weights' factors."""
    found = weighed(drawn(folder), problems, scheme.weigh)
    factors = balance_factors(found, balance)
    asked = outcomes(folder, problems)
    weight = {answer: w * factors.by_answer.get(answer, 1.0) for answer, w in found.weight.items()}
    shares = _shares({answer: w for answer, w in weight.items() if w})
    metrics = {
        **estep_metrics(problems, read_draws(folder), plain_attempts(scheme)),
        "num_examples": sum(found.num_examples.values()),
        "weight_by_answer": shares,
        "mean_trained_score": _mean_score(shares),
        **factors.metrics(),
        "kept_by": kept_by(asked),
        "kept_scores": kept_scores(asked),
    }
    return _shares(found.num_problems), metrics, factors


def _gains(stored: Stored) -> dict[DrawKey, float]:
    """Return by how many nats each scored rationale raises log p(y* | x); {} if none was scored."""
    return {
        draw.key: added
        for part in scored(stored.draws, stored.draws.with_name("scored"))
        for draw in part
        if (added := gain(draw)) is not None
    }


def _worth(folder: Path, gains: Mapping[DrawKey, float]) -> dict[str, Any]:
    """Measure the kept rationales of a folder that were scored."""
    kept = [draw.key for chunk in drawn(folder) for draw in chunk if draw.accepted]
    found = [gains[key] for key in kept if key in gains]
    if not gains:
        return {}
    mean = fmean(found) if found else math.nan
    return {
        "num_rationales": len(found),
        "rationale_gain": mean if math.isfinite(mean) else None,
        "helpful_share": fmean(added > 0 for added in found) if found else None,
    }


def _shares(amounts: Mapping[str, float]) -> dict[str, float]:
    total = sum(amounts.values())
    return {name: amount / total for name, amount in amounts.items()} if total else {}


def _mean_score(shares: Mapping[str, float]) -> float | None:
    """Return the mean of answers with these shares, if all are numbers."""
    scores = [as_number(answer) for answer in shares]
    known = [score for score in scores if score is not None]
    if not known or len(known) < len(scores):
        return None
    return sum(share * score for share, score in zip(shares.values(), known, strict=True))


# --- shown
