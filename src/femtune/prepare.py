"""Settings made into what a command works with: problems, prompts, reward, model, engine, plan.

Whatever can be wrong is found here, in the first second, before a model is loaded or a directory made.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from femtune.answer_format import parse_format
from femtune.answers import parse_scale
from femtune.config import Ask, Sample, Train, check_draws
from femtune.costs.hardware import training_device_memory
from femtune.demos import Demos, load_demos
from femtune.errors import ConfigError, DataError, ModelError, RunError
from femtune.formats import Unreadable, read_json
from femtune.headers import num_parameters
from femtune.loop import Evaluation, Plan
from femtune.problems import check_disjoint, check_gold, split
from femtune.prompts import HINT, ChatTokenizer, Prompts
from femtune.retention import sized
from femtune.rewards import as_reward
from femtune.run import stored_config
from femtune.schemes import parse_scheme, soft_acceptance, spelled_out
from femtune.tasks.frames import frame
from femtune.tasks.load import Options, TaskData, read_task, trained_on
from femtune.tasks.wording import text_or_file
from femtune.training import Training
from femtune.trust import check_fetched, check_weights, unreadable
from femtune.types import Problem, Request, Reward, Sampling, Scheme
from femtune.worlds import SEEDLING

log = logging.getLogger("femtune")

# a file, the id of a data set on the Hub, problems, or what `read_task` gives
Data = str | Path | Sequence[Problem] | TaskData

MODELS = {"seedling": SEEDLING}  # models that come with the package


def find_model(name: str) -> Path | str:
    """A local folder, one of `MODELS`, or the id of a model on the Hub.

    Raises ModelError for a path that is no model folder, or has pickled weights alone.
    """
    if name in MODELS:
        return MODELS[name]
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / file).exists() for file in ("config.json", "adapter_config.json")):
            found = sorted(child.name for child in path.iterdir())[:5]
            raise ModelError(f"{path} is no model folder: it has no config.json, but {found}.")
        check_weights(path)
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
        folder = Path(snapshot_download(found, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"model {name!r} is no folder here and can't be had from the Hub: {reason}"
        ) from error
    check_fetched(folder, name)
    return folder


def load_tokenizer(folder: Path, template_args: Sequence[str] = ()) -> ChatTokenizer:
    """The tokenizer of a model's folder. Raises ModelError where there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer("x")  # some settings of the wrong type show only here
    except Exception as error:  # of a damaged file, whatever transformers and tokenizers meet with
        raise unreadable(folder, "tokenizer", error) from error
    pairs = named_pairs("template_args", template_args)
    # what is too long is refused by `check_lengths`, in words that help
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    _name_end(tokenizer, folder)
    made = ChatTokenizer(tokenizer, tuple((key, read_value(value)) for key, value in pairs.items()))
    made.check()
    return made


def _name_end(tokenizer: Any, folder: Path) -> None:
    """Give a tokenizer without an end token the first one that the model's configuration names."""
    if tokenizer.eos_token_id is not None:
        return
    for name in ("generation_config.json", "config.json"):
        try:
            found = read_json(folder / name)
        except Unreadable:
            continue
        ends = found.get("eos_token_id") if isinstance(found, dict) else None
        for end in ends if isinstance(ends, list) else [ends]:
            if isinstance(end, int) and 0 <= end < len(tokenizer):
                tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
                return


def load_config(folder: Path) -> Any:
    """The config of a model's folder, or of the base that an adapter there is for."""
    from transformers import AutoConfig

    base = adapter_base(folder)
    folder = folder if base is None else local_model(base)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # of a damaged file, whatever transformers meets with
        raise unreadable(folder, "model config", error) from error


def adapter_base(folder: Path) -> str | None:
    """The model that the adapter in a folder is for; None where it holds none. Raises ModelError."""
    path = folder / "adapter_config.json"
    if not path.exists():
        return None
    try:
        found = read_json(path)
    except Unreadable as error:
        raise ModelError(f"{path} {error}. Get the adapter anew.") from error
    base = found.get("base_model_name_or_path") if isinstance(found, dict) else None
    if not isinstance(base, str) or not base:
        raise ModelError(f"{path} names no `base_model_name_or_path`: write there what it is for.")
    return base


