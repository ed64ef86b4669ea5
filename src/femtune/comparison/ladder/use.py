"""The command that takes a rung into use: `femtune predict` with the flags that the rung had."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from femtune.comparison.ladder.rungs import OWN_MODEL
from femtune.comparison.ladder.store import Rung
from femtune.config import Ask, Train

# settings of the data and the engine; a trained model knows the others, in its femtune.json
_ALWAYS = (
    *("columns", "header", "labels", "bad_rows", "engine", "engine_args", "engine_dtype", "device"),
    *("max_batch", "base_url", "served_model", "force_answers"),
)
_PROMPTS = (
    *("task", "scale", "raters", "attributes", "reward", "answer_format", "instruction"),
    *("system_prompt", "rubric", "prompt_template", "template_args", "max_new_tokens"),
    *("round_scores", "soft_labels", "demos", "demos_in_prompt"),
)
_GREEDY = ("--draws", "1", "--temperature", "0", "--aggregate", "votes")


def command(rung: Rung, model: str, settings: Train, scale: str | None, draws: int) -> str:
    """Return the command that answers new items like a rung; "" if no command does.

    `settings` are those that were given, `scale` is the one that was read from the data.
    """
    name = rung.name
    if name in ("majority", "direct", "regression"):
        return ""
    trained = name in OWN_MODEL
    words = ["femtune", "predict", "NEW.jsonl", "--model", rung.detail["model"] if trained else model]
    known: dict[str, Any] = {field.name: getattr(settings, field.name) for field in fields(Ask)}
    known |= {} if trained or scale is None else {"scale": scale}
    known |= {"demos": "none"} if name == "base" else {}
    words += flags(known, _ALWAYS if trained else (*_PROMPTS, *_ALWAYS))
    if name.endswith(("votes", "probabilities")):
        how = name.rpartition("-")[2]
        words += ["--draws", str(draws), "--temperature", "1", "--aggregate", how]
    else:
        words += _GREEDY
    return shlex.join([*words, "--output", "answers.jsonl"])


def flags(known: dict[str, Any], names: tuple[str, ...]) -> Iterator[str]:
    """Yield the flags of settings that differ from their defaults."""
    usual = {field.name: field.default for field in fields(Ask)}
    for name in names:
        value, flag = known[name], f"--{name.replace('_', '-')}"
        if value == usual[name] or value is None:
            continue
        if isinstance(value, bool):
            yield flag if value else f"--no-{name.replace('_', '-')}"
        elif isinstance(value, tuple):
            yield from (flag, *value)
        else:
            yield from (flag, str(value))
