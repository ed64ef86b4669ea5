"""Compare `femtune estimate` with what runs take: seconds and tokens of E-steps and M-steps.

    OMP_NUM_THREADS=1 python bench/plan.py
    OMP_NUM_THREADS=1 python bench/plan.py --only star 14M --measure 64

Each case is planned three times, then run by `femtune.train`:

    here        the cost model on this machine, all else assumed (half right, half of max_new_tokens)
    told        the same with --right, --hinted-right, --tokens-per-draw of the run's first iteration
    measured    --measure N

Seconds are processor seconds of one thread, for plans and runs alike, as machines are shared: the clock
that femtune reads is exchanged for that of the process. On an idle machine they are seconds. The model
of 14M parameters has random weights but for its head: it writes one sentence and "Answer: 7". Where
torch sees a GPU, seconds are those of the wall, and a model of 0.7B is tried too.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from femtune import train
from femtune.comparison.demo import write_world
from femtune.data.worlds import SEEDLING
from femtune.runs.draws import read_draws
from femtune.tools.estimate.estimate import EstimateOptions, RunEstimate, look_ahead
from femtune.workflows.keywords import train_settings

M_STEP = {"learning_rate": 3e-4, "num_train_epochs": 2, "per_device_train_batch_size": 32}
RUBRIC = {
    "task": "judge",
    "raters": "named",
    "scale": "1,5",
    "max_new_tokens": 64,
    **M_STEP,
}
SUMS = {"task": "math", "max_new_tokens": 128, **M_STEP}
SENTENCE = "So it is.\nAnswer: 7"


@dataclass(frozen=True)
class Case:
    name: str
    world: str  # rubric, sums, or sevens: problems whose answer is 7
    options: dict[str, Any]
    scheme: str
    model: str = "seedling"
    more: dict[str, Any] = field(default_factory=dict)
    on_gpu: bool = False  # not on a CPU


CASES = (
    Case("rubric, rejection:4", "rubric", RUBRIC, "rejection:4", more={"iterations": 2}),
    Case("rubric, star", "rubric", RUBRIC, "star", more={"iterations": 2}),
    Case("rubric, pps", "rubric", RUBRIC, "pps", more={"iterations": 2}),
    Case("sums, rejection:4", "sums", SUMS, "rejection:4", more={"iterations": 1}),
    Case("14M, rejection:1", "sevens", {"max_new_tokens": 32}, "rejection:1", "14M", {"iterations": 1}),
    Case(
        "0.7B, rejection:1",
        "sevens",
        {"max_new_tokens": 32, "bound_draws": 0},
        "rejection:1",
        "0.7B",
        {"iterations": 1},
        on_gpu=True,
    ),
)
# width, layers, heads, the MLP's width
SHAPES = {"14M": (384, 8, 6, 1024), "0.7B": (1536, 24, 12, 4096)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="*", help="cases whose name holds one of these")
    parser.add_argument("--measure", type=int, default=64)
    args = parser.parse_args()
    gpu = torch.cuda.is_available()
    if not gpu:
        time.perf_counter = time.process_time
    torch.set_num_threads(1)
    print(f"{'':<22}{'':<10}{'E-step':>17}{'':>17}{'M-step':>17}{'':>17}{'evaluation':>13}")
    print(f"{'':<32}" + f"{'tokens':>9}{'':>8}{'s':>9}{'':>8}" * 2 + f"{'s':>9}")
    with tempfile.TemporaryDirectory() as scratch:
        for case in CASES:
            asked = not args.only or any(word in case.name for word in args.only)
            if asked and (gpu or not case.on_gpu):
                compare(case, Path(scratch) / case.name.replace(":", "-"), args.measure)


def compare(case: Case, folder: Path, measure: int) -> None:
    folder.mkdir()
    data, held = sevens(folder) if case.world == "sevens" else write_world(case.world, folder, 400, 200)
    model = case.model
    if model in SHAPES:
        model = str(large_model(folder / "model", *SHAPES[model]))
    options = {**case.options, **case.more, "scheme": case.scheme, "eval_data": str(held)}
    settings = train_settings(options)
    plans = {
        "here": look_ahead(data, model, settings),
        "measured": look_ahead(data, model, settings, EstimateOptions(measure=measure)),
    }
    begun = time.perf_counter()
    result = train(data, model, output_dir=folder / "run", progress="quiet", **options)
    whole_s = time.perf_counter() - begun
    plans["told"] = look_ahead(data, model, settings, told(result.run / "iteration-001" / "draws"))
    steps = [metrics for metrics in result.history if "e_step" in metrics]
    run = [
        *total(steps, "e_step", "generated_tokens", "total_s"),
        *total(steps, "m_step", "trained_tokens", "seconds"),
        sum(metrics["evaluation"]["total_s"] for metrics in result.history),
    ]
    print(f"{case.name:<22}{'run':<10}" + "".join(f"{value:>9,.{d}f}{'':>8}" for value, d in shown(run)))
    for name in ("here", "told", "measured"):
        found = foretold(plans[name])
        cells = [
            f"{value:>9,.{d}f} {value / true:>5.2f}x "
            for (value, d), true in zip(shown(found), run, strict=True)
        ]
        print(
            f"{'':<22}{name:<10}"
            + "".join(cells)
            + f"   the run {plans[name].seconds:.1f} s ({plans[name].seconds / whole_s:.2f}x)"
        )
    print(f"{'':<22}all of it took {whole_s:.1f} s", flush=True)


def total(steps: list[dict[str, Any]], part: str, *names: str) -> list[float]:
    return [sum(metrics[part][name] for metrics in steps) for name in names]


def shown(numbers: list[float]) -> list[tuple[float, int]]:
    return list(zip(numbers, (0, 1, 0, 1, 1), strict=True))


def foretold(plan: RunEstimate) -> list[float]:
    drawn, fitted = plan.whole["E-step"], plan.whole["M-step"]
    return [drawn.tokens, drawn.seconds, fitted.tokens, fitted.seconds, plan.whole["evaluation"].seconds]


def told(folder: Path) -> EstimateOptions:
    """What an iteration's draws say of shares and lengths."""
    draws = [draw for chunk, _ in read_draws(folder) for draw in chunk]
    options = EstimateOptions(
        tokens_per_draw=sum(len(draw.completion.tokens) for draw in draws) / len(draws)
    )
    for prompt, name in (("plain", "right"), ("hinted", "hinted_right")):
        first = [draw.accepted for draw in draws if draw.prompt_kind == prompt and draw.key.index == 0]
        if first:
            options = replace(options, **{name: sum(first) / len(first)})
    return options


def sevens(folder: Path) -> tuple[Path, Path]:
    """Problems whose answer is 7, to train on and held out."""
    files = folder / "train.jsonl", folder / "test.jsonl"
    for file, begin, end in ((files[0], 0, 128), (files[1], 128, 160)):
        rows = (
            f"Problem {n}: what is {n} + 7 - {n}? " + "Think of it in as many ways as you can. " * 2
            for n in range(begin, end)
        )
        file.write_text("".join(f'{{"prompt": "{row.strip()}", "answer": "7"}}\n' for row in rows))
    return files


def large_model(folder: Path, width: int, layers: int, heads: int, inner: int) -> Path:
    """A Llama of some shape that writes SENTENCE, whatever it is asked, with full products."""
    tokenizer = AutoTokenizer.from_pretrained(SEEDLING)
    written = [*tokenizer(SENTENCE, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert len(set(written)) == len(written), "each token must occur once for this construction"
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for layer in model.model.layers:  # what attention and MLP say counts nothing
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        codes = torch.nn.functional.normalize(torch.randn(len(tokenizer), width), dim=1)
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
    return folder


if __name__ == "__main__":
    main()
