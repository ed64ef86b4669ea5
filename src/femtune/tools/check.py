"""Check of data and prompts before a model is loaded; shows the model's inputs and training examples.

check_data.py looks at the data; check_model.py then draws from the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from rich.panel import Panel

from femtune.config import Train
from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.data.prompts import Prompts, prompt_text
from femtune.data.row_report import RowReport
from femtune.data.truncation import trained_tokens
from femtune.engines.model_files import load_config
from femtune.model_info import served_name
from femtune.mstep.config import context_length
from femtune.reporting.terminal import framed, literal
from femtune.resolve import Data, held_out, make_loop_config, read_inputs, sampling
from femtune.sampler import SamplerBuilder, make_sampler_builder
from femtune.tools.check_data import Finding, data_findings, held_out_items
from femtune.types import Draw, Message, Problem, Scheme


@dataclass(frozen=True)
class Examined:
    """Findings that need no weights, with the problems and prompts that they are about."""

    builder: SamplerBuilder
    problems: list[Problem]  # those to train on; without data to evaluate on, all
    findings: list[Finding]
    rows: RowReport  # rows left out and why, how labels were coded


def examine(data: Data, model: str, settings: Train, scheme: Scheme | None = None) -> Examined:
    """Check everything that needs no weights. Raises what `train` would raise for the same input.

    `scheme` stands in place of the one that the settings name.
    """
    asked = read_inputs(data, settings, model=model, log_rows=False)  # the findings say it
    sampling(asked.settings, scheme)
    scheme = make_loop_config(asked.settings, scheme).scheme
    parts = held_out(asked, data, model)
    problems, test = [*parts.train, *parts.dev], parts.test
    if settings.eval_data is None and settings.eval_split is None:
        problems, test = asked.problems, []
    builder = make_sampler_builder(model, asked, problems, test)
    num_test, num_dev = held_out_items(parts.test), len(parts.dev)
    findings = [*data_findings(problems, num_test, asked, scheme, num_dev)]
    findings += _of_model(builder, problems)
    return Examined(builder, problems, findings, asked.report)


def _of_model(builder: SamplerBuilder, problems: Sequence[Problem]) -> Iterator[Finding]:
    if builder.settings.engine == "chat":
        yield from _of_served(builder, problems)
        return
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


def _of_served(builder: SamplerBuilder, problems: Sequence[Problem]) -> Iterator[Finding]:
    """Yield what is known of a model behind chat completions, before anything is paid for."""
    name = served_name(str(builder.base), builder.settings)
    yield Finding("model", f"{name} by chat completions: no weights and no tokenizer here")
    for prompt_name, prompts, prompt in _prompts(builder):
        lengths = [len(prompt_text(prompts.render(prompt, problem))) for problem in problems]
        found = f"median {median(lengths):,.0f} characters, longest {max(lengths):,}"
        yield Finding(prompt_name, found)


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
        if builder.settings.engine == "chat":
            texts[name] = _as_turns(prompts.render(prompt, problem))
            continue
        tokens = builder.tokenizer.encode_prompt(prompts.render(prompt, problem))
        texts[f"plain prompt {name}" if name == "with examples" else name] = (
            builder.tokenizer.tokenizer.decode(tokens)
        )
    return texts


def _as_turns(messages: Sequence[Message]) -> str:
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def show_prompts(builder: SamplerBuilder, problem: Problem) -> Iterator[Panel]:
    """Show the prompts of a problem as the model reads them."""
    for name, text in prompt_texts(builder, problem).items():
        yield framed(literal(text), f"{name} of {problem.id}")


def show_tokens(builder: SamplerBuilder, problem: Problem, draw: Draw) -> Panel:
    """Show a training example token by token: the prompt dim, the tokens in the loss bold."""
    if builder.settings.engine == "chat":
        text = literal(_as_turns(builder.prompts.render("plain", problem)), "dim")
        text.append_text(literal(f"\n\nassistant: {draw.completion.text}", "bold green"))
        return framed(text, "an example: what is kept of a draw (bold), under its prompt")
    tokenizer = builder.tokenizer
    fed = tokenizer.encode_prompt(builder.prompts.render("plain", problem))
    made = draw.completion
    trained = trained_tokens(made.tokens, made.finish_reason, tokenizer.end_token_id, tokenizer)
    text, number = literal(""), 0
    for tokens, weight in ((fed, "dim"), (trained, "bold green")):
        for piece in token_pieces(tokenizer, tokens):
            shade = "on grey19" if number % 2 else "on grey11"
            text.append_text(literal(piece.replace("\n", "⏎\n"), f"{weight} {shade}"))
            number += 1
    title = f"an example: {len(fed)} tokens read, {len(trained)} in the loss (bold)"
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
        is_part = text.endswith("\ufffd") or text == known  # some decoders leave a part out
        is_open = is_part and end < len(tokens) and end - start < LONGEST_CHARACTER
        if not is_open:
            yield text[len(known) :]
            before, start = start, end


LONGEST_CHARACTER = 6  # tokens of one character: one for each byte, and those that join characters
