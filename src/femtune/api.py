"""Each thing that femtune does, as a function: the CLI's verbs, and the library's.

train(data, model)      FEM: E-step, M-step, evaluation, K times
sample(data, model)     the E-step alone: a data set of rationales
fit(examples, model)    the M-step alone
evaluate(data, model)   metrics on held-out problems
calibrate(data, model)  a map of votes or probabilities to calibrated ones
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from femtune.config import CHANGEABLE, Ask, Calibrate, Evaluate, Sample, Train
from femtune.data.demos import save_demos, without_problems
from femtune.data.tasks.frames import scale_of
from femtune.data.tasks.load import trained_on
from femtune.engines.model_files import base_of_adapter, load_tokenizer, local_model
from femtune.errors import ConfigError, ModelError
from femtune.estep.scheduler import Sampler
from femtune.evaluation.answer_metrics import judged_by_probabilities, side_by_side
from femtune.evaluation.calibration import cross_fitted_effect, fit_calibration, save_calibration
from femtune.evaluation.calibration_map import Calibration
from femtune.evaluation.evaluate import as_item, evaluation_metrics
from femtune.evaluation.rationales import read_all
from femtune.evaluation.scored_answers import (
    engine_scores,
    of_draws,
    read_scored,
    score_into,
    uses_probabilities,
)
from femtune.loop import Progress, Steps, fem
from femtune.model_info import (
    ModelInfo,
    as_trained,
    femtune_version,
    info_of,
    read_info,
    write_info,
)
from femtune.mstep.config import Training
from femtune.predictions import check_calibration, read_calibration
from femtune.reporting.cards import write_data_card, write_model_card
from femtune.reporting.terminal import Quiet
from femtune.reporting.trackers import check_trackers, tracking
from femtune.resolve import (
    Data,
    TaskInputs,
    check_new,
    check_varied,
    choose_peft,
    held_out,
    make_loop_config,
    named_scheme,
    needs_peft,
    read_inputs,
    run_place,
    sampling,
    store_problems,
)
from femtune.runs.checkpoints import best_of
from femtune.runs.hashes import hash_weights, warn_of_date
from femtune.runs.run import Run, by_problem, open_run, read_draws, stored_config
from femtune.sampler import (
    SamplerBuilder,
    check_installed,
    make_sampler_builder,
    no_foreign_bars,
    trained_from,
)
from femtune.schemes.serialization import scheme_to_data
from femtune.tools.estimate.disk import at_most, check_disk
from femtune.tools.stored_run import settings_of
from femtune.types import Aggregate, Demos, Problem, Sampling, Scheme

log = logging.getLogger("femtune")
A = TypeVar("A", bound=Ask)


@dataclass(frozen=True)
class Result:
    """What a run of FEM gave."""

    run: Path
    model: Path  # of the last iteration
    history: list[dict[str, Any]]  # metrics by iteration, 0 being the base


def train(
    data: Data,
    model: str | Path,
    *,
    scheme: str | Scheme = "auto",
    reward: str | Callable[..., Any] | None = None,
    output_dir: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Result:
    """Train a model to reason its way to the answers, by FEM.

        train("judge.jsonl", model="Qwen/Qwen3-1.7B", scheme=pps(), reward=ordinal(scale=(1, 5)))

    `options` are the fields of config.Train and mstep.Training, by their names. The same call goes on
    with a run that was stopped. Raises a FemtuneError: DataError, ConfigError or ModelError at once,
    RunError where `output_dir` holds another run.
    """
    settings = make_settings(scheme=_name(scheme), reward=_name(reward) if reward else None, **options)
    return run_train(
        data,
        str(model),
        settings,
        output_dir,
        progress or Quiet(),
        scheme=None if isinstance(scheme, str) else scheme,
        reward=None if isinstance(reward, str | None) else reward,
    )


def run_train(
    data: Data,
    model: str,
    settings: Train,
    output_dir: str | Path | None,
    progress: Progress,
    *,
    scheme: Scheme | None = None,
    reward: Callable[..., Any] | None = None,
) -> Result:
    """`train` from settings; a scheme or reward given as an object stands for its name in them."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "train is one process, and starts its M-steps' processes itself: give the launcher to it, "
            'as --launch "torchrun --nproc-per-node 8".'
        )
    if settings.engine == "openai" and not settings.training.use_peft:
        raise ConfigError(
            "a server can't be given new full weights while it runs: train through it with --use-peft "
            "(LoRA adapters), or take --engine vllm."
        )
    check_trackers(settings.training.trackers)
    if scheme is not None:
        check_storable(scheme)
    draws = sampling(settings, scheme)
    make_loop_config(
        replace(settings, soft_accept=None), scheme
    )  # what needs no data is refused at once
    check_installed(settings)
    asked = read_inputs(data, settings, reward)
    make_loop_config(asked.settings, scheme)  # and what needs no model
    problems, test = held_out(asked, data)
    asked = beside(asked, test)
    base = local_model(model)
    asked = replace(asked, settings=choose_peft(asked.settings, base, _path(output_dir)))
    steps = make_loop_config(asked.settings, scheme)
    place, config = run_place(
        output_dir,
        "train",
        data,
        model,
        asked.settings,
        problems,
        test,
        reward=asked.reward,
        demos=asked.demos,
        scheme=scheme or named_scheme(asked.settings),
    )
    warn_of_date(base, asked.settings.template_args)
    builder = make_sampler_builder(model, asked, problems, test)
    steps = replace(steps, demos=usable_demos(builder.demos, steps.scheme))
    in_prompt = tuple(asdict(demo) for demo in builder.prompts.demos)
    weights = config["relies_on"]["weights"]
    info = info_of(settings, asked.settings, model, weights, demos=in_prompt or None)
    if reward is not None:  # a function has no name by which another command could find it
        info = replace(info, reward=None)
    num_stored = len(list(place.glob("iteration-*/model")))
    check_disk(place, at_most(steps, builder.base, len(problems), len(test), draws, num_stored))
    with (
        open_run(place, config, CHANGEABLE) as run,
        tracking(settings.training.trackers, run.root, config, progress) as progress,
    ):
        store_problems(run, problems, test)
        store_demos(run, builder)
        with builder.sampler(draws, problems, steps.scheme.needs) as sampler:
            if not getattr(getattr(sampler.engine, "abilities", None), "adapters", True):
                raise ModelError(
                    "the server takes no adapters while it runs, so what is learnt can't reach it: "
                    "start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True."
                )
            history = fem(
                run, builder.base, problems, test, steps, sampler, builder.tokenizer, progress, info
            )
        for iteration in {best_of(history), steps.iterations}:
            write_model_card(run.root, iteration)
    return Result(run.root, run.root / "last", history)


