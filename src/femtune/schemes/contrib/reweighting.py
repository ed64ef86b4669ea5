"""Additions by which some problems or draws count more, or less, than others."""

from __future__ import annotations

from dataclasses import replace

from femtune._util.text import without_exponent
from femtune.errors import ConfigError
from femtune.schemes import weights
from femtune.schemes.answer_rules import refuse_expected
from femtune.schemes.filters import Chain
from femtune.types import Scheme


def hard(scheme: Scheme, power: float = 0.7) -> Scheme:
    """Give draws that took many attempts more weight, a^power for the a-th: see `weights.Hard`.

    Raises ConfigError for schemes that are not of plain attempts until one is right.
    """
    refuse_expected(scheme, "hard")
    if [(stage.prompt_kind, stage.ask) for stage in scheme.asked] != [("plain", "unsolved")]:
        raise ConfigError(
            f"Scheme {scheme.name}: hard counts plain attempts until one is right, as rejection:M makes "
            "them, and this one draws otherwise."
        )
    rule = Chain(scheme.weigh, weights.Hard(power))
    return replace(scheme, name=f"{scheme.name}+hard({without_exponent(power)})", weigh=rule)


def resample(scheme: Scheme, num: int = 1) -> Scheme:
    """Train on whole draws in place of weights, `num` a problem: see `weights.Resample`."""
    rule = Chain(scheme.weigh, weights.Resample(num))
    return replace(scheme, name=f"{scheme.name}+resample({num})", weigh=rule)


def doubt(scheme: Scheme, noise: float = 0.1, num_answers: int | None = None) -> Scheme:
    """Weigh answers, of which a share `noise` is wrong, as draws bear them out: see `weights.Doubt`."""
    refuse_expected(scheme, "doubt")
    rule = Chain(scheme.weigh, weights.Doubt(noise, num_answers))
    return replace(scheme, name=f"{scheme.name}+doubt({without_exponent(noise)})", weigh=rule)
