"""The cut equals its definition on real tokenizers, and what is trained on reads to the same answer."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from random import Random

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models

from femtune.data.answer_format import parse_format
from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.data.truncation import Cut, trained_tokens
from femtune.data.worlds import SEEDLING

# a folder of a real model, for its tokenizer
REAL = os.environ.get("FEMTUNE_REAL_MODEL", "")
WHOLE = {
    "line": "Answer: 6\n",
    "boxed": "\\boxed{6}",
    "hash": "#### 6\n",
    "tag": "<answer>6</answer>",
    "bracket": "[[6]]",
    "json:score": '{"score": 6}',
    r"regex:Score: (\d+)": "Score: 6\n",
}
PARTS = (
    *(
        "Because two and two.\n",
        "Answer:",
        "Answer: 4",
        "**Answer:** 4\n",
        "\n",
        "\n\n",
        " 4",
        "5",
        ".",
        "X",
    ),
    *(
        "\\boxed{",
        "\\frac{1}{2}",
        "}",
        "}$.",
        "####",
        "<answer>",
        "</answer>",
        "[[4",
        "]]",
        '{"score": ',
        "4}",
    ),
    *(
        "<think>",
        "</think>\n",
        "Score: 4",
        '{"score": 4}',
        "é四🙂",
        " {",
        '"',
        "Final answer: 4\n",
        "your answer",
        ">",
        "]",
    ),
)


def sentencepiece() -> ChatTokenizer:
    """A tokenizer as Llama 2's, whose decoder takes white space off the first token."""
    pieces = [
        "<unk>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "▁}",
        "▁\n",
        "4",
        "▁Answer",
        ":",
    ]
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True))
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip("\n", 1, 0),
        ]
    )
    core.add_special_tokens(["</s>"])
    return ChatTokenizer(transformers.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>"))


@lru_cache
def tokenizer(name: str) -> ChatTokenizer:
    if name == "sentencepiece":
        return sentencepiece()
    if name == "real" and not Path(REAL, "tokenizer.json").exists():
        pytest.skip("FEMTUNE_REAL_MODEL names no folder with a tokenizer")
    folder = SEEDLING if name == "seedling" else Path(REAL)
    return ChatTokenizer(transformers.AutoTokenizer.from_pretrained(folder))


def sampled(rng: Random, chat: ChatTokenizer, spec: str) -> tuple[int, ...]:
    """Random tokens, and tokens of texts that hold parts of answers."""
    tokens: list[int] = []
    for _ in range(rng.randint(1, 12)):
        if rng.random() < 0.2:
            tokens += rng.choices(range(len(chat.tokenizer)), k=rng.randint(1, 6))
        else:
            text = "".join(rng.choices((*PARTS, *[WHOLE[spec]] * 4), k=rng.randint(1, 5)))
            tokens += chat.tokenizer(text, add_special_tokens=False)["input_ids"]
    return tuple(tokens)


@pytest.mark.parametrize("spec", WHOLE)
@pytest.mark.parametrize("name", ["seedling", "real", "sentencepiece"])
def test_the_cut_is_the_first_closed_prefix(spec: str, name: str) -> None:
    chat, form = tokenizer(name), parse_format(spec)
    rng, num_cut = Random(f"{name} {spec}"), 0
    for number in range(80):
        cut = Cut(form, chat, "<think>" if number % 5 == 0 else "")
        tokens = sampled(rng, chat, spec)
        closed = [form.closed(cut.opening + chat.decode(tokens[:n])) for n in range(len(tokens) + 1)]
        if "\ufffd" not in chat.decode(tokens):
            ends = [n for n, token in enumerate(tokens, 1) if cut.can_close(token)]
            assert [closed[n] for n in ends] == sorted(closed[n] for n in ends)  # it stays closed
        place = cut(tokens)
        assert place == (closed.index(True) if True in closed else None)
        asked = (n for n in range(1, len(tokens) + 1) if cut.closes(tokens[:n]))  # as an engine does
        assert place == next(asked, None)
        if place is not None:
            num_cut += 1
            trained = trained_tokens(tokens[:place], "answered", chat.end_token_id, chat)
            read = [form.read(cut.opening + chat.decode(kept)) for kept in (tokens[:place], trained)]
            assert read[0] == read[1]
            # a token with a line break and words after it leaves them to `read`, which refuses them
            whole = form.closers != "\n" or chat.decode(tokens[:place])[-1].isspace()
            assert read[0].answer or not whole or read[0].error == "two different answers"
    assert num_cut >= 5


def test_a_token_that_loses_its_line_break_alone_can_close() -> None:
    chat = tokenizer("sentencepiece")
    newline = 2 + 10
    assert chat.decode((newline,)) == "" and Cut(parse_format("line"), chat).can_close(newline)
    assert not Cut(parse_format("line"), chat).can_close(chat.end_token_id)


@pytest.mark.parametrize("name", ["seedling", "real"])
@pytest.mark.parametrize(
    ("spec", "text", "kept"),
    [
        ("line", "Because.\nAnswer: 4\n", "Because.\nAnswer: 4"),
        ("boxed", "Because.\n\\boxed{4}", "Because.\n\\boxed{4}"),
        ("tag", "Because.\n<answer>4</answer>", "Because.\n<answer>4</answer>"),
    ],
)
def test_the_end_token_takes_the_place_of_white_space(
    name: str, spec: str, text: str, kept: str
) -> None:
    chat = tokenizer(name)
    tokens = tuple(chat.tokenizer(text, add_special_tokens=False)["input_ids"])
    written = chat.tokenizer(text + " And so on.\nAnswer: 5\n", add_special_tokens=False)["input_ids"]
    place = Cut(parse_format(spec), chat)(written)
    assert place is not None and chat.decode(written[:place]).rstrip(" ") == text
    trained = trained_tokens(tokens, "answered", chat.end_token_id, chat)
    assert trained[-1] == chat.end_token_id and chat.decode(trained) == kept


def test_other_completions_are_trained_on_as_they_are() -> None:
    chat = tokenizer("seedling")
    tokens = chat.encode_completion("So.\nAnswer: 4\n")
    assert trained_tokens(tokens, "stop", chat.end_token_id, chat) == tokens
    assert trained_tokens(tokens[:-1], "length", chat.end_token_id, chat) == tokens[:-1]