def sample(
    data: Data, model: str, settings: Sample, output_dir: str | Path | None, progress: Progress
) -> tuple[Path, dict[str, Any]]:
    """The E-step alone: gives the folder with its draws and examples, and its metrics.

    Raises NothingKept where no draw is kept; they are stored all the same.
    """
    draws = sampling(settings)
    make_loop_config(replace(as_train(settings), soft_accept=None))
    asked = read_inputs(data, settings)
    what = make_loop_config(as_train(asked.settings))
    problems = trained_on(asked.problems)
    check_varied(problems)
    place, config = run_place(
        output_dir,
        "sample",
        data,
        model,
        asked.settings,
        problems,
        reward=asked.reward,
        demos=asked.demos,
        scheme=named_scheme(asked.settings),
    )
    builder = make_sampler_builder(model, asked, problems)
    what = replace(what, demos=usable_demos(builder.demos, what.scheme))
    with open_run(place, config, CHANGEABLE) as run:
        store_problems(run, problems)
        store_demos(run, builder)
        with builder.sampler(draws, needs=what.scheme.needs) as sampler:
            steps = Steps(run, builder.base, problems, [], what, sampler, builder.tokenizer, progress)
            metrics = steps.e_step(1)
        run.write_json(run.iteration(1) / "metrics.json", {"iteration": 1, "e_step": metrics})
        write_data_card(run.root, 1)
    return run.iteration(1), metrics


