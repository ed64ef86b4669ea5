"""Text shown token by token is right for every script and kind of tokenizer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from femtune.tools.check import token_pieces

from ..data.test_marks import CHATS

TEXTS = (
    "日本語テキスト",
    "한국어",
    "مرحبا بالعالم",
    "हिन्दी नमस्ते",
    "กขค",
    "שלום",
    "👩‍👩‍👧‍👦 🇩🇪 é e\u0301",
    "\ufffd and \ufffd\ufffd x",
)


@pytest.mark.parametrize("name", CHATS)
@settings(max_examples=30)
@given(text=st.sampled_from(TEXTS) | st.text(max_size=12))
def test_pieces_join_to_the_text(name: str, text: str) -> None:
    chat = CHATS[name]
    tokens = chat.encode_prompt(f"a{text}.")
    whole = chat.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
    pieces = list(token_pieces(chat, tokens))
    assert "".join(pieces) == whole
    num_gaps = sum(piece.count("\ufffd") for piece in pieces)
    assert num_gaps == text.count("\ufffd")
