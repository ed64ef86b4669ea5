"""Trained tokens per second of femtune's M-step beside TRL's SFTTrainer, in turns, one thread or a GPU.

    python bench/mstep.py                          # the seedling
    python bench/mstep.py --model DIR --batch 8 --examples 64 --memory
    python bench/mstep.py --random 700M --device cuda --examples 512

All sides train the same model on the same token ids for the same epochs at the same learning rate.
`Trainer.train()` alone is timed, in processor seconds and not by the wall, as machines are shared (on a
GPU by the wall): loading, tokenizing and saving do not count. A trained token is one of a prompt or
completion that was fed; padding is none. The sides:

    femtune            batches of 32, as all results were measured with, or --batch; bf16 by default
    femtune, float32   the same with bf16=False; on a CPU
    TRL                SFTConfig() as it is: 8 rows a batch, bf16 autocast, gradient checkpointing
    TRL, our batch     the same with femtune's number of rows a batch
    TRL, float32       SFTConfig() with bf16=False, as femtune has it on a CPU; not on a GPU
    TRL, nearest       femtune's numbers and batch, no checkpointing, rows grouped by length

Only `max_length=None` (no row is cut), `use_cpu`, and no saving or tracking are set everywhere. A CPU
without avx512_bf16 emulates bfloat16 slowly: the third and fourth rows of TRL tell what is left then.
`--memory` shows the process's peak memory in each side's last turn, with loading and saving.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
import trl

from clock import clock
from femtune._util.safetensors_header import stored_dtype
from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.engines.hf.memory import give_back
from femtune.mstep.config import Training
from femtune.mstep.fit import m_step
from generate import SEEDLING, random_model

# transformers is renaming it
NAMES = ("activation_checkpointing", "gradient_checkpointing")
CHECKPOINTING = next(name for name in NAMES if name in trl.SFTConfig.__dataclass_fields__)
Rows = list[dict[str, list[int]]]


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)  # TRL uses a name of transformers' past
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as scratch:
        model = args.model
        if args.random:
            model = random_model(args.random, Path(scratch) / "model", args.vocabulary)
        rows = make_rows(args.examples, model)
        tokens = args.epochs * sum(len(row["prompt"]) + len(row["completion"]) for row in rows)
        sides = make_sides(rows, model, Path(scratch), args)
        sides = {name: sides[name] for name in args.sides or sides}
        rates: dict[str, list[float]] = {name: [] for name in sides}
        peaks: dict[str, int] = {}
        if args.device == "cuda":  # which is slower when it does a thing first
            for warm_up in sides.values():
                warm_up()
        for _ in range(args.turns):
            for name, seconds in sides.items():
                reset_peak()
                rates[name].append(tokens / seconds())
                peaks[name] = peak_bytes()
                give_back(torch.device(args.device))
                print(f"{name} {rates[name][-1]:,.0f}", file=sys.stderr)
        show(rates, rows, tokens, model, args)
        if args.memory:
            print(
                "peak memory:", ", ".join(f"{name} {peak / 1e9:.2f} GB" for name, peak in peaks.items())
            )


def reset_peak() -> None:
    """Start Linux's record of the process's peak memory again."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Return the process's peak memory since then."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def make_rows(num: int, model: Path) -> Rows:
    """Random prompts and completions, together 24 to 256 tokens, log-normal around 80."""
    rng = random.Random(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    plain = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))
    rows = []
    for _ in range(num):
        length = min(256, max(24, round(rng.lognormvariate(4.4, 0.6))))
        prompt = max(8, round(length * rng.uniform(0.2, 0.6)))
        ids = rng.choices(plain, k=length - 1)
        rows.append({"prompt": ids[:prompt], "completion": [*ids[prompt:], tokenizer.eos_token_id]})
    return rows


