"""A Hugging Face tokenizer with its chat template: prompts to tokens, and completions back to text.

What a template drops is no silent loss: a prompt whose text does not stand in what the template renders
is refused, and so is a template that shows no text at all.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any

from femtune._util.text import brief
from femtune._util.time_limits import TooSlow, time_limit
from femtune.data.marks import Marks, special_ids
from femtune.data.prompts import Prompts, as_messages, prompt_text
from femtune.errors import ConfigError, EngineError, ModelError
from femtune.types import Message, Problem, Prompt, Tokenizer

# The function by which templates write today's date, as Llama 3's does. As an argument of the template,
# a day in its place: a run pins the day on which it began.
DATE = "strftime_now"

_RENDER_S = 5.0  # seconds of processor time for one prompt; a template takes milliseconds


@dataclass(frozen=True)
class ChatTokenizer:
    """A Hugging Face tokenizer that encodes prompts by its chat template, and decodes completions.

    Without a chat template (a base model), a prompt is the plain text and a newline, with the BOS token
    that the tokenizer adds. Special tokens that messages spell out are encoded as text: see marks.py.
    """

    tokenizer: Any
    template_args: tuple[tuple[str, Any], ...] = ()  # such as ("enable_thinking", False)

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the tokens of a prompt, up to where the model's completion begins.

        Raises ModelError if the template fails or drops text, and DataError for text that the tokenizer
        can't write.
        """
        messages, hidden = self._marks.hide(as_messages(prompt))
        if not self.tokenizer.chat_template:
            return self.encode_plain(self.as_text(messages), hidden)
        rendered = self._render(messages, add_generation_prompt=True)
        if not rendered.strip():
            raise ModelError(
                "the chat template renders nothing for a user message: correct the template."
            )
        if dropped := next((m for m in messages if not _stands_in(m, rendered)), None):
            raise ModelError(
                f"the chat template drops text of the {dropped['role']} message "
                f"{brief(dropped['content'])!r}, so the model would not see it. Leave such messages "
                "out, or correct the template in the model's folder (chat_template.jinja)."
            )
        # the template writes BOS, so the tokenizer must not add a second one
        return tuple(self._marks.encode(rendered, hidden))

    def encode_plain(self, text: str, hidden: Mapping[str, str] | None = None) -> tuple[int, ...]:
        """Return the tokens of a prompt's text for a model without a chat template, BOS included."""
        if hidden is None:
            [message], hidden = self._marks.hide(as_messages(text))
            text = message["content"]
        return (*self._begin, *self._marks.encode(text, hidden))

    def prompt_text(self, prompt: Prompt) -> str:
        """Return the text of a prompt as the model reads it."""
        messages = as_messages(prompt)
        if not self.tokenizer.chat_template:
            return self.as_text(messages)
        return self._render(messages, add_generation_prompt=True)

    def as_text(self, messages: Sequence[Message]) -> str:
        """Return messages as text, for a model without a template: a break before answers, else two."""
        parts = []
        for message, after in zip(messages, [*messages[1:], None], strict=True):
            close = after is None or after["role"] == "assistant"
            parts.append(message["content"] + ("\n" if close else "\n\n"))
        return "".join(parts)

    def check(self) -> None:
        """Check that the chat template shows the text of messages. Raises ModelError."""
        asked = ("Seven maple leaves", "Nine copper coins")
        if not all(text in self.prompt_text(text) for text in asked):
            raise ModelError(
                "the chat template drops the text of messages, so the model would see none of the "
                "data, neither as text nor as a list of parts. Put a template into the model's folder "
                "that writes message['content'] (chat_template.jinja)."
            )
        if self.encode_prompt(asked[0]) == self.encode_prompt(asked[1]):
            raise ModelError(
                "the tokenizer gives different messages the same tokens: get its files again."
            )
        _ = self.end_token_id  # raises ModelError if it is missing

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text within a completion, without special tokens."""
        return tuple(self._marks.encode_answer(text))

    def encode_completion(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a completion written elsewhere, with the end token after it."""
        end = self.tokenizer.convert_ids_to_tokens(self.end_token_id)
        return (*self.encode_text(text.removesuffix(end)), self.end_token_id)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of completion tokens, without special tokens, with spaces as sampled."""
        text: str = self.tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        given = [_with_parts(message) for message in messages] if self._takes_parts else messages
        return self._applied(given, add_generation_prompt)

    def _applied(self, messages: Sequence[Any], opens: bool) -> str:
        """Return what the template renders of messages. Raises ModelError if it fails."""

        def apply(**args: Any) -> str:
            with time_limit(_RENDER_S):
                text: str = self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=opens, **dated, **args
                )
            return text

        args = self.rendering_args
        dated = self._dated  # outside: its error is complete
        try:
            return apply(**args)
        except TooSlow as error:
            raise ModelError(
                f"the chat template can't be used: {error} to render a prompt. Correct the template in "
                "the model's folder (chat_template.jinja)."
            ) from error
        except Exception as error:  # jinja2's, or anything that the template raises
            try:  # some templates require a list of tools, and accept an empty one
                return apply(**{"tools": [], "functions": [], **args})
            except Exception:
                roles = [message["role"] for message in messages]
                message = f"the chat template refuses messages of roles {roles}: {error}"
                raise ModelError(message) from error

    @cached_property
    def rendering_args(self) -> dict[str, Any]:
        """The arguments of the template, without a pinned date."""
        return {name: value for name, value in self.template_args if name != DATE}

    @cached_property
    def _dated(self) -> dict[str, str]:
        """The template that writes the pinned date, as an argument; {} without such a date."""
        day = dict(self.template_args).get(DATE)
        if day is None or not self.tokenizer.chat_template:
            return {}
        return {"chat_template": with_date(self.tokenizer.get_chat_template(), str(day))}

    @cached_property
    def _marks(self) -> Marks:
        return Marks(self.tokenizer)

    @cached_property
    def _takes_parts(self) -> bool:
        """True if the template shows a message only as a list of parts, as those of images do."""
        message: Message = {"role": "user", "content": "Seven maple leaves"}
        try:
            if message["content"] in self._applied([message], True):
                return False
        except ModelError:
            pass  # it may refuse text
        try:
            shown = self._applied([_with_parts(message)], True)
        except ModelError:
            return False  # `check` then names the fault
        return message["content"] in shown and "'type'" not in shown  # nor as Python's form of a list

    @cached_property
    def _begin(self) -> tuple[int, ...]:
        """The tokens that the tokenizer adds before a text, such as BOS."""
        whole = self.tokenizer("x")["input_ids"]
        bare = self.tokenizer("x", add_special_tokens=False)["input_ids"]
        starts = range(len(whole) - len(bare) + 1)
        at = next((n for n in starts if whole[n : n + len(bare)] == bare), 0)
        return tuple(whole[:at])

    @cached_property
    def end_token_id(self) -> int:
        """The token that ends a turn: the first special one that the template writes after an answer.

        EOS if it writes none. Gemma's turns, for example, end with <end_of_turn>, which is not its EOS.
        A token that opens the assistant's turn ends none, even where a template always writes it last.
        Raises ModelError if there is neither.
        """
        if self.tokenizer.chat_template:
            turn: list[Message] = [
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": "\u2021"},
            ]
            _, answer, after = self._render(turn).rpartition("\u2021")
            opening = self._special_in(self.prompt_text("x"))[-1:]
            for token in self._special_in(after) if answer else ():
                if token not in opening:
                    return token
        if self.tokenizer.eos_token_id is None:
            raise ModelError(
                "the tokenizer has no end token (eos_token), so completions would never end: set one."
            )
        return int(self.tokenizer.eos_token_id)

    def _special_in(self, text: str) -> list[int]:
        """Return the special tokens that a template wrote, in order."""
        special = special_ids(self.tokenizer)
        tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [int(token) for token in tokens if token in special]

    @cached_property
    def opening(self) -> str:
        """The thinking block that the template opens for the model ("<think>"); "" if it opens none."""
        fed = self.prompt_text("x") if self.tokenizer.chat_template else ""
        last = fed.rpartition("<think>")[2]
        return "<think>" if "<think>" in fed and "</think>" not in last else ""

    @property
    def pad_token_id(self) -> int:
        """The token that pads a batch; always masked, so the end token serves if there is no other."""
        pad = self.tokenizer.pad_token_id
        return int(pad) if pad is not None else self.end_token_id


class _Missing:
    """Stands for the tokenizer of a model behind chat completions, which has none here."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copying and pickling look for
            raise AttributeError(name)
        raise EngineError(
            "--engine chat has no tokenizer, and this needs one: take --engine openai with the model's "
            "folder as --model, or --engine transformers."
        )


