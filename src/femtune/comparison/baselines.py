"""Baselines of a comparison: models that did not learn to reason, or learned by other means.

    majority      the most frequent answer of the training problems, for every problem
    votes         the untrained base by vote: `draws` rationales at temperature 1
    direct        the untrained base without a rationale: the probability of every answer right after
                  the prompt and the cue; see `direct`. Its rows are "direct", the likeliest answer,
                  and, for ratings, "expected-score", their mean under these probabilities
    answer-only   the base, fine-tuned on "Answer: y*" without a rationale, with as many optimizer
                  steps as a scheme that keeps a draw of every problem in every iteration
    regression    the untrained base, and a regression from its completions to the human's answer:
                  see `regression`
    base, examples   the untrained base as it is, and with worked examples in its prompts: rungs of a
                  ladder; elsewhere they are iteration 0 of a run
    fem-votes     a trained model by vote: a rung of a ladder
    random-examples, similar-examples   the base with its own right answers as worked examples; only on
                  request: see `example_baselines`
    dspy-examples, gepa-instruction   the base with a prompt that another library's search has chosen;
                  only on request: see `prompt_baselines`
    grpo, rloo, latro   reinforcement learning on the same problems: see `rl`; only on request

The base itself, with the same prompts as the schemes, is iteration 0 of every scheme's run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from femtune._util.extras import check_extra
from femtune._util.text import near
from femtune.comparison.baseline_draws import (
    NO_TIME,
    Baseline,
    answered,
    draw_one,
    judged,
    store_scores,
    without_soundness,
)
from femtune.comparison.direct import direct_answers, direct_metrics, expected_score
from femtune.comparison.example_baselines import SCHEME
from femtune.comparison.prompt_baselines import PROMPT_BASELINES, check_prompt, run_prompt
from femtune.comparison.regression import with_values
from femtune.comparison.regression_baseline import check_regression, run_regression
from femtune.comparison.rl import RL_BASELINES, check_reinforced, reinforce
from femtune.config import CHANGEABLE, RL, Train
from femtune.data.answer_format import parse_format
from femtune.data.answers import Scale
from femtune.data.partition import Parts
from femtune.data.prompts import write_completion
from femtune.data.tasks.frames import frame
from femtune.errors import ConfigError, DataError
from femtune.estep.scheduler import Sampler
from femtune.evaluation.evaluate import evaluation_metrics
from femtune.loop import LoopConfig, Progress, Steps
from femtune.metric_types import EvaluationMetrics, History, IterationMetrics
from femtune.model_info import ModelInfo, info_of
from femtune.mstep.examples import write_examples
from femtune.reporting.terminal import Quiet
from femtune.resolve import Data, TaskInputs, held_out, make_loop_config, read_inputs, sampling
from femtune.run_folder import run_place, store_problems, with_pinned_date
from femtune.runs.draws import read_draws, write_draws
from femtune.runs.run import Run, open_run, stored_config
from femtune.sampler import SamplerBuilder, make_sampler_builder
from femtune.schemes.filters import Chain
from femtune.types import Completion, Draw, DrawKey, Problem, Sampling, Score
from femtune.workflows.worked_examples import without_held_out

# By task: `majority` needs repeated answers, `regression` needs ratings or pairs.
APPLY = {
    "judge": ("majority", "votes", "direct", "answer-only", "regression"),
    "summarize": ("majority", "votes", "direct", "answer-only", "regression"),
    "choice": ("majority", "votes", "direct", "answer-only"),
    "math": ("votes", "answer-only"),
    "table": ("votes", "answer-only"),
}
ONCE = ("majority", "direct")  # deterministic: one run for all seeds
DRAWING = ("votes", "regression")


@dataclass(frozen=True)
class Reinforced(Baseline, RL):
    """Settings of a baseline by reinforcement learning."""


_QUIET = Quiet()
_CHOICE = ("num_examples", "selection_requests", "selection_tokens")  # of M-steps that choose examples
_NO_CHOICE = {name: getattr(Train, name) for name in _CHOICE}


def chosen(names: Sequence[str] | None, settings: Train) -> tuple[str, ...]:
    """Return the requested baselines in order; None stands for all that suit the task.

    Reinforcement learning takes as long as schemes, so it runs only if named. So does `direct` if the
    answer format has no cue, or with a server, which may not be able to score.
    Raises ConfigError for an unknown baseline, an unsuitable one, and one whose requirements are
    missing.
    """
    known = (*APPLY["judge"], *PROMPT_BASELINES, *RL_BASELINES, "none")
    for name in names or ():
        if name not in known:
            raise ConfigError(f"no baseline {name!r}.{near(name, known)} There are {', '.join(known)}.")
    if names is not None and "none" in names and len(names) > 1:
        raise ConfigError(f"baselines {' '.join(names)}: none goes with no other.")
    measured = settings.eval_every > 0 and (
        settings.eval_share != 0 or settings.eval_data is not None or settings.eval_split is not None
    )
    suit = APPLY[settings.task] if measured else ()
    has_cue = bool(parse_format(settings.answer_format).cue)
    usual = suit if has_cue and settings.engine != "openai" else tuple(n for n in suit if n != "direct")
    wanted = usual if names is None else tuple(name for name in names if name != "none")
    if "direct" in wanted and not has_cue:
        raise ConfigError(
            f"baseline direct needs an answer format with a cue; got {settings.answer_format}. Choose "
            "line, boxed, hash, tag, bracket or json:KEY, or leave it out."
        )
    for name in wanted:
        if not measured:
            raise ConfigError(f"baseline {name} needs held-out problems: give --eval-data.")
        if name in RL_BASELINES:
            check_reinforced(name, settings)
        elif name in PROMPT_BASELINES:
            check_prompt(name, settings)
        elif name not in suit:
            raise ConfigError(f"baseline {name} does not suit task {settings.task}: leave it out.")
        if name == "regression":
            others = " ".join(each for each in wanted if each != name) or "none"
            check_extra(f"baseline regression (left out by --baselines {others})", "scipy", "sklearn")
    return tuple(name for name in known if name in wanted)


def baseline_settings(name: str, settings: Train, draws: int, rl: RL | None = None) -> Baseline:
    """Return the settings of one baseline's run. Raises ConfigError if draws are less than one.

    answer-only has a single M-step with the epochs of all iterations.
    """
    if draws < 1:
        raise ConfigError(f"baseline_draws must be at least 1, got {draws}.")
    training, iterations = settings.training, settings.iterations
    if name == "answer-only":
        training = training.longer(iterations)
        iterations = 1
    fields = {key: getattr(settings, key) for key in Train.__dataclass_fields__}
    own = {"scheme": name, "training": training, "iterations": iterations}
    if name in RL_BASELINES:
        return Reinforced(**(fields | own), **vars(rl or RL()))
    # no iterations to choose among, so these learn from the development part too
    own |= {"dev_share": 0.0, "patience": 0, "m_step": "weights"}
    if name not in PROMPT_BASELINES:
        own |= _NO_CHOICE
    return Baseline(**(fields | own), draws=draws if name in DRAWING else 1)


def check(
    asked: TaskInputs[Train], data: Data, model: str, settings: Baseline, output_dir: Path
) -> None:
    """Refuse at once what `run_baseline` would refuse. Raises DataError, ConfigError, RunError."""
    own = _own(asked, settings)
    parts = held_out(own, data, model)
    own = without_held_out(own, [*parts.dev, *parts.test])
    _place(own, data, model, output_dir, *parts.groups)
    if not parts.test:
        raise DataError(
            f"baseline {settings.scheme}: no problem is held out to measure it on. Give --eval-data, a "
            "larger --eval-share, or --no-baselines."
        )
    if settings.scheme == "regression":
        check_regression(both_orders(parts.train, asked.problems))


def _place(
    asked: TaskInputs[Any], data: Data, model: str, output_dir: Path, *groups: Sequence[Problem]
) -> tuple[Path, dict[str, Any]]:
    """Return a baseline's directory and its resolved configuration."""
    return run_place(
        output_dir,
        "baseline",
        data,
        model,
        asked.settings,
        *groups,
        reward=asked.reward,
        demos=asked.demos,
    )


