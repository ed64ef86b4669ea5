"""A run's folder: its place, its configuration and the files that it depends on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

from femtune._util.parsing import Unreadable, read_json
from femtune._util.redaction import check_values
from femtune.config import CHANGEABLE, Ask, Train
from femtune.data.chat_tokenizer import DATE
from femtune.data.problems import save_problems
from femtune.data.row_report import ROWS, RowReport
from femtune.data.tasks.load import TaskData
from femtune.engines.model_files import base_of_adapter, local_model
from femtune.errors import ModelError, RunError
from femtune.model_info import info_for, is_base, served_name
from femtune.mstep.memory import needs_peft
from femtune.resolve import A, Data, Divided, TaskInputs
from femtune.rewards.custom import UserReward
from femtune.rewards.source import reward_code, reward_columns
from femtune.runs.hashes import (
    hash_config,
    hash_tokenizer,
    hash_value,
    hash_weights,
    template_source,
    writes_date,
)
from femtune.runs.run import Run, check_run, stored_config
from femtune.schemes.serialization import scheme_to_data
from femtune.types import Demos, Problem, Scheme

log = logging.getLogger("femtune")

TEACHER = "teacher.json"  # the model that drew in iteration 1: see workflows/teacher.py


def resolved(settings: Any, **more: Any) -> dict[str, Any]:
    """Return settings in stored form: flat, plain values, tuples as lists."""
    values = {**more, **asdict(settings)}
    values.update(values.pop("training", {}))
    if values.get("epochs_factor") == 1:  # not set by users
        del values["epochs_factor"]
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def check_new(place: Path, flag: str = "--output-dir") -> None:
    """Refuse a place that exists or is not writable, before any work is done for it.

    Raises RunError.
    """
    check_values({flag: place})
    if place.exists():
        raise RunError(f"{place} exists already: choose another {flag}.")
    there = next(parent for parent in place.absolute().parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "not writable" if there.is_dir() else "no folder"
        raise RunError(f"{place} can't be written ({there} is {why}): choose another {flag}.")


def fingerprint(*groups: Sequence[Problem]) -> str:
    """Return a hash of problems, by which a run recognizes its data."""
    digest = hashlib.blake2b(digest_size=12)
    for group in groups:
        for problem in group:
            digest.update(repr((problem.id, problem.prompt, problem.answer)).encode())
        digest.update(b"\x00")
    return digest.hexdigest()


def store_problems(
    run: Run,
    problems: Sequence[Problem],
    test: Sequence[Problem] = (),
    reports: Mapping[str, RowReport] | None = None,
    *,
    dev: Sequence[Problem] = (),
) -> None:
    """Store a run's problems for E-steps and evaluations, so that its draws can be read with them.

    `reports` say, by the name of these files, what was left out and how labels were read.
    """
    rows = run.root / ROWS
    if reports and not rows.exists():
        run.write_json(rows, {name: report.to_data() for name, report in reports.items()})
    for name, group in (("problems", problems), ("eval", test), ("dev", dev)):
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
    """Return a run's directory and resolved configuration; refuse a directory that holds another run.

    The directory is `output_dir`, else named by the configuration, so that the same command finds its
    run again. `reward` grades the draws, if they are graded: the run depends on its code and columns.
    `scheme` is stored as data, from which readers of the run rebuild it. Raises ConfigError if it
    cannot be stored.
    """
    check_values({"data": str(shown_data(data)), "model": model, "output_dir": output_dir})
    shown = shown_data(data)
    config = resolved(settings, data=shown, model=model, problems=fingerprint(*groups))
    if scheme is not None:
        config["scheme_data"] = scheme_to_data(scheme)
    if output_dir is None:
        # not by the date or by what it relies on: the same command finds its run, and may refuse it
        free = {*CHANGEABLE}
        fixed = {key: value for key, value in config.items() if key not in free}
        digest = hashlib.blake2b(json.dumps(fixed, sort_keys=True).encode(), digest_size=4)
        spec = re.sub(r"\W+", "-", config.get("scheme", "")).strip("-")
        parts = [verb, Path(shown).stem.replace(" ", "-"), spec, digest.hexdigest()]
        output_dir = Path("runs") / "-".join(filter(None, parts))
    config["relies_on"] = relied_on_model(model, settings, config, Path(output_dir)) | relied_on_inputs(
        spec=settings.reward,
        reward=reward,
        problems=[problem for group in groups for problem in group],
        # only those that are shown: a model that femtune trained is not shown the task's own
        demos=[asdict(each) for each in demos if settings.demos != "auto" or is_base(model, settings)],
    )
    check_run(Path(output_dir), config, CHANGEABLE)
    return Path(output_dir), config


def pin_date(config: dict[str, Any], folder: Path, place: Path) -> None:
    """Add the date to the template_args of a run whose chat template would write today's.

    A run in `place` keeps the date of its first day, so that it renders the same prompts when it is
    resumed. A date among the arguments stays as it is.
    """
    stored = stored_config(place) if (place / "config.yaml").exists() else {}
    config["template_args"] = dated(config["template_args"], folder, stored.get("template_args") or ())


def dated(template_args: Sequence[str], folder: Path, stored: Sequence[str]) -> list[str]:
    """Return template_args with the date among the stored ones, else today's: see `pin_date`."""
    if not writes_date(folder, template_args):
        return [*template_args]
    today = f"{DATE}={date.today().isoformat()}"
    return [*template_args, next((each for each in stored if each.startswith(f"{DATE}=")), today)]