def base_of_adapter(folder: Path) -> Path | None:
    """The folder of the base that the adapter in a folder is for, None for a whole model."""
    base = adapter_base(folder)
    return None if base is None else local_model(base)


A = TypeVar("A", bound=Ask)


@dataclass(frozen=True)
class Questions(Generic[A]):
    """Problems, how they are asked and graded, and the settings with nothing left open."""

    problems: list[Problem]
    prompts: Prompts
    reward: Reward
    settings: A
    skipped: int = 0  # rows left out
    rounded: int = 0  # problems whose score is between two points of the scale
    demos: Demos = ()  # worked examples that the settings name; `prompts` is without them


def read_questions(
    data: Data, settings: A, reward: Callable[..., Any] | None = None, *, answers: bool = True
) -> Questions[A]:
    """What is asked and how, from a file, the Hub, or as given; with answers=False, without answers.

    A reward given as an object stands for its name in the settings. Raises DataError where a problem is
    not as it must be, or where its own answer would not earn the reward; ConfigError for settings that
    make no sense for the task.
    """
    settings = replace(
        settings,
        system_prompt=text_or_file("system_prompt", settings.system_prompt),
        rubric=text_or_file("rubric", settings.rubric),
        prompt_template=text_or_file("prompt_template", settings.prompt_template),
    )
    form = parse_format(settings.answer_format)
    found = data if isinstance(data, TaskData) else _read(data, settings, answers)
    settings = replace(
        settings,
        reward=settings.reward or found.reward,
        instruction=found.instruction if settings.instruction is None else settings.instruction,
        hint=settings.hint or found.hint,
        scale=found.scale,
    )
    if isinstance(settings, Sample):
        settings = replace(settings, scheme=spelled_out(settings.scheme))
    grade = as_reward(reward or settings.reward or found.reward)
    prompts = Prompts(
        settings.instruction or "",
        settings.hint or HINT,
        found.leaks,
        format=form,
        system_prompt=settings.system_prompt,
    )
    demos = load_demos(
        settings.demos,
        settings.task,
        replace(task_options(settings), scale=found.scale),
        prompts,
        grade,
        found.problems,
        settings.accept_at,
        in_data="refuse" if answers else "allow",
    )
    if found.rounded:
        how = "taken for both, each by its share" if settings.soft_labels else "rounded to the nearest"
        log.warning(
            "%d of %d scores are between two points of the scale %s: %s.",
            *(found.rounded, len(found.problems), found.scale, how),
        )
    if answers and settings.check_gold:
        check_gold(found.problems, grade, settings.accept_at, prompts)
    return Questions(found.problems, prompts, grade, settings, found.skipped, found.rounded, demos)


def _read(data: str | Path | Sequence[Problem], settings: Ask, answers: bool) -> TaskData:
    if not isinstance(data, (str, Path)):
        return TaskData(list(data))
    return read_task(data, settings.task, task_options(settings), answers=answers)


