"""Settings made into what a command works with: problems, prompts, reward, model, engine, plan.

Whatever can be wrong is found here, in the first second, before a model is loaded or a directory made.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from femtune._util.device_memory import training_device_memory
from femtune._util.parsing import named_pairs
from femtune._util.safetensors_header import num_parameters
from femtune.config import CHANGEABLE, Ask, Sample, Train, check_draws
from femtune.data.answer_format import parse_format
from femtune.data.answers import parse_scale
from femtune.data.demos import load_demos
from femtune.data.problems import check_disjoint, check_gold, save_problems, split
from femtune.data.prompts import HINT, Prompts
from femtune.data.tasks.frames import frame
from femtune.data.tasks.load import Options, TaskData, read_task, trained_on
from femtune.data.tasks.wording import text_or_file
from femtune.engines.model_files import adapter_base, base_of_adapter, local_model
from femtune.errors import ConfigError, DataError, ModelError, RunError
from femtune.loop import Evaluation, LoopConfig
from femtune.model_info import (
    is_base,
)
from femtune.mstep.config import Training
from femtune.mstep.disk import sized
from femtune.rewards.builtin import as_reward
from femtune.rewards.custom import UserReward
from femtune.rewards.source import reward_code, reward_columns
from femtune.runs.hashes import hash_config, hash_tokenizer, hash_value, hash_weights, template_source
from femtune.runs.run import Run, check_run, stored_config
from femtune.schemes.acceptance import SoftAcceptance
from femtune.schemes.named import parse_scheme, spelled_out
from femtune.schemes.serialization import scheme_to_data
from femtune.types import Demos, Problem, Request, Reward, Sampling, Scheme

log = logging.getLogger("femtune")

# a file, the id of a data set on the Hub, problems, or what `read_task` gives
Data = str | Path | Sequence[Problem] | TaskData


A = TypeVar("A", bound=Ask)


@dataclass(frozen=True)
class TaskInputs(Generic[A]):
    """Problems, how they are asked and graded, and the settings with nothing left open."""

    problems: list[Problem]
    prompts: Prompts
    reward: Reward
    settings: A
    skipped: int = 0  # rows left out
    rounded: int = 0  # problems whose score is between two points of the scale
    demos: Demos = ()  # worked examples that the settings name; `prompts` is without them


def read_inputs(
    data: Data, settings: A, reward: Callable[..., Any] | None = None, *, answers: bool = True
) -> TaskInputs[A]:
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
    return TaskInputs(found.problems, prompts, grade, settings, found.skipped, found.rounded, demos)


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


def held_out(asked: TaskInputs[Train], data: Data) -> tuple[list[Problem], list[Problem]]:
    """Problems to train on and to evaluate on; of a pair, one order and both.

    Raises DataError where a prompt, or what is judged in it, is in both.
    """
    settings = asked.settings
    if settings.eval_data is not None or settings.eval_split is not None:
        other: Data = settings.eval_data or data
        split_ = settings.eval_split if settings.eval_data is None else settings.split
        read = replace(settings, split=split_)
        test = read_inputs(other, read, asked.reward).problems
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


def make_loop_config(settings: Train, scheme: Scheme | None = None) -> LoopConfig:
    """Return what the loop does; `scheme` replaces the one that settings name. Raises ConfigError."""
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
    scheme = scheme or named_scheme(settings)
    if scheme.accept_at != 1:
        raise ConfigError(
            f"Scheme {scheme.name} has an accept_at of its own: leave it out, and give the setting "
            "accept_at or soft_accept."
        )
    _check_law(settings, scheme)
    if settings.launch is not None:
        from femtune.mstep.launch import check_launch  # and torch with it

        check_launch(settings.launch)
    if settings.training.fsdp and settings.launch is None:
        raise ConfigError(
            'fsdp is of several processes: set launch, to "torchrun --nproc-per-node 8" say.'
        )
    return LoopConfig(
        replace(
            scheme,
            accept_at=_acceptance(settings),
            m_steps=scheme.m_steps.starting(settings.start_from),
        ),
        settings.training,
        Evaluation(settings.eval_draws, settings.eval_temperature, settings.eval_every),
        iterations=settings.iterations,
        launch=settings.launch,
        balance=settings.balance,
        keep_last=settings.keep_last,
        bound_draws=settings.bound_draws,
        bound_problems=settings.bound_problems,
        reader_problems=settings.reader_problems,
        demo_iterations=settings.demo_iterations,
        force=settings.force_answers,
    )


def named_scheme(settings: Sample) -> Scheme:
    """Return the scheme that settings name. Raises ConfigError."""
    num_answers = len(parse_scale(settings.scale).answers) if settings.scale else None
    return parse_scheme(settings.scheme, num_answers)


def _check_law(settings: Train, scheme: Scheme) -> None:
    """Refuse draws of a law that the scheme's rules can't allow for. Raises ConfigError."""
    _check_answers(settings, scheme)
    cut = settings.top_p < 1 or settings.top_k > 0
    if "temperature_1" in scheme.needs and (cut or settings.temperature != 1):
        raise ConfigError(
            f"Scheme {scheme.name} weighs draws by the model's own law: it needs temperature 1, without "
            "top_p and top_k."
        )
    if "untruncated" in scheme.needs and cut:
        raise ConfigError(
            f"Scheme {scheme.name} weighs draws by the probability that they were drawn with, and top_p "
            "and top_k leave tokens out: drop them."
        )
    if "untruncated" in scheme.needs and settings.temperature == 0:
        raise ConfigError(
            f"Scheme {scheme.name} weighs draws by the probability that they were drawn with, and "
            "temperature 0 draws the likeliest tokens alone: set --temperature 1."
        )
    if "untruncated" in scheme.needs and settings.temperature != 1 and settings.engine != "transformers":
        raise ConfigError(
            f"Scheme {scheme.name} weighs draws by the probability that they were drawn with, which "
            f"--engine {settings.engine} tells at temperature 1 alone, got {settings.temperature:g}: "
            "set --temperature 1, or --engine transformers."
        )
    forced = settings.force_answers == "always"
    if "untruncated" in scheme.needs and forced and settings.temperature != 1:
        raise ConfigError(
            f"Scheme {scheme.name} weighs forced answers at temperature 1 alone, got "
            f"{settings.temperature:g}: set --temperature 1, or --force-answers evaluation."
        )
    if "untruncated" in scheme.needs and forced and scheme.proposal == "base":
        raise ConfigError(
            f"Scheme {scheme.name} weighs forced answers by the current model, and its draws are the "
            "base's: leave base out, or set --force-answers evaluation."
        )
    if "plain_prompts" in scheme.needs and (forced or settings.demos not in ("auto", "none")):
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
    return SoftAcceptance(settings.soft_accept, span, settings.soft_decay)


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


def store_problems(run: Run, problems: Sequence[Problem], test: Sequence[Problem] = ()) -> None:
    """Store what a run asks, in E-steps and evaluations, so that its draws can be read with it."""
    for name, group in (("problems", problems), ("eval", test)):
        path = run.root / f"{name}.parquet"
        if group and not path.exists():
            save_problems(group, path)
            run.record(path)


def run_place(
    output_dir: str | Path | None,
    verb: str,
    data: Data,
    model: str,
    settings: Any,
    *groups: Sequence[Problem],
    reward: Callable[..., Any] | None = None,
    demos: Demos = (),
    scheme: Scheme | None = None,
) -> tuple[Path, dict[str, Any]]:
    """A run's directory and resolved configuration; refused at once where it holds another run.

    As told, else named by the configuration, so that the same command finds its run again. `reward` is
    what the draws are graded by, where they are: its code and columns are among what the run relies on.
    `scheme` is stored as data, from which it is made again by whatever reads the run. Raises ConfigError
    if it can't be stored.
    """
    given = data.problems if isinstance(data, TaskData) else data
    shown = str(given) if isinstance(given, (str, Path)) else f"{len(given)} problems"
    config = resolved(settings, data=shown, model=model, problems=fingerprint(*groups))
    if scheme is not None:
        config["scheme_data"] = scheme_to_data(scheme)
    base = local_model(model)
    config["relies_on"] = relied_on(
        base,
        base=base_of_adapter(base),
        template_args=settings.template_args,
        spec=settings.reward,
        reward=reward,
        problems=[problem for group in groups for problem in group],
        # only those that are shown: a model that femtune trained is not shown the task's own
        demos=[asdict(each) for each in demos if settings.demos != "auto" or is_base(model)],
    )
    if output_dir is None:
        # not by what it relies on: where that changed, the same command finds its run and refuses it
        free = {*CHANGEABLE, "relies_on"}
        fixed = {key: value for key, value in config.items() if key not in free}
        digest = hashlib.blake2b(json.dumps(fixed, sort_keys=True).encode(), digest_size=4)
        spec = re.sub(r"\W+", "-", config.get("scheme", "")).strip("-")
        parts = [verb, Path(shown).stem, spec, digest.hexdigest()]
        output_dir = Path("runs") / "-".join(filter(None, parts))
    check_run(Path(output_dir), config, CHANGEABLE)
    return Path(output_dir), config


def relied_on(
    folder: Path,
    *,
    base: Path | None = None,
    template_args: Sequence[str] = (),
    spec: str | None = None,
    reward: Callable[..., Any] | None = None,
    problems: Sequence[Problem] = (),
    demos: Any = None,
) -> dict[str, str]:
    """Return the hash of each thing that a run relies on; those that do not apply are left out.

    The chat template is hashed as source, with its arguments, and not as rendered: a template that
    writes today's date renders differently tomorrow, and is the same template (see `warn_of_date`).
    `spec` is the reward's name as the settings have it, `reward` what is called.
    Raises ModelError where the model's files can't be read.
    """
    template = template_source(folder)
    try:
        found = {
            "weights": hash_weights(folder, base),
            "model_config": hash_config(folder),
            "tokenizer": hash_tokenizer(folder),
            "chat_template": hash_value([template, sorted(template_args)]),
        }
    except OSError as error:
        raise ModelError(
            f"{error.filename or folder} can't be read: {error.strerror or error}."
        ) from error
    if demos:
        found["demos"] = hash_value(demos)
    if code := reward_code(spec or "", reward):
        found["reward"] = hashlib.sha256(code).hexdigest()
    if isinstance(reward, UserReward) and (columns := reward_columns(reward, problems)):
        found["reward_columns"] = hash_value(columns)
    return found
