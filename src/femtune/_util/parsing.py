"""JSON, YAML and Parquet as others wrote them: read, or `Unreadable` with what is wrong.

What the libraries raise for a file that is damaged, strange or hostile is known here, and nowhere else.
A caller makes a femtune error of it: the file's name, these words, and what to do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from femtune.errors import ConfigError, FemtuneError

MOST_VALUES = 100_000  # of a YAML file, aliases counted as often as they stand: nine lines can make 9^9
DEEPEST = 50


class Unreadable(ValueError):
    """A file that can't be read: why, in words to follow its name."""


def read_json(path: Path) -> Any:
    """What a file of JSON holds. Raises Unreadable."""
    with _saying("is no JSON"):
        return json.loads(_bytes(path))


def read_yaml(path: Path) -> Any:
    """What a file of YAML holds: plain values, and no object of any other class. Raises Unreadable."""
    import yaml

    with _saying("is no YAML", yaml.YAMLError):
        found = yaml.safe_load(_bytes(path).decode("utf-8-sig"))
    _check_size(found)
    return found


@contextmanager
def reading_arrow(form: str = "Parquet") -> Iterator[None]:
    """Within it, what pyarrow can't read, or Python has no value for, is Unreadable."""
    import pyarrow as pa

    with _saying(f"can't be read as {form}", pa.ArrowException, OSError):  # OSError: damaged, too
        yield


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unreadable(f"can't be read: {error.strerror or error}") from error


# ValueError, OverflowError: numbers and dates beyond Python's. LookupError, TypeError, AttributeError:
# PyYAML, on tags that don't fit their values, and on keys that are lists.
_OF_PYTHON = (ValueError, OverflowError, MemoryError, LookupError, TypeError, AttributeError)


@contextmanager
def _saying(what: str, *errors: type[Exception]) -> Iterator[None]:
    known: tuple[type[Exception], ...] = (*errors, *_OF_PYTHON)
    try:
        yield
    except (Unreadable, FemtuneError):  # also ValueErrors, which have their words already
        raise
    except UnicodeDecodeError as error:
        raise Unreadable(f"{what}: not UTF-8 ({error.reason}, byte {error.start + 1:,})") from error
    except RecursionError as error:
        raise Unreadable(f"{what} that can be read: it is nested too deep") from error
    except known as error:
        said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise Unreadable(f"{what}: {said[:300]}") from error


def _check_size(value: Any) -> None:
    """Refuse YAML that aliases have blown up, or turned upon itself."""
    level, num = [value], 0
    for _ in range(DEEPEST):
        level = [child for parent in level for child in _children(parent)]
        num += len(level)
        if not level:
            return
        if num > MOST_VALUES:
            raise Unreadable(
                f"holds over {MOST_VALUES:,} values, aliases counted as often as they stand"
            )
    raise Unreadable(f"holds values that are nested over {DEEPEST} deep")


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value
        yield from value.values()
    elif isinstance(value, (list, tuple, set)):
        yield from value


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
