"""Real runs of the command line, small enough for tests: the rubric world, the seedling."""

from __future__ import annotations

from pathlib import Path

from femtune.cli.main import main

SEEDLING = ("--model", "seedling", "--max-new-tokens", "48")
JUDGE = ("--task", "judge", "--raters", "named", "--scale", "1,5")  # the rubric world's
# one pass in a few batches: by default an M-step takes 40 steps or more, most of such a run's time
SHORT_M_STEP = ("--num-train-epochs", "1", "--per-device-train-batch-size", "8")


def make_world(folder: Path, num_train: int = 24, num_test: int = 12) -> Path:
    """Ratings as train.jsonl and test.jsonl."""
    # of this seed's problems some are held out by default, however they are asked
    numbers = ["--num-train", str(num_train), "--num-test", str(num_test), "--seed", "2"]
    assert main(["world", "rubric", "--output_dir", str(folder), *numbers]) == 0
    return folder


def train_command(world: Path, run: Path, *more: str, iterations: int = 2) -> list[str]:
    """`femtune train` over three chunks of problems."""
    data = [str(world / "train.jsonl"), "--eval-data", str(world / "test.jsonl")]
    sizes = ["--iterations", str(iterations), "--chunk-size", "10", "--learning-rate", "3e-4"]
    usual = {"--bound-draws": "0", "--reader-problems": "0"}
    usual |= dict(zip(SHORT_M_STEP[::2], SHORT_M_STEP[1::2], strict=True))
    brief = [part for flag, value in usual.items() if flag not in more for part in (flag, value)]
    return ["train", *data, *SEEDLING, *JUDGE, *sizes, *brief, "--output-dir", str(run), *more]
