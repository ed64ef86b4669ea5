"""Tokens per second of TransformersEngine beside transformers' generate, in turns, one core or a GPU.

    python bench/generate.py                          # the seedling
    python bench/generate.py --random 20M --dtype bfloat16
    python bench/generate.py --random 700M --vocabulary 151936 --dtype bfloat16 --device cuda
    python bench/generate.py --model DIR --new 64 --requests 512 --lengths ragged
    python bench/generate.py --model DIR --dtype bfloat16 --prompt 330 --shared 260  # worked examples

Both sides write completions of the same lengths: "ragged" ends them at random, 5 tokens to --new,
"equal" at --new. As a random model never ends by itself, ends come by cutting rows at their length:
generate is charged for the whole of each batch, and credited with the tokens before the cuts.
The engine has as many slots as it takes by default; generate is tried with several batch sizes, and
the ratio is to the best of them. Seconds are those of the process on one thread, so that neighbours
on the machine count little, and on a GPU those of the wall.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from clock import clock
from femtune.engines.hf.batch import Batch, Row
from femtune.engines.hf.engine import TransformersEngine
from femtune.types import DrawKey, Request, Sampling

SEEDLING = Path(__file__).parents[1] / "src" / "femtune" / "assets" / "seedling"


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    lengths = make_lengths(args.requests, args.new, args.lengths == "ragged")
    dtype = getattr(torch, args.dtype)
    with tempfile.TemporaryDirectory() as folder:
        weights = args.model
        if args.random:
            weights = random_model(args.random, Path(folder), args.vocabulary)
        engine = TransformersEngine(weights, dtype=dtype, device=args.device, max_batch=args.batch)
    config = engine._model.config.get_text_config()
    rng = random.Random(0)
    shared = rng.choices(range(config.vocab_size), k=args.shared)
    own = args.prompt - args.shared
    prompts = [(*shared, *rng.choices(range(config.vocab_size), k=own)) for _ in lengths]
    end_rows_at(lengths)
    rates = compared(engine, prompts, lengths, args)
    parameters = sum(weight.numel() for weight in engine._model.parameters())
    said = f", the first {args.shared} shared" if args.shared else ""
    print(f"{parameters / 1e6:.2f}M parameters, {args.dtype}, prompts of {args.prompt} tokens{said}")
    print(f"{len(lengths)} completions, {args.lengths}, mean {statistics.mean(lengths):.1f} tokens")
    if args.device == "cuda":
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for name, values in rates.items():
        shown = " ".join(f"{value:,.0f}" for value in values)
        print(f"{name:14} tokens/s  median {statistics.median(values):8,.0f}   ({shown})")
    ours, *others = (statistics.median(values) for values in rates.values())
    if others:
        print(f"ratio {ours / max(others):.2f} to generate at its best batch size")


def compared(
    engine: TransformersEngine, prompts: Sequence[Any], lengths: Sequence[int], args: argparse.Namespace
) -> dict[str, list[float]]:
    """Tokens a second in each turn, the engine's first."""
    runs = {f"femtune {engine.max_batch}": partial(run_engine, engine, prompts, args.new)}
    for batch in args.generate_batches:
        runs[f"generate {batch}"] = partial(run_generate, engine, prompts, batch)
    rates: dict[str, list[float]] = {name: [] for name in runs}
    now = clock(args.device)
    for turn in range(args.turns + 1):  # the first warms up
        for name, run in runs.items():
            start = now()
            run()
            rate = sum(lengths) / (now() - start)
            if turn:
                rates[name].append(rate)
    return rates


def random_model(size: str, folder: Path, vocabulary: int | None = None) -> Path:
    """Write a random model of Qwen 3's shape, of about `size` parameters without their embeddings.

    The vocabulary is the seedling's, or of so many tokens, most of which its tokenizer does not know.
    Layers are L of width 64 L, with heads of 64 in pairs that share their keys: 12 of each for 100M.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(SEEDLING)
    wanted = float(size.removesuffix("M")) * 1e6

    def config(layers: int) -> Any:
        return transformers.Qwen3Config(
            vocab_size=vocabulary or len(tokenizer),
            hidden_size=64 * layers,
            intermediate_size=192 * layers,
            num_hidden_layers=layers,
            num_attention_heads=layers,
            num_key_value_heads=layers // 2,
            head_dim=64,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
        )

    def parameters(layers: int) -> int:  # of the layers alone
        width = 64 * layers
        return layers * (3 * width * width + 3 * width * 3 * width)

    layers = min(range(2, 64, 2), key=lambda number: abs(parameters(number) - wanted))
    model = transformers.AutoModelForCausalLM.from_config(config(layers))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run_engine(engine: TransformersEngine, prompts: Sequence[Any], new: int) -> None:
    """All prompts through the engine; a request's id is its place, by which `end_rows_at` goes."""
    requests = [Request(DrawKey(1, str(i), 0, 0), prompt, i) for i, prompt in enumerate(prompts)]
    for _finished in engine.generate(pull_from(requests), Sampling(max_new_tokens=new)):
        pass


def pull_from(requests: list[Request]) -> Callable[[int], Sequence[Request]]:
    """Requests in their order, as the engine asks for them."""

    def pull(room: int) -> Sequence[Request]:
        given, requests[:room] = requests[:room], []
        return given

    return pull


def run_generate(engine: TransformersEngine, prompts: Sequence[Any], batch: int) -> None:
    """All prompts through model.generate, in fixed batches; prompts are equally long: no padding."""
    for start in range(0, len(prompts), batch):
        ids = torch.tensor(prompts[start : start + batch], device=engine.device)
        longest = max(Lengths.of[start : start + batch])
        engine._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            max_new_tokens=longest,
            min_new_tokens=longest,
            pad_token_id=0,
        )


class Lengths:
    """Where each completion ends."""

    of: Sequence[int] = ()


def make_lengths(num: int, longest: int, ragged: bool) -> list[int]:
    """Lengths of the completions, the same in each run."""
    rng = random.Random(1)
    return [rng.randint(5, longest) if ragged else longest for _ in range(num)]


def end_rows_at(lengths: Sequence[int]) -> None:
    """Have rows of the engine end at given lengths, and nowhere else."""

    def append(self: Batch, row: Row, token: int) -> bool:
        row.tokens.append(token)
        if len(row.tokens) == lengths[int(row.request.key.problem_id)]:
            row.finish_reason = "length"
        return row.finish_reason is not None

    Lengths.of = lengths
    Batch._append = append  # type: ignore[method-assign]  # in place of the method


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, default=SEEDLING)
    parser.add_argument("--random", metavar="20M", help="a random model of about this size instead")
    parser.add_argument("--vocabulary", type=int, help="its tokens; else the seedling's")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--requests", type=int, default=1024)
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--shared", type=int, default=0, help="first tokens that all prompts share")
    parser.add_argument("--new", type=int, default=64, help="tokens of the longest completion")
    parser.add_argument("--lengths", choices=("ragged", "equal"), default="ragged")
    parser.add_argument("--batch", type=int, help="slots of the engine; else its default")
    parser.add_argument("--generate-batches", type=int, nargs="*", default=[64, 128, 256])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--turns", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
