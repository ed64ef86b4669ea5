"""Run one M-step: fine-tune a model on a file of examples."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import cast

from femtune.engines.model_files import base_of_adapter, load_tokenizer, local_model
from femtune.loop import Progress
from femtune.metric_types import MStepMetrics
from femtune.model_info import ModelInfo, femtune_version, info_of, read_info, write_info
from femtune.mstep.config import Training
from femtune.mstep.memory import needs_peft
from femtune.reporting.terminal import Quiet
from femtune.reporting.trackers import check_trackers, tracking
from femtune.run_folder import check_new
from femtune.runs.hashes import hash_weights
from femtune.runs.run import stored_config
from femtune.sampler import no_foreign_bars
from femtune.tools.stored_run import settings_of


@dataclass(frozen=True)
class FitResult:
    """A model fine-tuned on examples."""

    model: Path
    """Folder of the model, or of the adapter under LoRA."""
    metrics: MStepMetrics = field(repr=False)
    """Loss, number of examples and tokens, seconds."""


def run_fit(
    examples: Path, model: str, training: Training, output_dir: Path, seed: int, progress: Progress
) -> FitResult:
    """Train on a file of examples and store the model in `output_dir`.

    Trackers write beside it, in a folder of the same name with ".trackers". Raises RunError if
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
    shown = _StepsOnly(progress)
    shown.phase("M-step", 1, 0)
    with tracking(training.trackers if is_first else (), beside, config, shown) as told:
        done = m_step(examples, base, output_dir, training, tokenizer, seed=seed, on_step=told.step)
        if is_first:
            write_info(output_dir, _fitted(examples, model, base))
        metrics = cast(MStepMetrics, asdict(done))
        told.measured(1, {"iteration": 1, "m_step": metrics})
    distributed.leave()  # gloo's threads would abort a process that ends while they run
    return FitResult(output_dir, metrics)


@dataclass(frozen=True)
class _StepsOnly(Quiet):
    """Progress that shows steps but no metrics, as there is no iteration."""

    shown: Progress

    def phase(self, name: str, iteration: int, total: int) -> None:
        self.shown.phase(name, iteration, total)

    def step(self, step: int, steps: int, loss: float) -> None:
        self.shown.step(step, steps, loss)


def _fitted(examples: Path, model: str, base: Path) -> ModelInfo:
    """Describe a fitted model's settings: those of the run of its examples, or of its base."""
    root = examples.absolute().parent.parent
    weights = hash_weights(base, base_of_adapter(base))
    if (root / "config.yaml").exists():
        settings = settings_of(stored_config(root), root)
        return info_of(settings, settings, model, weights)
    known = read_info(base) or ModelInfo()
    return replace(known, femtune=femtune_version(), base=model, base_sha256=weights)