def fit(
    examples: Path,
    model: str,
    training: Training,
    output_dir: Path,
    seed: int = 0,
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> dict[str, Any]:
    """The M-step alone: trains on a file of examples and makes `output_dir` a model's folder.

    What trackers write lies beside it, in a folder of its name and ".trackers". Raises RunError where
    `output_dir` exists already: a checkpoint is never overwritten.
    """
    check_new(output_dir)
    check_trackers(training.trackers)
    from femtune.mstep import distributed  # torch is slow to import
    from femtune.mstep.fit import m_step

    no_foreign_bars()
    base = local_model(model)
    if training.use_peft is None:
        training = replace(training, use_peft=needs_peft(training, base))
    tokenizer = load_tokenizer(base)
    is_first = os.environ.get("RANK", "0") == "0"  # of a job's processes
    beside = output_dir.with_name(f"{output_dir.name}.trackers")
    config = {"examples": str(examples), "model": model, "seed": seed, **asdict(training)}
    with tracking(training.trackers if is_first else (), beside, config, _Steps(on_step)) as told:
        done = m_step(examples, base, output_dir, training, tokenizer, seed=seed, on_step=told.step)
        if is_first:
            write_info(output_dir, _fitted(examples, model, base))
        metrics = asdict(done)
        told.measured(1, {"iteration": 1, "m_step": metrics})
    distributed.leave()  # gloo's threads would abort a process that ends while they run
    return metrics


def _fitted(examples: Path, model: str, base: Path) -> ModelInfo:
    """Describe how a fitted model is asked: as the run that its examples are from, or as its base."""
    root = examples.absolute().parent.parent
    weights = hash_weights(base, base_of_adapter(base))
    if (root / "config.yaml").exists():
        settings = settings_of(stored_config(root), root)
        return info_of(settings, settings, model, weights)
    known = read_info(base) or ModelInfo()
    return replace(known, femtune=femtune_version(), base=model, base_sha256=weights)


def _path(place: str | Path | None) -> Path | None:
    return None if place is None else Path(place)


@dataclass(frozen=True)
class _Steps(Quiet):
    """Progress of which only the steps are told."""

    on_step: Callable[[int, int, float], None]

    def step(self, step: int, steps: int, loss: float) -> None:
        self.on_step(step, steps, loss)


def evaluate(
    data: Data,
    model: str,
    settings: Evaluate,
    output_dir: str | Path | None,
    progress: Progress,
    reader_problems: int = 0,
) -> tuple[Path, dict[str, Any]]:
    """Metrics of a model on problems it was not trained on; gives the folder with its draws too.

    Where the answers are a closed set, "by_votes" and "by_probabilities" have the measures of both: see
    `answer_metrics`. Under a calibration, "calibrated" has those of what it maps. Of a calibration of
    votes, `ece`, `brier` and all that is of the expected rating are of calibrated votes too; `ece_raw`
    and `brier_raw` are of the votes themselves. The draws are the same with and without.

    With `reader_problems` the base that the model was trained from reads the rationales of so many
    problems: see `rationales.rationale_metrics`. Raises ModelError where that base can't be had.
    """
    settings = as_trained(settings, model)
    return _evaluate(data, model, settings, output_dir, progress, reader_problems)


def _evaluate(
    data: Data,
    model: str,
    settings: Evaluate,
    output_dir: str | Path | None,
    progress: Progress,
    reader_problems: int = 0,
) -> tuple[Path, dict[str, Any]]:
    if reader_problems < 0:
        raise ConfigError(f"reader_problems must be at least 0, got {reader_problems}.")
    reader = trained_from(model) if reader_problems else None
    what = make_loop_config(
        Train(
            eval_draws=settings.draws,
            eval_temperature=settings.temperature,
            force_answers=settings.force_answers,
        )
    )
    calibration = read_calibration(settings)
    asked = read_inputs(data, settings)
    problems = asked.problems
    check_calibration(calibration, problems)
    of_probabilities = calibration is not None and calibration.of == "probabilities"
    aggregate: Aggregate = "probabilities" if of_probabilities else settings.aggregate
    scores = uses_probabilities(aggregate, problems, asked.prompts)
    place, config = run_place(
        output_dir,
        "evaluate",
        data,
        model,
        asked.settings,
        problems,
        reward=asked.reward,
        demos=asked.demos,
    )
    if settings.calibration is not None:
        digest = hashlib.blake2b(Path(settings.calibration).read_bytes(), digest_size=12).hexdigest()
        config["calibration"] = f"{settings.calibration} (blake2b {digest})"
    builder = make_sampler_builder(model, asked, problems)
    with open_run(place, config, CHANGEABLE) as run:
        store_problems(run, [], problems)
        store_demos(run, builder)
        with builder.sampler(Sampling(settings.max_new_tokens)) as sampler:
            steps = Steps(run, builder.base, [], problems, what, sampler, builder.tokenizer, progress)
            metrics = steps.evaluate(0)
            if builder.demos:
                shown = steps.evaluate(0, builder.demos)
            both = {}
            if scores and engine_scores(sampler, aggregate):
                both = _both_ways(run, "eval", problems, sampler, calibration)
                if builder.demos:
                    own = replace(sampler, demos=builder.demos)
                    made = _both_ways(run, "eval_demos", problems, own, None)
                    both |= {f"{name}_with_examples": each for name, each in made.items()}
            worth = read_all(steps, reader_problems, reader)
        if builder.demos:
            metrics |= {f"{name}_with_examples": shown[name] for name in _SHOWN if name in shown}
        if calibration is not None and calibration.of == "votes":
            metrics = _calibrated(metrics, problems, run.iteration(0) / "eval", calibration)
        metrics |= both
        run.write_json(run.iteration(0) / "metrics.json", {"iteration": 0, "evaluation": metrics})
    return run.iteration(0), metrics | ({"rationales": worth[0]} if worth else {})


def _both_ways(
    run: Run,
    kind: str,
    problems: Sequence[Problem],
    sampler: Sampler,
    calibration: Calibration | None,
) -> dict[str, Any]:
    """Measure the stored draws of a kind by votes and by probabilities, which are scored first."""
    folder = score_into(run, kind, problems, sampler)
    by_id = {problem.id: problem for problem in problems}
    scored, stored = read_scored(folder), read_draws(run.iteration(0) / kind)
    return side_by_side(by_id, stored, scored, calibration)


def _calibrated(
    raw: dict[str, Any], problems: Sequence[Problem], draws: Path, calibration: Calibration
) -> dict[str, Any]:
    by_id = {problem.id: problem for problem in problems}
    metrics = evaluation_metrics(by_id, read_draws(draws), calibration)
    kept = {"ece": "ece_raw", "ece_ci": "ece_raw_ci", "brier": "brier_raw", "brier_ci": "brier_raw_ci"}
    same = {"truncated_share": raw["truncated_share"]}
    return raw | metrics | same | {name: raw[own] for own, name in kept.items() if own in raw}


def calibrate(
    data: Data,
    model: str,
    settings: Calibrate,
    output: Path,
    output_dir: str | Path | None,
    progress: Progress,
) -> dict[str, Any]:
    """Fit a map of votes or probabilities on a validation split, and store it at `output`.

    The draws are those of `evaluate` with the same settings, and stored as it stores them. Gives `ece`
    and `brier` before and after, cross-fitted: by maps that did not see the item. Raises ConfigError
    where the answers are on no scale, or on several, DataError where there are too few.
    """
    check_new(output, "--output")
    settings = as_trained(settings, model)
    kept = {field.name: getattr(settings, field.name) for field in fields(Ask)}
    asking = Evaluate(
        **kept,
        draws=settings.draws,
        temperature=settings.temperature,
        aggregate=settings.aggregate,
    )
    asked = read_inputs(data, asking)
    scales = {scale_of(problem) for problem in asked.problems}
    scale = scales.pop()
    if scale is None or scales:
        several = "these have none" if scale is None else f"these are on {len(scales) + 1}"
        raise ConfigError(f"a calibration is of answers on one scale, and {several}.")
    folder, _ = _evaluate(data, model, asking, output_dir, progress)
    by_id = {problem.id: problem for problem in asked.problems}
    drawn = [
        (by_id[name], draws)
        for chunk, _ in read_draws(folder / "eval")
        for name, draws in by_problem(chunk)
    ]
    items = [as_item(problem, draws) for problem, draws in drawn]
    probabilities = None
    if settings.aggregate != "votes" and (scored := read_scored(folder / "eval_answers")):
        rows = [judged_by_probabilities(each, of_draws(scored, draws)) for each, draws in drawn]
        probabilities = np.array([[*row.shares.values()] for row in rows])
    fitted = fit_calibration(items, scale.answers, settings.kind, probabilities)
    effect = cross_fitted_effect(items, scale.answers, settings.kind, probabilities)
    save_calibration(fitted, output)
    measured = {"num_problems": len(items), "kind": settings.kind, "draws": settings.draws}
    return measured | {"of": fitted.of} | effect


# what is shown of an untrained model that is asked with worked examples, beside all without them
_SHOWN = (
    *("accuracy", "accuracy_ci", "accuracy_unforced", "accuracy_unforced_ci", "answered"),
    *("forced_share", "truncated_share", "spearman", "spearman_ci", "mae", "mae_ci"),
)


def beside(asked: TaskInputs[Any], test: Sequence[Problem]) -> TaskInputs[Any]:
    """Return what is asked without the worked examples that are held-out problems. Raises DataError."""
    given = asked.settings.demos != "auto"
    return replace(asked, demos=without_problems(asked.demos, test, given=given))


def check_storable(scheme: Scheme) -> None:
    """Refuse a scheme that a run can't store, and warn of one that only this script can read.

    Raises ConfigError.
    """
    stored = json.dumps(scheme_to_data(scheme))
    if '"__main__:' in stored:
        log.warning(
            "scheme %s has a rule that is defined in __main__: the same script can resume this run, and "
            "no command can replay or refilter it. Move the rule to a module of its own.",
            scheme.name,
        )


def usable_demos(demos: Demos, scheme: Scheme) -> Demos:
    """Return the worked examples that a scheme's draws may be shown: none if it needs plain prompts."""
    if demos and "plain_prompts" in scheme.needs:
        log.warning(
            "scheme %s needs draws of the plain prompt: worked examples are not shown in its E-steps.",
            scheme.name,
        )
        return ()
    return demos


def store_demos(run: Run, builder: SamplerBuilder) -> None:
    """Copy the worked examples into a run."""
    demos, path = builder.demos or builder.prompts.demos, run.root / "demos.jsonl"
    if demos and not path.exists():
        save_demos(path, demos)
        run.record(path)


def make_settings(**options: Any) -> Train:
    """Settings of a run from keywords. Raises ConfigError for a name that is none."""
    of_training = {field.name for field in fields(Training)}
    of_train = {field.name for field in fields(Train)} - {"training"}
    for name in options.keys() - of_training - of_train:
        near = get_close_matches(name, of_training | of_train, 1)
        raise ConfigError(f"{name} is no setting" + (f": did you mean {near[0]}?" if near else "."))
    training = Training(**{key: options[key] for key in options.keys() & of_training})
    return Train(training=training, **{key: options[key] for key in options.keys() & of_train})


def as_train(settings: Sample) -> Train:
    """The settings of an E-step, as those of a run."""
    return Train(**{field.name: getattr(settings, field.name) for field in fields(Sample)})


def _name(thing: Any) -> str:
    if isinstance(thing, str):
        return thing
    return thing.name if isinstance(thing, Scheme) else getattr(thing, "__name__", repr(thing))
