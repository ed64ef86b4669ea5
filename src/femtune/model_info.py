"""The prompts and settings of a trained model, stored in its folder: femtune.json.

    {"femtune": "0.9.0", "format": 1, "trained": true, "base": "Qwen/Qwen3-1.7B", "base_sha256": "...",
     "task": "judge", "scale": "1,5", "raters": "named", "instruction": "...", ...}

A judge answers worse with another scale, other words or without its raters' names, and its weights do
not show this. `predict`, `evaluate` and `calibrate` use these settings as defaults.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from femtune._util.atomic_files import write_json
from femtune._util.parsing import Unreadable, read_json
from femtune.config import Ask, check_types, given
from femtune.engines.model_files import INFO, MODELS, base_of_adapter, local_model, named_folder
from femtune.errors import ConfigError, DataError, ModelError
from femtune.rewards.builtin import REWARDS
from femtune.runs.checkpoints import best_model
from femtune.runs.hashes import hash_weights
from femtune.types import SCORED, Scheme

log = logging.getLogger("femtune")

FILE = INFO
FORMAT = 1

# Names of columns are defaults too, where the data has them: see `reading`.
COLUMNS = "columns"
# Settings of config.Ask that determine a model's prompts: stored, and used as defaults. Those that Ask
# lacks are left out.
ASKED = (
    *("task", "scale", "raters", "attributes", "reward", "answer_format", "instruction", "hint"),
    *("system_prompt", "rubric", "prompt_template", "template_args", "max_new_tokens"),
    *("round_scores", "soft_labels"),
)
# Settings that a task fills in from the second group: its defaults do not apply if one of them differs.
_FILLED = ("instruction", "hint", "reward")
_FILLED_BY = ("task", "scale", "raters", "attributes", "answer_format")

A = TypeVar("A", bound=Ask)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """The prompts, settings and base of a trained model; None for an unknown value."""

    femtune: str = ""  # version
    format: int = FORMAT
    trained: bool = True
    base: str | None = None  # as given to the run
    base_sha256: str | None = None  # of its weights: see hashes.hash_weights
    task: str | None = None
    scale: str | None = None
    raters: str | None = None
    attributes: tuple[str, ...] | None = None
    reward: str | None = None
    answer_format: str | None = None
    instruction: str | None = None
    hint: str | None = None
    system_prompt: str | None = None
    rubric: str | None = None  # its text
    prompt_template: str | None = None
    template_args: tuple[str, ...] | None = None
    max_new_tokens: int | None = None
    round_scores: bool | None = None
    soft_labels: bool | None = None
    m_step: str = "weights"  # or "examples": then the folder has no weights, and the base's are meant
    columns: tuple[str, ...] | None = None  # of the data that it was trained on
    demos: tuple[dict[str, Any], ...] | None = None  # worked examples, if each prompt has them
    from_task: tuple[str, ...] = ()  # the unset ones among these: the task's own words and reward


def info_of(
    settings: Ask,
    resolved: Ask,
    base: str | None,
    base_sha256: str | None,
    *,
    demos: tuple[dict[str, Any], ...] | None = None,
    rubric: str | None = None,
) -> ModelInfo:
    """Describe a run's prompts by its settings, as given and as resolved.

    `demos` are the worked examples if they are part of each prompt, `rubric` is the rubric's text.
    """
    known = {field.name for field in fields(ModelInfo)} & {*ASKED}
    asked: dict[str, Any] = {name: getattr(resolved, name, None) for name in ASKED if name in known}
    if rubric is not None:
        asked["rubric"] = rubric
    asked[COLUMNS] = settings.columns
    if not _is_findable(asked["reward"]):
        asked["reward"] = None
    filled = [name for name in _FILLED if not getattr(settings, name) and asked[name] is not None]
    return ModelInfo(
        femtune=femtune_version(),
        base=base,
        base_sha256=base_sha256,
        **asked,
        demos=demos,
        from_task=tuple(filled),
    )


def _is_findable(reward: str | None) -> bool:
    """Return True if another command can find a reward by its name: a function object has none."""
    return reward is not None and (":" in reward or reward.partition("(")[0].strip() in REWARDS)


def write_info(folder: Path, info: ModelInfo) -> None:
    """Store femtune.json in a model's folder atomically."""
    write_json(folder / FILE, asdict(info))


def is_trained(folder: Path) -> bool:
    """Return True if femtune trained the model or adapter in a folder; other models are bases."""
    return (folder / FILE).is_file()


