"""Readers of cells in published rows; an invalid cell raises `BadRow`.

Cells come as the file gives them: a number may be text, an empty cell None or "".
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

from femtune._util.text import brief, number_text
from femtune.data.messages import check_text, read_messages
from femtune.data.nested import parse_nested
from femtune.data.rows import BadRow

Row = Mapping[str, Any]

KEPT = ("world", "evidence", "truth", "noise", "terms")  # columns that femtune's synthetic tasks add


def wrong(name: str, expected: str, value: Any) -> BadRow:
    return BadRow(f"`{name}` is not {expected}", brief(repr(value)))


def read_text(row: Row, name: str, within: str = "") -> str:
    value, name = row.get(name), f"{within}{name}"
    if value is None:
        raise BadRow(f"`{name}` is empty")
    if not isinstance(value, str):
        raise wrong(name, "text", value)
    return check_text(name, value)


def read_plain(value: Any, name: str) -> str | None:
    """Return text, or a number as text (4.0 as "4"); None for an empty cell."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        raise wrong(name, "text or a finite number", value)
    if isinstance(value, (int, float)):
        return number_text(value)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    return read_text({name: value}, name).strip()


def read_number(value: Any, name: str) -> int | float | None:
    """Return a cell as a number, an int if it is whole; None for an empty cell or N/A."""
    if value is None or (isinstance(value, str) and value.strip() in ("", "N/A")):
        return None
    try:
        number = value if isinstance(value, int) else float(value)
    except (TypeError, ValueError):
        raise wrong(name, "a number", value) from None
    if isinstance(value, bool) or not (isinstance(number, int) or math.isfinite(number)):
        raise wrong(name, "a number", value)
    return int(number) if number == int(number) else number


def read_score(value: Any, name: str) -> int | float | str | None:
    """Return a cell as a number, or as the text of a label."""
    try:
        return read_number(value, name)
    except BadRow:
        text = value.strip().lower() if isinstance(value, str) else ""
        if text in ("", "nan", "inf", "-inf", "infinity", "-infinity"):
            raise wrong(name, "a number or a label", value) from None
    return read_plain(value, name)


def read_list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise wrong(name, "a list", value)
    return value


def read_object(value: Any, name: str) -> Row:
    if not isinstance(value, Mapping):
        raise wrong(name, "an object", value)
    return value


def lean(row: Row, *kept: str, **values: Any) -> dict[str, Any]:
    """Build a task's row from these values and the named columns, without empty ones."""
    kept_values = {name: row.get(name) for name in (*kept, *KEPT)}
    return {name: value for name, value in (kept_values | values).items() if value not in (None, "")}


def item_of(*texts: str) -> str:
    """Return a name for the judged item: a hash of its texts."""
    return hashlib.blake2b("\x00".join(texts).encode(), digest_size=8).hexdigest()


def read_conversation(value: Any, name: str) -> str:
    """Return a conversation as one text for a judge, each message after its role.

    A text is returned as it is, and so is the text of a single user message.

    >>> said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    >>> read_conversation(said, "prompt")
    'User: Hi\\n\\nAssistant: Yes?'
    """
    if not isinstance(value, list):
        return read_text({name: value}, name)
    texts = [(said["role"], check_text(name, said["content"])) for said in read_messages(value, name)]
    if len(texts) == 1 and texts[0][0] == "user":
        return texts[0][1]
    return "\n\n".join(f"{role.capitalize()}: {text}" for role, text in texts)


def opened_list(value: Any, name: str) -> Any:
    """Return the list that a text cell holds; any other cell as it is. Raises BadRow."""
    is_list = isinstance(value, str) and value.lstrip().startswith("[")
    return read_nested(name, value) if is_list else value


def read_nested(name: str, cell: str) -> Any:
    """Return the list or object that a text cell holds; None for an empty one."""
    try:
        return parse_nested(cell) if cell.strip() else None
    except ValueError:
        raise BadRow(f"`{name}` is text, but not JSON of a list or object", brief(cell)) from None
