"""What is trained on is what inference feeds and what was sampled, for every family of templates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from femtune.data import chat_tokenizer
from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.data.prompts import Prompts
from femtune.engines.model_files import load_tokenizer
from femtune.errors import ModelError
from femtune.mstep.examples import read_examples, write_examples
from femtune.mstep.trainer import Batches
from femtune.types import Completion, Draw, DrawKey, Example, Message, Problem, Score

from ..templates import FAMILIES, FAMILY, Family

EVERY = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
CHATS = pytest.mark.parametrize("family", [f for f in FAMILIES if f.template], ids=lambda f: f.name)
WITH_BOS = pytest.mark.parametrize("family", [f for f in FAMILIES if f.bos], ids=lambda f: f.name)
TURNS = (
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "<think>\nmusing\n</think>\n\nHello"},
    {"role": "user", "content": "ab?"},
)


@EVERY
def test_prompt_reads_as_the_family_writes_it(family: Family) -> None:
    chat = ChatTokenizer(family.tokenizer())
    assert chat.tokenizer.decode(chat.encode_prompt("Hi")) == family.asked


@CHATS
@pytest.mark.parametrize("turns", [TURNS[:1], TURNS], ids=["one turn", "three turns"])
def test_prompt_tokens_are_those_of_inference(family: Family, turns: Any) -> None:
    chat = ChatTokenizer(family.tokenizer())
    fed = chat.tokenizer.apply_chat_template(
        list(turns), tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert chat.encode_prompt(turns) == tuple(fed)


@WITH_BOS
def test_one_bos_at_the_head_of_a_prompt(family: Family) -> None:
    tokenizer = family.tokenizer()
    tokens = ChatTokenizer(tokenizer).encode_prompt("Hi")
    assert [at for at, token in enumerate(tokens) if token == tokenizer.bos_token_id] == [0]


@pytest.mark.parametrize("name", ["llama3", "gemma", "mistral"])
def test_these_families_get_two_bos_from_rendered_text(name: str) -> None:
    """Else the test above would show nothing."""
    tokenizer = FAMILY[name].tokenizer()
    assert tokenizer(FAMILY[name].asked)["input_ids"].count(tokenizer.bos_token_id) == 2


def test_thinking_is_switched_off_by_a_template_argument() -> None:
    chat = ChatTokenizer(FAMILY["qwen3"].tokenizer(), (("enable_thinking", False),))
    asked = FAMILY["qwen3"].asked + "<think>\n\n</think>\n\n"
    assert chat.tokenizer.decode(chat.encode_prompt("Hi")) == asked


@EVERY
def test_a_completion_ends_as_the_family_ends_turns(family: Family) -> None:
    chat = ChatTokenizer(family.tokenizer())
    ab, end = chat.tokenizer.convert_tokens_to_ids(["ab", family.end])
    assert chat.end_token_id == end
    assert chat.encode_completion("ab") == (ab, end)


@EVERY
def test_a_row_is_the_prompt_and_the_sampled_tokens(family: Family, tmp_path: Path) -> None:
    """Sampled as "a", "b": to decode and encode again would make another token of them."""
    chat = ChatTokenizer(family.tokenizer())
    sampled = tuple(chat.tokenizer.convert_tokens_to_ids(["a", "b", family.end]))
    assert chat.encode_completion(chat.decode(sampled)) != sampled

    batch = _batch(chat, [sampled], tmp_path)
    assert batch["input_ids"].tolist() == [[*chat.encode_prompt("Hi"), *sampled]]


@EVERY
def test_the_loss_sees_the_completion_to_its_end_token_and_nothing_else(
    family: Family, tmp_path: Path
) -> None:
    """Two rows, the first 3 tokens shorter: 3 pads, prompt, completion; pad is EOS for some families."""
    chat = ChatTokenizer(family.tokenizer())
    short, long = chat.encode_completion("ab"), chat.encode_completion("abcde")
    batch = _batch(chat, [short, long], tmp_path)
    seen = torch.zeros(batch["input_ids"].shape)
    seen[:, -batch["loss_weights"].shape[1] :] = batch["loss_weights"]

    prompt = len(chat.encode_prompt("Hi"))
    assert seen.tolist() == [[0.0] * (3 + prompt) + [1.0] * 2, [0.0] * prompt + [1.0] * 5]
    assert batch["input_ids"][:, -1].tolist() == [chat.end_token_id] * 2
    assert batch["attention_mask"].tolist() == [[0] * 3 + [1] * (prompt + 2), [1] * (prompt + 5)]


@pytest.mark.parametrize("name", ["mistral", "base without BOS"])
def test_the_pad_token_of_these_families_is_the_end_token(name: str) -> None:
    """Else the test above would not show that such an end token is learnt."""
    chat = ChatTokenizer(FAMILY[name].tokenizer())
    assert chat.pad_token_id == chat.end_token_id


@pytest.mark.parametrize("name", ["qwen3", "qwen3-2507"])
def test_sampled_thoughts_are_trained_on_as_they_are(name: str, tmp_path: Path) -> None:
    chat = ChatTokenizer(FAMILY[name].tokenizer())
    opening = "" if name == "qwen3-2507" else "<think>\n"
    thoughts = chat.encode_completion(opening + "musing\n</think>\n\nHello")
    row = _batch(chat, [thoughts], tmp_path)["input_ids"][0].tolist()
    expected = f"{FAMILY[name].asked}{opening}musing\n</think>\n\nHello<|im_end|>"
    assert chat.tokenizer.decode(row) == expected

    # while in an earlier turn the template drops them
    assert "musing" not in chat.tokenizer.decode(chat.encode_prompt(TURNS))


@pytest.mark.parametrize(
    "act",
    [lambda chat: chat.encode_prompt("Hi"), lambda chat: chat.end_token_id],
    ids=["prompt", "end token"],
)
def test_a_template_that_raises_is_a_model_error(act: Callable[[ChatTokenizer], Any]) -> None:
    tokenizer = FAMILY["gemma"].tokenizer()
    tokenizer.chat_template = "{{ raise_exception('out of order') }}"
    with pytest.raises(ModelError, match="out of order"):
        act(ChatTokenizer(tokenizer))


def test_a_role_that_the_template_refuses_is_a_model_error_with_the_roles() -> None:
    chat = ChatTokenizer(FAMILY["gemma"].tokenizer())
    with pytest.raises(ModelError, match=r"\['system', 'user'\]: System role not supported"):
        chat.encode_prompt([{"role": "system", "content": "Be brief."}, *TURNS[:1]])


def test_a_template_that_renders_nothing_is_a_model_error() -> None:
    tokenizer = FAMILY["mistral"].tokenizer()
    tokenizer.chat_template = "{% if false %}x{% endif %}"
    with pytest.raises(ModelError, match="renders nothing"):
        ChatTokenizer(tokenizer).encode_prompt("Hi")


def with_template(template: str, family: str = "qwen3") -> ChatTokenizer:
    tokenizer = FAMILY[family].tokenizer()
    tokenizer.chat_template = template
    return ChatTokenizer(tokenizer)


ENDLESS = {
    "a range of 10^9": "{% for a in range(1000000000) %}{% endfor %}",
    "10^9 in ranges within ranges": (
        "{% for a in range(100000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}"
    ),
}


@pytest.mark.parametrize("loop", ENDLESS.values(), ids=ENDLESS)
def test_a_template_with_an_endless_loop_is_refused(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_tokenizer, "_RENDER_S", 0.2)
    chat = with_template(loop + "{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(ModelError, match=r"it takes more than 0.2 s to render|Range too big"):
        chat.check()


OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TURN = "<|im_start|>{{ m.role }}\n%s<|im_end|>\n"
# of text, every letter has no `text`
PARTS = TURN % "{% for c in m.content %}{{ c.text }}{% endfor %}"


@pytest.mark.parametrize(
    "body",
    [
        "<|im_start|>{{ m.role }}<|im_end|>",
        TURN % "{{ m.text }}",
        TURN % "{{ m.content[:5] }}",
        TURN % "{{ m.content | replace('leaves', '') | replace('coins', '') }}",
        TURN % "{% for c in m.content %}{% if c.type == 'image' %}<image>{% endif %}{% endfor %}",
        TURN % "{% for c in m.content %}{{ c.caption }}{% endfor %}",
        "{{ '' }}",
    ],
)
def test_a_template_that_drops_the_text_is_refused_as_it_is_loaded(body: str) -> None:
    with pytest.raises(ModelError, match="drops the text of messages"):
        with_template(f"{{% for m in messages %}}{body}{{% endfor %}}{OPEN}").check()


@pytest.mark.parametrize(
    "body",
    [
        PARTS,
        TURN % "{{ m.content[0]['text'] }}",
        TURN % "{% for c in m.content if c.type == 'text' %}{{ c.text | trim }}{% endfor %}",
        TURN % "{{ m.content | map(attribute='text') | join('') }}",
        "{% if m.content is string %}{{ raise_exception('a list, please') }}{% endif %}" + PARTS,
    ],
)
def test_a_template_that_reads_parts_gets_parts(body: str) -> None:
    chat = with_template(f"{{% for m in messages %}}{body}{{% endfor %}}{OPEN}")
    chat.check()
    usual = ChatTokenizer(FAMILY["qwen3"].tokenizer())
    assert chat.encode_prompt(TURNS[:1]) == usual.encode_prompt(TURNS[:1])
    assert chat.end_token_id == usual.end_token_id


def test_a_template_that_takes_both_gets_text() -> None:
    both = "{% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}!{% endif %}"
    chat = with_template(f"{{% for m in messages %}}{TURN % both}{{% endfor %}}{OPEN}")
    assert "Hi<" in chat.prompt_text("Hi")


WHOLE = TURN % "{{ m.content }}"
SHORT = TURN % "{{ m.content[:9] }}"  # of what is longer, the end is gone


@pytest.mark.parametrize(
    ("body", "role"),
    [
        ("{% if m.role != 'system' %}" + WHOLE + "{% endif %}", "system"),
        ("{% if m.role != 'assistant' %}" + WHOLE + "{% endif %}", "assistant"),
        ("{% if loop.last %}" + WHOLE + "{% endif %}", "system"),
        ("{% if not loop.first or loop.last %}" + WHOLE + "{% endif %}", "system"),
        (
            "{% if m.role == 'user' %}"
            + TURN % "{{ m.content }}"
            + "{% else %}"
            + SHORT
            + "{% endif %}",
            "system",
        ),
        (
            "{% if m.role == 'assistant' %}"
            + SHORT
            + "{% else %}"
            + TURN % "{{ m.content }}"
            + "{% endif %}",
            "assistant",
        ),
        ("{% if m.role != 'user' or loop.last %}" + WHOLE + "{% endif %}", "user"),
    ],
)
def test_a_prompt_of_which_the_template_drops_a_message_is_refused(body: str, role: str) -> None:
    chat = with_template(f"{{% for m in messages %}}{body}{{% endfor %}}{OPEN}")
    chat.check()  # one question of a user alone is shown
    talk: list[Message] = [
        {"role": "system", "content": "Answer briefly, and in verse."},
        {"role": "user", "content": "How many leaves has it?"},
        {"role": "assistant", "content": "It has seven, and no more."},
        {"role": "user", "content": "And how many roots?"},
    ]
    with pytest.raises(ModelError, match=f"drops text of the {role} message"):
        chat.encode_prompt(talk)


@CHATS
def test_trimmed_and_escaped_text_is_shown(family: Family) -> None:
    chat = ChatTokenizer(family.tokenizer())
    assert "a < b" in chat.prompt_text("  a < b\n\n")
    chat.encode_prompt("  a < b\n\n")
    escaping = TURN % "{{ m.content | e }}"
    with_template(f"{{% for m in messages %}}{escaping}{{% endfor %}}").encode_prompt("a < b & c")


# --- the end of a turn

OTHER = "<|endoftext|>"


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (f"{{% for m in messages %}}{TURN % '{{ m.content }}'}{{% endfor %}}{OPEN}", "<|im_end|>"),
        # it always opens the assistant's turn
        (
            "{% for m in messages %}{{ m.content }}\n{% endfor %}<|im_start|>",
            "<|im_end|>",  # EOS
        ),
        ("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}<|im_start|>", "<|im_end|>"),
        ("{% for m in messages %}{{ m.content }}<|endoftext|>{% endfor %}<|im_start|>", "<|endoftext|>"),
        ("{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}", "<|im_end|>"),
        # it shows no answers
        (
            "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{{ m.content }}<|endoftext|>"
            "{% endif %}{% endfor %}",
            "<|im_end|>",
        ),
        (
            "{% for m in messages %}{{ m.content }}.\n<|endoftext|>\n<|im_end|>{% endfor %}",
            "<|endoftext|>",
        ),
    ],
)
def test_the_end_token_ends_the_assistants_turn(template: str, end: str) -> None:
    chat = with_template(template)
    assert chat.tokenizer.convert_ids_to_tokens(chat.end_token_id) == end


@EVERY
def test_every_family_passes_the_check(family: Family) -> None:
    ChatTokenizer(family.tokenizer()).check()


def test_a_template_that_needs_tools_gets_an_empty_list() -> None:
    tokenizer = FAMILY["qwen2.5"].tokenizer()
    tokenizer.chat_template = "{{ tools | length }}{{ functions | length }}{{ messages[0].content }}"
    assert ChatTokenizer(tokenizer).prompt_text("Hi") == "00Hi"


@CHATS
def test_special_tokens_that_data_spell_out_stay_text(family: Family) -> None:
    chat = ChatTokenizer(family.tokenizer())
    marks = "".join(family.special)
    said = f"x{marks}ab{family.end}"
    tokens, usual = chat.encode_prompt(said), chat.encode_prompt("x")
    ids = set(chat.tokenizer.convert_tokens_to_ids(list(family.special)))
    assert [token for token in tokens if token in ids] == [token for token in usual if token in ids]
    assert said in chat.tokenizer.decode(tokens)
    assert chat.encode_prompt("xab") == tuple(
        chat.tokenizer(chat.prompt_text("xab"), add_special_tokens=False)["input_ids"]
    )


def test_private_characters_of_the_data_are_kept_beside_special_tokens() -> None:
    chat = ChatTokenizer(FAMILY["qwen3"].tokenizer())
    said = "\ue000\ue001 <|im_end|> \ue002"
    assert said in chat.tokenizer.decode(chat.encode_prompt(said))


def test_the_end_token_of_the_model_stands_in_for_the_tokenizers(tmp_path: Path) -> None:
    tokenizer = FAMILY["base without BOS"].tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no end token"):
        load_tokenizer(tmp_path)
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": [{end}]}}')
    assert load_tokenizer(tmp_path).end_token_id == end


def test_a_tokenizer_without_an_end_token_is_a_model_error() -> None:
    tokenizer = FAMILY["base without BOS"].tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end token"):
        ChatTokenizer(tokenizer).encode_completion("ab")


def _batch(
    chat: ChatTokenizer, completions: list[tuple[int, ...]], folder: Path
) -> dict[str, torch.Tensor]:
    """What the M-step feeds for draws of these tokens on the problem "Hi": one batch, in their order."""
    problem = Problem("p", "Hi", "4")
    draws = [
        Draw(
            DrawKey(1, "p", 0, index),
            "plain",
            0,
            Completion(tokens, chat.decode(tokens), "stop", -1.0),
            Score(1.0, "4"),
        )
        for index, tokens in enumerate(completions)
    ]
    path = folder / "examples.parquet"
    write_examples(path, [draws], {"p": problem}, _each, Prompts(instruction=""), chat)
    data = read_examples(path, chat, context=1000)
    return Batches(data, [list(range(len(draws)))], pad=chat.pad_token_id)[0]


def _each(draws: Any, examples: Any) -> list[Example]:
    return [Example(draw) for draw in draws]


@EVERY
def test_a_thinking_block_that_the_template_opens_is_known(family: Family) -> None:
    chat = ChatTokenizer(family.tokenizer())
    opens = family.asked.endswith("<think>\n")
    assert chat.opening == ("<think>" if opens else "")
    prompts, draft = Prompts(opening=chat.opening), "Two and two.\nAnswer: 4"
    never = prompts.parse(draft)
    assert never.error == ("the thinking block is not closed" if opens else "")
    assert prompts.parse(f"Hm, 5?</think>\n\n{draft}").answer == "4"


def test_a_family_opens_the_thinking_block() -> None:
    assert any(family.asked.endswith("<think>\n") for family in FAMILIES)
