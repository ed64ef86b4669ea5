"""Check of data and prompts before a model is loaded; shows the model's inputs and training examples.

check_model.py then draws from the model.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

from rich.panel import Panel

from femtune.config import Train
from femtune.data.prompts import ChatTokenizer, Prompts, prompt_text
from femtune.data.tasks.frames import scale_of
from femtune.data.truncation import trained_tokens
from femtune.engines.model_files import load_config
from femtune.evaluation.chance import guessed_share, is_closed, plain_attempts
from femtune.mstep.config import context_length
from femtune.reporting.terminal import framed, literal, sparkline
from femtune.resolve import Data, TaskInputs, held_out, make_loop_config, read_inputs, sampling
from femtune.sampler import SamplerBuilder, make_sampler_builder
from femtune.schemes.filters import rules_of
from femtune.schemes.weights import Wake
from femtune.types import Draw, Problem, Scheme

MOST_LABELS = 11  # the largest scale that is shown as a histogram


@dataclass(frozen=True)
class Finding:
    """One result of a check."""

    what: str
    found: str
    warning: str = ""  # what to do, if something looks wrong


def examine(
    data: Data, model: str, settings: Train, scheme: Scheme | None = None
) -> tuple[SamplerBuilder, list[Problem], list[Finding]]:
    """Check everything that needs no weights. Raises what `train` would raise for the same input.

    `scheme` stands in place of the one that the settings name.
    """
    asked = read_inputs(data, settings, model=model)
    sampling(asked.settings, scheme)
    scheme = make_loop_config(asked.settings, scheme).scheme
    problems, test = held_out(asked, data, model)
    num_test, own_test = len(test), settings.eval_data is not None or settings.eval_split is not None
    if not own_test:
        problems, test = asked.problems, []
    builder = make_sampler_builder(model, asked, problems, test)
    findings = [*_of_data(problems, num_test, asked, scheme), *_of_model(builder, problems)]
    return builder, problems, findings


def _of_data(
    problems: Sequence[Problem], num_test: int, asked: TaskInputs[Train], scheme: Scheme
) -> Iterator[Finding]:
    settings = asked.settings
    columns = sorted({name for problem in problems[:100] for name in problem.columns} - {"frame"})
    yield Finding("problems", f"{len(problems):,}; further columns: {', '.join(columns) or 'none'}")
    if asked.report.skipped:
        said = "Check the columns, or correct the rows."
        shares = f"{asked.report.num_skipped:,} of {asked.report.num_rows:,}"
        yield Finding("rows left out", "; ".join([shares, *asked.report.reasons()]), said)
    if asked.rounded:
        yield Finding(
            "rounded", f"{asked.rounded:,} problems have a score between two points of the scale"
        )
    if num_test:
        half = 1.96 * math.sqrt(0.25 / num_test)
        yield Finding("held out", f"{num_test:,}; an accuracy of 50% is measured to ±{half:.0%}")
    else:
        yield Finding("held out", "none: no accuracy is measured")
    yield from _of_answers(problems, settings, scheme)
    earned = f"every correct answer earns at least {settings.accept_at:g}"
    unknown = "correct answers were not checked against it (check_gold is off)"
    yield Finding("reward", f"{settings.reward}; {earned if settings.check_gold else unknown}")


def _of_answers(problems: Sequence[Problem], settings: Train, scheme: Scheme) -> Iterator[Finding]:
    counts = Counter(problem.answer for problem in problems)
    answers = counts.most_common()
    shown = ", ".join(f"{answer[:20]} ({count})" for answer, count in answers[:6])
    share = answers[0][1] / len(problems)
    one_sided = share > 0.8 and len(problems) > 20
    yield Finding(
        "answers",
        f"{len(answers):,} different: {shown}" + (", ..." if len(answers) > 6 else ""),
        f"{share:.0%} are the same: a model that always gives this answer is right that often."
        * one_sided,
    )
    if is_closed(problems):
        if len(labels := labels_of(problems)) <= MOST_LABELS:
            bars = sparkline([counts[label] / len(problems) for label in labels])
            parts = (f"{label[:12]} {counts[label] / len(problems):.0%}" for label in labels)
            yield Finding("labels", f"{bars}  {', '.join(parts)}")
        yield Finding("majority", f"always answering {answers[0][0][:20]} is right for {share:.0%}")
        once = guessed_share(counts.elements())
        found = f"{once:.0%} of guesses that follow the labels' frequencies"
        most = plain_attempts(replace(scheme, accept_at=settings.accept_at))
        if most > 1 and settings.soft_accept is None:
            kept = guessed_share(counts.elements(), most)
            found += f"; {most} attempts keep {kept:.0%} of the problems by luck"
        yield Finding("right by luck", found)
    yield from _of_repeats(problems)


def _of_repeats(problems: Sequence[Problem]) -> Iterator[Finding]:
    """Report prompts that occur several times with different answers."""
    given = defaultdict[str, list[str]](list)
    for problem in problems:
        given[prompt_text(problem.prompt)].append(problem.answer)
    several = [answers for answers in given.values() if len(answers) > 1]
    if not any(len(set(answers)) > 1 for answers in several):
        return
    agreed = sum(len(set(answers)) == 1 for answers in several) / len(several)
    yield Finding(
        "same prompt",
        f"{len(several):,} prompts have several answers; all agree in {agreed:.0%} of them",
        "No model can give different answers to one prompt. Name the rater in the prompt "
        "(--raters named), or take one answer for each item (--raters mean).",
    )


def labels_of(problems: Sequence[Problem]) -> list[str]:
    """Return the labels of a closed set of answers: those of the problems' scales, in their order."""
    labels: dict[str, None] = {}
    for problem in problems:
        scale = scale_of(problem)
        labels.update(dict.fromkeys(scale.answers if scale else ()))
    return [*labels]