def run_baseline(data: Data, model: str, settings: Baseline, output_dir: Path) -> History:
    """Run a baseline, or read its stored results; return its history.

    The history has one iteration; for reinforcement learning, the base and each pass, like a scheme's.
    Its "evaluation" has a scheme's keys; a regression's "evaluations" has one for each kind.
    """
    asked: TaskInputs[Any] = read_inputs(data, settings, model=model)
    return run_on(asked, held_out(asked, data, model), data, model, settings, output_dir)


def run_on(
    asked: TaskInputs[Any],
    parts: Parts,
    data: Data,
    model: str,
    settings: Baseline,
    output_dir: Path,
    *,
    progress: Progress = _QUIET,
) -> History:
    """Do as `run_baseline` on inputs, and problems to train and to measure on, that are read."""
    asked = without_held_out(_own(asked, settings), [*parts.dev, *parts.test])
    place, config = _place(asked, data, model, output_dir, *parts.groups)
    asked = with_pinned_date(asked, config)
    with open_run(place, config, CHANGEABLE) as run:
        store_problems(run, [], parts.test)
        if isinstance(settings, Reinforced):
            builder = make_sampler_builder(model, asked, *parts.groups)
            return reinforce(run, builder, settings, settings, parts)
        number = 1 if settings.scheme in ("answer-only", *PROMPT_BASELINES) else 0
        stored = run.iteration(number) / "metrics.json"
        if not stored.exists():
            train, test = parts.train, parts.test
            metrics = {"iteration": number} | _made(run, asked, model, settings, train, test, progress)
            run.write_json(stored, metrics)
            run.log("iteration", **metrics)
        return [json.loads(stored.read_text())]