def read_info(folder: Path) -> ModelInfo | None:
    """Read femtune.json of a model's folder; return None if there is no such file.

    Raises ModelError if it is damaged, or of a newer format than this femtune knows.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    redo = "Restore it, or remove it and give the settings as flags."
    try:
        found = read_json(path)
    except Unreadable as error:
        raise ModelError(f"{path} {error}. {redo}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds a {type(found).__name__}, expected names and values. {redo}")
    form = found.get("format")
    if not isinstance(form, int) or form > FORMAT:
        raise ModelError(f"{path} has format {form!r}; this femtune reads up to {FORMAT}: update it.")
    known = {field.name for field in fields(ModelInfo)}
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in found.items()
        if name in known
    }
    return replace(ModelInfo(), **values)


def with_defaults(settings: A, info: ModelInfo | None, *, graded: bool = True) -> A:
    """Fill in unset settings from the model's training, and warn about settings that differ.

    The reward is ignored if nothing is graded, as a custom one may not be available then.
    Raises ModelError if femtune.json holds a value of a wrong type.
    """
    if info is None:
        return settings
    own = {field.name for field in fields(settings)}
    names = [key for key in ASKED if key in own and (graded or key != "reward")]
    stored = {key: value for key in names if (value := getattr(info, key, None)) not in (None, ())}
    asked = given(settings)
    columns = {COLUMNS: info.columns} if info.columns else {}
    differing = [key for key in stored if key in asked and getattr(settings, key) != stored[key]]
    for key in differing:
        log.warning(
            "the model was trained with %s %s; asked for %s.",
            *(key, _shown(stored[key]), _shown(getattr(settings, key))),
        )
    if {*differing} & {*_FILLED_BY}:  # then the task's own words are for another scale
        stored = {key: value for key, value in stored.items() if key not in info.from_task}
    taken = {key: value for key, value in (stored | columns).items() if key not in asked}
    _check_values(type(settings), taken)
    return replace(settings, **taken)


def _check_values(kind: type[Ask], taken: Mapping[str, Any]) -> None:
    """Refuse values of femtune.json that are of a wrong type. Raises ModelError."""
    try:
        check_types(kind, taken)
    except ConfigError as error:
        raise ModelError(f"{FILE} of the model is not as it was stored: {error}") from error


def _shown(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 60 and "\n" not in text else repr(text[:60] + "...")


def femtune_version() -> str:
    """Return the installed version of femtune, "" if it runs from a source tree."""
    try:
        return version("femtune")
    except PackageNotFoundError:
        return ""


def is_base(model: str, settings: Ask) -> bool:
    """Return True if femtune did not train a model: it then gets worked examples by default.

    The models that come with femtune know their answer format, so they do not count as bases. Nor do
    those behind chat completions, which follow an instruction.
    """
    if settings.engine == "chat":
        return False
    folder = named_folder(model)
    return folder not in MODELS.values() and not is_trained(folder)


def reading(
    settings: A, read: Callable[[A], T], model: str, answers: Collection[str] = frozenset()
) -> T:
    """Read data, ignoring mappings of columns that it lacks: those of the model's training data.

    So the data may have other names than the training data, or no answers: mappings of the columns
    `answers` are ignored too, with a warning. Raises what `read` raises.
    """
    info = info_for(model, settings)
    learned = frozenset((info.columns or ()) if info else ())
    while True:
        try:
            return read(settings)
        except DataError as error:
            lacked = [item for item in settings.columns if _is_lacked(str(error), item)]
            soft = [item for item in lacked if item in learned or item.partition("=")[0] in answers]
            if not soft:
                raise
            if named := [item for item in soft if item not in learned]:
                log.warning("No answers are in %s: the mapping is ignored.", ", ".join(named))
            rest = tuple(item for item in settings.columns if item not in soft)
            settings = replace(settings, columns=rest)


def _is_lacked(message: str, item: str) -> bool:
    """Return True if an error says that this mapping's column is missing."""
    name, _, column = item.partition("=")
    return f"has no column `{column}` for `{name}`" in message


def model_folder(model: str, settings: Ask) -> Path | None:
    """Return the folder of a model's files; None for a name on a server of chat completions.

    Raises ModelError if there is no such model.
    """
    if settings.engine != "chat":
        return named_folder(model)
    path = Path(model).expanduser()
    if (best := best_model(path)) is not None:  # a run stands for its best model
        path = best[0]
    return path if is_trained(path) else None


def served_name(model: str, settings: Ask) -> str:
    """Return the name that requests for chat completions carry: as set, as stored, or the model."""
    if settings.served_model:
        return settings.served_model
    folder = model_folder(model, settings)
    info = None if folder is None else read_info(folder)
    return model if info is None or info.base is None else info.base


def info_for(model: str, settings: Ask) -> ModelInfo | None:
    """Return what a model's femtune.json says, None if it has none. Raises ModelError."""
    folder = model_folder(model, settings)
    return None if folder is None else read_info(folder)


def checked_info(model: str, settings: Ask) -> ModelInfo | None:
    """Return a model's femtune.json. Of chosen examples, check that the weights of the base are as then.

    Raises ModelError.
    """
    info = info_for(model, settings)
    if info is not None and info.m_step == "examples":
        unchanged_base(model, info)
    return info


def unchanged_base(model: str, info: ModelInfo) -> Path:
    """Return the folder of a model's base. Raises ModelError if its weights have changed."""
    base = local_model(str(info.base))
    if hash_weights(base, base_of_adapter(base)) != info.base_sha256:
        remedy = "" if info.m_step == "examples" else ", or leave out --reader-problems"
        raise ModelError(
            f"the weights of {info.base} are not those that {model} was trained from. Restore them"
            f"{remedy}."
        )
    return base


def as_trained(settings: A, model: str) -> A:
    """Return settings with unset ones filled in from the model's femtune.json, if it has one."""
    return with_defaults(settings, info_for(model, settings))


def check_scored(settings: Ask, scheme: Scheme) -> None:
    """Refuse a scheme that weighs by log-probabilities with --engine chat. Raises ConfigError."""
    if settings.engine == "chat" and scheme.needs & (SCORED | {"temperature_1"}):
        raise ConfigError(
            f"Scheme {scheme.name} weighs draws by the model's law, which --engine chat does not tell: "
            "choose rejection, star or pps, without what weighs by log-probabilities."
        )


def refuse_chat(settings: Ask, command: str) -> None:
    """Refuse what needs a model's weights with --engine chat. Raises ConfigError."""
    if settings.engine == "chat" and getattr(settings, "m_step", "weights") == "weights":
        raise ConfigError(
            f"femtune {command} needs the weights of a model, and --engine chat has none. Serve the "
            "model with vLLM and take --engine openai --use-peft, or --engine transformers; sample, "
            "evaluate, predict, calibrate and check work with --engine chat. So do train and ladder "
            "with --m-step examples."
        )
