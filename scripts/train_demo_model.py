"""Make the demo model that ships with the package, the seedling: tokenizer, weights and card.

    python scripts/train_demo_model.py --out src/femtune/assets/seedling

It is trained on the worlds (synthetic tasks), under the plain and the hinted prompt, to write valid
steps, with errors at known rates. It learns some raters by name. For all others, including those of
the worlds, it learns only a broad prior, because each of their lessons has a rater with new weights.
The weights of a world's rater remain to be learned by filtered EM.

Files in `--out`: config.json, generation_config.json, model.safetensors, tokenizer.json,
tokenizer_config.json, chat_template.jinja, README.md (the card, with the numbers measured here).
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from demo_model_lessons import KNOWN, Lesson, Recipe, lessons  # beside this file
from femtune.data.prompts import Prompts
from femtune.data.worlds import SEEDLING, WORLDS
from femtune.types import Problem

END, PAD, SYSTEM, USER, ASSISTANT = SPECIAL = (
    "<|end|>",
    "<|pad|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# One digit, or a clause with its punctuation and the line break before it.
PIECE = r"[0-9]|[.?!]*\n?[^0-9\n.?!]+[.?!]*|[.?!\n]+"


def make_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """Make a byte-level BPE tokenizer with one token for each frequent clause of the worlds.

    It has three layers, so that any text is encoded and decoded exactly: 256 bytes, merges of letters
    within words, and whole clauses, which `ignore_merges` looks up before it tries merges. Each digit
    is a token of its own.
    """
    texts = []
    stream = lessons(recipe, random.Random(f"tokenizer {recipe.seed}"))
    for _, lesson in zip(range(24000), stream, strict=False):
        texts += [lesson.messages[0]["content"], lesson.completion]
    letters = Tokenizer(models.BPE())
    letters.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("[0-9]"), "isolated"), pre_tokenizers.ByteLevel(False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=256 + recipe.num_merges, initial_alphabet=alphabet, show_progress=False
    )
    letters.train_from_iterator(texts, trainer)
    model = json.loads(letters.to_str())["model"]
    vocab = {token: len(SPECIAL) + rank for token, rank in model["vocab"].items()}

    pieces = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECE), "isolated"),
            pre_tokenizers.ByteLevel(False, use_regex=False),
        ]
    )
    counts = Counter(piece for text in texts for piece, _ in pieces.pre_tokenize_str(text))
    for piece, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if count >= recipe.min_clause_count:
            vocab.setdefault(piece, len(SPECIAL) + len(vocab))

    vocab |= {token: rank for rank, token in enumerate(SPECIAL)}
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pieces
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=recipe.max_position_embeddings,
    )


def make_model(recipe: Recipe, tokenizer: Any) -> LlamaForCausalLM:
    """Make a small Llama with random weights and the tokenizer's vocabulary."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_heads,
        intermediate_size=recipe.intermediate_size,
        max_position_embeddings=recipe.max_position_embeddings,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.04,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=128,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def pretrain(recipe: Recipe, model: LlamaForCausalLM, tokenizer: Any) -> float:
    """Train on both phases of lessons; return the mean loss of the last 100 steps, in nats per token.

    With more_steps=0 there is no second phase, and the model is weaker.
    """
    first = lessons(recipe, random.Random(f"lessons {recipe.seed}"))
    loss = teach(model, tokenizer, first, recipe, recipe.num_steps, recipe.learning_rate)
    if recipe.more_steps == 0:
        return loss
    more = lessons(recipe, random.Random(f"more lessons {recipe.seed}"))
    return teach(model, tokenizer, more, recipe, recipe.more_steps, recipe.more_learning_rate)


