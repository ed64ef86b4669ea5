"""Prompts: text, or messages with role and content."""

from __future__ import annotations

import re
from typing import Any

from femtune._util.text import brief, first
from femtune.data.nested import parse_nested
from femtune.data.rows import BadRow
from femtune.types import Message, Prompt

_BEGINS, _HAS_ROLE = re.compile(r"\s*\[\s*\{"), re.compile(r"""['"]role['"]\s*:""")


def read_prompt(value: Any, name: str) -> Prompt:
    """Return a prompt to ask: text, or messages of which the last is the user's.

    A text cell that holds a list of messages is that list. Raises BadRow.
    """
    value = with_messages(value, name)
    if value is None or isinstance(value, str):
        return check_text(name, value or "")
    messages = read_messages(value, name)
    if messages[-1]["role"] != "user":
        raise BadRow(f'the last message of `{name}` is not of role "user"', messages[-1]["role"])
    check_text(name, messages[-1]["content"])
    return messages


def read_messages(value: Any, name: str) -> list[Message]:
    """Return a list of messages, without keys that are null. Raises BadRow."""
    if not isinstance(value, list):
        raise BadRow(f"`{name}` must be text or a list of messages", type(value).__name__)
    if not value:
        raise BadRow(f"`{name}` is empty")
    return [_message(message, name, number) for number, message in enumerate(value, 1)]


def _message(message: Any, name: str, number: int) -> Message:
    keys = f", with {first(list(map(str, message)))}" if isinstance(message, dict) and message else ""
    wrong = BadRow(
        f"`{name}` has a message without `role` and `content` as text", f"message {number}{keys}"
    )
    if not isinstance(message, dict):
        raise wrong
    role, content = message.get("role"), _only_text(message.get("content"))
    if not isinstance(role, str) or not isinstance(content, str):
        raise wrong
    for text in (role, content):
        check_unicode(name, text)
    return {key: value for key, value in message.items() if value is not None} | {"content": content}


def _only_text(content: Any) -> Any:
    """Return the text of a content of one part, {"type": "text", "text": ...}; any other as it is."""
    match content:
        case [{"type": "text", "text": str(text)}]:
            return text
    return content


def with_messages(value: Any, name: str) -> Any:
    """Return the messages that a text cell holds; any other value as it is.

    >>> with_messages("[{'role': 'user', 'content': 'Hi'}]", "prompt")
    [{'role': 'user', 'content': 'Hi'}]

    Raises BadRow for text that begins and ends as a list of messages does, and can't be read.
    """
    if not isinstance(value, str) or not _BEGINS.match(value) or not value.rstrip().endswith("]"):
        return value
    if not _HAS_ROLE.search(value):
        return value
    try:
        found = parse_nested(value)
    except ValueError as error:
        what = f"`{name}` is the text of a list of messages, and can't be read"
        raise BadRow(what, f"{error}; {brief(value, 40)}") from None
    is_messages = all(isinstance(each, dict) and {"role", "content"} <= each.keys() for each in found)
    return found if is_messages else value


def check_text(name: str, value: str) -> str:
    """Return a text that is not empty. Raises BadRow."""
    if not value.strip():
        raise BadRow(f"`{name}` is empty")
    return check_unicode(name, value)


def check_unicode(name: str, value: str) -> str:
    """Return a text that can be encoded. Raises BadRow."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRow(f"`{name}` is not valid Unicode", error.reason) from None
    return value
