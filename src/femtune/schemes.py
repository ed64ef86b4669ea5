"""The paper's sampling schemes: each a line of stages under its law, cost and source.

Notation: pi is the model theta_{k-1}; p(x) = pi(y* | x) the chance that a plain draw is right, h(x)
that a hinted one is. "Law" is the distribution of the kept (z, y) of a problem, given that one is kept;
EM asks for the posterior pi(z | x, y*).

Source of all three: Lee et al. 2025, "Learning to Reason in LLMs by Expectation Maximization",
arXiv 2512.20169, section 4.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable

from femtune.errors import ConfigError
from femtune.types import Request, Scheme, Stage
from femtune.weigh import accepted, chain, first
from femtune.words import brief

paper_filter = chain(accepted(), first())


def rejection(budget: int = 1) -> Scheme:
    """Rejection sampling: up to `budget` plain attempts, until the first that is right.

    Law: the posterior pi(z | x, y*), exactly, for every budget; a budget only buys coverage.
    Kept: 1 - (1 - p)^M of the problems. Draws: (1 - (1 - p)^M) / p a problem.

    >>> rejection(4).stages
    (Stage(prompt='plain', draws=4, ask='unsolved'),)
    """
    if budget < 1:
        raise ConfigError(f"rejection needs a budget of at least 1 attempt, got {budget}.")
    return Scheme(f"rejection({budget})", (Stage("plain", draws=budget),), paper_filter)


def star() -> Scheme:
    """STaR: one plain attempt, and where it is wrong one rationalization with the answer as a hint.

    Law: a mixture of the posterior (weight p) and the hinted model's right draws (weight (1 - p) h),
    so not the posterior. Kept: p + (1 - p) h. Draws: 2 - p a problem.

    Source: Zelikman et al. 2022, arXiv 2203.14465, algorithm 1; there the M-step starts from the base
    model each time: `start_from: base`.
    """
    return Scheme("star", (Stage("plain"), Stage("hinted")), paper_filter)


def pps() -> Scheme:
    """Prompt posterior sampling: the rationalization stage alone, for every problem.

    Law: the hinted model's right draws; the posterior only in so far as the hinted prompt gives it.
    Kept: h. Draws: 1 a problem.
    """
    return Scheme("pps", (Stage("hinted"),), paper_filter)


SCHEMES: dict[str, Callable[..., Scheme]] = {"rejection": rejection, "star": star, "pps": pps}


def parse_scheme(spec: str) -> Scheme:
    """A scheme from its name on the command line; `rejection:4` and `rejection(4)` are the same.

    >>> parse_scheme("rejection:4").name
    'rejection(4)'

    Raises ConfigError for anything else.
    """
    match = re.fullmatch(r"(\w+)(?::(\d{1,9})|\((\d{1,9})\))?", spec.strip())
    name, budget = (match[1], match[2] or match[3]) if match else (spec, None)
    if name not in SCHEMES or (budget and name != "rejection"):
        known = "rejection:4 (any budget), star, pps"
        raise ConfigError(f"scheme {brief(repr(spec))} is not known: choose one of {known}.")
    return SCHEMES[name](int(budget)) if budget else SCHEMES[name]()


def soft_acceptance(temperature: float, span: float, decay: float = 1.0) -> Callable[[Request], float]:
    """Accepts an answer that is d off with probability exp(-d / T), T = temperature * decay^(k - 1).

    For ordinal rewards r = 1 - d / span, d and T in points of the scale: a draw is accepted where
    r >= 1 + T log(u) / span, with u uniform from the draw's own seed. So what is kept follows the
    posterior under the noise model p(y* | y) ~ exp(-|y* - y| / T), in place of an exact y*; with a decay
    below 1 iteration k comes ever nearer to that. The rewards are stored as they are.

    Raises ConfigError for a temperature or a decay that is none.
    """
    if not temperature > 0 or not 0 < decay <= 1:
        raise ConfigError(
            f"soft_accept {temperature:g}, soft_decay {decay:g}: above 0, and above 0 and at most 1."
        )

    def threshold(request: Request) -> float:
        name = f"accept {request.seed}".encode()
        number = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")
        uniform = (number + 1) / 2**64  # above 0, so that its logarithm is finite
        now = temperature * decay ** (request.key.iteration - 1)
        return 1 + now * math.log(uniform) / span

    return threshold
