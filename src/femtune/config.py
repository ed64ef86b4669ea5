"""Settings as frozen dataclasses; each field is a flag and a YAML key.

    Ask       problems, prompts, reward, engine: needed by every command that draws
    Sample    Ask + scheme: the E-step
    Training  the M-step's settings, in mstep/config.py
    Train     Sample + Training + the loop and its evaluation
    RL        additional settings of baselines by reinforcement learning

resolve.py turns settings into arguments of the library's functions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from cyclopts import Parameter

from femtune._util.extras import check_extra
from femtune._util.redaction import check_no_keys, check_values
from femtune._util.text import brief
from femtune.data.tasks.judge import Raters
from femtune.errors import ConfigError
from femtune.mstep.config import Training
from femtune.types import Aggregate, Balance, CalibrationKind, Resume

T = TypeVar("T")
Flat = Annotated[T, Parameter(name="*")]  # the fields become flags
NO_CALIBRATION = "none"  # in place of a calibration's file
Names = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=(), show_default=False)]
_SERVERS = ["openai", "chat"]
_CAPS = ("max_requests", "max_total_tokens", "max_cost", "prices")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Ask:
    """Problems, prompts, reward and engine."""

    task: Literal["judge", "summarize", "choice", "math", "table"] = "table"
    """Kind of data; table: any file with prompt and answer."""
    columns: Names = ()
    """Names of columns in the file, for example answer=label prompt=question id=uid."""
    header: bool = True
    """First line of .csv and .tsv files names the columns; --no-header: they are 1, 2, ..."""
    data_config: str | None = None
    """Configuration of a data set on the Hub; default: the task's."""
    split: str | None = None
    """Split of a data set on the Hub; default: the training split."""
    scale: str | None = None
    """Rating scale, for example 1,5 or 1,5,0.5 or bad,fair,good; default: read from the data."""
    attributes: Names = ()
    """Attributes to rate, for example helpfulness; default: all."""
    raters: Raters = "each"
    """Treatment of several raters: each rating, named raters, or an item's mean, median or majority."""
    labels: Names = ()
    """Meaning of the file's labels, for example 1=A 2=B 0=tie or good=5 bad=1; default: by the data."""
    group: str | None = None
    """Column of clusters of items (post, prompt, rater), which no split parts and intervals resample."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """Stop at unusable rows of a task's data, or skip them."""
    reward: str | None = None
    """exact, number, ordinal(1,5), choice, math, or pkg.mod:fn, file.py:fn; default: the task's."""
    accept_at: float = 1.0
    """Minimum reward of a draw to be kept."""
    check_gold: bool = True
    """Refuse data whose correct answers do not earn the reward; turn off for rewards of form."""
    instruction: str | None = None
    """Text added to each prompt; default: the task's; "" adds nothing."""
    hint: str | None = None
    """Text added in the hinted prompt, with {answer} in it; default: the task's."""
    answer_format: str = "line"
    """Format of an answer: line, boxed, hash, tag, bracket, json:KEY, regex:PATTERN."""
    force_answers: Literal["evaluation", "always", "never"] = "evaluation"
    """If a completion has no answer, append the format's cue and let the model answer: in evaluation
    and predict, always (in E-steps too), or never."""
    system_prompt: str | None = None
    """Text of a system message before each prompt, or the path of a text file."""
    rubric: str | None = None
    """Criteria shown before the judged item, or the path of a text file with them."""
    prompt_template: str | None = None
    """Template for a prompt from a row, with {prompt}, {column}, or the path of a text file."""
    round_scores: bool = False
    """Round scores between points of the scale to the nearest point."""
    soft_labels: bool = False
    """Treat a score between two points of the scale as a mixture of both: 3.2 is 3 with 80%."""
    demos: str = "auto"
    """Worked examples as chat turns: auto (the task's, for a base model), none, or a JSONL file."""
    demo_iterations: int = 1
    """Number of first E-steps whose prompts show the worked examples; training never shows them."""
    demos_in_prompt: bool = False
    """Make the worked examples part of the prompt x, in training and use too."""
    template_args: Names = ()
    """Arguments of the chat template, for example enable_thinking=false."""
    max_new_tokens: int = 512
    """Maximum tokens of a completion, without the prompt."""
    seed: int = 0
    """Seed of the run, which determines each draw's seed."""
    reward_timeout: float = 30.0
    """Maximum seconds for one call of a custom reward."""
    on_reward_error: Literal["stop", "skip"] = "stop"
    """Stop if a reward fails, or skip the draw."""
    chunk_size: int = 1024
    """Problems per chunk: draws are stored after each chunk, and a Ray worker takes one at a time."""
    overlap: bool = False
    """Keep drawing while the last chunk is graded and stored; for slow rewards and remote engines."""
    resume: Resume = "draws"
    """On resume, keep the draws of an unfinished chunk, or repeat the whole chunk bit for bit."""
    engine: Literal["transformers", "vllm", "openai", "chat"] = "transformers"
    """Inference engine: transformers, vLLM in this process, openai (a server of the model in MODEL), or
    chat (any server of chat completions, without local weights: MODEL is its name there)."""
    engine_args: Names = ()
    """Further arguments of vLLM, for example tensor_parallel_size=2 gpu_memory_utilization=0.8."""
    engine_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the engine; auto: as stored."""
    max_batch: int | None = None
    """Maximum completions in a batch; default: depends on the engine."""
    device: str | None = None
    """Device: cpu, cuda or cuda:1; default: a GPU if there is one."""
    base_url: str | None = None
    """URL of a server: http://host:8000/v1; default: OPENAI_BASE_URL. Its key is OPENAI_API_KEY."""
    served_model: str | None = None
    """Name of the model on the server; default: the only one that it serves."""
    engine_timeout: float = 600.0
    """Maximum seconds for a server's completion."""
    max_requests: int | None = None
    """Maximum requests of a run to --engine chat; the same command with more goes on."""
    max_total_tokens: int | None = None
    """Maximum tokens of these requests, of prompts and completions together."""
    max_cost: float | None = None
    """Maximum cost of these requests, by prices."""
    prices: Names = ()
    """Prices of a million tokens: prompt=0.4 generated=1.6, and cached=0.1 for cached prompt tokens."""
    on_model_change: Literal["stop", "warn"] = "stop"
    """Stop if --engine chat is answered by another model than at first, or warn."""
    ray_workers: int = 0
    """Number of engines in Ray workers; 0: one engine in this process."""
    ray_address: str | None = None
    """Address of a Ray cluster (auto, ray://host:10001); default: start one on this machine."""
    worker_cpus: float = 1.0
    """CPUs per Ray worker."""
    worker_gpus: float | None = None
    """GPUs per Ray worker; default: vLLM's tensor_parallel_size, else 1 if there is a GPU."""

    def __new__(cls, *_: Any, **values: Any) -> Ask:
        made = super().__new__(cls)
        # record which settings the user gave, even if equal to the defaults: see `given`
        object.__setattr__(made, "_given", frozenset(values))
        return made

    def __post_init__(self) -> None:
        check_no_keys(self)  # first, as the other messages show values
        for name in ("max_new_tokens", "chunk_size", "max_batch", "engine_timeout", "worker_cpus"):
            if (value := getattr(self, name)) is not None and not value >= 1:
                raise ConfigError(f"{name} must be at least 1, got {value}.")
        if self.ray_workers < 0 or (self.worker_gpus or 0) < 0:
            raise ConfigError("ray_workers and worker_gpus must be at least 0.")
        of_some = {"engine_args": ["vllm"], "base_url": _SERVERS, "served_model": _SERVERS}
        of_some |= {name: ["chat"] for name in _CAPS}
        for name, engines in of_some.items():
            if getattr(self, name) not in (None, (), "") and self.engine not in engines:
                known = " or ".join(engines)
                raise ConfigError(f"{name} is for --engine {known}; the engine is {self.engine}.")
        if self.ray_workers and self.engine == "chat":
            raise ConfigError("ray_workers is not for --engine chat: set max_batch, its open requests.")
        if self.ray_workers and self.overlap:
            raise ConfigError("overlap is not supported with ray_workers; drop one of them.")
        for name in ("ray_address", "worker_gpus"):
            if getattr(self, name) is not None and not self.ray_workers:
                raise ConfigError(f"{name} is for Ray workers: set ray_workers too.")
        if not 0 < self.accept_at <= 1:
            raise ConfigError(f"accept_at must be above 0 and at most 1, got {self.accept_at:g}.")
        if self.device and not re.fullmatch(r"(cpu|cuda|mps|xpu)(:\d+)?", self.device):
            raise ConfigError(f"device {self.device!r} is not known: use cpu, cuda, or cuda:1.")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Sample(Ask):
    """An E-step."""

    scheme: str = "auto"
    """auto, rejection:M, star, pps:K; add +importance, +reasons, ...: docs/schemes.md."""
    temperature: float = 1.0
    """Sampling temperature in the E-step; EM is exact only at 1."""
    top_p: float = 1.0
    """Sample from the likeliest tokens with this total probability."""
    top_k: int = 0
    """Sample from this many likeliest tokens; 0: all."""
    soft_accept: float | None = None
    """Temperature T: keep a rating that is d points off with probability exp(-d / T)."""
    soft_decay: float = 1.0
    """Factor that multiplies T after each iteration."""
    balance: Balance = "none"
    """Balance of answers by weight: none, data (frequencies of the data), or uniform."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Train(Sample):
    """A run of FEM: E-step, M-step, evaluation, repeated."""

    iterations: int = 8
    """Number of iterations; a larger number continues a finished run."""
    m_step: Literal["weights", "examples"] = "weights"
    """What an M-step learns: the weights, or which worked examples stand in the prompts."""
    num_examples: int = 8
    """Number of worked examples that --m-step examples chooses."""
    selection_requests: int = 600
    """Maximum requests to the model in each M-step that chooses examples."""
    selection_tokens: int | None = None
    """Maximum tokens of prompts and completions in each such M-step; default: no limit."""
    teacher: str | None = None
    """Another model, which draws the rationales of the first E-step: a folder, or an id on the Hub."""
    launch: str | None = None
    """Launcher for M-steps on several processes: "torchrun --standalone --nproc-per-node 8"."""
    share_device: bool = True
    """Share the GPU: the engine sleeps or is freed during the M-step."""
    start_from: Literal["previous", "base"] = "previous"
    """Start of each M-step: previous weights as in FEM, or the base as in STaR and +restart."""
    average_weights: bool = False
    """Draw from, evaluate and export the mean of the weights over iterations."""
    keep_last: int = 0
    """Number of newest models to keep in addition to the best one; 0: all."""
    dev_share: float | None = None
    """Fraction of the training data to choose the best iteration by (0: none, the best is the last);
    default: a tenth, 40 to 200 items, none of fewer than 200."""
    patience: int = 0
    """Stop after this many iterations without a better accuracy on the development part; 0: never."""
    eval_data: str | None = None
    """Data with held-out problems; default: a fraction of the training data."""
    eval_split: str | None = None
    """Held-out split of the same data set on the Hub."""
    eval_share: float | None = None
    """Fraction of the data to hold out (0 disables); default: a tenth, and of fewer than 2,000 items 200
    items or 30%. The split depends only on prompts and the seed."""
    eval_draws: int = 1
    """Draws per held-out problem."""
    eval_temperature: float = 0.0
    """Sampling temperature in evaluation; 0 is greedy."""
    eval_every: int = 1
    """Iterations between evaluations; base and last are always measured. 0: no evaluation."""
    bound_draws: int = 4
    """Draws per held-out problem for the likelihood bound, half plain and half hinted; 0: none."""
    bound_problems: int = 100
    """Maximum held-out problems for the likelihood bound."""
    reader_problems: int = 100
    """Maximum held-out problems whose rationales the base reads after the run, to measure how much they
    help an untrained reader; 0: none."""
    training: Flat[Training] = field(default_factory=Training)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.average_weights and self.m_step == "examples":
            raise ConfigError("m_step examples trains no weights: drop average_weights.")
        if self.average_weights and self.training.fsdp:
            raise ConfigError("weights sharded by fsdp can't be averaged: drop average_weights or fsdp.")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Evaluate(Ask):
    """An evaluation under the plain prompt, without training."""

    draws: int = 1
    """Rationales per problem; `aggregate` combines their answers."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy; several draws need a temperature above 0."""
    aggregate: Aggregate = "auto"
    """Combine rationales by votes, or by the mean probability of each answer; auto: probabilities if
    the answers are a closed set and the engine can score, else votes."""
    calibration: str | None = None
    """File of `femtune calibrate`, or none; default: the one in the model's folder, if it is of as many
    draws at the same temperature."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_draws("", self.draws, self.temperature)
        check_aggregate(self.engine, self.aggregate)
        named = self.calibration not in (None, NO_CALIBRATION)
        if named and self.draws == 1 and self.aggregate == "votes":
            raise ConfigError("calibration is of shares of votes: set draws 16 and temperature 1, say.")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Predict(Evaluate):
    """Predictions for new items."""

    draws: int = 16
    """Rationales per item, in each order of a pair."""
    temperature: float = 1.0
    """0 is greedy; several draws need more."""
    abstain_below: float = 0.0
    """Give no answer if the confidence is below this."""
    input_columns: bool = True
    """Write the columns of each input row before its prediction."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.abstain_below <= 1:
            raise ConfigError(f"abstain_below must be from 0 to 1, got {self.abstain_below:g}.")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Calibrate(Ask):
    """A calibration: draws on a validation split, and the map fitted to them."""

    draws: int = 16
    """Rationales per problem; use the number of the draws to calibrate."""
    temperature: float = 1.0
    """Sampling temperature; use the one of the draws to calibrate."""
    aggregate: Aggregate = "auto"
    """Fit to shares of votes, or to the mean probability of each answer; auto: as in predict."""
    kind: CalibrationKind = "temperature"
    """Kind of map: temperature (one parameter, for few items) or isotonic (needs hundreds of items)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_extra("femtune calibrate", "scipy", "sklearn")
        check_draws("", self.draws, self.temperature)
        check_aggregate(self.engine, self.aggregate)
        if self.draws < 2 and "votes" in (self.aggregate, "votes" if self.engine == "chat" else ""):
            raise ConfigError("draws is 1: a calibration takes several, there is no share of one.")


@Parameter(name="*")
@dataclass(frozen=True)
class RL:
    """Settings of baselines by reinforcement learning; other settings are those of the schemes."""

    rl_num_generations: int = 8
    """Completions in a group, for the baselines grpo, rloo and latro."""
    rl_batch_size: int = 32
    """Completions per optimizer step of these baselines, in whole groups."""
    rl_learning_rate: float | None = None
    """Learning rate of these baselines; default: a tenth of learning_rate."""
    rl_tokens: int | None = None
    """Token budget of these baselines; default: one pass per iteration."""

    def __post_init__(self) -> None:
        if self.rl_num_generations < 2:
            raise ConfigError(
                f"rl_num_generations must be at least 2, got {self.rl_num_generations}: a completion is "
                "compared with the others of its group."
            )
        if self.rl_batch_size < 1 or self.rl_batch_size % self.rl_num_generations:
            raise ConfigError(
                f"rl_batch_size {self.rl_batch_size} is no multiple of rl_num_generations, "
                f"{self.rl_num_generations}: a step takes whole groups."
            )
        if self.rl_learning_rate is not None and not 0 < self.rl_learning_rate < float("inf"):
            raise ConfigError(f"rl_learning_rate must be above 0, got {self.rl_learning_rate}.")
        if self.rl_tokens is not None and self.rl_tokens < 1:
            raise ConfigError(f"rl_tokens must be at least 1, got {self.rl_tokens}.")

    def rate(self, training: Training) -> float:
        """Return the learning rate, with its default filled in."""
        return self.rl_learning_rate or training.rate / 10

    def groups_a_step(self, num_problems: int) -> int:
        """Return the problems per optimizer step, at most all problems."""
        return min(self.rl_batch_size // self.rl_num_generations, num_problems)


def given(settings: Ask) -> frozenset[str]:
    """Return the names of the settings that were given, rather than left at their defaults.

    For a copy by `replace`, which sets all fields again, returns those that differ from the default.

    >>> sorted(given(Predict(task="table", draws=4)))
    ['draws', 'task']
    """
    names = {field.name: field.default for field in fields(settings)}
    passed: frozenset[str] = getattr(settings, "_given", frozenset(names))
    if passed >= names.keys():
        return frozenset(name for name, usual in names.items() if getattr(settings, name) != usual)
    return passed


def check_types(kind: type, given: Mapping[str, Any]) -> None:
    """Refuse values that are not of the types of a class's fields. Raises ConfigError.

    >>> check_types(Train, {"iterations": 3, "top_p": 1, "columns": ("a=b",), "scale": None})
    """
    check_values(given)  # as messages show values
    hints = get_type_hints(kind)
    for name, value in given.items():
        if not _is_of(hints[name], value):
            hint = hints[name]
            wanted = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
            raise ConfigError(f"{name} is {brief(repr(value))}, expected {wanted}.")


def _is_of(hint: Any, value: Any) -> bool:
    parts = get_args(hint)
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in parts
    if get_origin(hint) is tuple:  # of any length
        return isinstance(value, tuple) and all(_is_of(parts[0], part) for part in value)
    if parts:  # a union
        return any(_is_of(part, value) for part in parts)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


def check_draws(prefix: str, draws: int, temperature: float) -> None:
    if draws < 1 or temperature < 0:
        raise ConfigError(
            f"{prefix}draws {draws}, {prefix}temperature {temperature}: at least 1 and at least 0."
        )
    if draws > 1 and temperature == 0:
        again = f"at {prefix}temperature 0 all draws are the same: set {prefix}temperature 1, say."
        raise ConfigError(f"{prefix}draws is {draws}, and {again}")


def check_aggregate(engine: str, aggregate: Aggregate) -> None:
    if engine == "chat" and aggregate == "probabilities":
        raise ConfigError(
            "aggregate probabilities needs log-probabilities, and --engine chat gives none: choose "
            "--aggregate votes, or serve the model with vLLM and take --engine openai."
        )


# Settings that may change when a run is resumed, as stored results do not depend on them. A run must
# survive a batch that does not fit into memory, and a change of machine.
CHANGEABLE = frozenset(
    {
        *("iterations", "patience", "report_to", "max_batch", "reward_timeout", "calibration"),
        *("aggregate", "resume", "keep_last", "bound_draws", "bound_problems", "reader_problems"),
        *("overlap", "device", "engine_args", "base_url", "served_model", "engine_timeout"),
        *("max_requests", "max_total_tokens", "max_cost", "prices", "on_model_change"),
        *("ray_workers", "ray_address", "worker_cpus", "worker_gpus", "launch", "fsdp", "share_device"),
    }
)
