"""Settings as frozen dataclasses, one field a flag and a YAML key, and what they are made into.

    Ask       problems, prompts, reward, engine: what every command needs that draws
    Sample    Ask + scheme: the E-step
    Fit       the M-step's settings: mstep.Training
    Train     Sample + Fit + the loop and its evaluation

The library's functions take arguments, never these: a config is made into them here, and whatever can be
wrong is found here, in the first second, before a model is loaded or a directory made.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from cyclopts import Parameter

from femtune.answers import parse_scale
from femtune.asking import Setup
from femtune.bias import Balance
from femtune.calibration import Kind
from femtune.errors import ConfigError, DataError, ModelError, RunError
from femtune.loop import Evaluation, Plan
from femtune.problems import check_disjoint, check_gold, check_lengths, split
from femtune.prompts import HINT, ChatTokenizer, Prompts
from femtune.rewards import as_reward, score
from femtune.schemes import parse_scheme, soft_acceptance
from femtune.tasks.frames import frame
from femtune.tasks.judge import Raters
from femtune.tasks.load import Options, TaskData, read_task, trained_on
from femtune.training import Training, context_length
from femtune.types import Problem, Request, Reward, Sampling, Scheme
from femtune.worlds import SEEDLING

T = TypeVar("T")
Flat = Annotated[T, Parameter(name="*")]  # its fields are flags themselves
Names = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())]


@Parameter(name="*")
@dataclass(frozen=True)
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
    """Problems that are drawn for before their draws are stored."""
    max_batch: int | None = None
    """The most completions that are written at a time; by default what suits the device."""
    device: str | None = None
    """cpu, cuda, cuda:1; by default a GPU where there is one."""
    engine_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Numbers of the engine; auto: as stored."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "chunk_size", "max_batch"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}.")
        if not 0 < self.accept_at <= 1:
            raise ConfigError(f"accept_at must be above 0 and at most 1, got {self.accept_at:g}.")
        if self.device and not re.fullmatch(r"(cpu|cuda|mps|xpu)(:\d+)?", self.device):
            raise ConfigError(f"device {self.device!r} is not known: say cpu, cuda, or cuda:1.")


@Parameter(name="*")
@dataclass(frozen=True)
class Sample(Ask):
    """An E-step."""

    scheme: str = "pps"
    """pps, star, or rejection:M with a budget of M attempts."""
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
@dataclass(frozen=True)
class Train(Sample):
    """FEM: E-step, M-step, evaluation, repeated."""

    iterations: int = 5
    """How often."""
    start_from: Literal["previous", "base"] = "previous"
    """Where each M-step starts: FEM goes on from the previous weights, STaR from the base."""
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
    training: Flat[Training] = field(default_factory=Training)


@Parameter(name="*")
@dataclass(frozen=True)
class Evaluate(Ask):
    """Asking under the plain prompt, without training."""

    draws: int = 1
    """Rationales for each problem; the most frequent answer wins."""
    temperature: float = 0.0
    """0 is greedy; several draws need more."""
    calibration: str | None = None
    """What `femtune calibrate` stored: shares of votes as probabilities."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_draws("", self.draws, self.temperature)
        if self.calibration is not None and self.draws == 1:
            raise ConfigError("calibration is of shares of votes: set draws 16 and temperature 1, say.")


@Parameter(name="*")
@dataclass(frozen=True)
class Predict(Evaluate):
    """Answers to new items, by vote."""

    draws: int = 16
    """Rationales for each item, in each order of a pair; the most frequent answer wins."""
    temperature: float = 1.0
    """0 is greedy; several draws need more."""
    abstain_below: float = 0.0
    """Give no answer where the confidence is less than this."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.abstain_below <= 1:
            raise ConfigError(f"abstain_below must be from 0 to 1, got {self.abstain_below:g}.")


@Parameter(name="*")
@dataclass(frozen=True)
class Calibrate(Ask):
    """Votes on a validation split, and the map that is fitted to them."""

    draws: int = 16
    """Rationales for each problem, as many as are to be calibrated."""
    temperature: float = 1.0
    """That of the draws that are to be calibrated."""
    kind: Kind = "temperature"
    """temperature: one number, for few items; isotonic: free of form, takes hundreds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_draws("", self.draws, self.temperature)
        if self.draws < 2:
            raise ConfigError("draws is 1: a calibration takes several, there is no share of one.")


