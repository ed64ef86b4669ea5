"""Sampling schemes: each a line of stages under its law, cost and source, and what can be added to one.

Notation: pi is the model theta_{k-1}; p(x) = pi(y* | x) the chance that a plain draw is right, h(x)
that a hinted one is. "Law" is the distribution of the kept (z, y) of a problem, given that one is kept;
EM asks for the posterior pi(z | x, y*).

    rejection(M)  star()  pps(K)       the paper's: Lee et al. 2025, "Learning to Reason in LLMs by
                                       Expectation Maximization", arXiv 2512.20169, section 4
    mixture(a, b)  trice(beta)         plain and hinted draws of every problem; a chain of plain ones
    base  importance  chain  wake      where draws come from, what they count for, what is trained
    restart  settle                    when M-steps start from the base
    memo  hard  expected  ...          not yet established: see contrib/

An addition is a function in Python, `wake(importance(pps(4)))`, and a name in a command,
`pps:4+importance+wake`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from femtune._util.text import brief, near, without_exponent
from femtune.errors import ConfigError
from femtune.schemes import weights
from femtune.schemes.answer_rules import refuse_expected
from femtune.schemes.contrib.answers import expected, reasons
from femtune.schemes.contrib.memory import every, gain, memo
from femtune.schemes.contrib.reweighting import doubt, hard, resample
from femtune.schemes.filters import Accepted, Chain, Last, paper_filter
from femtune.schemes.weights import importance_filter
from femtune.types import Scheme, Stage

SETTLE = 4  # iterations, if `settle` has no number
PERIODS = 3  # of n iterations each: M-steps restart in the first, and settle in the others


def rejection(budget: int = 1) -> Scheme:
    """Rejection sampling: up to `budget` plain attempts, until the first that is right.

    Law: the posterior pi(z | x, y*), exactly, for every budget; a budget only buys coverage. So it is
    where draws are on-policy: at temperature 1, without worked examples and forced answers. Else it is
    the posterior of the law that they are drawn by.
    Kept: 1 - (1 - p)^M of the problems. Draws: (1 - (1 - p)^M) / p a problem.

    >>> rejection(4).stages
    (Stage(prompt_kind='plain', draws=4, ask='unsolved'),)
    """
    if budget < 1:
        raise ConfigError(f"rejection needs a budget of at least 1 attempt, got {budget}.")
    return Scheme(f"rejection({budget})", (Stage("plain", draws=budget),), weigh=paper_filter)


def star() -> Scheme:
    """STaR: one plain attempt, and where it is wrong one rationalization with the answer as a hint.

    Law: a mixture of the posterior (weight p) and the hinted model's right draws (weight (1 - p) h),
    so not the posterior. Kept: p + (1 - p) h. Draws: 2 - p a problem.

    Source: Zelikman et al. 2022, arXiv 2203.14465, algorithm 1; there the M-step starts from the base
    model each time: `start_from: base`.
    """
    return Scheme("star", (Stage("plain"), Stage("hinted")), weigh=paper_filter)


def pps(draws: int = 1) -> Scheme:
    """Prompt posterior sampling: the rationalization stage alone, `draws` times for every problem.

    Law: the hinted model's right draws; the posterior only in so far as the hinted prompt gives it.
    Kept: 1 - (1 - h)^draws. Draws: `draws` a problem; the paper's is 1.
    """
    if draws == 1:
        return Scheme("pps", (Stage("hinted"),), weigh=paper_filter)
    return Scheme(f"pps({draws})", (Stage("hinted", draws, "all"),), weigh=paper_filter)


def mixture(plain: int = 1, hinted: int = 1) -> Scheme:
    """So many plain and so many hinted draws of every problem, of which the first right one is kept.

    Law: the posterior with weight 1 - (1 - p)^plain, else the hinted model's right draws.
    Kept: 1 - (1 - p)^plain (1 - h)^hinted. Draws: plain + hinted a problem.
    """
    stages = (Stage("plain", plain, "all"), Stage("hinted", hinted, "all"))
    return Scheme(f"mixture({plain},{hinted})", stages, weigh=paper_filter)


def trice(beta: float = 0.5) -> Scheme:
    """MCMC-EM: a chain for each problem, moved by one plain draw; it begins with a hinted one.

    Law: tends to the posterior, as the chain forgets where it began. Kept: every problem that was ever
    solved. Draws: 1 a problem, 2 until one is right. `beta` is the control variate's; 0 leaves it out.

    Source: Phan et al. 2023, "Training Chain-of-Thought via Latent-Variable Inference",
    arXiv 2312.02179.
    """
    plain, hinted = Stage("plain", 1, "all"), Stage("hinted", 1, "all")
    scheme = chain(Scheme("trice", (plain,), weigh=paper_filter, first=(plain, hinted)))
    weigh = Chain(scheme.weigh, weights.ControlVariate(beta)) if beta else scheme.weigh
    return replace(scheme, name=f"trice({without_exponent(beta)})", weigh=weigh)


# --- what can be added to a scheme; more in contrib/


def base(scheme: Scheme) -> Scheme:
    """Draw from the frozen base model, so the ability to use a hint neither degrades nor improves."""
    return replace(scheme, name=f"{scheme.name}+base", proposal="base")


def importance(scheme: Scheme) -> Scheme:
    """Train on all right draws of a problem, with importance weights: see `weights.Importance`.

    Raises ConfigError for a scheme that asks some problems alone, or remembers draws: which ones it has
    depends on how they came out.
    """
    if scheme.remember is not None:
        raise ConfigError(
            f"scheme {scheme.name}: it remembers draws, and importance weights are of new ones alone: "
            "choose memo or chain in place of importance."
        )
    refuse_expected(scheme, "importance")
    return replace(scheme, name=f"{scheme.name}+importance", weigh=importance_filter)


def chain(scheme: Scheme) -> Scheme:
    """Keep a chain for each problem; the scheme's right draws are proposals: see `weights.Metropolis`.

    Plain ones are taken always, so of these alone it is the problem's newest right draw, for no scoring:
    one of the posterior of the theta that drew it.
    """
    refuse_expected(scheme, "chain")
    is_hinted = any(stage.prompt_kind == "hinted" for stage in scheme.asked)
    rule = Chain(Accepted(), weights.Metropolis() if is_hinted else Last())
    return replace(scheme, name=f"{scheme.name}+chain", weigh=rule, remember=rule)


def wake(scheme: Scheme, weight: float = 1.0) -> Scheme:
    """Train the hinted prompt too on what is kept: see `weights.Wake`."""
    name = "wake" if weight == 1 else f"wake({without_exponent(weight)})"
    return replace(scheme, name=f"{scheme.name}+{name}", weigh=Chain(scheme.weigh, weights.Wake(weight)))


def restart(scheme: Scheme, epochs: float = 3.0) -> Scheme:
    """Start each M-step from the base, and train `epochs` times `num_train_epochs` to learn all again.

    What the model finds likely only as it has memorized it is forgotten; what draws agree on is learnt
    again. Nothing is lost where draws are remembered.

    Source: STaR (Zelikman et al. 2022, arXiv 2203.14465), and ReST-EM (Singh et al. 2023, "Beyond Human
    Data", arXiv 2312.06585), whose M-steps start from the base too.

    Raises ConfigError where `epochs` is not above 0.
    """
    if not 0 < epochs < math.inf:
        raise ConfigError(f"restart must be > 0 and finite, got {epochs:g}.")
    every = scheme.m_steps.restart_every or 1
    m_steps = replace(scheme.m_steps, epochs_factor=epochs, restart_every=every)
    name = f"{scheme.name}+restart({without_exponent(epochs)})"
    return replace(scheme, name=name, m_steps=m_steps)


def settle(scheme: Scheme, iterations: int = SETTLE) -> Scheme:
    """Restart in the first `iterations` of every 3 * iterations; the others continue training.

    Those take `num_train_epochs`, as without a restart, and where the learning rate is constant it falls
    to 0 in each of them (linear). What is memorized from draws of a poor model is forgotten early;
    what draws of a better one still teach adds up late, where a restart would begin at the base's own
    guesses again. What is memorized then, wrong answers above all, the next restarts forget.

    Raises ConfigError if nothing restarts, or for less than 1 iteration.
    """
    if not scheme.m_steps.restart_every or iterations < 1:
        raise ConfigError(
            f"settle={iterations} needs a scheme with restart, and n >= 1 (for example "
            f"rejection:4+restart+settle:4). Scheme: {scheme.name}."
        )
    m_steps = replace(scheme.m_steps, restart_every=PERIODS * iterations, restart_for=iterations)
    return replace(scheme, name=f"{scheme.name}+settle({iterations})", m_steps=m_steps)


# --- names

AUTO = "rejection:4+restart+settle"  # what `auto` stands for: docs/findings.md has why
AUTO_EXAMPLES = "rejection:4"  # the same for M-steps that train no weights, so that nothing restarts

SCHEMES: dict[str, Callable[..., Scheme]] = {
    "rejection": rejection,
    "star": star,
    "pps": pps,
    "mixture": mixture,
    "trice": trice,
}
# In the order in which they are applied, however they are written.
ADDED: dict[str, Callable[..., Scheme]] = {
    "base": base,
    "importance": importance,
    "expected": expected,
    "chain": chain,
    "memo": memo,
    "every": every,
    "gain": gain,
    "hard": hard,
    "resample": resample,
    "doubt": doubt,
    "wake": wake,
    "reasons": reasons,
    "restart": restart,
    "settle": settle,
}
# These take whole numbers, and these none.
_WHOLE = ("rejection", "pps", "mixture", "memo", "every", "resample", "settle")
_BARE = ("star", "base", "importance", "expected", "chain")
_RULES = ("importance", "chain", "memo")  # one of them at most
_NUMBERS = r"(?:\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})(?:,\d{1,9})?"
_PART = re.compile(rf"(\w+)(?::({_NUMBERS})|\(({_NUMBERS})\))?")


def parse_scheme(spec: str, num_answers: int | None = None) -> Scheme:
    """Return the scheme of a name in a command, with what is added to it.

    `rejection:4` and `rejection(4)` are the same; `num_answers` is how many answers there can be, where
    that is known: see `weights.Doubt`.

    >>> parse_scheme("rejection:4").name
    'rejection(4)'
    >>> parse_scheme("pps:4+wake+importance").name
    'pps(4)+importance+wake'

    Raises ConfigError for anything else.
    """
    start, *more = spelled_out(spec).split("+")
    name, numbers = _read_part(start, spec, SCHEMES)
    added = dict(_read_part(each, spec, ADDED) for each in more)
    if len(added) < len(more):
        raise ConfigError(f"scheme {brief(repr(spec))} adds something twice: once is enough.")
    if len(rules := [each for each in added if each in _RULES]) > 1:
        raise ConfigError(f"scheme {brief(repr(spec))}: {' and '.join(rules)} exclude each other.")
    scheme = SCHEMES[name](*numbers)
    for each in ADDED:
        if each in added:
            known: dict[str, Any] = {"num_answers": num_answers} if each == "doubt" else {}
            scheme = ADDED[each](scheme, *added[each], **known)
    return scheme


def spelled_out(spec: str, m_step: str = "weights") -> str:
    """Return a scheme's name in a command, with what `auto` stands for in its place."""
    usual = AUTO if m_step == "weights" else AUTO_EXAMPLES
    return usual if spec.strip() == "auto" else spec


def _read_part(part: str, spec: str, known: dict[str, Callable[..., Scheme]]) -> tuple[str, list[float]]:
    """Return `memo:8` as ("memo", [8]). Raises ConfigError for anything else."""
    part = part.strip()
    match = _PART.fullmatch(part)
    name, given = (match[1], match[2] or match[3]) if match else ("", None)
    numbers = given.split(",") if given else []
    is_whole = all(number.isdecimal() for number in numbers)
    most = 0 if name in _BARE else 2 if name == "mixture" else 1
    if name not in known or len(numbers) > most or (name in _WHOLE and not is_whole):
        raise _unknown(spec, part, known)
    return name, [int(number) if name in _WHOLE else float(number) for number in numbers]


def _unknown(spec: str, part: str, known: dict[str, Callable[..., Scheme]]) -> ConfigError:
    what = "scheme" if known is SCHEMES else "addition"
    whole = "" if spec.strip() == part else f" of {brief(repr(spec))}"
    names = (
        "rejection:4 (any budget), star, pps, mixture, trice" if known is SCHEMES else ", ".join(known)
    )
    return ConfigError(
        f"{what} {brief(repr(part))}{whole} is not known:{near(part, known)} choose one of {names}."
    )
