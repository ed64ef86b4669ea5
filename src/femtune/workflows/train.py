"""Run filtered EM from settings: check the inputs, then run E-step, M-step, evaluation, K times."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from femtune.config import CHANGEABLE, Train
from femtune.data.partition import Parts, num_items
from femtune.engines.model_files import local_model
from femtune.errors import ConfigError, ModelError
from femtune.estep.scheduler import Sampler
from femtune.evaluation.advice import time_advice
from femtune.evaluation.item_scores import compare_iterations
from femtune.evaluation.paired import PairedDifference
from femtune.loop import LoopConfig, Progress, fem
from femtune.metric_types import History
from femtune.model_info import ModelInfo, info_of, refuse_chat, served_name
from femtune.reporting.cards import write_model_card
from femtune.reporting.terminal import summary
from femtune.reporting.trackers import check_trackers, tracking
from femtune.resolve import (
    Data,
    TaskInputs,
    make_loop_config,
    named_scheme,
    part,
    read_inputs,
    read_test,
    sampling,
)
from femtune.run_folder import check_storable, choose_peft, run_place, store_problems, with_pinned_date
from femtune.runs.checkpoints import best_of, describe_best
from femtune.runs.run import open_run
from femtune.sampler import SamplerBuilder, check_installed, make_sampler_builder
from femtune.selection.limits import check_items
from femtune.tools.estimate.disk import at_most, check_disk
from femtune.types import Demos, Sampling, Scheme
from femtune.workflows.teacher import check_teacher, make_teacher
from femtune.workflows.trained_model import TrainedModel
from femtune.workflows.worked_examples import store_demos, usable_demos, without_held_out

log = logging.getLogger("femtune")


@dataclass(frozen=True, kw_only=True, repr=False)
class TrainResult:
    """Models and metrics of a run of filtered EM. Its repr is the summary that the CLI prints."""

    run: Path
    """Folder of the run: settings, problems, every draw, examples and metrics."""
    best: TrainedModel
    """Model with the highest accuracy on the development part: no held-out problem chose it."""
    last: TrainedModel
    """Model of the last iteration."""
    best_iteration: int
    """Iteration of `best`; the last one without a development part."""
    history: History = field(repr=False)
    """Metrics by iteration; 0 is the base model."""
    difference: PairedDifference | None = None
    """Held-out accuracy of `best` less that of the base, on the same problems; None if not measured."""

    def __repr__(self) -> str:
        lines = [
            *summary(self.history, self.difference),
            f"best: {self.best} ({describe_best(self.history)})",
            f"last: {self.last}",
        ]
        return "\n".join(lines)


def run_train(
    data: Data,
    model: str,
    settings: Train,
    output_dir: str | Path | None,
    progress: Progress,
    *,
    scheme: Scheme | None = None,
    reward: Callable[..., Any] | None = None,
) -> TrainResult:
    """Train from settings; a scheme or reward given as an object stands for its name in them."""
    _check(settings, scheme)
    draws = sampling(settings, scheme)
    asked, other, parts = _inputs(data, model, settings, output_dir, scheme, reward)
    config = make_loop_config(asked.settings, scheme)
    place, stored = run_place(
        *(output_dir, "train", data, model, asked.settings),
        *parts.groups,
        reward=asked.reward,
        demos=asked.demos,
        scheme=scheme or named_scheme(asked.settings),
    )
    teacher = make_teacher(asked, place, stored, parts.train)
    asked = with_pinned_date(asked, stored)
    builder = make_sampler_builder(model, asked, *parts.groups)
    config = replace(config, demos=_first_demos(builder, config))
    info = _info(model, settings, asked, builder, stored)
    if reward is not None:  # another command cannot find a function by name
        info = replace(info, reward=None)
    _check_room(place, config, builder, parts, draws)
    with (
        open_run(place, stored, CHANGEABLE) as run,
        tracking(settings.training.trackers, run.root, stored, progress) as progress,
    ):
        _say_parts(settings, parts)
        reports = {"problems": asked.report} | ({} if other is None else {"eval": other.report})
        store_problems(run, parts.train, parts.test, reports, dev=parts.dev)
        store_demos(run, builder)
        if teacher is not None:
            teacher.draw(run, parts.train, config, draws, progress)
        with builder.sampler(draws, parts.train, config.scheme.needs, folder=run.root) as sampler:
            _check_adapters(sampler, config)
            history = fem(
                *(run, builder.base, parts.train, parts.test, config, sampler),
                *(builder.tokenizer, progress, info, parts.dev),
            )
        _say_end(history, config)
        for iteration in {best_of(history), history[-1]["iteration"]}:
            write_model_card(run.root, iteration)
    return TrainResult(
        run=run.root,
        best=TrainedModel(run.root / "best"),
        last=TrainedModel(run.root / "last"),
        best_iteration=best_of(history),
        history=history,
        difference=compare_iterations(run.root, best_of(history)),
    )


def _check(settings: Train, scheme: Scheme | None) -> None:
    """Refuse bad settings without data and model. Raises ConfigError."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "train is one process that starts the processes of its M-steps itself. Pass it the "
            'launcher: --launch "torchrun --nproc-per-node 8".'
        )
    trains = settings.m_step == "weights"
    if trains:
        refuse_chat(settings, "train")
    if trains and settings.engine == "openai" and not settings.training.use_peft:
        raise ConfigError(
            "A running server can't load new full weights. Train through it with --use-peft "
            "(LoRA adapters), or take --engine vllm."
        )
    check_teacher(settings, scheme or named_scheme(settings))
    check_trackers(settings.training.trackers)
    if scheme is not None:
        check_storable(scheme)
    sampling(settings, scheme)
    make_loop_config(replace(settings, soft_accept=None), scheme)  # soft_accept needs the data's scale
    check_installed(settings)