def _check_draws(prefix: str, draws: int, temperature: float) -> None:
    if draws < 1 or temperature < 0:
        raise ConfigError(
            f"{prefix}draws {draws}, {prefix}temperature {temperature}: at least 1 and at least 0."
        )
    if draws > 1 and temperature == 0:
        raise ConfigError(
            f"{prefix}draws is {draws}, and at {prefix}temperature 0 all draws are the same: "
            f"set {prefix}temperature 1, say."
        )


# a file, the id of a data set on the Hub, problems, or what `read_task` gives
Data = str | Path | Sequence[Problem] | TaskData

# Settings that may change when a run goes on: what it has already done does not hang on them. A batch
# that does not fit into memory must not end a run for good.
CHANGEABLE = frozenset({"iterations", "report_to", "max_batch", "reward_timeout", "calibration"})

MODELS = {"seedling": SEEDLING}  # models that come with the package


def find_model(name: str) -> Path | str:
    """A local folder, one of `MODELS`, or the id of a model on the Hub.

    Raises ModelError for a path that is no model folder.
    """
    if name in MODELS:
        return MODELS[name]
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / file).exists() for file in ("config.json", "adapter_config.json")):
            found = sorted(child.name for child in path.iterdir())[:5]
            raise ModelError(f"{path} is no model folder: it has no config.json, but {found}.")
        return path
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or path.exists()
    if looks_local:
        raise ModelError(f"{path} is no model folder. Give one, or the id of a model on the Hub.")
    return name


def local_model(name: str) -> Path:
    """A folder with the model's files, fetched from the Hub (or its cache) where it is there.

    Raises ModelError where it is nowhere.
    """
    found = find_model(name)
    if isinstance(found, Path):
        return found
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
        return Path(snapshot_download(found, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"model {name!r} is no folder here and can't be had from the Hub: {reason}"
        ) from error


def load_tokenizer(folder: Path, template_args: Sequence[str] = ()) -> ChatTokenizer:
    """The tokenizer of a model's folder. Raises ModelError where there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} has no tokenizer that can be loaded: {error}") from error
    pairs = _pairs("template_args", template_args)
    # what is too long is refused by `check_lengths`, in words that help
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return ChatTokenizer(tokenizer, tuple((key, _json(value)) for key, value in pairs.items()))


def load_config(folder: Path) -> Any:
    """The config of a model's folder, or of the base that an adapter there is for."""
    from transformers import AutoConfig

    try:
        adapter = folder / "adapter_config.json"
        if adapter.exists():
            folder = local_model(json.loads(adapter.read_text())["base_model_name_or_path"])
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder} has no model config that can be read: {error}") from error


A = TypeVar("A", bound=Ask)


@dataclass(frozen=True)
class Questions(Generic[A]):
    """Problems, how they are asked and graded, and the settings with nothing left open."""

    problems: list[Problem]
    prompts: Prompts
    reward: Reward
    settings: A
    skipped: int = 0  # rows left out


def read_questions(
    data: Data, settings: A, reward: Callable[..., Any] | None = None, *, answers: bool = True
) -> Questions[A]:
    """What is asked and how, from a file, the Hub, or as given; with answers=False, without answers.

    A reward given as an object stands for its name in the settings. Raises DataError where a problem is
    not as it must be, or where its own answer would not earn the reward; ConfigError for settings that
    make no sense for the task.
    """
    found = data if isinstance(data, TaskData) else _read(data, settings, answers)
    settings = replace(
        settings,
        reward=settings.reward or found.reward,
        instruction=found.instruction if settings.instruction is None else settings.instruction,
        hint=settings.hint or found.hint,
        scale=found.scale,
    )
    grade = as_reward(reward or settings.reward or found.reward)
    prompts = Prompts(settings.instruction or "", settings.hint or HINT, found.leaks)
    if answers and settings.check_gold:
        check_gold(found.problems, grade, settings.accept_at, prompts)
    return Questions(found.problems, prompts, grade, settings, found.skipped)


