"""TRL's GRPOTrainer on a world's problems, for bench/end_to_end.py: an exact answer earns 1."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl

from femtune.prompts import Prompts
from femtune.rewards import exact, score
from femtune.types import Completion, Problem


def train_grpo(
    problems: Sequence[Problem],
    prompts: Prompts,
    base: Path,
    look: Callable[[Any, int], bool],
    *,
    seed: int,
    look_every: int,
    attention: str = "sdpa",
    max_new_tokens: int,
    **settings: Any,
) -> None:
    """Train until `look` says that it is over, asked each `look_every` steps with weights and tokens."""
    tokens = 0

    def reward(completions: Any, completion_ids: Any, number: Any, **_: Any) -> list[float]:
        nonlocal tokens
        tokens += sum(map(len, completion_ids))
        made = [
            Completion(tuple(ids), text[0]["content"], "stop" if ids[-1] in ends else "length", 0.0)
            for text, ids in zip(completions, completion_ids, strict=True)
        ]
        asked = [problems[i] for i in number]
        scores = score(asked, made, [False] * len(made), prompts=prompts, reward=exact())
        return [each.reward for each in scores]

    class Look(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if state.global_step % look_every == 0 and look(model, tokens):
                control.should_training_stop = True

    rows = [{"prompt": prompts.plain(problem), "number": i} for i, problem in enumerate(problems)]
    with tempfile.TemporaryDirectory() as scratch:
        config = trl.GRPOConfig(
            output_dir=scratch,
            use_cpu=True,
            seed=seed,
            max_completion_length=max_new_tokens,
            max_steps=100_000,  # `look` ends it
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            **settings,
        )
        trainer = trl.GRPOTrainer(
            transformers.AutoModelForCausalLM.from_pretrained(
                base, dtype=torch.float32, attn_implementation=attention
            ),
            reward,
            config,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=transformers.AutoTokenizer.from_pretrained(base),
            callbacks=[Look()],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        ends = set(trainer.eos_token_ids)
        trainer.train()
