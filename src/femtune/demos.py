"""Worked examples that stand in a prompt before the problem: see docs/worked-examples.md."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from femtune.types import Prompt


@dataclass(frozen=True)
class Demo:
    """One worked example."""

    prompt: Prompt  # x, without the instruction
    answer: str
    completion: str  # rationale and answer, in the answer format


Demos = tuple[Demo, ...]


def demos_digest(demos: Demos) -> str:
    """Return a short hash of worked examples; "" for none."""
    if not demos:
        return ""
    return hashlib.blake2b(repr(demos).encode(), digest_size=6).hexdigest()