def with_pinned_date(asked: TaskInputs[A], config: Mapping[str, Any]) -> TaskInputs[A]:
    """Return inputs whose template arguments are those of a run's configuration."""
    args = tuple(config["template_args"])
    return replace(asked, settings=replace(asked.settings, template_args=args))


def shown_data(data: Data) -> str:
    """Return the name of data in a run's configuration: its path or id, or its size."""
    if isinstance(data, (str, Path)):
        return str(data)
    if isinstance(data, Divided):
        return shown_data(data.train)
    given = data.problems if isinstance(data, TaskData) else data
    return f"{len(given)} problems"


def relied_on_model(model: str, settings: Ask, config: dict[str, Any], place: Path) -> dict[str, str]:
    """Return the hash of everything of a model that a run in `place` depends on.

    Adds today's date to the configuration's template_args where the template writes it: `pin_date`. Of a
    model behind chat completions, only its name is known. Raises ModelError if its files can't be read.
    """
    info = info_for(model, settings)
    shown = info.demos if info is not None and info.m_step == "examples" else None
    own = {"model_examples": hash_value(shown)} if shown and settings.demos == "auto" else {}
    if isinstance(settings, Train) and settings.teacher is not None:
        own |= _relied_on_teacher(settings.teacher, settings, place)
    if settings.engine == "chat":
        return {"served_model": served_name(model, settings)} | own
    folder = local_model(model)
    pin_date(config, folder, place)
    template = template_source(folder)
    try:
        return own | {
            "weights": hash_weights(folder, base_of_adapter(folder)),
            "model_config": hash_config(folder),
            "tokenizer": hash_tokenizer(folder),
            # as source, with its arguments, the pinned date among them
            "chat_template": hash_value([template, sorted(config["template_args"])]),
        }
    except OSError as error:
        raise ModelError(
            f"{error.filename or folder} can't be read: {error.strerror or error}."
        ) from error


def teacher_args(settings: Train, place: Path) -> tuple[str, ...]:
    """Return the template_args of a teacher; a run in `place` keeps the date of its first day."""
    if settings.teacher is None:
        return settings.template_args
    try:
        found = read_json(place / TEACHER) if (place / TEACHER).exists() else {}
    except Unreadable as error:
        raise RunError(f"{place / TEACHER} {error}. Start again in another --output-dir.") from error
    stored = found.get("template_args", []) if isinstance(found, dict) else []
    return tuple(dated(settings.template_args, local_model(settings.teacher), stored))


def _relied_on_teacher(name: str, settings: Train, place: Path) -> dict[str, str]:
    """Return the hashes of a teacher's weights and files."""
    folder = local_model(name)
    args = sorted(teacher_args(settings, place))
    files = [hash_config(folder), hash_tokenizer(folder), template_source(folder), args]
    return {
        "teacher": hash_weights(folder, base_of_adapter(folder)),
        "teacher_files": hash_value(files),
    }


def relied_on_inputs(
    *,
    spec: str | None = None,
    reward: Callable[..., Any] | None = None,
    problems: Sequence[Problem] = (),
    demos: Any = None,
) -> dict[str, str]:
    """Return the hash of examples and reward that a run depends on, without what does not apply.

    `spec` is the reward's name in the settings, `reward` the function.
    """
    found: dict[str, str] = {}
    if demos:
        found["demos"] = hash_value(demos)
    if code := reward_code(spec or "", reward):
        found["reward"] = hashlib.sha256(code).hexdigest()
    if isinstance(reward, UserReward) and (columns := reward_columns(reward, problems)):
        found["reward_columns"] = hash_value(columns)
    return found


def check_storable(scheme: Scheme) -> None:
    """Refuse a scheme that a run cannot store, and warn of one that only this script can read.

    Raises ConfigError.
    """
    stored = json.dumps(scheme_to_data(scheme))
    if '"__main__:' in stored:
        log.warning(
            "scheme %s has a rule that is defined in __main__: the same script can resume this run, and "
            "no command can replay or refilter it. Move the rule to a module of its own.",
            scheme.name,
        )


def choose_peft(settings: Train, base: Path, place: Path | None = None) -> Train:
    """Choose LoRA if the setting is open and full fine-tuning does not fit into memory.

    A run that was started at `place` keeps its choice, on any machine.
    """
    training = settings.training
    if training.use_peft is not None or settings.m_step == "examples":
        return settings
    chosen = _stored_peft(place)
    if chosen is None:
        chosen = needs_peft(training, base, settings.device)
    return replace(settings, training=replace(training, use_peft=chosen))


def _stored_peft(place: Path | None) -> bool | None:
    """Return the stored choice of a run, None without a run."""
    if place is None or not (place / "config.yaml").exists():
        return None
    found = stored_config(place).get("use_peft")
    return found if isinstance(found, bool) else None