def _own(asked: TaskInputs[Any], settings: Baseline) -> TaskInputs[Train]:
    """Return these problems with a baseline's settings, all filled in."""
    texts = ("system_prompt", "rubric", "prompt_template")  # not the paths of their files
    names = ("reward", "instruction", "hint", "scale", *texts)
    known = {name: getattr(asked.settings, name) for name in names}
    return replace(asked, settings=replace(settings, **known))


def _made(
    run: Run,
    asked: TaskInputs[Train],
    model: str,
    settings: Baseline,
    train: Sequence[Problem],
    test: Sequence[Problem],
    progress: Progress,
) -> IterationMetrics:
    if settings.scheme == "majority":
        return _majority(run, asked, train, test)
    builder = make_sampler_builder(model, asked, train, test)
    if settings.scheme in ("base", "examples"):
        return _greedy(run, builder, settings, test, progress)
    if settings.scheme == "answer-only":
        info = info_of(settings, asked.settings, model, stored_config(run.root)["relies_on"]["weights"])
        return _answer_only(run, builder, settings, train, test, progress, info)
    if settings.scheme in PROMPT_BASELINES:
        return _examples(run, builder, settings, train, test, progress)
    if settings.scheme in ("votes", "fem-votes"):
        return _votes(run, builder, settings, test, progress)
    if settings.scheme == "direct":
        return _direct(run, asked, builder, settings, test)
    both = both_orders(train, asked.problems)
    return run_regression(run, asked, builder, settings, both, test, progress)


# --- majority


def most_frequent(problems: Sequence[Problem]) -> str:
    """Return the most frequent answer; the first one on a tie."""
    return Counter(problem.answer for problem in problems).most_common(1)[0][0]


def _majority(
    run: Run, asked: TaskInputs[Train], train: Sequence[Problem], test: Sequence[Problem]
) -> IterationMetrics:
    run.log("evaluation", iteration=0)
    draws = answered(test, [most_frequent(train)] * len(test), asked)
    write_draws(run.shard(0, "eval", 0), draws, NO_TIME)
    return {"evaluation": judged(test, draws)}


# --- the base


def _greedy(
    run: Run,
    builder: SamplerBuilder,
    settings: Baseline,
    test: Sequence[Problem],
    progress: Progress,
) -> IterationMetrics:
    """Evaluate the model as iteration 0 of a run does, without or with worked examples."""
    demos = builder.demos if settings.scheme == "examples" else ()
    with builder.sampler(Sampling(settings.max_new_tokens)) as sampler:
        config = make_loop_config(replace(settings, scheme="pps", soft_accept=None))
        steps = _steps(run, builder, config, sampler, (), test, progress)
        return {"evaluation": steps.evaluate(0, demos)}


def _steps(
    run: Run,
    builder: SamplerBuilder,
    config: LoopConfig,
    sampler: Sampler,
    train: Sequence[Problem],
    test: Sequence[Problem],
    progress: Progress,
    info: ModelInfo | None = None,
) -> Steps:
    return Steps(
        run=run,
        base=builder.base,
        problems=train,
        eval_problems=test,
        config=config,
        sampler=sampler,
        tokenizer=builder.tokenizer,
        progress=progress,
        info=info,
    )


def _examples(
    run: Run,
    builder: SamplerBuilder,
    settings: Baseline,
    train: Sequence[Problem],
    test: Sequence[Problem],
    progress: Progress,
) -> IterationMetrics:
    """Answer with worked examples, or an instruction, that are made by draws first."""
    own = replace(settings, scheme=SCHEME, **_NO_CHOICE)
    config = replace(make_loop_config(own), demos=builder.demos)
    with builder.sampler(sampling(own)) as sampler:
        return run_prompt(_steps(run, builder, config, sampler, train, test, progress), settings)


