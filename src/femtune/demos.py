"""Worked examples: problems with rationale and answer, shown to a model before the problem it is asked.

A pretrained model that was never trained on a form of answer writes it when it sees a few.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from femtune.types import Prompt


@dataclass(frozen=True, slots=True)
class Demo:
    """One worked example."""

    prompt: Prompt  # x, without the instruction
    answer: str  # y*
    completion: str  # rationale and answer in the answer format, as a model should write them


Demos = tuple[Demo, ...]


def demos_digest(demos: Demos) -> str:
    """Return a short hash of worked examples, in their order; "" for none."""
    if not demos:
        return ""
    digest = hashlib.blake2b(digest_size=8)
    for demo in demos:
        prompt = demo.prompt if isinstance(demo.prompt, str) else [dict(m) for m in demo.prompt]
        digest.update(repr((prompt, demo.answer, demo.completion)).encode() + b"\x00")
    return digest.hexdigest()