def _read(data: str | Path | Sequence[Problem], settings: Ask, answers: bool) -> TaskData:
    if not isinstance(data, (str, Path)):
        return TaskData(list(data))
    return read_task(data, settings.task, task_options(settings), answers=answers)


def task_options(settings: Ask) -> Options:
    """How the task reads its data."""
    return Options(
        columns=_pairs("columns", settings.columns),
        data_config=settings.data_config,
        split=settings.split,
        scale=settings.scale,
        attributes=settings.attributes,
        raters=settings.raters,
        bad_rows=settings.bad_rows,
    )


def held_out(asked: Questions[Train], data: Data) -> tuple[list[Problem], list[Problem]]:
    """Problems to train on and to evaluate on; of a pair, one order and both.

    Raises DataError where a prompt, or what is judged in it, is in both.
    """
    settings = asked.settings
    if settings.eval_data is not None or settings.eval_split is not None:
        other: Data = settings.eval_data or data
        split_ = settings.eval_split if settings.eval_data is None else settings.split
        read = replace(settings, split=split_)
        test = read_questions(other, read, asked.reward).problems
        train = trained_on(asked.problems)
        check_disjoint(train, test)
        check_varied(train)
        return train, test
    if not 0 <= settings.eval_share < 1:
        raise ConfigError(f"eval_share must be in [0, 1), got {settings.eval_share}.")
    train, test = split(asked.problems, settings.eval_share, settings.seed)
    if not train:
        raise DataError(f"no problem is left to train on: eval_share is {settings.eval_share}.")
    check_varied(trained_on(train))
    return trained_on(train), test


def check_varied(problems: Sequence[Problem]) -> None:
    """Refuse ratings to train on that are all the same. Raises DataError."""
    answers = {problem.answer for problem in problems}
    known = frame(problems[0]) if problems else None
    if known is not None and known.form == "rating" and len(answers) == 1 < len(problems):
        raise DataError(
            f"all {len(problems)} ratings to train on are {answers.pop()}: a judge would learn to say "
            "so whatever it reads. Check the column of the score, or give more data."
        )


@dataclass(frozen=True)
class Asker:
    """How problems are asked of a model, as far as its weights are not needed."""

    base: Path
    tokenizer: ChatTokenizer
    prompts: Prompts
    reward: Reward
    settings: Ask

    def setup(self, sampling: Sampling) -> Setup:
        """Load the model into an engine; a minute for a large one."""
        from femtune.engines.transformers import TransformersEngine

        no_foreign_bars()
        settings = self.settings
        engine = TransformersEngine(
            self.base,
            tokenizer=self.tokenizer,
            dtype=settings.engine_dtype,
            device=settings.device,
            max_batch=settings.max_batch,
        )
        grade = partial(
            score,
            prompts=self.prompts,
            reward=self.reward,
            timeout_s=settings.reward_timeout,
            on_error=settings.on_reward_error,
        )
        return Setup(
            engine, self.tokenizer, self.prompts, grade, sampling, settings.seed, settings.chunk_size
        )


