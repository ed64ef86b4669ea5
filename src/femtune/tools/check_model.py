"""Trial draws from a model: how many have an answer, are truncated, or are right.

The prompts are those of a run: plain, with worked examples for a base model, and hinted.
check_report.py shows the results.
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from femtune.config import Train
from femtune.data.answer_format import parse_format
from femtune.data.answers import as_fraction, plain
from femtune.engines.chat.engine import ChatEngine
from femtune.engines.chat.probe import probe
from femtune.estep.driver import e_step
from femtune.estep.scheduler import Sampler
from femtune.evaluation.advice import FEW_ANSWERED, MANY_TRUNCATED
from femtune.evaluation.evaluate import is_right
from femtune.model_info import is_base
from femtune.resolve import named_scheme, sampling
from femtune.sampler import SamplerBuilder
from femtune.schemes.filters import paper_filter
from femtune.tools.check_data import Finding
from femtune.tools.unanswered import FORMATS, form_of, is_truncated, repeats_itself
from femtune.types import Demos, Draw, Problem, Scheme, Stage

COOLER = 0.7  # a second temperature to try if few draws at the run's have an answer
FEW_RIGHT = 0.1  # a share of draws; a smaller share of right ones also calls for COOLER
ENOUGH_DRAWS = 16  # at least this many before advising another scheme
MARGIN = 1.25  # factor on the 99th percentile of tokens, for the suggested max_new_tokens
LEAST_TOKENS = 64  # the smallest suggestion
THINKING_TOKENS = 2048  # the smallest suggestion if thinking blocks are truncated


@dataclass(frozen=True)
class Trial:
    """Draws for some problems under one prompt at one temperature."""

    name: str
    prompt: str
    draws: Sequence[Draw]
    temperature: float
    demos: Demos = ()

    def share(self, holds: Callable[[Draw], bool]) -> float:
        return sum(map(holds, self.draws)) / len(self.draws) if self.draws else 0.0

    @property
    def answered(self) -> float:
        return self.share(lambda draw: draw.score.answer != "")

    @property
    def truncated(self) -> float:
        return self.share(is_truncated)

    @property
    def right(self) -> float:
        return self.share(is_right)


@dataclass(frozen=True, kw_only=True)
class Tried:
    """All trials of a model; `first` draws as the run's first E-step would."""

    trials: Sequence[Trial]
    first: Trial
    findings: list[Finding] = field(default_factory=list)
    changes: dict[str, str] = field(default_factory=dict)  # settings to try, by flag
    kept: Sequence[Draw] = ()  # draws that the run would keep
    seconds: float = 0.0  # including loading

    @property
    def draws(self) -> list[Draw]:
        return [draw for trial in self.trials for draw in trial.draws]


def try_model(
    builder: SamplerBuilder,
    problems: Sequence[Problem],
    settings: Train,
    num_draws: int = 32,
    *,
    row: Problem | None = None,
    on_draws: Callable[[str, int], None] = lambda name, done: None,
    scheme: Scheme | None = None,
) -> Tried:
    """Load the model, draw `num_draws` completions for each prompt, and advise on the settings.

    `row` is a problem to include in any case. `on_draws` receives the trial's name and the number of its
    finished draws. `scheme` stands in place of the one that the settings name.
    """
    import torch

    begun = time.perf_counter()
    scheme = scheme or named_scheme(settings)
    with builder.sampler(sampling(settings, scheme), needs=scheme.needs) as sampler:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        is_remote = settings.engine in ("openai", "chat")
        where = settings.base_url or "a server" if is_remote else device
        loaded = time.perf_counter() - begun
        findings = [Finding("engine", f"{settings.engine} on {where}, loaded in {loaded:.1f} s")]
        if isinstance(sampler.engine, ChatEngine):
            findings += [Finding(topic, found) for topic, found in probe(sampler.engine).items()]
        tried = draw_trials(
            *(sampler, builder, problems, settings, num_draws),
            row=row,
            on_draws=on_draws,
            scheme=scheme,
        )
    made = advise(tried, builder, problems, settings, scheme)
    findings += made.findings
    return replace(made, findings=findings, seconds=time.perf_counter() - begun)


