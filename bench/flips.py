"""How often a draw differs between a batch of 1 and one of 512, by the rounding of sums alone.

    python bench/flips.py                          # the seedling
    python bench/flips.py --model DIR --draws 256 --new 64 --device cuda

Noise belongs to the draw, logits do not quite: matrix products of other shapes add in other orders.
A flip is a draw of which any token differs; later tokens then differ too, so flips are counted per
token drawn before the first difference.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
import transformers

from femtune.engines.hf.engine import TransformersEngine
from femtune.types import DrawKey, Request, Sampling
from generate import SEEDLING, pull_from


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    print(f"{'type':10} {'draws':>6} {'flipped':>8} {'tokens before':>14} {'flips a token':>14}")
    for dtype in (torch.float32, torch.bfloat16):
        wide = written(args, dtype, max_batch=512, num=args.draws)
        alone = written(args, dtype, max_batch=1, num=args.alone)
        flipped = tokens = 0
        for name, narrow in alone.items():
            same = agreement(narrow, wide[name])
            flipped += narrow != wide[name]
            tokens += min(same + 1, len(narrow))
        shown = str(dtype).removeprefix("torch.")
        print(f"{shown:10} {len(alone):6} {flipped:8} {tokens:14,} {flipped / tokens:14.1e}")


def written(
    args: argparse.Namespace, dtype: torch.dtype, max_batch: int, num: int
) -> dict[str, tuple[int, ...]]:
    """The first `num` draws' tokens by name, written `max_batch` at once."""
    engine = TransformersEngine(args.model, dtype=dtype, device=args.device, max_batch=max_batch)
    rng = random.Random(0)
    tokens = [tuple(rng.choices(range(200), k=rng.randint(8, 48))) for _ in range(num)]
    requests = [Request(DrawKey(1, str(i), 0, 0), row, i) for i, row in enumerate(tokens)]
    parts = engine.generate(pull_from(requests), Sampling(max_new_tokens=args.new))
    return {r.key.problem_id: c.tokens for part in parts for r, c in part}


def agreement(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """Tokens that two rows have in common at their start."""
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, default=SEEDLING)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--draws", type=int, default=512, help="draws in the wide batch")
    parser.add_argument("--alone", type=int, default=128, help="of these, drawn alone too")
    parser.add_argument("--new", type=int, default=64, help="tokens of the longest completion")
    return parser.parse_args()


if __name__ == "__main__":
    main()
