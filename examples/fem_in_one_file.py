"""Filtered EM in one file, without the library: what femtune does, at its plainest.

    femtune world rubric --output-dir rubric
    python examples/fem_in_one_file.py rubric/train.jsonl rubric/test.jsonl MODEL --scheme pps

MODEL is any Hugging Face causal language model with a chat template; femtune's own seedling is in
src/femtune/assets/seedling. A scheme is a list of stages (prompt, attempts); a problem leaves it at its
first right draw. What the library adds: no barrier between attempts, draws with noise of their own, a
store that survives a crash, LoRA, any data and reward, and checks of all of it.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

QUESTION = """\
Rate the response from 1 to 5, as {rater} would.

Prompt:
{prompt}

Response:
{response}

Think step by step, then end with the line "Answer: " and the rating, a whole number from 1 to 5."""
HINT = (
    "\nThe correct answer is {answer}. Give the reasoning that leads to it, so that it would "
    "convince someone who was not told; do not say that you were told."
)
SCHEMES = {
    "rejection-1": [("plain", 1)],
    "rejection-4": [("plain", 4)],
    "star": [("plain", 1), ("hinted", 1)],
    "pps": [("hinted", 1)],
}

Problem = dict  # a rated response: the question x is made of it, the answer y* is its score
Tokens = list  # of a prompt, or of a completion with its end token


def prompt_tokens(tokenizer, problem: Problem, prompt: str) -> Tokens:
    """Tokens of the plain prompt of x, or of the hinted prompt of x and y*."""
    hint = HINT.format(answer=problem["score"]) if prompt == "hinted" else ""
    messages = [{"role": "user", "content": QUESTION.format(**problem) + hint}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@torch.inference_mode()
def complete(model, tokenizer, prompts: list[Tokens], max_new_tokens: int, sample: bool) -> list[Tokens]:
    """One completion of each prompt, end token included where there is one."""
    done = []
    for begin in range(0, len(prompts), 128):
        part = prompts[begin : begin + 128]
        width = max(map(len, part))
        rows = torch.tensor([[tokenizer.pad_token_id] * (width - len(p)) + p for p in part])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part])
        out = model.generate(
            rows, attention_mask=mask, do_sample=sample, max_new_tokens=max_new_tokens, top_k=0
        )
        for row in out[:, width:].tolist():
            end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else None
            done.append(row[:end])
    return done


def is_right(tokenizer, problem: Problem, completion: Tokens) -> bool:
    """The reward: ended properly, a rationale, and then the correct answer."""
    if completion[-1] != tokenizer.eos_token_id:
        return False
    text = tokenizer.decode(completion, skip_special_tokens=True)
    found = re.fullmatch(r"(?s).*\S\s*\nAnswer: *(.+)", text.strip())
    return found is not None and found[1] == str(problem["score"])


def e_step(model, tokenizer, problems: list[Problem], scheme, max_new_tokens: int):
    """(plain prompt, completion) of each problem that the scheme solves: z, y ~ q(. | x, y*)."""
    model.eval()
    kept, unsolved = [], problems
    for prompt, attempts in scheme:
        for _ in range(attempts):
            asked = [prompt_tokens(tokenizer, problem, prompt) for problem in unsolved]
            drawn = complete(model, tokenizer, asked, max_new_tokens, sample=True)
            pairs = list(zip(unsolved, drawn, strict=True))
            right = [is_right(tokenizer, *pair) for pair in pairs]
            kept += [
                (prompt_tokens(tokenizer, problem, "plain"), completion)  # never the hinted one
                for (problem, completion), good in zip(pairs, right, strict=True)
                if good
            ]
            unsolved = [problem for problem, good in zip(unsolved, right, strict=True) if not good]
    return kept


def m_step(model, tokenizer, examples, epochs: int, batch_size: int, learning_rate: float) -> None:
    """Raise sum log pi(z, y | x) of the examples; the loss sees the completions only."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    for _ in range(epochs):
        random.shuffle(examples)
        for begin in range(0, len(examples), batch_size):
            batch = examples[begin : begin + batch_size]
            width = max(len(p) + len(c) for p, c in batch)
            pad = [width - len(p) - len(c) for p, c in batch]
            rows = [p + c + [tokenizer.pad_token_id] * n for (p, c), n in zip(batch, pad, strict=True)]
            seen = [[-100] * len(p) + c + [-100] * n for (p, c), n in zip(batch, pad, strict=True)]
            mask = [[1] * (width - n) + [0] * n for n in pad]
            logits = model(torch.tensor(rows), attention_mask=torch.tensor(mask)).logits
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), torch.tensor(seen)[:, 1:].flatten()
            )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()


def accuracy(model, tokenizer, problems: list[Problem], max_new_tokens: int) -> float:
    """Share of problems that the model answers rightly, greedily, under the plain prompt."""
    model.eval()
    asked = [prompt_tokens(tokenizer, problem, "plain") for problem in problems]
    drawn = complete(model, tokenizer, asked, max_new_tokens, sample=False)
    return sum(map(lambda p, c: is_right(tokenizer, p, c), problems, drawn)) / len(problems)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("model")
    parser.add_argument("--scheme", choices=SCHEMES, default="pps")
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    random.seed(args.seed)

    files = args.train.read_text(), args.test.read_text()
    train, test = ([json.loads(line) for line in text.splitlines()] for text in files)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    print(f"base         accuracy {accuracy(model, tokenizer, test, args.max_new_tokens):.3f}")
    for k in range(1, args.iterations + 1):
        examples = e_step(model, tokenizer, train, SCHEMES[args.scheme], args.max_new_tokens)
        m_step(model, tokenizer, examples, args.epochs, args.batch_size, args.learning_rate)
        right = accuracy(model, tokenizer, test, args.max_new_tokens)
        print(f"iteration {k}  kept {len(examples)}/{len(train)}  accuracy {right:.3f}", flush=True)


if __name__ == "__main__":
    main()