def make_sides(
    rows: Rows, model: Path, scratch: Path, args: argparse.Namespace
) -> dict[str, Callable[[], float]]:
    """A function for each side that trains from scratch and gives the seconds of training alone."""
    examples = scratch / "examples.parquet"
    pq.write_table(
        pa.table({f"{name}_tokens": [row[name] for row in rows] for name in ("prompt", "completion")}),
        examples,
    )
    cpu = args.device == "cpu"
    batch = args.batch
    training = Training(
        num_train_epochs=args.epochs,
        learning_rate=args.rate,
        per_device_train_batch_size=batch,
        use_cpu=cpu,
    )
    tokenizer = ChatTokenizer(transformers.AutoTokenizer.from_pretrained(model))

    def ours(training: Training = training) -> float:
        with tempfile.TemporaryDirectory() as out, train_timed(args.device) as seconds:
            m_step(examples, model, Path(out), training, tokenizer, seed=0)
        return seconds[0]

    def theirs(**settings: Any) -> Callable[[], float]:
        settings |= {"num_train_epochs": args.epochs, "learning_rate": args.rate}
        return lambda: sft(rows, model, scratch, args.device, **settings)

    return {
        "femtune": ours,
        **({"femtune, float32": lambda: ours(replace(training, bf16=False))} if cpu else {}),
        "TRL": theirs(),
        "TRL, our batch": theirs(per_device_train_batch_size=batch),
        **({"TRL, float32": theirs(bf16=False)} if cpu else {}),
        "TRL, nearest": theirs(
            bf16=training.computes_in_bf16(stored_dtype(model)),
            per_device_train_batch_size=batch,
            train_sampling_strategy="group_by_length",
            **{CHECKPOINTING: False},
        ),
    }


def sft(rows: Rows, model: Path, scratch: Path, device: str, **settings: Any) -> float:
    """Seconds of one SFTTrainer.train() on rows that are tokenized already."""
    config = trl.SFTConfig(
        output_dir=str(scratch / "sft"),
        use_cpu=device == "cpu",
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        max_length=None,
        **settings,
    )
    data = datasets.Dataset.from_list(
        [
            {
                "input_ids": row["prompt"] + row["completion"],
                "completion_mask": [0] * len(row["prompt"]) + [1] * len(row["completion"]),
            }
            for row in rows
        ]
    )
    trainer = trl.SFTTrainer(
        transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        config,
        train_dataset=data,
        processing_class=transformers.AutoTokenizer.from_pretrained(model),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    with train_timed(device) as seconds:
        trainer.train()
    return seconds[0]


@contextmanager
def train_timed(device: str) -> Iterator[list[float]]:
    """Seconds of each Trainer.train() within: a processor's for all threads together, or of the wall."""
    train, seconds, now = transformers.Trainer.train, list[float](), clock(device)

    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:
        begun = now()
        result = train(self, *args, **kwargs)
        seconds.append(now() - begun)
        return result

    transformers.Trainer.train = timed
    try:
        yield seconds
    finally:
        transformers.Trainer.train = train


def show(
    rates: dict[str, list[float]], rows: Rows, tokens: int, model: Path, args: argparse.Namespace
) -> None:
    """The table, under what was measured on what."""
    lengths = [len(row["prompt"]) + len(row["completion"]) for row in rows]
    network = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.from_pretrained(model)
    )
    versions = ("torch", "transformers", "trl", "accelerate")
    print(", ".join(f"{name} {version(name)}" for name in versions), end="; ")
    cpu = args.device == "cpu"
    print(torch.backends.cpu.get_cpu_capability() if cpu else torch.cuda.get_device_name(), end="; ")
    print(f"1 thread, {args.turns} turns, {args.epochs} epochs, learning rate {args.rate}")
    print(f"{type(network).__name__}, {network.num_parameters() / 1e6:.2f}M parameters;", end=" ")
    print(f"{len(rows)} examples of {min(lengths)} to {max(lengths)} tokens,", end=" ")
    print(f"mean {statistics.mean(lengths):.0f}; {tokens:,} trained tokens a turn")
    ours = statistics.median(rates["femtune"])
    for name, values in rates.items():
        median = statistics.median(values)
        spread = " ".join(f"{value:,.0f}" for value in values)
        print(f"{name:16} {median:8,.0f} tokens/s   femtune is {ours / median:5.2f} x   ({spread})")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=SEEDLING)
    parser.add_argument("--random", metavar="20M", help="a random model of about this size instead")
    parser.add_argument("--vocabulary", type=int, help="its tokens; else the seedling's")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--sides", nargs="*", help='some of them, as "TRL, nearest"; femtune among them')
    parser.add_argument("--examples", type=int, default=192)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32, help="rows of a batch")
    parser.add_argument("--memory", action="store_true", help="show each side's peak memory")
    return parser.parse_args()


if __name__ == "__main__":
    main()