def no_tokenizer() -> ChatTokenizer:
    """Return a tokenizer for engines that take messages: any use of it raises EngineError."""
    return ChatTokenizer(_Missing())


def with_date(template: str, day: str) -> str:
    """Return a chat template in which strftime_now writes a day, not today's date.

    transformers turns functions among a template's arguments into text, so a macro takes the name.
    Raises ConfigError for a day of another form than 2024-07-26.
    """
    try:
        moment = datetime.fromisoformat(day)
    except ValueError as error:
        raise ConfigError(
            f"template_args {DATE} is {day!r}: give the date that the template is to write, as "
            f"{DATE}=2024-07-26."
        ) from error
    codes = [f"%{code}" for code in ("-d", "-m", "-H", "-I", *"aAwdbBmyYHIpMSjUWcxX")]
    text = "format" + "".join(f"|replace({code!r}, {moment.strftime(code)!r})" for code in codes)
    # the empty expression keeps a line break at the template's start, which a tag would take
    return f"{{%- macro {DATE}(format) -%}}{{{{- {text} -}}}}{{%- endmacro %}}{{{{ '' }}}}{template}"


def _with_parts(message: Message) -> dict[str, Any]:
    """Return a message whose content is a list of one part, a text."""
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def _stands_in(message: Message, rendered: str) -> bool:
    """Return True if what a template renders has all text of a message.

    A template may trim or escape it, and leave out the thinking of an earlier answer.
    """
    said = message["content"]
    if said in rendered:
        return True
    if message["role"] == "assistant":
        said = said.rpartition("</think>")[2]
    fed = _letters(html.unescape(rendered))
    return all(_letters(line) in fed for line in said.splitlines())


