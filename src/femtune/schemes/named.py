"""Sampling schemes: each a line of stages under its law, cost and source, and what can be added to one.

Notation: pi is the model theta_{k-1}; p(x) = pi(y* | x) the chance that a plain draw is right, h(x)
that a hinted one is. "Law" is the distribution of the kept (z, y) of a problem, given that one is kept;
EM asks for the posterior pi(z | x, y*).

    rejection(M)  star()  pps(K)       the paper's: Lee et al. 2025, "Learning to Reason in LLMs by
                                       Expectation Maximization", arXiv 2512.20169, section 4
    mixture(a, b)  trice(beta)         plain and hinted draws of every problem; a chain of plain ones
    memoised  weighted  chained        what draws count for: see posterior.py
    expected  reasons                  how likely the answer is after a rationale: see answer_rules.py
    harder  doubting  waking  ...      more that can be added; written pps:4+importance+wake in a command
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

from femtune._util.text import brief, near
from femtune.errors import ConfigError
from femtune.schemes.answer_rules import expected_first, expected_importance, reasoned
from femtune.schemes.filters import above, accepted, chain, distinct, first, heaviest, last, share
from femtune.schemes.weights import (
    control_variate,
    doubt,
    hard,
    importance,
    metropolis,
    posterior,
    resample,
    uniform,
    wake,
)
from femtune.types import Request, Scheme, Stage, is_settled

paper_filter = chain(accepted(), first())
importance_filter = chain(accepted(), importance())
SETTLE = 4  # iterations, where `settle` says no number


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
    return Scheme(f"rejection({budget})", (Stage("plain", draws=budget),), paper_filter)


def star() -> Scheme:
    """STaR: one plain attempt, and where it is wrong one rationalization with the answer as a hint.

    Law: a mixture of the posterior (weight p) and the hinted model's right draws (weight (1 - p) h),
    so not the posterior. Kept: p + (1 - p) h. Draws: 2 - p a problem.

    Source: Zelikman et al. 2022, arXiv 2203.14465, algorithm 1; there the M-step starts from the base
    model each time: `start_from: base`.
    """
    return Scheme("star", (Stage("plain"), Stage("hinted")), paper_filter)


def pps(draws: int = 1) -> Scheme:
    """Prompt posterior sampling: the rationalization stage alone, `draws` times for every problem.

    Law: the hinted model's right draws; the posterior only in so far as the hinted prompt gives it.
    Kept: 1 - (1 - h)^draws. Draws: `draws` a problem; the paper's is 1.
    """
    if draws == 1:
        return Scheme("pps", (Stage("hinted"),), paper_filter)
    return Scheme(f"pps({draws})", (Stage("hinted", draws, "all"),), paper_filter)


def mixture(plain: int = 1, hinted: int = 1) -> Scheme:
    """So many plain and so many hinted draws of every problem, of which the first right one is kept.

    Law: the posterior with weight 1 - (1 - p)^plain, else the hinted model's right draws.
    Kept: 1 - (1 - p)^plain (1 - h)^hinted. Draws: plain + hinted a problem.
    """
    stages = (Stage("plain", plain, "all"), Stage("hinted", hinted, "all"))
    return Scheme(f"mixture({plain},{hinted})", stages, paper_filter)


def trice(beta: float = 0.5) -> Scheme:
    """MCMC-EM: a chain for each problem, moved by one plain draw; it begins with a hinted one.

    Law: tends to the posterior, as the chain forgets where it began. Kept: every problem that was ever
    solved. Draws: 1 a problem, 2 until one is right. `beta` is the control variate's; 0 leaves it out.

    Source: Phan et al. 2023, "Training Chain-of-Thought via Latent-Variable Inference",
    arXiv 2312.02179.
    """
    plain, hinted = Stage("plain", 1, "all"), Stage("hinted", 1, "all")
    scheme = chained(Scheme("trice", (plain,), paper_filter, first=(plain, hinted)))
    weigh = chain(scheme.weigh, control_variate(beta)) if beta else scheme.weigh
    return replace(scheme, name=f"trice({_said(beta)})", weigh=weigh)


# --- what can be added to a scheme


def from_base(scheme: Scheme) -> Scheme:
    """Draws from the base, not from theta_{k-1}: how to use a hint is never forgotten, nor learnt."""
    return replace(scheme, name=f"{scheme.name}+base", proposal="base")


def weighted(scheme: Scheme) -> Scheme:
    """All right draws of a problem, with importance weights: see `posterior.importance`.

    Raises ConfigError for a scheme that asks some problems alone, or remembers draws: which ones it has
    hangs on how they came out.
    """
    if scheme.remember is not None:
        raise ConfigError(
            f"scheme {scheme.name}: it remembers draws, and importance weights are of new ones alone: "
            "choose memo or chain in place of importance."
        )
    _refuse_expected(scheme, "importance")
    return replace(scheme, name=f"{scheme.name}+importance", weigh=importance_filter)


def expected(scheme: Scheme) -> Scheme:
    """Puts pi(y* | x, z), the reward's expectation given the rationale, in the place of the reward.

    Examples are rationale and correct answer y*, whichever answer was sampled; see answer_rules.py.

    rejection(M)   all M attempts of every problem are drawn, and each counts for the probability that it
                   is the first right one: `expected_first`. The expected gradient is that of
                   rejection(M), its variance no higher. Draws: M a problem; examples: up to M
    importance     of pps(K) and mixtures: pi(z, y* | x) / q(z): `expected_importance`

    Raises ConfigError for every other scheme: there the weights would be of no known law.
    """
    name = f"{scheme.name}+expected"
    if scheme.weigh is importance_filter:
        return replace(scheme, name=name, weigh=expected_importance())
    asked = [(stage.prompt_kind, stage.ask) for stage in scheme.asked]
    if scheme.weigh is not paper_filter or asked != [("plain", "unsolved")]:
        raise ConfigError(
            f"scheme {scheme.name}: expected needs rejection:M, or pps:K or mixture:a,b with importance "
            "(for example pps:4+importance+expected)."
        )
    stages = (replace(scheme.stages[0], ask="all"),)
    return replace(scheme, name=name, stages=stages, weigh=expected_first())


def _refuse_expected(scheme: Scheme, added: str) -> None:
    if "answers" in scheme.needs:
        raise ConfigError(
            f"scheme {scheme.name}: {added} weighs sampled answers, and expected takes their place: "
            "drop one of them."
        )


def chained(scheme: Scheme) -> Scheme:
    """A chain for each problem; the scheme's right draws are proposals: see `posterior.metropolis`.

    Plain ones are taken always, so of these alone it is the problem's newest right draw, for no scoring:
    one of the posterior of the theta that drew it.
    """
    _refuse_expected(scheme, "chain")
    is_hinted = any(stage.prompt_kind == "hinted" for stage in scheme.asked)
    rule = chain(accepted(), metropolis() if is_hinted else last())
    return replace(scheme, name=f"{scheme.name}+chain", weigh=rule, remember=rule)


def memoised(scheme: Scheme, size: int = 8) -> Scheme:
    """Remembers up to `size` distinct right draws of a problem, and weighs them as the posterior does.

    Law: pi(z | x, y*), cut to what is remembered: see `posterior.posterior`. Those of less than a
    twentieth of a problem's weight are remembered, and not trained on. Kept: every problem that was ever
    solved. Draws: the scheme's; what is remembered costs a pass of the model over it, and no token.
    """
    if size < 1:
        raise ConfigError(f"memo {size}: at least 1 draw.")
    _refuse_expected(scheme, "memo")
    remember = chain(accepted(), distinct(), posterior(), heaviest(size))
    weigh = chain(remember, above(0.05), share())
    return replace(scheme, name=f"{scheme.name}+memo({size})", weigh=weigh, remember=remember)


def every(scheme: Scheme, iterations: int = 2) -> Scheme:
    """Asks each problem in every n-th iteration, an n-th of them in each; all that is remembered trains.

    So the model is updated n times as often for as many draws, each of a newer theta.

    Source: incremental EM (Neal and Hinton 1998, "A view of the EM algorithm that justifies incremental,
    sparse, and other variants").
    """
    return replace(scheme, name=f"{scheme.name}+every({iterations})", every=iterations)


def gaining(scheme: Scheme, nats: float = 0.1) -> Scheme:
    """Asks only those problems whose bound a draw can still raise by more than `nats`.

    The bound log sum pi(z, y* | x) over what is remembered is at most 0, so minus itself is all that is
    to be gained: a budget that goes where it can do something.
    """
    return replace(scheme, name=f"{scheme.name}+gain({_said(nats)})", min_gain=nats)


def harder(scheme: Scheme, power: float = 0.7) -> Scheme:
    """Draws that took many attempts count more, a^power for the a-th: see `posterior.hard`.

    Raises ConfigError for schemes that are not of plain attempts until one is right.
    """
    _refuse_expected(scheme, "hard")
    if [(stage.prompt_kind, stage.ask) for stage in scheme.asked] != [("plain", "unsolved")]:
        raise ConfigError(
            f"scheme {scheme.name}: hard counts plain attempts until one is right, as rejection:M makes "
            "them, and this one draws otherwise."
        )
    rule = chain(scheme.weigh, hard(power))
    return replace(scheme, name=f"{scheme.name}+hard({_said(power)})", weigh=rule)


def resampled(scheme: Scheme, num: int = 1) -> Scheme:
    """Whole draws in place of weights, `num` a problem: see `posterior.resample`."""
    rule = chain(scheme.weigh, resample(num))
    return replace(scheme, name=f"{scheme.name}+resample({num})", weigh=rule)


def doubting(scheme: Scheme, noise: float = 0.1, num_answers: int | None = None) -> Scheme:
    """Answers, of which a share `noise` is wrong, count as draws bear them out: `posterior.doubt`."""
    _refuse_expected(scheme, "doubt")
    rule = chain(scheme.weigh, doubt(noise, num_answers))
    return replace(scheme, name=f"{scheme.name}+doubt({_said(noise)})", weigh=rule)


def waking(scheme: Scheme, weight: float = 1.0) -> Scheme:
    """Trains the hinted prompt on what is kept too: see `posterior.wake`."""
    name = "wake" if weight == 1 else f"wake({_said(weight)})"
    return replace(scheme, name=f"{scheme.name}+{name}", weigh=chain(scheme.weigh, wake(weight)))


def reasons(scheme: Scheme, nats: float = 0.0) -> Scheme:
    """Keeps only draws whose rationale makes y* the likeliest answer, and likelier by `nats` or more.

    Law: the scheme's, conditioned on rationales that pass: see `answer_rules.reasoned`. What is
    remembered is filtered too, by the model as it is now. With `expected`, rationales are filtered
    whatever their answer.

    Raises ConfigError where `nats` is negative or infinite.
    """
    if not 0 <= nats < math.inf:
        raise ConfigError(f"reasons must be at least 0 nats, got {nats:g}.")
    keep = reasoned(nats)
    remember = scheme.remember and chain(keep, scheme.remember)
    return replace(
        scheme,
        name=f"{scheme.name}+reasons({_said(nats)})",
        weigh=chain(keep, scheme.weigh),
        remember=remember,
        least_gain=nats,
    )


def restarting(scheme: Scheme, epochs: float = 3.0) -> Scheme:
    """Each M-step starts from the base, and takes `epochs` times `num_train_epochs` to learn all anew.

    What the model finds likely only as it knows it by heart is forgotten; what draws agree on is learnt
    again. Nothing is lost where draws are remembered.

    Source: STaR (Zelikman et al. 2022, arXiv 2203.14465), and ReST-EM (Singh et al. 2023, "Beyond Human
    Data", arXiv 2312.06585), whose M-steps start from the base too.

    Raises ConfigError where `epochs` is not above 0.
    """
    if not 0 < epochs < math.inf:
        raise ConfigError(f"restart {epochs:g}: above 0.")
    return replace(scheme, name=f"{scheme.name}+restart({_said(epochs)})", restart=epochs)


def settling(scheme: Scheme, iterations: int = SETTLE) -> Scheme:
    """Restarts in the first `iterations` of every 3 * iterations; the others go on from what was learnt.

    Those take `num_train_epochs`, as without a restart, and where the learning rate is constant it falls
    to 0 in each of them (linear). What is learnt by heart from draws of a poor model is forgotten early;
    what draws of a better one still teach adds up late, where a restart would begin at the base's own
    guesses again. What is learnt by heart then, wrong answers above all, the next restarts forget.

    Raises ConfigError where nothing restarts, or for less than 1 iteration.
    """
    if not scheme.restart or iterations < 1:
        raise ConfigError(
            f"scheme {scheme.name}: settle ends restarts after at least 1 iteration: write "
            "restart+settle:4."
        )
    return replace(scheme, name=f"{scheme.name}+settle({iterations})", settle=iterations)


# --- names

AUTO = "rejection:4+restart+settle"  # what `auto` stands for: docs/findings.md has why

SCHEMES: dict[str, Callable[..., Scheme]] = {
    "rejection": rejection,
    "star": star,
    "pps": pps,
    "mixture": mixture,
    "trice": trice,
}
# In the order in which they are applied, however they are written.
ADDED: dict[str, Callable[..., Scheme]] = {
    "base": from_base,
    "importance": weighted,
    "expected": expected,
    "chain": chained,
    "memo": memoised,
    "every": every,
    "gain": gaining,
    "hard": harder,
    "resample": resampled,
    "doubt": doubting,
    "wake": waking,
    "reasons": reasons,
    "restart": restarting,
    "settle": settling,
}
# These take whole numbers, and these none.
_WHOLE = ("rejection", "pps", "mixture", "memo", "every", "resample", "settle")
_BARE = ("star", "base", "importance", "expected", "chain")
_RULES = ("importance", "chain", "memo")  # one of them at most
_NUMBERS = r"(?:\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})(?:,\d{1,9})?"
_PART = re.compile(rf"(\w+)(?::({_NUMBERS})|\(({_NUMBERS})\))?")


def parse_scheme(spec: str, num_answers: int | None = None) -> Scheme:
    """A scheme from its name in a command, with what is added to it.

    `rejection:4` and `rejection(4)` are the same; `num_answers` is how many answers there can be, where
    that is known: see `posterior.doubt`.

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


def spelled_out(spec: str) -> str:
    """A scheme's name in a command, with what `auto` stands for in its place: what a run stores."""
    return AUTO if spec.strip() == "auto" else spec


def adds(spec: str, name: str) -> bool:
    """Whether a scheme of this name, a command's or an own one's, has such an addition.

    >>> adds("star+memo(8)+restart(3)", "restart"), adds("auto", "wake")
    (True, False)
    """
    return name in re.findall(r"\+\s*(\w+)", spelled_out(spec))


def restarts(spec: str, iteration: int) -> bool:
    """Whether the M-step of an iteration starts from the base, by the scheme's name alone.

    >>> [restarts("rejection:4+restart(3)+settle(4)", iteration) for iteration in (4, 5, 12, 13)]
    [True, False, False, True]
    """
    if not adds(spec, "restart"):
        return False
    settle = re.search(r"\+\s*settle(?:[:(](\d+))?", spelled_out(spec))
    return settle is None or not is_settled(int(settle[1] or SETTLE), iteration)


def _read_part(part: str, spec: str, known: dict[str, Callable[..., Scheme]]) -> tuple[str, list[float]]:
    """`memo:8` as ("memo", [8]). Raises ConfigError where it is none of these."""
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


def _said(number: float) -> str:
    """A number as `parse_scheme` reads it: no exponent.

    >>> _said(0.5), _said(1e-07), _said(100.0)
    ('0.5', '0.0000001', '100')
    """
    return f"{Decimal(repr(number)).normalize():f}"


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
        now = temperature * decay ** (request.key.iteration - 1)
        return 1 + now * math.log(uniform(f"accept {request.seed}")) / span

    return threshold