def task_options(settings: Ask) -> Options:
    """How the task reads its data."""
    return Options(
        columns=named_pairs("columns", settings.columns),
        data_config=settings.data_config,
        split=settings.split,
        scale=settings.scale,
        attributes=settings.attributes,
        raters=settings.raters,
        bad_rows=settings.bad_rows,
        answer_format=settings.answer_format,
        rubric=text_or_file("rubric", settings.rubric),
        prompt_template=text_or_file("prompt_template", settings.prompt_template),
        round_scores=settings.round_scores,
        soft_labels=settings.soft_labels,
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


def sampling(settings: Sample, scheme: Scheme | None = None) -> Sampling:
    """The draws' sampling; `scheme` stands for the one that settings name. Raises ConfigError."""
    if settings.temperature < 0 or not 0 < settings.top_p <= 1 or settings.top_k < 0:
        raise ConfigError(
            f"temperature {settings.temperature}, top_p {settings.top_p}, top_k {settings.top_k}: they "
            "must be at least 0, in (0, 1], and at least 0."
        )
    scheme = scheme or parse_scheme(settings.scheme)
    if settings.temperature == 0 and any(stage.draws > 1 for stage in scheme.asked):
        raise ConfigError(
            f"{scheme.name} at temperature 0: every attempt is the same. Set temperature 1, say."
        )
    return Sampling(settings.max_new_tokens, settings.temperature, settings.top_p, settings.top_k)


def plan(settings: Train, scheme: Scheme | None = None) -> Plan:
    """What the loop does; `scheme` stands for the one that settings name. Raises ConfigError."""
    if not 1 <= settings.iterations <= 100_000:
        raise ConfigError(f"iterations must be from 1 to 100,000, got {settings.iterations}.")
    for name in ("eval_every", "keep_last"):
        if getattr(settings, name) < 0:
            raise ConfigError(f"{name} must be at least 0, got {getattr(settings, name)}.")
    check_draws("eval_", settings.eval_draws, settings.eval_temperature)
    if settings.bound_draws < 0 or settings.bound_draws % 2 or settings.bound_problems < 1:
        raise ConfigError(
            f"bound_draws {settings.bound_draws}, bound_problems {settings.bound_problems}: half of the "
            "draws are hinted, so an even number of them (0: none), and at least 1 problem."
        )
    if settings.reader_problems < 0:
        raise ConfigError(f"reader_problems must be at least 0, got {settings.reader_problems}.")
    scheme = scheme or parse_scheme(settings.scheme, _num_answers(settings))
    _check_law(settings, scheme)
    if settings.launch is not None:
        from femtune.launch import check_launch  # and torch with it

        check_launch(settings.launch)
    if settings.training.fsdp and settings.launch is None:
        raise ConfigError(
            'fsdp is of several processes: set launch, to "torchrun --nproc-per-node 8" say.'
        )
    if scheme.settle and settings.start_from == "base":
        raise ConfigError(
            f"scheme {scheme.name}: settle goes on from the previous weights, and start_from is base: "
            "leave one of them out."
        )
    return Plan(
        replace(scheme, accept_at=_acceptance(settings)),
        settings.training,
        Evaluation(settings.eval_draws, settings.eval_temperature, settings.eval_every),
        settings.iterations,
        settings.start_from,
        settings.launch,
        settings.balance,
        settings.keep_last,
        settings.bound_draws,
        settings.bound_problems,
        settings.reader_problems,
        demo_iterations=settings.demo_iterations,
        force=settings.force_answers,
    )


def _num_answers(settings: Train) -> int | None:
    """How many answers there can be, where they are on a scale."""
    return len(parse_scale(settings.scale).answers) if settings.scale else None


def _check_law(settings: Train, scheme: Scheme) -> None:
    """Refuse draws of a law that the scheme's rules can't allow for. Raises ConfigError."""
    _check_answers(settings, scheme)
    cut = settings.top_p < 1 or settings.top_k > 0
    if "temperature 1" in scheme.needs and (cut or settings.temperature != 1):
        raise ConfigError(
            f"Scheme {scheme.name} weighs draws by the model's own law: it needs temperature 1, without "
            "top_p and top_k."
        )
    if "all tokens" in scheme.needs and cut:
        raise ConfigError(
            f"Scheme {scheme.name} weighs draws by the probability that they were drawn with, and top_p "
            "and top_k leave tokens out: drop them."
        )
    if "all tokens" in scheme.needs and settings.temperature == 0:
        raise ConfigError(
            f"Scheme {scheme.name} weighs draws by the probability that they were drawn with, and "
            "temperature 0 draws the likeliest tokens alone: set --temperature 1."
        )
    if "all tokens" in scheme.needs and settings.temperature != 1 and settings.engine != "transformers":
        raise ConfigError(
            f"Scheme {scheme.name} weighs draws by the probability that they were drawn with, which "
            f"--engine {settings.engine} tells at temperature 1 alone, got {settings.temperature:g}: "
            "set --temperature 1, or --engine transformers."
        )
    forced = settings.force_answers == "always"
    if "all tokens" in scheme.needs and forced and settings.temperature != 1:
        raise ConfigError(
            f"Scheme {scheme.name} weighs forced answers at temperature 1 alone, got "
            f"{settings.temperature:g}: set --temperature 1, or --force-answers evaluation."
        )
    if "all tokens" in scheme.needs and forced and scheme.proposal == "base":
        raise ConfigError(
            f"Scheme {scheme.name} weighs forced answers by the current model, and its draws are the "
            "base's: leave base out, or set --force-answers evaluation."
        )
    if "plain prompts" in scheme.needs and (forced or settings.demos not in ("auto", "none")):
        raise ConfigError(
            f"Scheme {scheme.name} needs draws of the plain prompt: drop --demos and --force-answers "
            "always, or choose importance or memo."
        )


def _check_answers(settings: Train, scheme: Scheme) -> None:
    """Refuse what the probability of y* alone does not describe. Raises ConfigError."""
    if scheme.needs & {"answers", "gain"} and not parse_format(settings.answer_format).cue:
        raise ConfigError(
            f"Scheme {scheme.name} needs the probability of an answer, and answer_format "
            f"{settings.answer_format} has no cue to put it after: choose line, boxed, hash, tag, "
            "bracket or json:KEY."
        )
    if "answers" in scheme.needs and (settings.accept_at != 1 or settings.soft_accept is not None):
        raise ConfigError(
            f"Scheme {scheme.name} takes the correct answer alone for right: drop --accept-at and "
            "--soft-accept."
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
    if values.get("epochs_factor") == 1:  # no setting of a user's
        del values["epochs_factor"]
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def choose_peft(settings: Train, base: Path, place: Path | None = None) -> Train:
    """Decide for or against LoRA where it was left open: LoRA where full fine-tuning does not fit.

    A run at `place` that was begun keeps what was decided then, on whatever machine.
    """
    training = settings.training
    if training.use_peft is not None:
        return settings
    chosen = _stored_peft(place)
    if chosen is None:
        chosen = needs_peft(training, base, settings.device)
    return replace(settings, training=replace(training, use_peft=chosen))


def _stored_peft(place: Path | None) -> bool | None:
    """What a run decided as it was begun, None where there is none."""
    if place is None or not (place / "config.yaml").exists():
        return None
    found = stored_config(place).get("use_peft")
    return found if isinstance(found, bool) else None


_ANY_DEVICE = 2 << 30  # bytes that every device has


def needs_peft(training: Training, base: Path, device: str | None = None) -> bool:
    """Return whether full fine-tuning in float32 exceeds the device's memory, and warn where it does.

    Weights, gradients and Adam's moments take 16 bytes a parameter; activations are not counted. Under
    fsdp several devices share them, so nothing is decided for the user there.
    """
    if adapter_base(base) is not None:
        return True  # full fine-tuning can't go on from an adapter
    try:
        needed = 16 * num_parameters(base)
    except ModelError:
        return False  # who reads the weights says what is wrong
    if training.fsdp or needed <= _ANY_DEVICE:  # what devices there are, torch knows, which is slow
        return False
    memory = training_device_memory(device, training.use_cpu)
    if needed <= memory:
        return False
    log.warning(
        "full fine-tuning needs at least %s and the device has %s: training a LoRA adapter instead. "
        "Set --use-peft to say so, or --no-use-peft for full fine-tuning all the same.",
        *(sized(needed), sized(memory)),
    )
    return True


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


def named_pairs(name: str, items: Sequence[str]) -> dict[str, str]:
    for item in items:
        if "=" not in item:
            raise ConfigError(f"{name} takes name=value, got {item!r}.")
    return dict(item.split("=", 1) for item in items)


def read_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
