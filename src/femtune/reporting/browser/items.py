"""What a draw is about, in a few lines: the part of its problem's prompt that others do not share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from typing import Any, TypeVar

HEAD, TAIL = 160, 240  # characters shown of a long item; what is judged stands last in a prompt

Key = TypeVar("Key", bound=Hashable)


def last_message(prompt: Any) -> str:
    """Return a prompt's text; of messages the last one."""
    if isinstance(prompt, str):
        return prompt
    return str(prompt[-1]["content"]) if prompt else ""


def own_lines(prompts: Mapping[Key, str]) -> dict[Key, str]:
    """Return each prompt without the lines that most of these prompts have, and shortened.

    Two prompts or fewer do not show what is common, so they stay whole.

    >>> own_lines({n: f"Rate it from 1 to 5.\\nResponse:\\n{n} is odd." for n in (1, 2, 3)})[2]
    '2 is odd.'
    """
    texts = set(prompts.values())
    times = Counter(line for text in texts for line in {*text.splitlines()})
    common = {line for line, number in times.items() if len(texts) > 2 and number > len(texts) / 2}
    own = {}
    for key, text in prompts.items():
        kept = "\n".join(line for line in text.splitlines() if line.strip() and line not in common)
        own[key] = _ends(kept or text)
    return own


def _ends(text: str) -> str:
    """Return the beginning and the end of a long text."""
    return text if len(text) <= HEAD + TAIL else f"{text[:HEAD]} … {text[-TAIL:]}"
