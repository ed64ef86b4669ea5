"""Schemes as plain data, and back: what a run stores of its scheme in config.yaml.

    scheme_to_data(star())
    {"name": "star", "stages": [{"prompt_kind": "plain", ...}, ...],
     "weigh": [{"femtune.schemes.filters:Accepted": {}}, {"femtune.schemes.filters:First": {"num": 1}}],
     ...}

A rule is stored by its import path, module:class, and its fields. So a rule of your own can be stored
too: it is a frozen dataclass at the top level of a module, with fields of plain values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from importlib import import_module
from typing import Any

from femtune.errors import ConfigError
from femtune.mstep_schedule import MStepSchedule
from femtune.schemes.filters import Chain
from femtune.types import Scheme, Stage

_PLAIN = (str, int, float, bool, type(None))


def scheme_to_data(scheme: Scheme) -> dict[str, Any]:
    """Return a scheme as strings, numbers, lists and dicts: see `scheme_from_data`.

    Raises ConfigError for a rule that can't be stored.
    """
    at = scheme.accept_at
    try:
        data = {
            "name": scheme.name,
            "stages": [asdict(stage) for stage in scheme.stages],
            "weigh": _rule_to_data(scheme.weigh),
            "remember": scheme.remember and _rule_to_data(scheme.remember),
            "accept_at": _part_to_data(at) if callable(at) else at,
            "every": scheme.every,
            "m_steps": asdict(scheme.m_steps),
        }
        again = scheme_from_data(data)
    except ConfigError as error:
        raise ConfigError(f"Scheme {scheme.name} can't be stored. {error}") from error
    if again != scheme:
        raise ConfigError(
            f"Scheme {scheme.name} can't be stored: made again from what is stored, it is another one. "
            "Rules must be equal where their fields are, and their fields be plain values or tuples."
        )
    return data


def scheme_from_data(data: Mapping[str, Any]) -> Scheme:
    """Return the scheme that was stored. Raises ConfigError, which names a rule that is missing."""
    if removed := [name for name in ("first", "proposal", "min_gain") if name in data]:
        raise ConfigError(
            f"Scheme {data.get('name')} has {removed[0]}, which was removed. Commit 65a0ab4 was the "
            "last that had it: use that one, or start again with another scheme. docs/findings.md has "
            "the reason."
        )
    try:
        name, remember, at = data["name"], data["remember"], data["accept_at"]
        return Scheme(
            name,
            _stages(data["stages"]),
            weigh=_rule_from_data(data["weigh"]),
            accept_at=_part_from_data(at) if isinstance(at, Mapping) else at,
            remember=None if remember is None else _rule_from_data(remember),
            every=data["every"],
            m_steps=schedule_from_data(data),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"A scheme is not as it was stored: {error!r}.") from error


def schedule_from_data(data: Mapping[str, Any]) -> MStepSchedule:
    """Return the M-step schedule of a stored scheme, whose rules are not needed for it."""
    try:
        return MStepSchedule(**data["m_steps"])
    except (KeyError, TypeError) as error:
        raise ConfigError(f"m_steps of a scheme are not as they were stored: {error!r}.") from error


def describe(data: Mapping[str, Any]) -> str:
    """Return a stored scheme in a line of text; its rules need not be there. Raises ConfigError.

    >>> stage = {"prompt_kind": "plain", "draws": 4, "ask": "unsolved"}
    >>> rules = [{"femtune.schemes.filters:Share": {}}, {"my.rules:Rare": {"power": 2}}]
    >>> describe({"stages": [stage], "weigh": rules})
    '4 plain draws of unsolved problems; weighed by Share(), my.rules:Rare(power=2)'
    """
    try:
        text = f"{_asked(data['stages'])}; weighed by {_rules(data['weigh'])}"
        return text + (f"; remembers {_rules(data['remember'])}" if data.get("remember") else "")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"A scheme is not as it was stored: {error!r}.") from error


def _asked(stages: Any) -> str:
    shown = [
        f"{stage.draws} {stage.prompt_kind} draw{'s' * (stage.draws > 1)} of {stage.ask} problems"
        for stage in _stages(stages)
    ]
    return ", then ".join(shown)


def _rules(data: Any) -> str:
    parts = data if isinstance(data, list) else [data]
    shown = []
    for part in parts:
        [(path, given)] = part.items()
        name = path.rpartition(":")[2] if path.startswith("femtune.") else path
        shown.append(f"{name}({', '.join(f'{field}={value!r}' for field, value in given.items())})")
    return ", ".join(shown)


def _stages(data: Any) -> tuple[Stage, ...]:
    return tuple(Stage(**stage) for stage in data)


def _rule_to_data(rule: Any) -> Any:
    """Return a chain as a list of its rules, any other rule as a part."""
    if isinstance(rule, Chain):
        return [_part_to_data(each) for each in rule.rules]
    return _part_to_data(rule)


def _rule_from_data(data: Any) -> Any:
    return Chain(*map(_part_from_data, data)) if isinstance(data, list) else _part_from_data(data)


def _part_to_data(part: Any) -> dict[str, dict[str, Any]]:
    """Return {module:class: fields}. Raises ConfigError for what could not be found again by it."""
    kind = type(part)
    # multiprocessing names a script so in the processes that it spawns
    module = "__main__" if kind.__module__ == "__mp_main__" else kind.__module__
    name = f"{module}:{kind.__qualname__}"
    frozen = is_dataclass(part) and kind.__dataclass_params__.frozen
    if not frozen:
        what = getattr(part, "__qualname__", name)
        raise ConfigError(f"Rule {what} is no frozen dataclass: write it as one.")
    if "<locals>" in name:
        raise ConfigError(f"Rule {name} is made in a function: move it to the top level of a module.")
    given = {field.name: getattr(part, field.name) for field in fields(part) if field.init}
    return {name: {field: _plain(value, f"{name}.{field}") for field, value in given.items()}}


def _part_from_data(data: Any) -> Any:
    [(name, given)] = data.items()
    values = {field: _restored(value) for field, value in given.items()}
    try:
        return _found(name)(**values)
    except TypeError as error:
        raise ConfigError(f"Rule {name} takes other fields than were stored: {error}.") from error


def _found(name: str) -> type:
    """Return the class of an import path. Raises ConfigError if it is missing."""
    module, _, path = name.partition(":")
    try:
        found: Any = import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as error:  # a module of the user's may raise anything
        raise ConfigError(
            f"Rule {name} can't be imported ({type(error).__name__}: {error}). Install its module, or "
            "put the module's folder on PYTHONPATH. Commit 65a0ab4 was the last with "
            "the rules of femtune that docs/findings.md names as removed."
        ) from error
    if not isinstance(found, type) or not is_dataclass(found):
        raise ConfigError(f"Rule {name} is no dataclass any more: put back the one of the run.")
    return found


def _plain(value: Any, where: str) -> Any:
    """Return a plain value, tuples as lists."""
    if isinstance(value, tuple):
        return [_plain(each, where) for each in value]
    if type(value) not in _PLAIN:
        raise ConfigError(
            f"{where} is of type {type(value).__name__}. It must be a string, a number, True, False, "
            "None, or a tuple of these."
        )
    return value


def _restored(value: Any) -> Any:
    return tuple(map(_restored, value)) if isinstance(value, list) else value
