"""The shipped base model: loads as any model does, and has what the demo and other tests rely on."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.data.worlds import SEEDLING, WORLDS
from train_demo_model import Recipe, make_model, make_tokenizer, measure, pretrain  # in scripts

# Loaded once: hypothesis calls a test many times within one function-scoped fixture.
TOKENIZER = AutoTokenizer.from_pretrained(SEEDLING)


@pytest.fixture(scope="module")
def model():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield AutoModelForCausalLM.from_pretrained(SEEDLING, dtype=torch.float32).eval()
    torch.set_num_threads(threads)


def test_it_is_small_enough_to_ship():
    sizes = [file.stat().st_size for file in SEEDLING.rglob("*") if file.is_file()]
    assert sum(sizes) <= 8 * 2**20
    assert not any("old" in file.name or "building" in file.name for file in SEEDLING.parent.iterdir())


@given(st.text())
def test_any_text_comes_back_exactly(text):
    tokens = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert TOKENIZER.decode(tokens, clean_up_tokenization_spaces=False) == text


@given(st.integers(0, 10**20))
def test_each_digit_is_one_token(number):
    tokens = TOKENIZER(f"so {number}.", add_special_tokens=False)["input_ids"]
    digits = [TOKENIZER.decode([token]) for token in tokens]
    assert "".join(token for token in digits if token.isdigit()) == str(number)
    assert sum(token.isdigit() for token in digits) == len(str(number))


def test_end_and_pad_are_different_tokens_known_to_all(model):
    assert TOKENIZER.eos_token == "<|end|>"
    assert TOKENIZER.pad_token_id != TOKENIZER.eos_token_id
    for config in (model.config, model.generation_config):
        assert config.eos_token_id == TOKENIZER.eos_token_id
        assert config.pad_token_id == TOKENIZER.pad_token_id


def test_weights_and_logits_are_float32(model):
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_a_chat_is_rendered_as_it_was_trained():
    messages = [{"role": "user", "content": "What is 2 + 2?"}]
    text = TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|>What is 2 + 2?<|end|><|assistant|>"
    chat = [*messages, {"role": "assistant", "content": "Answer: 4"}]
    assert TOKENIZER.apply_chat_template(chat, tokenize=False) == f"{text}Answer: 4<|end|>"


@pytest.mark.parametrize("name", WORLDS)
def test_texts_of_the_worlds_are_short(name):
    prompts, chat = WORLDS[name].prompts(), ChatTokenizer(TOKENIZER)
    for problem in WORLDS[name].make(100, seed=20_000, difficulty=(3, 4)):
        plain = chat.encode_prompt(prompts.plain(problem))
        hinted = chat.encode_prompt(prompts.hinted(problem))
        told = TOKENIZER(WORLDS[name].solve(problem), add_special_tokens=False)["input_ids"]
        most = 50 if name == "quiz" else 30
        assert len(plain) <= most
        assert len(hinted) <= most + 7
        # a step of a judge is 4 tokens or 5, with a tally below 0; one of a sum is up to 13
        assert len(told) <= (75 if name in ("sums", "quiz") else 40)


def measured(model, name, num, seed, prompt, *, greedy=False):
    difficulty = (1, 3) if name == "sums" else None
    problems = WORLDS[name].make(num, seed=seed, difficulty=difficulty)
    return measure(model, TOKENIZER, problems, WORLDS[name].prompts(), prompt, greedy=greedy)


@pytest.mark.parametrize(
    ("name", "low", "high", "sound"),
    # 400 problems: standard deviation 0.025 at most, so each bound is about 3 of them away or more
    [("rubric", 0.28, 0.60, 0.95), ("tldr", 0.60, 0.85, 0.95), ("tldr-axis", 0.20, 0.50, 0.95)],
)
@pytest.mark.parametrize("greedy", [False, True])
def test_base_judges_as_one_whom_it_does_not_know(model, name, low, high, sound, greedy):
    plain = measured(model, name, 400, 20_000, "plain", greedy=greedy)
    assert low <= plain.accuracy <= high
    assert plain.sound_steps >= sound
    assert plain.unparsable < 0.01


@pytest.mark.parametrize(
    ("name", "reached", "sound"), [("rubric", 0.7, 0.85), ("tldr", 0.9, 0.9), ("tldr-axis", 0.6, 0.85)]
)
def test_hinted_draws_reach_the_hint_mostly_by_sound_steps(model, name, reached, sound):
    plain = measured(model, name, 400, 20_001, "plain")
    hinted = measured(model, name, 400, 20_001, "hinted")
    assert hinted.accuracy >= max(reached, plain.accuracy + 0.15)
    assert sound <= hinted.sound_steps < 0.99  # some are made up, on purpose


@pytest.mark.parametrize("name", ["sums", "quiz"])
def test_sums_leave_room_to_learn(model, name):
    plain = measured(model, name, 300, 20_002, "plain")
    assert 0.1 <= plain.accuracy <= 0.6
    assert plain.unparsable < 0.01


def test_the_shipped_tokenizer_is_the_one_that_its_script_makes():
    made = make_tokenizer(Recipe())
    assert made.get_vocab() == TOKENIZER.get_vocab()
    shipped = AutoTokenizer.from_pretrained(SEEDLING)  # afresh: measuring turns padding on
    assert made.backend_tokenizer.to_str() == shipped.backend_tokenizer.to_str()


def test_a_weaker_one_does_without_the_second_course():
    recipe = replace(Recipe(), num_steps=2, more_steps=0, batch_size=2, hidden_size=16, num_layers=1)
    loss = pretrain(recipe, make_model(recipe, TOKENIZER), TOKENIZER)
    assert 0 < loss < 2 * math.log(len(TOKENIZER))  # two steps from random weights: about the log itself
