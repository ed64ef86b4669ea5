"""Sampling schemes: each a line of stages under its law, cost and source, and what can be added to one.

Notation: pi is the model theta_{k-1}; p(x) = pi(y* | x) the chance that a plain draw is right, h(x)
that a hinted one is. "Law" is the distribution of the kept (z, y) of a problem, given that one is kept;
EM asks for the posterior pi(z | x, y*).

    rejection(M)  star()  pps(K)       the paper's: Lee et al. 2025, "Learning to Reason in LLMs by
                                       Expectation Maximization", arXiv 2512.20169, section 4
    importance  expected  reasons      what the draws of a problem count for
    chain  every  hard                 fewer draws: remember the newest, ask a share, weigh hard problems
    restart  settle                    when M-steps start from the base

An addition is a function in Python, `reasons(importance(pps(4)))`, and a name in a command,
`pps:4+importance+reasons`. docs/findings.md tells what each brings, and which were removed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace

from femtune._util.text import brief, near, without_exponent
from femtune.errors import ConfigError
from femtune.schemes.answer_rules import ExpectedFirst, ExpectedImportance, Reasoned, refuse_expected
from femtune.schemes.filters import Accepted, Chain, Last, paper_filter
from femtune.schemes.weights import Hard, importance_filter
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


# --- what can be added to a scheme


def importance(scheme: Scheme) -> Scheme:
    """Train on all right draws of a problem, with importance weights: see `weights.Importance`.

    Raises ConfigError for a scheme that asks some problems alone, or remembers draws: which ones it has
    depends on how they came out.
    """
    if scheme.remember is not None:
        raise ConfigError(
            f"Scheme {scheme.name} remembers draws, and importance weights are of new ones alone: leave "
            "out one of the two."
        )
    refuse_expected(scheme, "importance")
    return replace(scheme, name=f"{scheme.name}+importance", weigh=importance_filter)


def expected(scheme: Scheme) -> Scheme:
    """Put pi(y* | x, z), the reward's expectation given the rationale, in the place of the reward.

    Examples are rationale and correct answer y*, whichever answer was sampled; see answer_rules.py.

    rejection(M)   all M attempts of every problem are drawn, and each counts for the probability that it
                   is the first right one: `ExpectedFirst`. The expected gradient is that of
                   rejection(M), its variance no higher. Draws: M a problem; examples: up to M
    importance     of pps(K): pi(z, y* | x) / q(z): `ExpectedImportance`

    Raises ConfigError for every other scheme: there the weights would be of no known law.
    """
    name = f"{scheme.name}+expected"
    if scheme.weigh == importance_filter:
        return replace(scheme, name=name, weigh=ExpectedImportance())
    asked = [(stage.prompt_kind, stage.ask) for stage in scheme.stages]
    if scheme.weigh != paper_filter or asked != [("plain", "unsolved")]:
        raise ConfigError(
            f"Scheme {scheme.name}: expected needs rejection:M, or pps:K with importance (for example "
            "pps:4+importance+expected)."
        )
    stages = (replace(scheme.stages[0], ask="all"),)
    return replace(scheme, name=name, stages=stages, weigh=ExpectedFirst())


def reasons(scheme: Scheme, min_gain: float = 0.0) -> Scheme:
    """Keep only draws whose rationale makes y* the likeliest answer, by `min_gain` nats or more.

    Law: the scheme's, conditioned on rationales that pass: see `answer_rules.Reasoned`. With `expected`,
    rationales are filtered whatever their answer.

    Raises ConfigError where `min_gain` is negative or infinite, or draws are remembered: what is said of
    them is of an earlier model.
    """
    if scheme.remember is not None:
        raise ConfigError(
            f"Scheme {scheme.name} remembers draws, and reasons judges new ones alone: leave out one of "
            "the two."
        )
    name = f"{scheme.name}+reasons({without_exponent(min_gain)})"
    return replace(scheme, name=name, weigh=Chain(Reasoned(min_gain), scheme.weigh))


def chain(scheme: Scheme) -> Scheme:
    """Remember each problem's newest right draw, and train on it until there is a newer one.

    It is a draw of the posterior of the theta that drew it. Kept: every problem that was ever solved.

    Source: a Metropolis-Hastings chain whose proposals are plain draws takes each right one, as in TRICE
    (Phan et al. 2023, arXiv 2312.02179).

    Raises ConfigError for a scheme with hinted draws: they are not of the posterior.
    """
    refuse_expected(scheme, "chain")
    if any(stage.prompt_kind == "hinted" for stage in scheme.stages):
        raise ConfigError(
            f"Scheme {scheme.name}: chain needs plain draws alone, such as those of rejection:4."
        )
    rule = Chain(Accepted(), Last())
    return replace(scheme, name=f"{scheme.name}+chain", weigh=rule, remember=rule)


def every(scheme: Scheme, iterations: int = 2) -> Scheme:
    """Ask each problem in every n-th iteration, an n-th of them in each; all that is remembered trains.

    So the model is updated n times as often for as many draws, each of a newer theta.

    Source: incremental EM (Neal and Hinton 1998, "A view of the EM algorithm that justifies incremental,
    sparse, and other variants").
    """
    return replace(scheme, name=f"{scheme.name}+every({iterations})", every=iterations)


def hard(scheme: Scheme, power: float = 0.7) -> Scheme:
    """Give draws that took many attempts more weight, a^power for the a-th: see `weights.Hard`.

    Raises ConfigError for schemes that are not of plain attempts until one is right.
    """
    refuse_expected(scheme, "hard")
    if [(stage.prompt_kind, stage.ask) for stage in scheme.stages] != [("plain", "unsolved")]:
        raise ConfigError(
            f"Scheme {scheme.name}: hard counts plain attempts until one is right, as rejection:M makes "
            "them, and this one draws otherwise."
        )
    rule = Chain(scheme.weigh, Hard(power))
    return replace(scheme, name=f"{scheme.name}+hard({without_exponent(power)})", weigh=rule)


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
}
# In the order in which they are applied, however they are written.
ADDED: dict[str, Callable[..., Scheme]] = {
    "importance": importance,
    "expected": expected,
    "chain": chain,
    "every": every,
    "hard": hard,
    "reasons": reasons,
    "restart": restart,
    "settle": settle,
}
# These take whole numbers, and these none.
_WHOLE = ("rejection", "pps", "every", "settle")
_BARE = ("star", "importance", "expected", "chain")
_RULES = ("importance", "chain")  # one of them at most
REMOVED = ("mixture", "trice", "base", "memo", "gain", "resample", "doubt", "wake")
_NUMBER = r"(?:\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})"
_PART = re.compile(rf"(\w+)(?::({_NUMBER})|\(({_NUMBER})\))?")


def parse_scheme(spec: str) -> Scheme:
    """Return the scheme of a name in a command, with what is added to it.

    `rejection:4` and `rejection(4)` are the same.

    >>> parse_scheme("rejection:4").name
    'rejection(4)'
    >>> parse_scheme("pps:4+reasons:0+importance").name
    'pps(4)+importance+reasons(0)'

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
            scheme = ADDED[each](scheme, *added[each])
    return scheme


def spelled_out(spec: str, m_step: str = "weights") -> str:
    """Return a scheme's name in a command, with what `auto` stands for in its place."""
    usual = AUTO if m_step == "weights" else AUTO_EXAMPLES
    return usual if spec.strip() == "auto" else spec


def _read_part(part: str, spec: str, known: dict[str, Callable[..., Scheme]]) -> tuple[str, list[float]]:
    """Return `every:2` as ("every", [2]). Raises ConfigError for anything else."""
    part = part.strip()
    match = _PART.fullmatch(part)
    name, given = (match[1], match[2] or match[3]) if match else ("", None)
    if name in REMOVED:
        raise ConfigError(
            f"{name} of scheme {brief(repr(spec))} was removed: it was not measured to be better than "
            "what stays. docs/findings.md has the reason. Commit 65a0ab4 was the last that had it."
        )
    is_whole = given is None or given.isdecimal()
    if name not in known or (given and name in _BARE) or (name in _WHOLE and not is_whole):
        raise _unknown(spec, part, known)
    return name, [int(given) if name in _WHOLE else float(given)] if given else []


def _unknown(spec: str, part: str, known: dict[str, Callable[..., Scheme]]) -> ConfigError:
    what = "scheme" if known is SCHEMES else "addition"
    whole = "" if spec.strip() == part else f" of {brief(repr(spec))}"
    names = "rejection:4 (any budget), star, pps" if known is SCHEMES else ", ".join(known)
    return ConfigError(
        f"{what} {brief(repr(part))}{whole} is not known:{near(part, known)} choose one of {names}."
    )
