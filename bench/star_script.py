"""A STaR script for bench/end_to_end.py: `generate` in fixed batches, then TRL's SFTTrainer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl

from femtune.data.prompts import Prompts
from femtune.rewards.builtin import exact, score
from femtune.types import Completion, Message, Problem


def train_script(
    problems: Sequence[Problem],
    prompts: Prompts,
    base: Path,
    look: Callable[[Any, int], bool],
    *,
    seed: int,
    max_new_tokens: int,
    attempts: int = 1,
    hint: bool = True,
    from_base: bool = False,
    generate_batch: int = 256,
    train_attention: str = "sdpa",
    **settings: Any,
) -> None:
    """Draw, keep what is right, fine-tune, until `look` says that it is over.

    Each unsolved problem is asked up to `attempts` times, and then once with its answer as a hint.
    """
    transformers.set_seed(seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokens, over = 0, False
    while not over:
        unsolved, rows = list(problems), []
        for hinted in [False] * attempts + [True] * hint:
            render = prompts.hinted if hinted else prompts.plain
            still = []
            for begin in range(0, len(unsolved), generate_batch):
                part = unsolved[begin : begin + generate_batch]
                made = complete(model, tokenizer, [render(p) for p in part], max_new_tokens)
                tokens += sum(len(each.tokens) for each in made)
                graded = score(part, made, [hinted] * len(part), prompts=prompts, reward=exact())
                for problem, each, mark in zip(part, made, graded, strict=True):
                    if mark.reason:
                        still.append(problem)
                    else:
                        answer = [{"role": "assistant", "content": each.text}]
                        rows.append({"prompt": prompts.plain(problem), "completion": answer})
            unsolved = still
        if from_base:
            model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model.set_attn_implementation(train_attention)
        model = fine_tune(model, tokenizer, rows, seed=seed, **settings)
        model.set_attn_implementation("sdpa")  # which is faster with a cache
        over = look(model, tokens)


@torch.inference_mode()
def complete(
    model: Any, tokenizer: Any, asked: Sequence[Sequence[Message]], max_new_tokens: int
) -> list[Completion]:
    """One batch, sampled at temperature 1 from all tokens."""
    inputs = tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    out = model.eval().generate(
        **inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=max_new_tokens
    )
    made = []
    for row in out[:, inputs["input_ids"].shape[1] :].tolist():
        stopped = tokenizer.eos_token_id in row
        row = row[: row.index(tokenizer.eos_token_id) + 1] if stopped else row
        text = tokenizer.decode(row, skip_special_tokens=True)
        made.append(Completion(tuple(row), text, "stop" if stopped else "length", 0.0))
    return made


def fine_tune(model: Any, tokenizer: Any, rows: list[dict[str, Any]], **settings: Any) -> Any:
    """The model, trained on prompts and completions."""
    with tempfile.TemporaryDirectory() as scratch:
        config = trl.SFTConfig(
            output_dir=scratch,
            use_cpu=True,
            completion_only_loss=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            **settings,
        )
        data = datasets.Dataset.from_list(rows)
        trainer = trl.SFTTrainer(model, config, train_dataset=data, processing_class=tokenizer)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return trainer.model