def no_foreign_bars() -> None:
    """No bars of transformers' own between ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def make_asker(model: str, asked: Questions[Any], *groups: Sequence[Problem]) -> Asker:
    """Tokenizer and prompts of a model, the groups' prompts checked against its context.

    Raises ModelError where the model can't be had, DataError where prompts are too long, ConfigError
    where a GPU is asked for that is not there.
    """
    settings = asked.settings
    if settings.device and settings.device.startswith("cuda"):
        import torch  # slow, and only for them who ask

        count = torch.cuda.device_count()
        if int(settings.device.partition(":")[2] or 0) >= count:
            raise ConfigError(
                f"device {settings.device}: torch sees {count} GPUs here. Leave --device out."
            )
    base = local_model(model)
    tokenizer = load_tokenizer(base, settings.template_args)
    context = context_length(load_config(base))
    for problems in groups:
        check_lengths(problems, asked.prompts, tokenizer, context, settings.max_new_tokens)
    return Asker(base, tokenizer, asked.prompts, asked.reward, settings)


def sampling(settings: Sample) -> Sampling:
    """The draws' sampling. Raises ConfigError for what is none."""
    if settings.temperature < 0 or not 0 < settings.top_p <= 1 or settings.top_k < 0:
        raise ConfigError(
            f"temperature {settings.temperature}, top_p {settings.top_p}, top_k {settings.top_k}: they "
            "must be at least 0, in (0, 1], and at least 0."
        )
    if settings.temperature == 0 and parse_scheme(settings.scheme).stages[0].draws > 1:
        raise ConfigError(
            f"{settings.scheme} at temperature 0: every attempt is the same. Set temperature 1, say."
        )
    return Sampling(settings.max_new_tokens, settings.temperature, settings.top_p, settings.top_k)


def plan(settings: Train, scheme: Scheme | None = None) -> Plan:
    """What the loop does; `scheme` stands for the one that settings name. Raises ConfigError."""
    if settings.iterations < 1:
        raise ConfigError(f"iterations must be at least 1, got {settings.iterations}.")
    if settings.eval_every < 0:
        raise ConfigError(f"eval_every must be at least 0, got {settings.eval_every}.")
    _check_draws("eval_", settings.eval_draws, settings.eval_temperature)
    scheme = scheme or parse_scheme(settings.scheme)
    return Plan(
        replace(scheme, accept_at=_acceptance(settings)),
        settings.training,
        Evaluation(settings.eval_draws, settings.eval_temperature, settings.eval_every),
        settings.iterations,
        settings.start_from,
        settings.balance,
    )


def _acceptance(settings: Train) -> float | Callable[[Request], float]:
    if settings.soft_accept is None:
        return settings.accept_at
    scale = parse_scale(settings.scale) if settings.scale else None
    usual = f'ordinal("{settings.scale}")'  # T is in points of this scale
    if settings.accept_at != 1 or scale is None or settings.reward != usual:
        raise ConfigError(
            "soft_accept stands in place of accept_at, and needs ratings and their own reward: "
            "--task judge or summarize, without --reward and --accept-at."
        )
    span = scale.value(scale.answers[-1]) - scale.value(scale.answers[0])
    return soft_acceptance(settings.soft_accept, span, settings.soft_decay)


def resolved(settings: Any, **more: Any) -> dict[str, Any]:
    """Settings as they are stored: flat, plain values, tuples as lists."""
    values = {**more, **asdict(settings)}
    values.update(values.pop("training", {}))
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def check_new(place: Path, flag: str = "--output-dir") -> None:
    """Refuse a place that is taken or can't be written, before any work is done for it.

    Raises RunError.
    """
    if place.exists():
        raise RunError(f"{place} exists already: choose another {flag}.")
    there = next(parent for parent in place.absolute().parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "not writable" if there.is_dir() else "no folder"
        raise RunError(f"{place} can't be written ({there} is {why}): choose another {flag}.")


def fingerprint(*groups: Sequence[Problem]) -> str:
    """A hash of problems, by which a run knows its data again."""
    digest = hashlib.blake2b(digest_size=12)
    for group in groups:
        for problem in group:
            digest.update(repr((problem.id, problem.prompt, problem.answer)).encode())
        digest.update(b"\x00")
    return digest.hexdigest()


def _pairs(name: str, items: Sequence[str]) -> dict[str, str]:
    for item in items:
        if "=" not in item:
            raise ConfigError(f"{name} takes name=value, got {item!r}.")
    return dict(item.split("=", 1) for item in items)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
