"""Settings of a ladder, each field a flag; other settings are those of `train`."""

from __future__ import annotations

from dataclasses import dataclass

from cyclopts import Parameter


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class LadderOptions:
    """Settings of a ladder; other settings are those of `train`."""

    up_to: str | None = None
    """Last rung to run, for example votes; default: all."""
    budget: str | None = None
    """Most time or generated tokens, for example 30m or "200k tokens"; default: no limit."""
    draws: int = 16
    """Rationales per held-out problem for votes and probabilities."""
    margin: float = 0.02
    """Accuracy by which a rung must be better to be worth its cost."""
    price_prompt: float | None = None
    """Price of a million prompt tokens, which scored ones cost too."""
    price_generated: float | None = None
    """Price of a million generated tokens."""
    price_trained: float | None = None
    """Price of a million trained tokens."""