def _inputs(
    data: Data,
    model: str,
    settings: Train,
    output_dir: str | Path | None,
    scheme: Scheme | None,
    reward: Callable[..., Any] | None,
) -> tuple[TaskInputs[Train], TaskInputs[Train] | None, Parts]:
    """Return the inputs with all settings filled in, those of evaluation data, and both's problems."""
    asked = read_inputs(data, settings, reward, model=model)
    config = make_loop_config(asked.settings, scheme)  # before the model's files are read
    other = read_test(asked, data, model)
    parts = part(asked, other)
    if config.selection is not None:
        check_items(num_items(parts.dev), config.selection)
    asked = without_held_out(asked, [*parts.dev, *parts.test])
    place = None if output_dir is None else Path(output_dir)
    if config.selection is not None:
        return asked, other, parts
    own = choose_peft(asked.settings, local_model(model), place)
    return replace(asked, settings=own), other, parts


def _say_parts(settings: Train, parts: Parts) -> None:
    """Log how many problems are in each part, and what is done without a development part."""
    log.info(
        "%s problems to train on, %s development, %s held out.",
        *(f"{len(part):,}" for part in parts),
    )
    if not parts.dev and settings.dev_share is None and settings.eval_every:
        log.info(
            "%d training items are too few for a development part, or their groups too large: `best` is "
            "the last model. --dev-share 0.2 sets one aside.",
            num_items(parts.train),
        )


def _say_end(history: History, config: LoopConfig) -> None:
    """Log why a run ended early, and what measuring took where that was much of its time."""
    if history[-1]["iteration"] < config.iterations:
        log.info("out of patience %d: best is %s.", config.patience, describe_best(history))
    if advice := time_advice(history):
        log.info("%s", advice)


def _info(
    model: str,
    settings: Train,
    asked: TaskInputs[Train],
    builder: SamplerBuilder,
    stored: dict[str, Any],
) -> ModelInfo:
    """Describe the prompts and settings of the run's models, for their femtune.json."""
    in_prompt = tuple(asdict(demo) for demo in builder.prompts.demos)
    weights = stored["relies_on"].get("weights")
    base = served_name(model, settings) if settings.engine == "chat" else model
    return info_of(settings, asked.settings, base, weights, demos=in_prompt or None)


def _check_room(
    place: Path,
    config: LoopConfig,
    builder: SamplerBuilder,
    parts: Parts,
    draws: Sampling,
) -> None:
    """Refuse or warn if the disk is too small for the run: see `check_disk`."""
    if config.selection is not None:
        return  # its models are a few lines of text
    num_stored = len(list(place.glob("iteration-*/model")))
    needed = at_most(
        *(config, builder.base, len(parts.train), len(parts.test), draws, num_stored),
        num_dev=len(parts.dev),
    )
    check_disk(place, needed)


def _first_demos(builder: SamplerBuilder, config: LoopConfig) -> Demos:
    """Return the worked examples that a run begins with."""
    if config.selection is not None:  # part of x, which suits every scheme
        return builder.demos
    return usable_demos(builder.demos, config.scheme)


def _check_adapters(sampler: Sampler, config: LoopConfig) -> None:
    """Refuse to train through a server that loads no adapters at runtime. Raises ModelError."""
    if config.selection is None and not sampler.engine.capabilities.adapters:
        raise ModelError(
            "The server loads no adapters while it runs, so it can't serve what is learned. "
            "Start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True."
        )