def fit_prompts(prompts: Prompts, tokenizer: Tokenizer) -> Prompts:
    """Return the prompts in a form that the chat template shows in full.

    A template may refuse system messages, or drop part of an earlier answer, as those of thinking models
    drop the thinking. The system message or the worked examples then go into the first user message.
    Raises ModelError if no form is shown in full.
    """
    if not isinstance(tokenizer, ChatTokenizer) or not (prompts.demos or prompts.system_prompt):
        return prompts
    forms: list[dict[str, Any]] = [
        {"system_as": "message", "demos_as": "turns"},
        {"system_as": "text", "demos_as": "turns"},
        {"system_as": "message", "demos_as": "text"},
        {"system_as": "text", "demos_as": "text"},
    ]
    for form in forms:
        fitted = replace(prompts, **form)
        if is_shown(fitted, tokenizer):
            return fitted
    what = " and ".join(
        name
        for name, there in (
            ("worked examples", prompts.demos),
            ("a system prompt", prompts.system_prompt),
        )
        if there
    )
    raise ModelError(
        f"the chat template does not show {what} in full, neither as messages nor as text. "
        "Leave them out (--demos none), or correct the template in the model's folder."
    )


def is_shown(prompts: Prompts, tokenizer: ChatTokenizer) -> bool:
    """Return True if the model's input shows the system prompt and the worked examples, in order."""
    messages = prompts.plain(Problem("", "Seven maple leaves?", "7"))
    try:
        fed = _letters(tokenizer.prompt_text(messages))
    except ModelError:
        return False
    texts = [prompts.system_prompt or ""]
    for demo in prompts.demos:
        texts += [prompt_text(demo.prompt), demo.completion]
    place = 0
    for line in (_letters(line) for text in texts for line in text.splitlines()):
        place = fed.find(line, place)
        if place < 0:
            return False
        place += len(line)
    return True


def _letters(text: str) -> str:
    """Drop spaces and punctuation from a text; a template may trim or escape them."""
    return re.sub(r"\W", "", text)
