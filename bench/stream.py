"""Memory of `femtune sample` by number of problems: flat, as draws are stored chunk by chunk.

    python bench/stream.py               # 10,000 and 100,000 problems, a tiny model of constant answer

Each size runs in its own process through the command line; its peak resident memory is the kernel's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from femtune.data.worlds import SEEDLING


def constant_model(folder: Path) -> None:
    """A model that writes "So it is.\\nAnswer: 7" whatever it is asked."""
    tokenizer = AutoTokenizer.from_pretrained(SEEDLING)
    written = [*tokenizer("So it is.\nAnswer: 7", add_special_tokens=False)["input_ids"]]
    written.append(tokenizer.eos_token_id)
    assert len(set(written)) == len(written), "each token must occur once for this construction"
    size = len(tokenizer)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for layer in model.model.layers:  # no attention, no MLP: the next token follows from the last
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        codes = torch.nn.functional.normalize(torch.randn(size, 32), dim=1)
        model.model.embed_tokens.weight.copy_(codes)
        model.lm_head.weight.zero_()
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True
        )
        last = tokenizer(prompt, add_special_tokens=False)["input_ids"][-1]
        for before, after in zip([last, *written], written, strict=False):
            model.lm_head.weight[after] += 40 * codes[before]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def measure(num: int, folder: Path, model: Path) -> dict[str, float]:
    data = folder / f"{num}.jsonl"
    with data.open("w") as file:
        for number in range(num):
            row = {"prompt": f"Problem {number}: what is {number} + 7 - {number}?", "answer": "7"}
            file.write(json.dumps(row) + "\n")
    out = folder / f"out-{num}"
    command = [sys.executable, "-m", "femtune.cli.main", "sample", str(data), "--model", str(model)]
    command += ["--max-new-tokens", "32", "--output-dir", str(out), "--show", "quiet"]
    begun = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the run of {num} problems failed")
    metrics = json.loads((out / "iteration-001" / "metrics.json").read_text())["e_step"]
    return {
        "problems": num,
        "kept": metrics["num_kept"],
        "peak_mib": usage.ru_maxrss / 1024,
        "wall_s": time.perf_counter() - begun,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    args = parser.parse_args()
    torch.manual_seed(0)
    with TemporaryDirectory() as name:
        folder = Path(name)
        constant_model(folder / "model")
        results = [measure(num, folder, folder / "model") for num in args.sizes]
    for result in results:
        print(
            "{problems:>8,} problems  kept {kept:,}  peak {peak_mib:,.0f} MiB  {wall_s:.0f} s".format(
                **result
            )
        )
    print(f"difference: {results[-1]['peak_mib'] - results[0]['peak_mib']:,.0f} MiB")


if __name__ == "__main__":
    main()
