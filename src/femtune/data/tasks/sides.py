"""Two responses to one conversation, taken apart: what both begin with is the prompt.

    chosen                                    rejected
    \\n\\nHuman: Hi\\n\\nAssistant: Hello.        \\n\\nHuman: Hi\\n\\nAssistant: What?

A conversation is a list of messages, JSON text of one, or text with turns of Human and Assistant.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from femtune._util.text import brief
from femtune.data.column_names import likely
from femtune.data.rows import BadRow
from femtune.data.tasks.cells import Row, read_conversation, read_nested, read_object, read_text, wrong
from femtune.types import Message

AS_TEXT = "as text"  # a row's key: the responses that are numbers, true or false, read as text
_TURN = re.compile(r"(?:\A|\n\n)\s*(Human|Assistant):")
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}


def read_turns(value: Any, name: str) -> list[Message] | str:
    """Return the messages of a cell, or its text if it is no conversation. Raises BadRow.

    >>> read_turns("\\n\\nHuman: Hi\\n\\nAssistant: Yes?", "chosen")[1]
    {'role': 'assistant', 'content': 'Yes?'}
    """
    if isinstance(value, str) and re.match(r"\s*\[\s*\{", value):
        value = read_nested(name, value)
    if isinstance(value, list):
        return [_message(one, name) for one in value]
    text = read_text({name: value}, name)
    parts = _TURN.split(text)
    if len(parts) < 3 or parts[0].strip() or parts[1] != "Human":
        return text
    roles = ["user" if role == "Human" else "assistant" for role in parts[1::2]]
    said: list[Message] = [
        {"role": role, "content": part.strip()} for role, part in zip(roles, parts[2::2], strict=True)
    ]
    # a prompt may end with "Assistant:"
    return said[:-1] if not said[-1]["content"] and roles[-1] == "assistant" else said


def _message(value: Any, name: str) -> Message:
    one = read_object(value, f"{name}[]")
    keys = ("from", "value") if "from" in one and "role" not in one else ("role", "content")
    role, content = (read_text(one, key, f"{name}.") for key in keys)
    return {"role": _ROLES.get(role, role), "content": content}


def take_apart(row: Row, sides: tuple[str, str], prompt: str) -> tuple[str, str, str]:
    """Return the prompt and the two responses of a row, all as text.

    `sides` and `prompt` are names of columns; the prompt may be missing if both sides begin with it.
    Raises BadRow if it can't be told what the prompt is.
    """
    given = None if row.get(prompt) in (None, "", []) else read_turns(row[prompt], prompt)
    one, other = (read_turns(row.get(side), side) for side in sides)
    both = f"`{sides[0]}` and `{sides[1]}`"
    if isinstance(one, str) or isinstance(other, str):
        if not (isinstance(one, str) and isinstance(other, str)):
            raise BadRow(f"one of {both} is text, and the other one messages")
        if given is None:
            rest = [name for name in row if name not in (prompt, *sides)]
            raise BadRow(
                f"`{prompt}` is empty, and {both} are text without turns: set --columns "
                f"{prompt}={likely(prompt, rest) or '<its name>'}",
                brief(one),
            )
        return read_conversation(given, prompt), one, other
    pairs = zip(map(_plain, one), map(_plain, other), strict=False)
    num = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    shared, rests = one[:num], (one[num:], other[num:])
    if not all(rests):
        raise BadRow(f"{both} are the same, or one begins with the other")
    if any(rest[0]["role"] != "assistant" for rest in rests):
        raise BadRow(f"{both} answer different prompts")
    a, b = map(_response, rests)
    if not shared:
        if given is None:
            raise BadRow(f"`{prompt}` is empty, and {both} do not begin with it")
        return read_conversation(given, prompt), a, b
    if given is not None and not _is_part(given, shared):
        raise BadRow(f"`{prompt}` is not what {both} begin with", brief(_plain(shared[-1])[1]))
    return read_conversation(shared, prompt), a, b


def _plain(message: Message) -> tuple[str, str]:
    return message["role"], message["content"].strip()


def _response(said: Sequence[Message]) -> str:
    return said[0]["content"] if len(said) == 1 else read_conversation(list(said), "response")


def _is_part(given: list[Message] | str, shared: Sequence[Message]) -> bool:
    texts = [given] if isinstance(given, str) else [message["content"] for message in given]
    whole = "\n".join(message["content"] for message in shared)
    return all(" ".join(text.split()) in " ".join(whole.split()) for text in texts)


def read_response(row: Row, name: str) -> tuple[str, str]:
    """Return a response as text, and its name if it is a number, true or false, else "".

    A list with one message of the assistant is its text. Raises BadRow for other values.
    """
    value = row.get(name)
    if isinstance(value, list):
        if len(value) != 1 or (said := _message(value[0], name))["role"] != "assistant":
            raise wrong(name, "text, or one message of the assistant", value)
        return said["content"], ""
    if isinstance(value, (bool, int, float)):
        return str(value).lower() if isinstance(value, bool) else str(value), name
    return read_text(row, name), ""