def teach(
    model: LlamaForCausalLM,
    tokenizer: Any,
    stream: Iterator[Lesson],
    recipe: Recipe,
    num_steps: int,
    learning_rate: float,
) -> float:
    """Train on a phase of lessons, with the loss on completions only.

    Returns the mean loss of the last 100 steps, in nats per token.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98))
    warmup = max(1, min(100, num_steps // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.02 + 0.98 * (1 - step / num_steps)),
    )
    losses: list[float] = []
    model.train()
    started = time.monotonic()
    for step, (tokens, labels) in enumerate(_batches(recipe, tokenizer, stream)):
        if step == num_steps:
            break
        mask = (tokens != tokenizer.pad_token_id).long()
        loss = model(input_ids=tokens, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 500 == 499:
            recent = sum(losses[-100:]) / 100
            seconds = time.monotonic() - started
            print(f"step {step + 1}: loss {recent:.4f}, {seconds:.0f} s", flush=True)
    model.eval()
    return sum(losses[-100:]) / max(1, len(losses[-100:]))


def _batches(
    recipe: Recipe, tokenizer: Any, stream: Iterator[Lesson]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield right-padded tokens and labels, both of shape (batch, length); label -100 means no loss.

    A batch holds lessons of similar length.
    """
    rng = random.Random(recipe.seed)
    while True:
        pool = [next(stream) for _ in range(32 * recipe.batch_size)]
        prompts = tokenizer.apply_chat_template(
            [list(lesson.messages) for lesson in pool], tokenize=False, add_generation_prompt=True
        )
        asked = tokenizer(prompts)["input_ids"]
        told = tokenizer([lesson.completion + END for lesson in pool])["input_ids"]
        pairs = sorted(zip(asked, told, strict=True), key=lambda pair: len(pair[0]) + len(pair[1]))
        starts = list(range(0, len(pairs), recipe.batch_size))
        rng.shuffle(starts)
        for start in starts:
            batch = pairs[start : start + recipe.batch_size]
            width = max(len(x) + len(z) for x, z in batch)
            tokens = torch.full((len(batch), width), tokenizer.pad_token_id)
            labels = torch.full((len(batch), width), -100)
            for row, (x, z) in enumerate(batch):
                tokens[row, : len(x) + len(z)] = torch.tensor(x + z)
                labels[row, len(x) : len(x) + len(z)] = torch.tensor(z)
            yield tokens, labels


@dataclass(frozen=True)
class Measured:
    """Measurements of a model on problems; shares are from 0 to 1."""

    accuracy: float
    sound_steps: float
    unparsable: float
    tokens_per_prompt: float
    tokens_per_completion: float


@torch.no_grad()
def measure(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    prompts: Prompts,
    prompt: str,
    *,
    greedy: bool = False,
    seed: int = 0,
) -> Measured:
    """Draw and grade one completion for each problem under a prompt ("plain" or "hinted")."""
    texts = tokenizer.apply_chat_template(
        [list(prompts.render(prompt, problem)) for problem in problems],
        tokenize=False,
        add_generation_prompt=True,
    )
    inputs = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    torch.manual_seed(seed)
    sampling = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    settings = {"do_sample": False} if greedy else {"do_sample": True, **sampling}
    output = model.generate(**inputs, **settings, max_new_tokens=128)
    told = output[:, inputs["input_ids"].shape[1] :]
    right = unparsable = 0
    sound: list[bool] = []
    for problem, text in zip(
        problems, tokenizer.batch_decode(told, skip_special_tokens=True), strict=True
    ):
        parsed = prompts.parse(text)
        right += parsed.answer == problem.answer
        unparsable += parsed.error != ""
        world = WORLDS[problem.columns["world"]]
        sound += world.check(problem, parsed.rationale, parsed.answer)
    num = len(problems)
    return Measured(
        accuracy=right / num,
        sound_steps=sum(sound) / len(sound),
        unparsable=unparsable / num,
        tokens_per_prompt=inputs["attention_mask"].sum().item() / num,
        tokens_per_completion=(told != tokenizer.pad_token_id).sum().item() / num,
    )


def measure_all(model: Any, tokenizer: Any, num_problems: int = 1000) -> dict[str, Measured]:
    """Measure held-out problems of each world, under each prompt, sampled and greedy, for the card."""
    rows = {}
    for name in ("rubric", "tldr", "tldr-axis", "sums", "quiz"):
        world = WORLDS[name]
        difficulty = (1, 3) if name == "sums" else world.difficulty
        problems, prompts = world.make(num_problems, seed=10_000, difficulty=difficulty), world.prompts()
        for prompt in ("plain", "hinted"):
            for how in ("sampled", "greedy"):
                row = measure(model, tokenizer, problems, prompts, prompt, greedy=how == "greedy")
                rows[f"{name} | {prompt} | {how}"] = row
    return rows


CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [femtune, toy]
---
# The seedling

A language model of {parameters:,} parameters for demos and tests of femtune, made by

    python scripts/train_demo_model.py --seed {recipe.seed}

in {minutes:.0f} minutes on {threads} CPU thread(s), from random weights and no data but the synthetic
worlds: {lessons:,} lessons, final loss {loss:.3f} nats per token. Llama
architecture, float32, {tokens} tokens, context {recipe.max_position_embeddings}.

**It has learned** the form of rationales and answers in all worlds, to write steps that follow from
each other, and to reach an answer that the prompt gives (the hinted prompt). It errs by design. A
step is wrong with probability {recipe.slip} in judging and {recipe.sums_slip} in `sums` (only
without a hint). Of its hinted rationales, {recipe.made_up:.0%} reach the hint by a wrong step.

**It has not learned** the weights of the humans in `rubric` and `tldr`. It knows {known} other raters
by name, but each lesson of an unknown rater had new weights: 0, 1, 2 with probabilities
{recipe.weight_prior}. It knows no other English, but encodes and decodes any text exactly.

Measured on {num_problems} held-out problems each (sums: 1 to 3 digits), at
temperature 1 and greedy. Sound steps: the share of steps that `World.check` finds valid. Hinted
accuracy: the share of completions that reach the given answer.

| world | prompt | decoding | accuracy | sound steps | unparsable | prompt tokens | completion tokens |
|---|---|---|---|---|---|---|---|
{table}
"""


def write_card(recipe: Recipe, model: Any, tokenizer: Any, loss: float, seconds: float) -> str:
    """Write the model card, with measurements of this model."""
    num_problems = 1000
    table = "\n".join(
        f"| {name} | {row.accuracy:.3f} | {row.sound_steps:.3f} | {row.unparsable:.3f}"
        f" | {row.tokens_per_prompt:.1f} | {row.tokens_per_completion:.1f} |"
        for name, row in measure_all(model, tokenizer, num_problems).items()
    )
    return CARD.format(
        parameters=model.num_parameters(),
        known=len(KNOWN),
        recipe=recipe,
        minutes=seconds / 60,
        threads=torch.get_num_threads(),
        lessons=(recipe.num_steps + recipe.more_steps) * recipe.batch_size,
        loss=loss,
        tokens=len(tokenizer),
        num_problems=num_problems,
        table=table,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Make the seedling, the demo model: tokenizer, model and card."
    )
    parser.add_argument("--out", type=Path, default=SEEDLING, help="folder of the model")
    parser.add_argument("--steps", type=int, default=Recipe.num_steps, help="steps of phase 1")
    parser.add_argument("--more-steps", type=int, default=Recipe.more_steps, help="steps of phase 2")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="seed of all draws")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    recipe = replace(Recipe(), num_steps=args.steps, more_steps=args.more_steps, seed=args.seed)
    started = time.monotonic()
    tokenizer = make_tokenizer(recipe)
    model = make_model(recipe, tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens", flush=True)
    loss = pretrain(recipe, model, tokenizer)
    card = write_card(recipe, model, tokenizer, loss, time.monotonic() - started)
    print(card)

    # write beside the final place first, so that nobody loads half a model
    out: Path = args.out
    building, old = (out.with_name(f".{out.name}-{suffix}") for suffix in ("building", "old"))
    for folder in (building, old):
        shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(building)
    tokenizer.backend_tokenizer.no_padding()  # measuring has turned padding on
    tokenizer.save_pretrained(building)
    (building / "README.md").write_text(card, encoding="utf-8")
    for file in building.iterdir():
        file.chmod(0o644)  # safetensors makes files that only the owner can read
    if out.exists():
        out.rename(old)
    building.rename(out)
    shutil.rmtree(old, ignore_errors=True)


if __name__ == "__main__":
    main()
