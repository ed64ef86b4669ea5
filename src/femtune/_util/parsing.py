"""Parsing of JSON, YAML and Parquet files; `Unreadable` says what is wrong with one.

All exceptions that the libraries raise for damaged, unusual or malicious files are listed here. The
caller turns `Unreadable` into a femtune error with the file's name, its message, and what to do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from femtune.errors import ConfigError, FemtuneError

MOST_VALUES = 100_000  # in a YAML file, with aliases expanded: nine lines can make 9^9
DEEPEST = 50


class Unreadable(ValueError):
    """A file that can't be read; the message continues a sentence that starts with the file's name."""


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises Unreadable."""
    with _saying("is not valid JSON"):
        return json.loads(_bytes(path))


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file: plain values only, no other classes. Raises Unreadable."""
    import yaml

    with _saying("is not valid YAML", yaml.YAMLError):
        found = yaml.safe_load(_bytes(path).decode("utf-8-sig"))
    _check_size(found)
    return found


@contextmanager
def reading_arrow(form: str = "Parquet") -> Iterator[None]:
    """Raise Unreadable for what pyarrow can't read, or Python can't represent, within the block."""
    import pyarrow as pa

    with _saying(f"can't be read as {form}", pa.ArrowException, OSError):  # OSError: damaged too
        yield


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unreadable(f"can't be read: {error.strerror or error}") from error


# ValueError, OverflowError: numbers and dates beyond Python's range. LookupError, TypeError,
# AttributeError: PyYAML, for tags that don't fit their values, and for keys that are lists.
_OF_PYTHON = (ValueError, OverflowError, MemoryError, LookupError, TypeError, AttributeError)


@contextmanager
def _saying(what: str, *errors: type[Exception]) -> Iterator[None]:
    known: tuple[type[Exception], ...] = (*errors, *_OF_PYTHON)
    try:
        yield
    except (Unreadable, FemtuneError):  # FemtuneErrors can be ValueErrors; their messages are complete
        raise
    except UnicodeDecodeError as error:
        raise Unreadable(f"{what}: not UTF-8 ({error.reason}, byte {error.start + 1:,})") from error
    except RecursionError as error:
        raise Unreadable(f"{what}: it is nested too deeply") from error
    except known as error:
        said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise Unreadable(f"{what}: {said[:300]}") from error


def _check_size(value: Any) -> None:
    """Check that aliases did not blow up a YAML value or make it contain itself. Raises Unreadable."""
    level, num = [value], 0
    for _ in range(DEEPEST):
        level = [child for parent in level for child in _children(parent)]
        num += len(level)
        if not level:
            return
        if num > MOST_VALUES:
            raise Unreadable(f"holds over {MOST_VALUES:,} values, with aliases expanded")
    raise Unreadable(f"holds values nested more than {DEEPEST} levels deep")


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value
        yield from value.values()
    elif isinstance(value, (list, tuple, set)):
        yield from value


def named_pairs(name: str, items: Sequence[str]) -> dict[str, str]:
    for item in items:
        if "=" not in item:
            raise ConfigError(f"{name} needs the form name=value, got {item!r}.")
    return dict(item.split("=", 1) for item in items)


def as_pairs(values: Mapping[str, Any]) -> list[str]:
    """Return names and values in the form of `named_pairs`; values other than text as JSON.

    >>> as_pairs({"prompt": "question", "enable_thinking": False})
    ['prompt=question', 'enable_thinking=false']
    """
    return [f"{k}={v if isinstance(v, str) else json.dumps(v, default=str)}" for k, v in values.items()]


def read_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
