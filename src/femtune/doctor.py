"""Checks a setup in seconds, and shows what the model is asked and what the loss will see."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from rich.panel import Panel

from femtune.asker import Asker, make_asker
from femtune.chunks import Setup
from femtune.config import Train
from femtune.estep import e_step
from femtune.prepare import Data, held_out, load_config, plan, read_questions, sampling
from femtune.progress import framed, literal
from femtune.prompts import ChatTokenizer
from femtune.schemes import adds, paper_filter, parse_scheme
from femtune.training import context_length
from femtune.types import Draw, Problem, Scheme, Stage


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    found: str
    warning: str = ""  # what to do, where something looks wrong


def examine(data: Data, model: str, settings: Train) -> tuple[Asker, list[Problem], list[Finding]]:
    """Everything that needs no weights. Raises what `train` would raise on the same input."""
    asked = read_questions(data, settings)
    problems, test = asked.problems, list[Problem]()
    if settings.eval_data is not None or settings.eval_split is not None:
        problems, test = held_out(asked, data)
    plan(asked.settings)
    asker = make_asker(model, asked, problems, test)
    return asker, problems, [*_of_data(problems, asked.settings), *_of_model(asker, problems)]


def _of_data(problems: Sequence[Problem], settings: Train) -> Iterator[Finding]:
    columns = sorted({name for problem in problems[:100] for name in problem.columns})
    yield Finding("problems", f"{len(problems):,}; further columns: {', '.join(columns) or 'none'}")
    answers = Counter(problem.answer for problem in problems).most_common()
    shown = ", ".join(f"{answer[:20]} ({count})" for answer, count in answers[:6])
    share = answers[0][1] / len(problems)
    one_sided = share > 0.8 and len(problems) > 20
    yield Finding(
        "answers",
        f"{len(answers):,} different: {shown}" + (", ..." if len(answers) > 6 else ""),
        f"{share:.0%} are the same: a model that always says so is right that often." * one_sided,
    )
    earned = f"every correct answer earns at least {settings.accept_at:g}"
    unknown = "whether the correct answers earn it was not looked at (check_gold is off)"
    yield Finding("reward", f"{settings.reward}; {earned if settings.check_gold else unknown}")


def _of_model(asker: Asker, problems: Sequence[Problem]) -> Iterator[Finding]:
    config = load_config(asker.base)
    yield Finding(
        "model", f"{config.model_type} at {asker.base}; context {context_length(config):,} tokens"
    )
    tokenizer = asker.tokenizer.tokenizer
    yield Finding(
        "chat template",
        "found" if tokenizer.chat_template else "none: prompts are given as plain text",
    )
    end = tokenizer.convert_ids_to_tokens(asker.tokenizer.end_token_id)
    yield Finding("end token", f"{end!r}, in the loss; padding is masked")
    some = problems[:: max(1, len(problems) // 200)]
    for name in ("plain", "hinted"):
        tokens = [asker.tokenizer.encode_prompt(asker.prompts.render(name, p)) for p in some]
        lengths = [len(each) for each in tokens]
        bos = tokenizer.bos_token_id
        doubled = bos is not None and any(each[:2] == (bos, bos) for each in tokens)
        yield Finding(
            f"{name} prompt",
            f"median {median(lengths):.0f} tokens, longest {max(lengths)} (of {len(some)} looked at)",
            "begins with two BOS tokens: the chat template writes one too many." * doubled,
        )


def try_out(asker: Asker, problem: Problem, settings: Train) -> tuple[list[Draw], list[Finding]]:
    """Load the model and draw one plain and one hinted completion of a problem."""
    import torch

    begun = time.perf_counter()
    with asker.setup(sampling(settings), needs=parse_scheme(settings.scheme).needs) as setup:
        loaded_s = time.perf_counter() - begun
        draws = _one_of_each(setup, problem, settings.accept_at)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    where = settings.base_url or "a server" if settings.engine == "openai" else device
    findings = [Finding("engine", f"{settings.engine} on {where}, loaded in {loaded_s:.1f} s")]
    for draw in draws:
        reason = draw.score.reason
        what = f"{reason}: {draw.score.detail}" if draw.score.detail else reason or "kept"
        rate = f"{len(draw.completion.tokens)} tokens, {draw.completion.logprob:.1f} nats"
        fine = reason in ("", "wrong")  # a wrong answer is what training is for; no answer is not
        found = f"{rate}; {what}" if fine else rate
        findings.append(Finding(f"a {draw.prompt} draw", found, "" if fine else what))
    return draws, findings


def _one_of_each(setup: Setup, problem: Problem, accept_at: float) -> list[Draw]:
    stages = (Stage("plain", ask="all"), Stage("hinted", ask="all"))
    scheme = Scheme("doctor", stages, paper_filter, accept_at)
    chunks = e_step([problem], scheme, setup, iteration=0)
    return [draw for chunk in chunks for draw in chunk.draws]


def show_prompts(asker: Asker, problem: Problem) -> Iterator[Panel]:
    """Both prompts of a problem, as the model is fed them."""
    for name in ("plain", "hinted"):
        tokens = asker.tokenizer.encode_prompt(asker.prompts.render(name, problem))
        text = literal(asker.tokenizer.tokenizer.decode(tokens))
        yield framed(text, f"{name} prompt of {problem.id}")


def trained_under(scheme: str) -> tuple[Literal["plain", "hinted"], ...]:
    """The prompts that a scheme's examples are trained under: with a wake phase, both."""
    return ("plain", "hinted") if adds(scheme, "wake") else ("plain",)


def show_tokens(
    asker: Asker, problem: Problem, draw: Draw, prompt: Literal["plain", "hinted"] = "plain"
) -> Panel:
    """A training example token by token: what is only read, dim; what the loss sees, bold."""
    fed = asker.tokenizer.encode_prompt(asker.prompts.render(prompt, problem))
    text = literal("")
    for number, token in enumerate([*fed, *draw.completion.tokens]):
        seen = number >= len(fed)
        shade = "on grey19" if number % 2 else "on grey11"
        style = f"bold green {shade}" if seen else f"dim {shade}"
        text.append_text(literal(_written(asker.tokenizer, token), style))
    seen_tokens = len(draw.completion.tokens)
    kind = "an example" if prompt == "plain" else "an example of the wake phase"
    title = f"{kind}: {len(fed)} tokens read, {seen_tokens} in the loss (bold)"
    return framed(text, title)


def _written(tokenizer: ChatTokenizer, token: int) -> str:
    text: str = tokenizer.tokenizer.decode([token])
    return text.replace("\n", "⏎\n")