def _of_model(builder: SamplerBuilder, problems: Sequence[Problem]) -> Iterator[Finding]:
    config = load_config(builder.base)
    yield Finding(
        "model", f"{config.model_type} at {builder.base}; context {context_length(config):,} tokens"
    )
    tokenizer = builder.tokenizer.tokenizer
    yield Finding(
        "chat template",
        "found" if tokenizer.chat_template else "none: prompts are fed as plain text",
    )
    end = tokenizer.convert_ids_to_tokens(builder.tokenizer.end_token_id)
    yield Finding("end token", f"{end!r}, in the loss; padding is masked")
    some = problems[:: max(1, len(problems) // 200)]
    for name, prompts, prompt in _prompts(builder):
        tokens = [builder.tokenizer.encode_prompt(prompts.render(prompt, p)) for p in some]
        lengths = [len(each) for each in tokens]
        bos = tokenizer.bos_token_id
        doubled = bos is not None and any(each[:2] == (bos, bos) for each in tokens)
        yield Finding(
            name,
            f"median {median(lengths):.0f} tokens, longest {max(lengths)} (of {len(some)} checked)",
            "begins with two BOS tokens: the chat template should not write one." * doubled,
        )


def _prompts(builder: SamplerBuilder) -> Iterator[tuple[str, Prompts, str]]:
    """Yield name, prompts and kind: plain, hinted, and plain with worked examples."""
    for prompt in ("plain", "hinted"):
        yield f"{prompt} prompt", builder.prompts, prompt
    if builder.demos:
        yield "with examples", builder.prompts.with_demos(builder.demos), "plain"


def prompt_texts(builder: SamplerBuilder, problem: Problem) -> dict[str, str]:
    """Return the prompts of a problem by name, as the model reads them."""
    texts = {}
    for name, prompts, prompt in _prompts(builder):
        tokens = builder.tokenizer.encode_prompt(prompts.render(prompt, problem))
        texts[f"plain prompt {name}" if name == "with examples" else name] = (
            builder.tokenizer.tokenizer.decode(tokens)
        )
    return texts


def show_prompts(builder: SamplerBuilder, problem: Problem) -> Iterator[Panel]:
    """Show the prompts of a problem as the model reads them."""
    for name, text in prompt_texts(builder, problem).items():
        yield framed(literal(text), f"{name} of {problem.id}")


def trained_under(scheme: Scheme) -> tuple[Literal["plain", "hinted"], ...]:
    """Return the prompts that a scheme's examples are trained under: with a wake phase, both."""
    wakes = any(isinstance(rule, Wake) for rule in rules_of(scheme.weigh))
    return ("plain", "hinted") if wakes else ("plain",)


def show_tokens(
    builder: SamplerBuilder, problem: Problem, draw: Draw, prompt: Literal["plain", "hinted"] = "plain"
) -> Panel:
    """Show a training example token by token: the prompt dim, the tokens in the loss bold."""
    tokenizer = builder.tokenizer
    fed = tokenizer.encode_prompt(builder.prompts.render(prompt, problem))
    made = draw.completion
    trained = trained_tokens(made.tokens, made.finish_reason, tokenizer.end_token_id, tokenizer)
    text, number = literal(""), 0
    for tokens, weight in ((fed, "dim"), (trained, "bold green")):
        for piece in token_pieces(tokenizer, tokens):
            shade = "on grey19" if number % 2 else "on grey11"
            text.append_text(literal(piece.replace("\n", "⏎\n"), f"{weight} {shade}"))
            number += 1
    kind = "an example" if prompt == "plain" else "an example of the wake phase"
    if not draw.accepted:
        kind = f"refused ({draw.score.reason}), shown as {kind}"
    title = f"{kind}: {len(fed)} tokens read, {len(trained)} in the loss (bold)"
    return framed(text, title)


def token_pieces(tokenizer: ChatTokenizer, tokens: Sequence[int]) -> Iterator[str]:
    """Yield the text of each token; tokens that share a character are yielded as one piece."""

    def decode(begin: int, end: int) -> str:
        text: str = tokenizer.tokenizer.decode(tokens[begin:end], clean_up_tokenization_spaces=False)
        return text

    # decode each piece after the one before it: alone, some tokens lose their space
    before = start = 0
    for end in range(1, len(tokens) + 1):
        known, text = decode(before, start), decode(before, end)
        if not text.startswith(known):
            known, text = "", decode(start, end)
        is_open = text.endswith("\ufffd") and end < len(tokens) and end - start < LONGEST_CHARACTER
        if not is_open:
            yield text[len(known) :]
            before, start = start, end


LONGEST_CHARACTER = 6  # tokens of one character: one for each byte, and those that join characters
