"""Run filtered EM from settings: check the inputs, then run E-step, M-step, evaluation, K times."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from femtune.config import CHANGEABLE, Train
from femtune.engines.model_files import local_model
from femtune.errors import ConfigError, ModelError
from femtune.estep.scheduler import Sampler
from femtune.loop import LoopConfig, Progress, fem
from femtune.metric_types import History
from femtune.model_info import ModelInfo, info_of
from femtune.reporting.cards import write_model_card
from femtune.reporting.terminal import summary
from femtune.reporting.trackers import check_trackers, tracking
from femtune.resolve import (
    Data,
    TaskInputs,
    choose_peft,
    make_loop_config,
    named_scheme,
    part,
    read_inputs,
    read_test,
    sampling,
)
from femtune.run_folder import check_storable, run_place, store_problems, with_pinned_date
from femtune.runs.checkpoints import best_of
from femtune.runs.run import open_run
from femtune.sampler import SamplerBuilder, check_installed, make_sampler_builder
from femtune.tools.estimate.disk import at_most, check_disk
from femtune.types import Problem, Sampling, Scheme
from femtune.workflows.worked_examples import store_demos, usable_demos, without_held_out


@dataclass(frozen=True, repr=False)
class TrainResult:
    """Models and metrics of a run of filtered EM. Its repr is the summary that the CLI prints."""

    run: Path
    """Folder of the run: settings, problems, every draw, examples and metrics."""
    best: Path
    """Model with the highest held-out accuracy, which selection biases upwards slightly."""
    last: Path
    """Model of the last iteration."""
    best_iteration: int
    """Iteration of `best`; the last one if nothing was held out."""
    history: History = field(repr=False)
    """Metrics by iteration; 0 is the base model."""

    def __repr__(self) -> str:
        lines = [
            *summary(self.history),
            f"best: {self.best} (iteration {self.best_iteration})",
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
    asked, other, (problems, test) = _inputs(data, model, settings, output_dir, scheme, reward)
    config = make_loop_config(asked.settings, scheme)
    place, stored = run_place(
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
    asked = with_pinned_date(asked, stored)
    builder = make_sampler_builder(model, asked, problems, test)
    config = replace(config, demos=usable_demos(builder.demos, config.scheme))
    info = _info(model, settings, asked, builder, stored)
    if reward is not None:  # another command cannot find a function by name
        info = replace(info, reward=None)
    _check_room(place, config, builder, problems, test, draws)
    with (
        open_run(place, stored, CHANGEABLE) as run,
        tracking(settings.training.trackers, run.root, stored, progress) as progress,
    ):
        reports = {"problems": asked.report} | ({} if other is None else {"eval": other.report})
        store_problems(run, problems, test, reports)
        store_demos(run, builder)
        with builder.sampler(draws, problems, config.scheme.needs) as sampler:
            _check_adapters(sampler)
            history = fem(
                run, builder.base, problems, test, config, sampler, builder.tokenizer, progress, info
            )
        for iteration in {best_of(history), config.iterations}:
            write_model_card(run.root, iteration)
    return TrainResult(run.root, run.root / "best", run.root / "last", best_of(history), history)


def _check(settings: Train, scheme: Scheme | None) -> None:
    """Refuse bad settings without data and model. Raises ConfigError."""
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
) -> tuple[TaskInputs[Train], TaskInputs[Train] | None, tuple[list[Problem], list[Problem]]]:
    """Return the inputs with all settings filled in, those of evaluation data, and both's problems."""
    asked = read_inputs(data, settings, reward, model=model)
    make_loop_config(asked.settings, scheme)  # before the model's files are read
    other = read_test(asked, data, model)
    problems, test = part(asked, other)
    asked = without_held_out(asked, test)
    place = None if output_dir is None else Path(output_dir)
    own = choose_peft(asked.settings, local_model(model), place)
    return replace(asked, settings=own), other, (problems, test)


def _info(
    model: str,
    settings: Train,
    asked: TaskInputs[Train],
    builder: SamplerBuilder,
    stored: dict[str, Any],
) -> ModelInfo:
    """Describe the prompts and settings of the run's models, for their femtune.json."""
    in_prompt = tuple(asdict(demo) for demo in builder.prompts.demos)
    weights = stored["relies_on"]["weights"]
    return info_of(settings, asked.settings, model, weights, demos=in_prompt or None)


def _check_room(
    place: Path,
    config: LoopConfig,
    builder: SamplerBuilder,
    problems: list[Problem],
    test: list[Problem],
    draws: Sampling,
) -> None:
    """Refuse or warn if the disk is too small for the run: see `check_disk`."""
    num_stored = len(list(place.glob("iteration-*/model")))
    needed = at_most(config, builder.base, len(problems), len(test), draws, num_stored)
    check_disk(place, needed)


def _check_adapters(sampler: Sampler) -> None:
    """Refuse a server that cannot load adapters at runtime. Raises ModelError."""
    if not sampler.engine.capabilities.adapters:
        raise ModelError(
            "the server takes no adapters while it runs, so what is learnt can't reach it: "
            "start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True."
        )
