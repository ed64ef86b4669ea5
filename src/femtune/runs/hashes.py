"""Hashes of what a run relies on beside its settings and problems: weights, tokenizer, template, reward.

They stand in a run's config.yaml under `relies_on`, and a resume whose hashes differ is refused (see
run.check_run): half of its draws would come from another model than the other half.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from femtune._util.parsing import Unreadable, read_json

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


def writes_date(folder: Path, template_args: Sequence[str]) -> bool:
    """Return True for a chat template that writes today's date, unless an argument sets a date."""
    names = [item.partition("=")[0] for item in template_args]
    dated = any("date" in name or name == "strftime_now" for name in names)
    return "strftime_now" in template_source(folder) and not dated


def hash_config(folder: Path) -> str:
    """Return the hash of the configs in a model's folder."""
    return _hash_files(folder, _CONFIGS)


def template_source(folder: Path) -> str:
    """Return the source of a model's chat templates, wherever its folder has them."""
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


def hash_tokenizer(folder: Path) -> str:
    """Return the hash of a tokenizer's files and settings, without its chat template."""
    own = {key: value for key, value in _tokenizer_config(folder).items() if key != "chat_template"}
    return hash_value([_hash_files(folder, _TOKENIZER), own])


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


def hash_value(value: Any) -> str:
    """Return the hash of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=repr).encode()).hexdigest()