def draw_trials(
    sampler: Sampler,
    builder: SamplerBuilder,
    problems: Sequence[Problem],
    settings: Train,
    num_draws: int,
    *,
    row: Problem | None = None,
    on_draws: Callable[[str, int], None] = lambda name, done: None,
    scheme: Scheme | None = None,
) -> Tried:
    """Draw for each prompt, and once more at a lower temperature if few draws have an answer."""
    some = spread(problems, num_draws, row)
    usual = sampler.sampling.temperature
    planned = plan_trials(builder, settings, len(problems), num_draws, scheme)

    def trial(name: str, prompt: str, demos: Demos, temperature: float = usual) -> Trial:
        stage = Stage("hinted" if prompt == "hinted" else "plain", planned.num_draws // len(some), "all")
        asking = Scheme("check", (stage,), weigh=paper_filter, accept_at=settings.accept_at)
        own = replace(sampler.sampling, temperature=temperature)
        done = 0

        def told(draws: Sequence[Draw]) -> None:
            nonlocal done
            done += len(draws)
            on_draws(name, done)

        told([])
        made = replace(sampler, demos=demos, force="never", sampling=own)
        chunks = e_step(some, asking, made, iteration=0, on_draws=told)
        return Trial(name, prompt, [d for chunk in chunks for d in chunk.draws], temperature, demos)

    *plain_names, hinted = planned.names
    trials = [trial(plain_names[0], "plain", ())]
    if builder.demos:
        trials.append(trial(plain_names[1], "plain", builder.demos))
    first = trials[-1] if shows_demos(builder, settings, scheme) else trials[0]
    if planned.cooler and (first.answered < FEW_ANSWERED or first.right < FEW_RIGHT):
        trials.append(trial(f"{first.name}, T {COOLER:g}", "plain", first.demos, COOLER))
    trials.append(trial(hinted, "hinted", first.demos))
    return Tried(trials=trials, first=first)


@dataclass(frozen=True)
class Planned:
    """The draws that a check will make."""

    names: Sequence[str]  # of the trials, without the one at a lower temperature
    num_draws: int  # in each trial
    cooler: bool  # True if another trial at COOLER follows when few draws are right or have an answer


def plan_trials(
    builder: SamplerBuilder,
    settings: Train,
    num_problems: int,
    num_draws: int,
    scheme: Scheme | None = None,
) -> Planned:
    """Return what `draw_trials` will draw; with greedy decoding, one draw for each problem."""
    some = max(1, min(num_draws, num_problems))
    each = max(1, num_draws // some) if settings.temperature > 0 else 1
    names = ["plain", *(["plain, examples"] if builder.demos else [])]
    names.append("hinted, examples" if shows_demos(builder, settings, scheme) else "hinted")
    return Planned(names, each * some, settings.temperature > COOLER)


def shows_demos(builder: SamplerBuilder, settings: Train, scheme: Scheme | None = None) -> bool:
    """Return True if the run's first E-step shows worked examples."""
    bare = "plain_prompts" in (scheme or named_scheme(settings)).needs
    return bool(builder.demos) and settings.demo_iterations > 0 and not bare


def spread(problems: Sequence[Problem], most: int, row: Problem | None = None) -> list[Problem]:
    """Return up to `most` problems, evenly spread over the data, with `row` among them.

    >>> [problem.id for problem in spread([Problem(str(n), "", "") for n in range(10)], 3)]
    ['0', '3', '6']
    """
    num = max(1, min(most, len(problems)))
    chosen = [problems[place * len(problems) // num] for place in range(num)]
    if row is not None and all(row.id != problem.id for problem in chosen):
        chosen[0] = row
    return chosen


# --- conclusions from the draws


def advise(
    tried: Tried,
    builder: SamplerBuilder,
    problems: Sequence[Problem],
    settings: Train,
    scheme: Scheme | None = None,
) -> Tried:
    """Return the trials with warnings and suggested settings."""
    findings: list[Finding] = []
    changes: dict[str, str] = {}
    scheme = scheme or named_scheme(settings)
    best = _of_temperature(tried, scheme, findings, changes)
    _of_answered(best, builder, settings, findings, changes)
    _of_length(best, builder, problems, settings, findings, changes)
    _of_right(tried, best, scheme, findings, changes)
    _of_kept(tried, best, settings, scheme, findings)
    _of_examples(tried, problems, findings, changes)
    kept = [draw for draw in scheme_draws(tried, scheme) if draw.accepted]
    return replace(tried, findings=findings, changes=changes, kept=kept)


def _of_temperature(
    tried: Tried, scheme: Scheme, findings: list[Finding], changes: dict[str, str]
) -> Trial:
    """Return the better of the trials at two temperatures."""
    first = tried.first
    cooler = next((each for each in tried.trials if each.temperature != first.temperature), None)
    if cooler is None:
        return first
    gains = cooler.right > first.right or (
        cooler.right == first.right and cooler.answered >= first.answered + 0.1
    )
    said = (
        f"right {first.right:.0%} at {first.temperature:g}, {cooler.right:.0%} at {cooler.temperature:g}"
    )
    findings.append(Finding("temperature", said))
    if not gains or "temperature_1" in scheme.needs:
        return first
    changes["temperature"] = f"{cooler.temperature:g}"
    return cooler


def _of_answered(
    best: Trial,
    builder: SamplerBuilder,
    settings: Train,
    findings: list[Finding],
    changes: dict[str, str],
) -> None:
    said = f"{best.answered:.0%} of the draws ({best.name})"
    own = parse_format(settings.answer_format)
    others = [draw for draw in best.draws if not own.closed(f"{draw.completion.text}\n")]
    forms = Counter(form_of(draw, None)[0] for draw in others)
    least = max(len(best.draws) - len(others), 0.3 * len(best.draws))
    for form, spec in FORMATS.items():
        if forms[form] > least:
            changes["answer-format"] = spec
    if best.answered >= FEW_ANSWERED:
        findings.append(Finding("answered", said))
        return
    remedy = "The table below shows what was written instead."
    if settings.demos == "none" and is_base(str(builder.base), settings):
        changes["demos"] = "auto"
    elif not builder.demos and not builder.prompts.demos:
        remedy += " Worked examples (--demos FILE) show the model how to answer."
    findings.append(Finding("answered", said, f"Under half have an answer. {remedy}"))


def _of_length(
    best: Trial,
    builder: SamplerBuilder,
    problems: Sequence[Problem],
    settings: Train,
    findings: list[Finding],
    changes: dict[str, str],
) -> None:
    now = settings.max_new_tokens
    some = spread(problems, 64)
    prompts = builder.prompts.with_demos(best.demos) if best.demos else builder.prompts
    room = sys.maxsize  # where the server keeps its context to itself
    if builder.context is not None:
        encode = builder.tokenizer.encode_prompt
        room = builder.context - max(len(encode(prompts.hinted(problem))) for problem in some)
    enough = fitting_tokens(best.draws, now, room, thinks=_thinks(builder, best, some[0]))
    if enough is not None and (enough > now or 2 * enough <= now):
        changes["max-new-tokens"] = str(enough)
    said = f"{best.truncated:.0%} of the draws were truncated at {now} ({best.name})"
    said += f"; {enough} would be enough" if enough is not None else ""
    warning = ""
    if best.truncated > MANY_TRUNCATED:
        raised = enough is not None and enough > now
        warning = (
            f"Raise --max-new-tokens to {enough}."
            if raised
            else "More tokens would not help: completed draws are far shorter, or the truncated ones "
            "repeat themselves. They need an answer to stop at: see what was written."
        )
    findings.append(Finding("max_new_tokens", said, warning))


def _thinks(builder: SamplerBuilder, trial: Trial, problem: Problem) -> bool:
    """Return True if the model writes thinking blocks, or its template opens one."""
    if any("<think" in draw.completion.text for draw in trial.draws):
        return True
    if builder.settings.engine == "chat":
        return False
    return builder.tokenizer.prompt_text(builder.prompts.plain(problem)).rstrip().endswith("<think>")


def fitting_tokens(draws: Sequence[Draw], now: int, room: int, *, thinks: bool = False) -> int | None:
    """Return a suitable max_new_tokens; None if more tokens would not help.

    It is the 99th percentile of the draws that ended, with a margin, limited by the context.
    """
    ended = sorted(draw.completion.num_tokens for draw in draws if not is_truncated(draw))
    many = len(ended) < (1 - MANY_TRUNCATED) * len(draws)
    if not draws:
        return None
    least = MARGIN * percentile(ended, 0.99) if ended else 0
    need = now if least <= now < _rounded_up(least) else _rounded_up(least)
    if many and thinks:
        need = max(need, 2 * now, THINKING_TOKENS)
    elif many:
        cut = [draw.completion.text for draw in draws if is_truncated(draw)]
        runs_on = 2 * sum(map(repeats_itself, cut)) > len(cut)
        if runs_on or (len(ended) >= len(draws) // 4 and now > 4 * percentile(ended, 0.99)):
            return None
        need = max(need, 2 * now)
    return min(need, max(room, 1))


def _rounded_up(tokens: float) -> int:
    return max(LEAST_TOKENS, 32 * math.ceil(tokens / 32))


def percentile(values: Sequence[int], share: float) -> int:
    """Return the smallest of the sorted values that at least this share of them do not exceed.

    >>> percentile([1, 2, 3, 4], 0.5), percentile([7], 0.99)
    (2, 7)
    """
    return values[max(0, math.ceil(share * len(values)) - 1)]


def _of_right(
    tried: Tried, best: Trial, scheme: Scheme, findings: list[Finding], changes: dict[str, str]
) -> None:
    hinted = next(trial for trial in tried.trials if trial.prompt == "hinted")
    leaks = hinted.share(lambda draw: draw.score.reason == "hint_leak")
    warning = ""
    has_hints = "hinted" in prompts_drawn(scheme)
    if not any(draw.accepted for draw in best.draws):
        warning = "No plain draw is kept: the first E-step may keep nothing."
        works = hinted.share(lambda draw: draw.accepted) >= FEW_RIGHT
        if works and not has_hints and len(best.draws) >= ENOUGH_DRAWS:
            changes["scheme"] = "star"
            warning += " Some hinted draws are kept: choose a scheme with hints, such as star."
    findings.append(Finding("right", f"{best.right:.0%} of the draws ({best.name})", warning))
    if leaks > 0.5:
        said = f"{leaks:.0%} of the draws mention it"
        findings.append(Finding("hint", said, "They are refused. Word --hint otherwise."))


def _of_kept(
    tried: Tried, best: Trial, settings: Train, scheme: Scheme, findings: list[Finding]
) -> None:
    """Report what other thresholds would keep, and whether there is anything to train on."""
    answered = [draw for draw in best.draws if draw.score.reason in ("", "wrong")]
    lower = sorted({draw.score.reward for draw in answered} - {0.0}, reverse=True)
    lower = [reward for reward in lower if reward < settings.accept_at]
    if lower and settings.soft_accept is None and best.draws:
        shares = (
            f"{sum(draw.score.reward >= least for draw in answered) / len(best.draws):.0%} at {least:g}"
            for least in (settings.accept_at, *lower[:3])
        )
        findings.append(Finding("accept_at", f"draws kept: {', '.join(shares)} ({best.name})"))
    made = scheme_draws(tried, scheme)
    if not any(draw.accepted for draw in made):
        said = f"none of {len(made)} draws that the scheme makes"
        lack = "An M-step has nothing to train on. See the warnings and the settings to try."
        if len(made) >= ENOUGH_DRAWS:
            findings.append(Finding("kept", said, error=lack))
        else:
            findings.append(Finding("kept", said, "So few draws show little: raise --draws."))


def scheme_draws(tried: Tried, scheme: Scheme) -> list[Draw]:
    """Return the draws under prompts that the run's scheme asks."""
    asked = prompts_drawn(scheme)
    return [draw for trial in tried.trials if trial.prompt in asked for draw in trial.draws]


def prompts_drawn(scheme: Scheme) -> set[str]:
    """Return the kinds of prompts that the run's scheme asks."""
    return {stage.prompt_kind for stage in scheme.stages}


def _of_examples(
    tried: Tried, problems: Sequence[Problem], findings: list[Finding], changes: dict[str, str]
) -> None:
    shown = next((trial for trial in tried.trials if trial.demos and trial.prompt == "plain"), None)
    if shown is None:
        return
    drawn, given = copied_shares(shown, problems)
    said = f"{drawn:.0%} of the answers equal an example's, as do {given:.0%} of the data's"
    copies = drawn > 2 * given and drawn > 0.2
    warning = (
        "The model copies the examples' answers. Give examples with other answers (--demos FILE), or "
        "lower --temperature."
    )
    findings.append(Finding("examples", said, warning * copies))
    bare = tried.trials[0]
    if shown.right < bare.right and shown.answered < bare.answered:
        changes["demos"] = "none"


def copied_shares(trial: Trial, problems: Sequence[Problem]) -> tuple[float, float]:
    """Return the shares of a trial's answers, and of the data's, that equal an example's answer."""
    theirs = {_same(demo.answer) for demo in trial.demos}
    drawn = [_same(draw.score.answer) in theirs for draw in trial.draws if draw.score.answer]
    given = [_same(problem.answer) in theirs for problem in problems]
    return sum(drawn) / max(1, len(drawn)), sum(given) / max(1, len(given))


def _same(answer: str) -> str:
    number = as_fraction(answer)
    return plain(answer) if number is None else str(number)


# --- forms of draws without an answer
