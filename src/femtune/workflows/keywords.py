"""Typed keywords of the public functions: the fields of config.py and mstep/config.py, as TypedDicts.

They are written out for editors and type checkers, which cannot read generated types. A test compares
names and types. `scheme`, `reward` and `eval_data` are parameters of the functions, as they may be
objects.
config.py documents each setting at its field.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, TypedDict, TypeVar, get_origin, get_type_hints

from femtune._util.parsing import as_pairs
from femtune._util.text import near
from femtune.config import Train, check_types
from femtune.data.tasks.judge import Raters
from femtune.errors import ConfigError
from femtune.mstep.config import Training
from femtune.types import Aggregate, Balance, CalibrationKind, Resume

S = TypeVar("S")
Names = list[str] | tuple[str, ...]  # the dataclasses hold tuples
Pairs = Names | dict[str, str]  # "name=value", or names and values


class AskSettings(TypedDict, total=False):
    """Describe data, prompts, answers and the engine: config.Ask."""

    task: Literal["judge", "summarize", "choice", "math", "table"]
    columns: Pairs
    header: bool
    data_config: str | None
    split: str | None
    scale: str | None
    attributes: Names
    raters: Raters
    labels: Pairs
    group: str | None
    bad_rows: Literal["stop", "skip"]
    accept_at: float
    check_gold: bool
    instruction: str | None
    hint: str | None
    answer_format: str
    force_answers: Literal["evaluation", "always", "never"]
    system_prompt: str | None
    rubric: str | None
    prompt_template: str | None
    round_scores: bool
    soft_labels: bool
    demos: str
    demo_iterations: int
    demos_in_prompt: bool
    template_args: Pairs
    max_new_tokens: int
    seed: int
    reward_timeout: float
    on_reward_error: Literal["stop", "skip"]
    chunk_size: int
    overlap: bool
    resume: Resume
    engine: Literal["transformers", "vllm", "openai", "chat"]
    engine_args: Pairs
    engine_dtype: Literal["auto", "float32", "bfloat16", "float16"]
    max_batch: int | None
    device: str | None
    base_url: str | None
    served_model: str | None
    engine_timeout: float
    max_requests: int | None
    max_total_tokens: int | None
    max_cost: float | None
    prices: Pairs
    on_model_change: Literal["stop", "warn"]
    ray_workers: int
    ray_address: str | None
    worker_cpus: float
    worker_gpus: float | None


class SampleSettings(AskSettings, total=False):
    """Describe an E-step: config.Sample."""

    temperature: float
    top_p: float
    top_k: int
    soft_accept: float | None
    soft_decay: float
    balance: Balance


class TrainingSettings(TypedDict, total=False):
    """Describe an M-step: mstep.config.Training."""

    num_train_epochs: float | None
    learning_rate: float | None
    lr_scheduler_type: str
    warmup_steps: float
    weight_decay: float
    max_grad_norm: float
    per_device_train_batch_size: int | None
    max_tokens_per_batch: int
    gradient_accumulation_steps: int
    gradient_checkpointing: bool
    bf16: bool | None
    dtype: str
    attn_implementation: str | None
    use_peft: bool | None
    lora_r: int
    lora_alpha: int
    lora_dropout: float
    lora_target_modules: str
    report_to: Names
    use_cpu: bool
    fsdp: bool


class TrainSettings(SampleSettings, TrainingSettings, total=False):
    """Describe a run of filtered EM: config.Train."""

    iterations: int
    m_step: Literal["weights", "examples"]
    num_examples: int
    selection_requests: int
    selection_tokens: int | None
    teacher: str | None
    launch: str | None
    share_device: bool
    start_from: Literal["previous", "base"]
    average_weights: bool
    keep_last: int
    dev_share: float | None
    patience: int
    eval_split: str | None
    eval_share: float | None
    eval_draws: int
    eval_temperature: float
    eval_every: int
    bound_draws: int
    bound_problems: int
    reader_problems: int


class CompareSettings(TrainSettings, total=False):
    """Describe a comparison: config.Train and config.RL."""

    rl_num_generations: int
    rl_batch_size: int
    rl_learning_rate: float | None
    rl_tokens: int | None


class LadderSettings(TrainSettings, total=False):
    """Describe a ladder: config.Train and ladder.options.LadderOptions."""

    up_to: str | None
    budget: str | None
    draws: int
    margin: float
    price_prompt: float | None
    price_generated: float | None
    price_trained: float | None


class EvaluateSettings(AskSettings, total=False):
    """Describe an evaluation: config.Evaluate."""

    draws: int
    temperature: float
    aggregate: Aggregate
    calibration: str | None


class PredictSettings(EvaluateSettings, total=False):
    """Describe predictions: config.Predict."""

    abstain_below: float
    input_columns: bool


class CalibrateSettings(AskSettings, total=False):
    """Describe the fit of a calibration: config.Calibrate."""

    draws: int
    temperature: float
    aggregate: Aggregate
    kind: CalibrationKind


def train_settings(values: Mapping[str, Any]) -> Train:
    """Return the settings of a run from keywords, those of the M-step among them.

    Raises ConfigError for a name that is no setting, or a value of a wrong type.
    """
    _check_names(values, names_of(Train) | names_of(Training))
    training, others = take_settings(Training, values)
    return make_settings(Train, others, training=training)


def take_settings(kind: type[S], values: Mapping[str, Any]) -> tuple[S, dict[str, Any]]:
    """Return settings of one kind from keywords, and the keywords that are others'.

    Raises ConfigError for a value of a wrong type.
    """
    names = names_of(kind)
    own = {name: value for name, value in values.items() if name in names}
    others = {name: value for name, value in values.items() if name not in names}
    return make_settings(kind, own), others


def make_settings(kind: type[S], values: Mapping[str, Any], **more: Any) -> S:
    """Return settings from keywords; lists and dicts stand for tuples, and paths for their text.

    Raises ConfigError for a name that is no setting, or a value of a wrong type.

    >>> make_settings(Train, {"columns": ["answer=label"], "labels": {1: "A"}}).labels
    ('1=A',)
    """
    _check_names(values, names_of(kind))
    hints = get_type_hints(kind)
    plain = {name: _plain(value, hints[name]) for name, value in values.items()}
    check_types(kind, plain)
    return kind(**plain, **more)


def names_of(kind: type[Any]) -> set[str]:
    """Return the names of the settings that a user gives."""
    return {each.name for each in fields(kind)} - {"training", "epochs_factor"}


def _check_names(values: Mapping[str, Any], known: set[str]) -> None:
    for name in values:
        if name not in known:
            raise ConfigError(f"{name} is no setting.{near(name, sorted(known))}")


def _plain(value: Any, hint: Any) -> Any:
    if isinstance(value, list) and get_origin(hint) is tuple:
        return tuple(value)
    if isinstance(value, dict) and get_origin(hint) is tuple:
        return tuple(as_pairs(value))
    return os.fspath(value) if isinstance(value, os.PathLike) else value
