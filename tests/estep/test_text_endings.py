"""Completions of text end as those of tokens do: cut at the same place, forced in the same cases."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from femtune.data.answer_format import parse_format
from femtune.data.truncation import Cut, cut_text
from femtune.engines.fake import END, ByteTokenizer
from femtune.estep.forced_answers import Endings, Force
from femtune.estep.text_endings import TextEndings
from femtune.metric_types import Served
from femtune.types import Completion, DrawKey, FinishReason, Request, Sampling

FORMATS = ("line", "boxed", "hash", "tag", "bracket", "json:score", r"regex:is (\d)\.")
PIECES = (
    *("Answer: ", "4", "5", "X", "\n", " ", "So ", "é", "**", "is ", "."),
    *(
        "\\boxed{",
        "}",
        "#### ",
        "<answer>",
        "</answer>",
        "[[",
        "]]",
        '{"score": ',
        "<think>",
        "</think>",
    ),
)
TOKENIZER = ByteTokenizer()
SAMPLING = Sampling(max_new_tokens=1000)
KEY = DrawKey(1, "p", 0, 0)
ASKED: tuple[dict[str, str], ...] = ({"role": "user", "content": "What is 2 + 2?"},)

texts = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
ends = st.sampled_from(("stop", "length"))


@given(texts, st.sampled_from(FORMATS))
def test_text_is_cut_where_its_tokens_are(text: str, spec: str) -> None:
    form = parse_format(spec)
    num = Cut(form, TOKENIZER)(TOKENIZER.encode_text(text))
    place = cut_text(text, form)
    if num is None:
        assert place is None
    else:
        assert text[:place] == TOKENIZER.decode(TOKENIZER.encode_text(text)[:num])


def by_tokens(text: str, end: FinishReason) -> Completion:
    tokens = TOKENIZER.encode_text(text)
    return Completion((*tokens, END) if end == "stop" else tokens, text, end, math.nan)


def by_text(text: str, end: FinishReason, forced_by: str = "") -> Completion:
    served = Served(prompt_tokens=7, completion_tokens=len(text), forced_by=forced_by)  # type: ignore[arg-type]  # one of them
    return Completion((), text, end, math.nan, served=served)


@example("Answer: 4<think>", "stop", "", "stop", "line", "ended")
@given(texts, ends, texts, ends, st.sampled_from(FORMATS), st.sampled_from(("never", "ended", "all")))
def test_text_is_forced_and_ends_as_tokens_are(
    text: str, end: FinishReason, reply: str, reply_end: FinishReason, spec: str, force: Force
) -> None:
    """By a server that continues, and but for texts of white space, which no server takes back."""
    form = parse_format(spec)
    tokens = Endings(TOKENIZER, Cut(form, TOKENIZER), force)
    texts_ = TextEndings(form, force)
    prompt = TOKENIZER.encode_prompt("What is 2 + 2?")
    done, more = tokens.settle([(Request(KEY, prompt, 7), by_tokens(text, end))], SAMPLING)
    done_, more_ = texts_.settle([(Request(KEY, (), 7, messages=ASKED), by_text(text, end))], SAMPLING)
    if not text.strip():
        assert not more_
        return
    assert [request.seed for request in more] == [request.seed for request in more_]
    if more:
        assert more_[0].prefill == TOKENIZER.decode(more[0].tokens[len(prompt) :])
        assert more_[0].messages[:-2] == ASKED
        done, _ = tokens.settle([(more[0], by_tokens(reply, reply_end))], SAMPLING)
        done_, _ = texts_.settle([(more_[0], by_text(reply, reply_end, "prefill"))], SAMPLING)
    [(first, one)], [(first_, other)] = done, done_
    assert (first.key, first.seed) == (first_.key, first_.seed) == (KEY, 7)
    assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
    assert (one.num_forced > 0) == (other.num_forced > 0)
    assert other.served is not None and other.served.requests == 1 + bool(more)
    assert other.num_tokens == len(text) + (len(reply) if more else 0)


@pytest.mark.parametrize(
    ("spec", "reply", "text"),
    [
        ("line", "4", "I add.\nAnswer: 4"),
        ("line", "Answer: 4", "I add.\nAnswer: 4"),
        ("line", "**Answer:** 4\n\nI hope so.", "I add.\n**Answer:** 4\n"),
        ("boxed", "4", "I add.\n\\boxed{4}"),
        ("tag", "<answer>4</answer>", "I add.\n<answer>4</answer>"),
        ("json:score", " 4 ", 'I add.\n{"score": 4}'),
        ("json:score", '{"score": 4}', 'I add.\n{"score": 4}'),
    ],
)
def test_the_reply_of_a_turn_is_put_after_the_rationale(spec: str, reply: str, text: str) -> None:
    form = parse_format(spec)
    endings = TextEndings(form, "all")
    asked = Request(KEY, (), 7, messages=ASKED)
    _, [second] = endings.settle([(asked, by_text("I add.", "stop"))], SAMPLING)
    assert second.messages[-2:] == (
        {"role": "assistant", "content": "I add."},
        {"role": "user", "content": f"Write no further reasoning: {form.ending()}"},
    )
    [(_, whole)], _ = endings.settle([(second, by_text(reply, "stop", "turn"))], SAMPLING)
    assert whole.text == text
    assert form.read(whole.text).answer == "4"


def test_thinking_that_was_cut_off_is_closed_before_the_cue() -> None:
    endings = TextEndings(parse_format("line"), "all")
    asked = Request(KEY, (), 7, messages=ASKED, max_new_tokens=900)
    _, [second] = endings.settle([(asked, by_text("<think>\nI add", "length"))], SAMPLING)
    assert second.prefill == "<think>\nI add\n</think>\n\nAnswer:"
    assert second.max_new_tokens == 900  # a model that thinks has to think again
    for forced_by, reply in (("prefill", " 4"), ("turn", "4"), ("turn", "Answer: 4")):
        endings = TextEndings(parse_format("line"), "all")
        endings.settle([(asked, by_text("<think>\nI add", "length"))], SAMPLING)
        [(_, whole)], _ = endings.settle([(second, by_text(reply, "stop", forced_by))], SAMPLING)
        assert parse_format("line").read(whole.text).answer == "4"


def test_an_answer_that_failed_is_the_draws_error() -> None:
    endings = TextEndings(parse_format("line"), "all")
    asked = Request(KEY, (), 7, messages=ASKED)
    _, [second] = endings.settle([(asked, by_text("I add.", "stop"))], SAMPLING)
    failed = Completion((), "", "error", math.nan, error="boom")
    [(request, completion)], more = endings.settle([(second, failed)], SAMPLING)
    assert (request, completion, more) == (asked, failed, [])