# --- votes


def _votes(
    run: Run,
    builder: SamplerBuilder,
    settings: Baseline,
    test: Sequence[Problem],
    progress: Progress,
) -> IterationMetrics:
    progress.phase("evaluation", 0, len(test))
    run.log("evaluation", iteration=0)
    with builder.sampler(Sampling(settings.max_new_tokens, temperature=1.0)) as sampler:
        # an untrained model votes at its best: with worked examples, as in its own evaluation
        own = replace(sampler, demos=builder.demos)
        draw_one(run, "eval", test, own, settings.draws, progress)
    metrics = evaluation_metrics(
        {problem.id: problem for problem in test}, read_draws(run.iteration(0) / "eval")
    )
    return {"evaluation": by_vote(metrics)}


def by_vote(metrics: EvaluationMetrics) -> EvaluationMetrics:
    """Return an evaluation whose accuracy is that of the vote; `draw_accuracy` is that of draws."""
    made = metrics.copy()
    if "majority_accuracy" in metrics:
        made["draw_accuracy"], made["accuracy"] = metrics["accuracy"], metrics["majority_accuracy"]
    if "majority_accuracy_ci" in metrics:
        made["draw_accuracy_ci"] = metrics["accuracy_ci"]
        made["accuracy_ci"] = metrics["majority_accuracy_ci"]
    return made


# --- direct


def _direct(
    run: Run,
    asked: TaskInputs[Train],
    builder: SamplerBuilder,
    settings: Baseline,
    test: Sequence[Problem],
) -> IterationMetrics:
    """Return two rows from one pass: the likeliest answer and, for ratings, the expected score."""
    run.log("evaluation", iteration=0)
    with builder.sampler(Sampling(settings.max_new_tokens)) as sampler:
        found = direct_answers(run, test, replace(sampler, demos=builder.demos))
    answers = [logprobs.likeliest if logprobs else "" for logprobs in found]
    drawn = {"direct": answered(test, answers, asked)}
    ways = {"direct": judged(test, drawn["direct"]) | direct_metrics(test, found)}
    known = frame(test[0])
    if known is not None and known.form == "rating" and all(found):
        scale = Scale(known.scale)
        values = np.array([expected_score(logprobs, scale) for logprobs in found if logprobs])
        drawn["expected-score"] = answered(test, [*map(scale.nearest, values)], asked)
        nearest = judged(test, drawn["expected-score"])
        ways["expected-score"] = with_values(nearest, test, values, known.scale)
    store_scores(run, test, drawn)
    return {"evaluation": ways["direct"], "evaluations": ways}


# --- answer-only


def _answer_only(
    run: Run,
    builder: SamplerBuilder,
    settings: Baseline,
    train: Sequence[Problem],
    test: Sequence[Problem],
    progress: Progress,
    info: ModelInfo,
) -> IterationMetrics:
    examples = run.iteration(1) / "examples.parquet"
    if not examples.exists():
        write_answers(examples, train, builder)
    own = replace(settings, scheme="pps", soft_accept=None, start_from="base")
    what = make_loop_config(own)
    lenient = replace(builder, prompts=replace(builder.prompts, require_rationale=False))
    with lenient.sampler(Sampling(settings.max_new_tokens)) as sampler:
        steps = _steps(run, builder, what, sampler, train, test, progress, info)
        return {"m_step": steps.m_step(1), "evaluation": without_soundness(steps.evaluate(1))}


def write_answers(path: Path, problems: Sequence[Problem], builder: SamplerBuilder) -> None:
    """Write examples of bare answers, y* under the plain prompt, for the M-step."""
    draws = []
    for problem in problems:
        text = write_completion(builder.prompts.format, "", problem.answer).strip()
        completion = Completion(builder.tokenizer.encode_completion(text), text, "stop", 0.0)
        key = DrawKey(1, problem.id, 0, 0)
        draws.append(Draw(key, "plain", 0, completion, Score(1.0, problem.answer)))
    by_id = {problem.id: problem for problem in problems}
    write_examples(path, [draws], by_id, Chain(), builder.prompts, builder.tokenizer)


# --- regression


def both_orders(train: Sequence[Problem], problems: Sequence[Problem]) -> list[Problem]:
    """Return training pairs in both orders, so that no position is favoured; others unchanged."""
    names = {known.pair for problem in train if (known := frame(problem)) is not None and known.pair}
    if not names:
        return [*train]
    return [p for p in problems if (known := frame(p)) is not None and known.pair in names]
