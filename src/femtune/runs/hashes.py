"""Hashes of what a run relies on beside its settings and problems: weights, tokenizer, template, reward.

They stand in a run's config.yaml under `relies_on`, and a resume whose hashes differ is refused (see
run.check_run): half of its draws would come from another model than the other half.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from femtune._util.parsing import Unreadable, read_json
from femtune.errors import ModelError
from femtune.rewards.custom import UserReward
from femtune.types import Problem

log = logging.getLogger("femtune")

_WHOLE = 2 << 30  # bytes; larger files are sampled
_BLOCK = 1 << 20
_NUM_BLOCKS = 256  # of a larger file

_CONFIGS = ("config.json", "generation_config.json", "adapter_config.json")
_TOKENIZER = (
    *("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json"),
    *("special_tokens_map.json", "*.model"),
)
_TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja")


def hash_weights(folder: Path, base: Path | None = None) -> str:
    """Return the SHA-256 of a model's weight files: the name, size and content of each.

    Of an adapter, `base` holds the weights that it is for, which count too. A file above 2 GiB is not
    read whole: 256 evenly spaced blocks of 1 MiB are, its head and tail included. A checkpoint that was
    trained differs in all of them.
    """
    digest = hashlib.sha256()
    for place in (folder, base):
        for file in sorted(place.glob("*.safetensors")) if place is not None else ():
            _add_file(digest, file)
    return digest.hexdigest()


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
    template = _template(folder)
    try:
        found = {
            "weights": hash_weights(folder, base),
            "model_config": _hash_files(folder, _CONFIGS),
            "tokenizer": _hash_tokenizer(folder),
            "chat_template": _hash_value([template, sorted(template_args)]),
        }
    except OSError as error:
        raise ModelError(
            f"{error.filename or folder} can't be read: {error.strerror or error}."
        ) from error
    if demos:
        found["demos"] = _hash_value(demos)
    if code := _reward_code(spec or "", reward):
        found["reward"] = hashlib.sha256(code).hexdigest()
    if isinstance(reward, UserReward) and (columns := _columns(reward, problems)):
        found["reward_columns"] = _hash_value(columns)
    return found


def warn_of_date(folder: Path, template_args: Sequence[str]) -> None:
    """Warn of a chat template that writes today's date, unless an argument sets a date."""
    if "strftime_now" in _template(folder) and not any(
        "date" in item.partition("=")[0] for item in template_args
    ):
        log.warning(
            "the chat template may write today's date into each prompt, so a run that is resumed "
            "tomorrow asks with another prompt. Where the template takes a date, set it, for example "
            '--template-args date_string="26 Jul 2024".'
        )


def _template(folder: Path) -> str:
    """The source of a model's chat templates, wherever its folder has them."""
    sources = [file.read_text(errors="replace") for file in _files(folder, _TEMPLATES)]
    own = _tokenizer_config(folder).get("chat_template")
    return "\n".join([*sources, *([json.dumps(own)] if own else [])])


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    try:
        found = read_json(path) if path.exists() else {}
    except Unreadable:
        found = {}  # who loads the tokenizer says what is wrong
    return found if isinstance(found, dict) else {}


def _hash_tokenizer(folder: Path) -> str:
    own = {key: value for key, value in _tokenizer_config(folder).items() if key != "chat_template"}
    return _hash_value([_hash_files(folder, _TOKENIZER), own])


def _files(folder: Path, patterns: Sequence[str]) -> Iterator[Path]:
    for pattern in patterns:
        yield from sorted(folder.glob(pattern))


def _hash_files(folder: Path, patterns: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for file in _files(folder, patterns):
        _add_file(digest, file)
    return digest.hexdigest()


def _add_file(digest: Any, file: Path) -> None:
    size = file.stat().st_size
    digest.update(f"{file.name} {size}\n".encode())
    with file.open("rb", buffering=0) as content:
        if size <= _WHOLE:
            while block := content.read(_BLOCK):
                digest.update(block)
            return
        for number in range(_NUM_BLOCKS):
            content.seek(number * (size - _BLOCK) // (_NUM_BLOCKS - 1))
            digest.update(content.read(_BLOCK))


def _hash_value(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=repr).encode()).hexdigest()


def _reward_code(spec: str, reward: Callable[..., Any] | None) -> bytes | None:
    """The code of a user's reward: its whole file where it is named, its own source where it is given.

    None for femtune's own rewards, and for code that can't be found.
    """
    if (path := _named_file(spec)) is not None:
        return path.read_bytes()
    function = reward.function if isinstance(reward, UserReward) else None
    if not inspect.isfunction(function):
        return None
    try:
        return inspect.getsource(function).encode()
    except (OSError, TypeError):
        return None


def _named_file(spec: str) -> Path | None:
    """The file of a reward that is written path/file.py:function or package.module:function."""
    where, colon, _ = spec.rpartition(":")
    if not colon:
        return None
    if (path := Path(where)).is_file():
        return path
    try:
        found = find_spec(where)
    except (ImportError, ValueError):
        return None
    origin = Path(found.origin) if found is not None and found.origin else None
    return origin if origin is not None and origin.is_file() else None


def _columns(reward: UserReward, problems: Sequence[Problem]) -> list[Any]:
    """By problem, the columns that a reward may read; empty where there are none."""
    takes = reward.takes if reward.form != "own" else None
    rows = [
        sorted(
            (name, value) for name, value in problem.columns.items() if takes is None or name in takes
        )
        for problem in problems
    ]
    return rows if any(rows) else []
