"""Additions by which a scheme remembers right draws of earlier iterations."""

from __future__ import annotations

from dataclasses import replace

from femtune._util.text import without_exponent
from femtune.errors import ConfigError
from femtune.schemes import weights
from femtune.schemes.answer_rules import refuse_expected
from femtune.schemes.filters import Above, Accepted, Chain, Distinct, Heaviest, Share
from femtune.types import Scheme


def memo(scheme: Scheme, size: int = 8) -> Scheme:
    """Remember up to `size` distinct right draws of a problem, and weigh them as the posterior does.

    Law: pi(z | x, y*), cut to what is remembered: see `weights.Posterior`. Those of less than a
    twentieth of a problem's weight are remembered, and not trained on. Kept: every problem that was ever
    solved. Draws: the scheme's; what is remembered costs a pass of the model over it, and no token.
    """
    if size < 1:
        raise ConfigError(f"memo must be >= 1 draw, got {size}.")
    refuse_expected(scheme, "memo")
    remember = Chain(Accepted(), Distinct(), weights.Posterior(), Heaviest(size))
    weigh = Chain(remember, Above(0.05), Share())
    return replace(scheme, name=f"{scheme.name}+memo({size})", weigh=weigh, remember=remember)


def every(scheme: Scheme, iterations: int = 2) -> Scheme:
    """Ask each problem in every n-th iteration, an n-th of them in each; all that is remembered trains.

    So the model is updated n times as often for as many draws, each of a newer theta.

    Source: incremental EM (Neal and Hinton 1998, "A view of the EM algorithm that justifies incremental,
    sparse, and other variants").
    """
    return replace(scheme, name=f"{scheme.name}+every({iterations})", every=iterations)


def gain(scheme: Scheme, min_gain: float = 0.1) -> Scheme:
    """Ask only those problems whose bound a draw can still raise by more than `min_gain` nats.

    The bound log sum pi(z, y* | x) over what is remembered is at most 0, so minus itself is all that is
    to be gained: a budget that goes where it can do something.
    """
    return replace(scheme, name=f"{scheme.name}+gain({without_exponent(min_gain)})", min_gain=min_gain)
