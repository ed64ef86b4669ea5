"""Average the weights of a run's iterations.

M-steps on draws never settle: with few examples and a constant learning rate each one moves the weights
by chance, too, and accuracy with them. The mean over iterations loses most of that:

    mean_k = (1 - share_k) mean_{k-1} + share_k theta_k,   share_k = 2 / (k + 1)

so iteration j counts in proportion to j: the first ones, near the base, hardly at all. (Polynomial-decay
averaging with eta = 1: Shamir & Zhang 2013, arXiv 1212.1824, which averages the iterates of stochastic
gradient descent; averaging those of stochastic EM: Delyon, Lavielle & Moulines 1999, "Convergence of a
stochastic approximation version of the EM algorithm".)

E-steps draw from the mean, and it is what is evaluated and exported. M-steps continue from theta_k.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mean:
    """The mean of the iterations before, and the share of the new weights in the next one."""

    model: Path
    share: float


def mean_before(iteration: int, weights: Callable[[int], Path]) -> Mean | None:
    """Return the mean that an iteration's weights are averaged with; None in the first.

    `weights(k)` is the folder of iteration k's mean.
    """
    return Mean(weights(iteration - 1), share_of(iteration)) if iteration > 1 else None


def share_of(iteration: int) -> float:
    """Return the share of an iteration's weights in the mean.

    >>> [round(share_of(k), 2) for k in (1, 2, 3, 7)]
    [1.0, 0.67, 0.5, 0.25]
    """
    return 2 / (iteration + 1)
