"""Settings as frozen dataclasses, one field a flag and a YAML key.

    Ask       problems, prompts, reward, engine: what every command needs that draws
    Sample    Ask + scheme: the E-step
    Fit       the M-step's settings: training.Training
    Train     Sample + Fit + the loop and its evaluation
    RL        what baselines by reinforcement learning have beside it

The library's functions take arguments, never these: what they are made into is in resolve.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from cyclopts import Parameter

from femtune._util.extras import check_extra
from femtune._util.redaction import check_no_keys
from femtune._util.text import brief
from femtune.data.tasks.judge import Raters
from femtune.errors import ConfigError
from femtune.mstep.config import Training
from femtune.types import Aggregate, Balance, CalibrationKind, Resume

T = TypeVar("T")
Flat = Annotated[T, Parameter(name="*")]  # its fields are flags themselves
Names = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Ask:
    """Problems, prompts, reward and engine."""

    task: Literal["judge", "summarize", "choice", "math", "table"] = "table"
    """What the data is; table: any file with prompt and answer."""
    columns: Names = ()
    """Where femtune's columns are in the file: answer=label prompt=question id=uid."""
    data_config: str | None = None
    """Of a data set on the Hub: the configuration; by default the task's."""
    split: str | None = None
    """Of a data set on the Hub: the split; by default the training split."""
    scale: str | None = None
    """Of ratings: 1,5 or 1,5,0.5 or bad,fair,good; by default what the data set says or shows."""
    attributes: Names = ()
    """Of ratings: those asked for, such as helpfulness; by default all."""
    raters: Raters = "each"
    """Several raters: each rating, as the named rater would, or the mean or median of an item's."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """Of a task's data: stop at rows that can't be used, or leave them out."""
    reward: str | None = None
    """exact, number, ordinal(1,5), choice, math, yours: pkg.mod:fn, file.py:fn; default: the task's."""
    accept_at: float = 1.0
    """A draw is kept where its reward is at least this."""
    check_gold: bool = True
    """Refuse data whose correct answer would not earn the reward; off for rewards of form."""
    instruction: str | None = None
    """What is added to each prompt, by default the task's; "" adds nothing."""
    hint: str | None = None
    """What is added to that in the hinted prompt, with {answer} in it; by default the task's."""
    answer_format: str = "line"
    """How an answer is written: line, boxed, hash, tag, bracket, json:KEY, regex:PATTERN."""
    force_answers: Literal["evaluation", "always", "never"] = "evaluation"
    """Where a completion has no answer, write the format's cue and let the model answer: in evaluation
    and predict, in E-steps too, or never."""
    system_prompt: str | None = None
    """Text of a system message before each prompt, or the path of a text file."""
    rubric: str | None = None
    """Criteria, or the path of a text file with them: shown before the item that is judged."""
    prompt_template: str | None = None
    """Text, or the path of a text file, that makes the prompt from a row: {prompt}, {column}."""
    round_scores: bool = False
    """Round scores that are no point of the scale to the nearest one."""
    soft_labels: bool = False
    """Take a score between two points of the scale for both, each by its share: 3.2 is 3 for 80%."""
    demos: str = "auto"
    """Worked examples as chat turns: auto (the task's, for a base model), none, or a JSONL file."""
    demo_iterations: int = 1
    """E-steps, from the first, that are drawn with the worked examples; training is without them."""
    demos_in_prompt: bool = False
    """Make the worked examples part of the prompt x, in training and use too."""
    template_args: Names = ()
    """Arguments of the chat template: enable_thinking=false."""
    max_new_tokens: int = 512
    """The most tokens of a completion; the prompt does not count."""
    seed: int = 0
    """Of the run; each draw's seed follows from it."""
    reward_timeout: float = 30.0
    """Seconds that one call of your own reward may take."""
    on_reward_error: Literal["stop", "skip"] = "stop"
    """Stop at a reward that fails, or go on without the draw."""
    chunk_size: int = 1024
    """Problems that are drawn for before their draws are stored; what a Ray worker takes at a time."""
    overlap: bool = False
    """Draw on while the last chunk is graded and stored: for slow rewards, engines far away."""
    resume: Resume = "draws"
    """Of a chunk that was open when a run was stopped: keep its draws, or draw it anew, bit for bit."""
    engine: Literal["transformers", "vllm", "openai"] = "transformers"
    """Who writes: transformers, vLLM in this process, or a server that speaks OpenAI's protocol."""
    engine_args: Names = ()
    """Further arguments of vLLM: tensor_parallel_size=2 gpu_memory_utilization=0.8."""
    engine_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Numbers of the engine; auto: as stored."""
    max_batch: int | None = None
    """The most completions that are written at a time; by default what suits the engine."""
    device: str | None = None
    """cpu, cuda, cuda:1; by default a GPU where there is one."""
    base_url: str | None = None
    """Of a server: http://host:8000/v1; by default OPENAI_BASE_URL. The key is OPENAI_API_KEY."""
    served_model: str | None = None
    """The server's name for the model; by default the only one that it serves."""
    engine_timeout: float = 600.0
    """Seconds that a server may take for one completion."""
    ray_workers: int = 0
    """Engines in Ray workers, this many; 0: one, in this process."""
    ray_address: str | None = None
    """Of a Ray cluster (auto, ray://host:10001); by default one is started on this machine."""
    worker_cpus: float = 1.0
    """CPUs of each Ray worker."""
    worker_gpus: float | None = None
    """GPUs of each Ray worker; by default vLLM's tensor_parallel_size, or 1 where there are any."""

    def __new__(cls, *_: Any, **values: Any) -> Ask:
        made = super().__new__(cls)
        # which settings the user gave, also where they are the defaults: see `given`
        object.__setattr__(made, "_given", frozenset(values))
        return made

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "chunk_size", "max_batch", "engine_timeout", "worker_cpus"):
            if (value := getattr(self, name)) is not None and not value >= 1:
                raise ConfigError(f"{name} must be at least 1, got {value}.")
        if self.ray_workers < 0 or (self.worker_gpus or 0) < 0:
            raise ConfigError("ray_workers and worker_gpus must be at least 0.")
        of_one = {"engine_args": "vllm", "base_url": "openai", "served_model": "openai"}
        for name, engine in of_one.items():
            if getattr(self, name) and self.engine != engine:
                raise ConfigError(f"{name} is for --engine {engine}; the engine is {self.engine}.")
        check_no_keys(self)
        if self.ray_workers and self.overlap:
            raise ConfigError("overlap is of one engine in this process: leave it out with ray_workers.")
        for name in ("ray_address", "worker_gpus"):
            if getattr(self, name) is not None and not self.ray_workers:
                raise ConfigError(f"{name} is for Ray workers: set ray_workers too.")
        if not 0 < self.accept_at <= 1:
            raise ConfigError(f"accept_at must be above 0 and at most 1, got {self.accept_at:g}.")
        if self.device and not re.fullmatch(r"(cpu|cuda|mps|xpu)(:\d+)?", self.device):
            raise ConfigError(f"device {self.device!r} is not known: say cpu, cuda, or cuda:1.")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Sample(Ask):
    """An E-step."""

    scheme: str = "auto"
    """auto, rejection:M, star, pps:K, mixture, trice; add +memo +wake +doubt ...: docs/schemes.md."""
    temperature: float = 1.0
    """Of the draws; EM is exact at 1."""
    top_p: float = 1.0
    """Draw from the likeliest tokens of this much probability."""
    top_k: int = 0
    """Draw from this many likeliest tokens; 0: all."""
    soft_accept: float | None = None
    """Keep a rating that is d points off with probability exp(-d / T), T being this."""
    soft_decay: float = 1.0
    """In each further iteration T is this much of what it was."""
    balance: Balance = "none"
    """Weights by answer: none, as often as in the data, or each answer alike."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Train(Sample):
    """FEM: E-step, M-step, evaluation, repeated."""

    iterations: int = 8
    """How often; a run that is there goes on where more are asked for."""
    launch: str | None = None
    """M-steps on several processes, started by this: "torchrun --standalone --nproc-per-node 8"."""
    share_device: bool = True
    """The M-step needs the engine's GPU: it sleeps or is freed meanwhile."""
    start_from: Literal["previous", "base"] = "previous"
    """Where each M-step starts: FEM's from the previous weights, STaR's and +restart from the base."""
    keep_last: int = 0
    """Models that are kept, beside the best one; 0: all."""
    eval_data: str | None = None
    """Held-out problems; by default a share of the data."""
    eval_split: str | None = None
    """Of the same data set on the Hub: the split that is held out."""
    eval_share: float = 0.1
    """That share; 0 holds none out. A problem's side depends on its prompt and the seed alone."""
    eval_draws: int = 1
    """How often each held-out problem is asked."""
    eval_temperature: float = 0.0
    """0 is greedy."""
    eval_every: int = 1
    """Iterations between evaluations; base and last are measured too. 0: no evaluation."""
    bound_draws: int = 4
    """Draws, half plain and half hinted, that bound a held-out problem's likelihood; 0: none."""
    bound_problems: int = 100
    """The most held-out problems that are asked for this."""
    reader_problems: int = 100
    """The most held-out problems whose rationales the base reads, at the end of the run, to measure how
    much they help a reader who was not trained; 0: none."""
    training: Flat[Training] = field(default_factory=Training)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Evaluate(Ask):
    """Asking under the plain prompt, without training."""

    draws: int = 1
    """Rationales for each problem; their answers are made one: see aggregate."""
    temperature: float = 0.0
    """0 is greedy; several draws need more."""
    aggregate: Aggregate = "auto"
    """Combine the rationales by their votes, or by the mean probability of each answer; auto:
    probabilities where the answers are a closed set and the engine can score, else votes."""
    calibration: str | None = None
    """Map that `femtune calibrate` stored: from shares or probabilities to calibrated ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_draws("", self.draws, self.temperature)
        if self.calibration is not None and self.draws == 1 and self.aggregate == "votes":
            raise ConfigError("calibration is of shares of votes: set draws 16 and temperature 1, say.")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Predict(Evaluate):
    """Answers to new items."""

    draws: int = 16
    """Rationales for each item, in each order of a pair."""
    temperature: float = 1.0
    """0 is greedy; several draws need more."""
    abstain_below: float = 0.0
    """Give no answer where the confidence is less than this."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.abstain_below <= 1:
            raise ConfigError(f"abstain_below must be from 0 to 1, got {self.abstain_below:g}.")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Calibrate(Ask):
    """Answers on a validation split, and the map that is fitted to their shares or probabilities."""

    draws: int = 16
    """Rationales for each problem, as many as are to be calibrated."""
    temperature: float = 1.0
    """That of the draws that are to be calibrated."""
    aggregate: Aggregate = "auto"
    """Fit to shares of votes or to the mean probability of each answer; auto: as in predict."""
    kind: CalibrationKind = "temperature"
    """temperature: one number, for few items; isotonic: free of form, takes hundreds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_extra("femtune calibrate", "scipy", "sklearn")
        check_draws("", self.draws, self.temperature)
        if self.draws < 2 and self.aggregate == "votes":
            raise ConfigError("draws is 1: a calibration takes several, there is no share of one.")


@Parameter(name="*")
@dataclass(frozen=True)
class RL:
    """Baselines by reinforcement learning; what is not here is set as for the schemes."""

    rl_num_generations: int = 8
    """Of the baselines grpo, rloo and latro: completions in a group."""
    rl_batch_size: int = 32
    """Of these: completions of an optimizer step, whole groups."""
    rl_learning_rate: float | None = None
    """Of these; by default a tenth of learning_rate."""
    rl_tokens: int | None = None
    """Of these: train until so many tokens were generated; by default one pass for each iteration."""

    def __post_init__(self) -> None:
        if self.rl_num_generations < 2:
            raise ConfigError(
                f"rl_num_generations must be at least 2, got {self.rl_num_generations}: a completion is "
                "compared with the others of its group."
            )
        if self.rl_batch_size < 1 or self.rl_batch_size % self.rl_num_generations:
            raise ConfigError(
                f"rl_batch_size {self.rl_batch_size} is no multiple of rl_num_generations, "
                f"{self.rl_num_generations}: groups are taken as a whole."
            )
        if self.rl_learning_rate is not None and not 0 < self.rl_learning_rate < float("inf"):
            raise ConfigError(f"rl_learning_rate must be above 0, got {self.rl_learning_rate}.")
        if self.rl_tokens is not None and self.rl_tokens < 1:
            raise ConfigError(f"rl_tokens must be at least 1, got {self.rl_tokens}.")

    def rate(self, training: Training) -> float:
        """The learning rate, with its default filled in."""
        return self.rl_learning_rate or training.rate / 10

    def groups_a_step(self, num_problems: int) -> int:
        """Problems of an optimizer step: no more than there are."""
        return min(self.rl_batch_size // self.rl_num_generations, num_problems)


def given(settings: Ask) -> frozenset[str]:
    """Return the names of the settings that were given, rather than left at their defaults.

    Of a copy by `replace`, which gives all of them anew, those that are not the default.

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
        raise ConfigError(
            f"{prefix}draws is {draws}, and at {prefix}temperature 0 all draws are the same: "
            f"set {prefix}temperature 1, say."
        )


# Settings that may change when a run goes on: what it has already done does not hang on them. A batch
# that does not fit into memory must not end a run for good, nor must another machine.
CHANGEABLE = frozenset(
    {
        *("iterations", "report_to", "max_batch", "reward_timeout", "calibration", "aggregate"),
        *(
            "resume",
            "keep_last",
            "bound_draws",
            "bound_problems",
            "reader_problems",
            "overlap",
            "device",
            "engine_args",
            "base_url",
            "served_model",
            "engine_timeout",
        ),
        *("ray_workers", "ray_address", "worker_cpus", "worker_gpus", "launch", "fsdp", "share_device"),
    }
)
