"""The M-step on tiny random models: its loss, its gradient, and the folder that it leaves."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.engines import dtypes
from femtune.engines.weight_check import NUM_PAIRS, ROUNDING, WeightCheck, check_served, read_check
from femtune.errors import ConfigError, DataError, EngineError, FemtuneError, ModelError, RunError
from femtune.mstep import fit, memory, model, trainer
from femtune.mstep.average import Mean, mean_before
from femtune.mstep.config import Training
from femtune.mstep.fit import MStep, m_step

from ..models import FAMILIES, tiny_model

Row = tuple[list[int], list[int], float]  # prompt, completion, weight
END = 257  # </s> of the byte tokenizer
A: Row = ([10, 20, 30, 40, 50, 60], [70, 80, END], 1.0)
B: Row = ([15], [25, 35, 45, 55, 65, 75, 85, 95, 105, END], 1.0)
C: Row = ([11, 21, 31], [END], 1.0)
ROWS = [A, B, C]
ONE_PASS: dict[str, Any] = {  # all rows in one step, unless a test says otherwise
    "num_train_epochs": 1,
    "per_device_train_batch_size": 32,
    "learning_rate": 2e-5,
    "use_cpu": True,
}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}  # gpt2 alone has any


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("start"), sharpness=0.5)


# The loss


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_that_of_rows_fed_one_by_one(family: str, tmp_path: Path) -> None:
    """-sum w log pi / sum |w| length, each row without padding or mask, as a plain forward sees it.

    The three rows are one batch, padded to 11 columns; window attention and learnt positions included.
    """
    dropout = NO_DROPOUT if family == "gpt2" else {}
    model = tiny_model(tmp_path / "start", family, sharpness=0.5, **dropout)
    rows = _weighted(1.0, 2.5, -0.5)
    logprobs = [logprob(model, row) for row in rows]
    expected = -(logprobs[0] + 2.5 * logprobs[1] - 0.5 * logprobs[2]) / (3 + 2.5 * 10 + 0.5 * 1)
    assert train(model, tmp_path, rows).loss == pytest.approx(expected, rel=1e-5)


def test_training_lowers_the_loss_and_raises_the_examples(start: Path, tmp_path: Path) -> None:
    losses: list[float] = []
    train(
        start,
        tmp_path,
        ROWS,
        on_step=lambda step, steps, loss: losses.append(loss),
        num_train_epochs=30,
        learning_rate=3e-3,
    )
    assert losses[-1] < 0.5 * losses[0]
    for row in ROWS:
        assert logprob(tmp_path / "out", row) > logprob(start, row)


# The gradient


def test_weight_two_is_the_row_twice(start: Path, tmp_path: Path) -> None:
    twice = gradient(start, tmp_path / "1", _weighted(2.0, 1.0, 1.0))
    assert_same(twice, gradient(start, tmp_path / "2", [A, A, B, C]))


def test_weight_zero_is_the_row_absent(start: Path, tmp_path: Path) -> None:
    without = gradient(start, tmp_path / "1", _weighted(1.0, 0.0, 1.0))
    assert_same(without, gradient(start, tmp_path / "2", [A, C]))


def test_a_negative_weight_flips_the_gradient(start: Path, tmp_path: Path) -> None:
    flipped = gradient(start, tmp_path / "1", [(*A[:2], -1.0)])
    assert_same(-flipped, gradient(start, tmp_path / "2", [A]))


def test_a_step_s_gradient_is_the_weighted_mean_over_tokens(start: Path, tmp_path: Path) -> None:
    """A alone has 3 tokens and B alone 10, so A and -2 B are (3 a - 20 b) / (3 + 20) together."""
    a = gradient(start, tmp_path / "a", [A])
    b = gradient(start, tmp_path / "b", [B])
    both = gradient(start, tmp_path / "both", _weighted(1.0, -2.0))
    assert_same(both, (3 * a - 20 * b) / 23)


@pytest.mark.parametrize("takes_loss_arguments", [True, False])
@pytest.mark.parametrize(
    "cut",
    [{"per_device_train_batch_size": 1}, {"max_tokens_per_batch": 11}],
    ids=["rows", "tokens"],
)
def test_micro_batches_of_ragged_rows_add_up_to_one_big_batch(
    cut: dict[str, int],
    takes_loss_arguments: bool,
    start: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever a model says about its own loss: Trainer divides that of some, such as Gemma 3's."""
    kind = transformers.Qwen3ForCausalLM
    monkeypatch.setattr(kind, "accepts_loss_kwargs", takes_loss_arguments, raising=False)
    rows = _weighted(1.0, 2.5, -0.5)
    parts = gradient(start, tmp_path / "parts", rows, gradient_accumulation_steps=8, **cut)
    assert_same(parts, gradient(start, tmp_path / "whole", rows))


@pytest.mark.parametrize("use_peft", [False, True], ids=["full", "LoRA"])
def test_gradient_checkpointing_changes_no_gradient(use_peft: bool, start: Path, tmp_path: Path) -> None:
    plain = gradient(start, tmp_path / "plain", ROWS, use_peft=use_peft)
    leaner = gradient(start, tmp_path / "leaner", ROWS, use_peft=use_peft, gradient_checkpointing=True)
    assert plain.norm() > 0
    assert_same(leaner, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_sliced_loss_is_the_plain_one(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of 3 rows of 50 logits, of 3 x 8 in all; the last column of each row foretells nothing."""
    torch.manual_seed(0)
    logits = (3 * torch.randn(3, 8, 50)).to(dtype)
    targets, weights = torch.randint(50, (3, 7)), torch.randn(21)
    found = []
    for size in (10**9, 150):
        monkeypatch.setattr(trainer, "_SLICE", size)
        given = logits.clone().requires_grad_()
        logprobs = trainer.minus_logprob(given, targets)
        (logprobs * weights).sum().backward()
        assert given.grad is not None
        found.append((logprobs.detach(), given.grad.float()))
    (plain, plain_grad), (sliced, sliced_grad) = found
    assert sliced == pytest.approx(plain, rel=1e-5, abs=1e-5)
    assert (sliced_grad - plain_grad).abs().max() < (1e-6 if dtype == torch.float32 else 0.02)
    assert not sliced_grad[:, -1].any()


def test_autocast_changes_a_loss_by_rounding_alone(start: Path, tmp_path: Path) -> None:
    exact = train(start, tmp_path / "1", ROWS).loss
    assert train(start, tmp_path / "2", ROWS, bf16=True).loss == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("capable", [False, True], ids=["without instructions", "with"])
def test_a_cpu_trains_in_bfloat16_where_it_can_and_the_base_is(
    stored: str, capable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from the float32 master of an M-step before, and never against the user's own setting."""
    monkeypatch.setattr(dtypes, "cpu_has_bfloat16", lambda: capable)
    base = tiny_model(tmp_path / "base", "llama", dtype=getattr(torch, stored))
    first = train(base, tmp_path / "1", ROWS, dtype=stored, master=tmp_path / "master")
    start = tmp_path / "master" if stored == "bfloat16" else tmp_path / "1" / "out"
    second = train(start, tmp_path / "2", ROWS, dtype=stored)
    assert (first.bf16, second.bf16) == (expected := capable and stored == "bfloat16",) * 2
    assert train(base, tmp_path / "3", ROWS, dtype=stored, bf16=not expected).bf16 is not expected
    assert "eager" not in (tmp_path / "1" / "out" / "config.json").read_text()


def test_plain_attention_has_the_loss_of_torchs_own(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Spy(trainer.WeightedTrainer):
        def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
            seen.append(model.config._attn_implementation)
            super().__init__(model, *args, **kwargs)

    monkeypatch.setattr(fit, "WeightedTrainer", Spy)
    plain = train(start, tmp_path / "1", ROWS, bf16=True).loss
    monkeypatch.setattr(model, "_SHORT", 10)  # B has 11 tokens
    own = train(start, tmp_path / "2", ROWS, bf16=True).loss
    assert seen == ["eager", "sdpa"] and own == pytest.approx(plain, rel=0.01)


# Memory


def test_micro_batches_on_a_cpu_are_halved_to_fit_and_change_no_step(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 3 * ROWS
    whole = train(start, tmp_path / "whole", rows)
    config = transformers.AutoConfig.from_pretrained(start)
    length, wide = 11, 34 * config.hidden_size + 5 * config.num_attention_heads * 11
    row_bytes = 2 * length * config.num_hidden_layers * wide  # float32
    fed = []

    class Spy(trainer.WeightedTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            fed.append(len(inputs["input_ids"]))
            return super().compute_loss(model, inputs, *args, **kwargs)

    monkeypatch.setattr(fit, "WeightedTrainer", Spy)
    for room, parts in (
        (9 * row_bytes, [9]),
        (9 * row_bytes - 1, [5, 4]),
        (3 * row_bytes, [3, 2, 2, 2]),
    ):
        monkeypatch.setattr(memory, "_ACTIVATIONS", room)
        fed.clear()
        done = train(start, tmp_path / f"{len(parts)}", rows)
        assert fed == parts and done.num_steps == whole.num_steps == 1
        assert done.loss == pytest.approx(whole.loss, rel=1e-5)
        assert furthest(tmp_path / f"{len(parts)}" / "out", tmp_path / "whole" / "out") < 1e-6


@pytest.mark.parametrize("use_peft", [False, True], ids=["full", "LoRA"])
def test_running_out_of_memory_halves_micro_batches_and_changes_no_step(
    use_peft: bool,
    start: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Batches of up to 5 rows where 1 fits: halved to 3, to 2, to 1; 8 rows are 2 steps an epoch."""
    settings = {"num_train_epochs": 3, "per_device_train_batch_size": 5, "use_peft": use_peft}
    rows = [*_weighted(1.0, 2.5, -0.5), A, B, C, A, B]
    steps: list[list[int]] = [[], []]
    expected = train(
        start, tmp_path / "1", rows, on_step=lambda step, of, _: steps[0].append(step), **settings
    )
    monkeypatch.setattr(trainer.WeightedTrainer, "compute_loss", short_of_memory(1))
    found = train(
        start, tmp_path / "2", rows, on_step=lambda step, of, _: steps[1].append(step), **settings
    )
    assert steps[0] == steps[1][-6:] == [1, 2, 3, 4, 5, 6]  # before these, steps of what was given up
    assert (found.num_steps, found.trained_tokens) == (expected.num_steps, expected.trained_tokens)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert furthest(tmp_path / "1" / "out", tmp_path / "2" / "out") < 1e-6
    said = [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()]
    assert [int(re.findall("up to ([0-9]+)", line)[0]) for line in said] == [5, 3, 2]


def test_an_example_that_does_not_fit_says_what_to_do(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer.WeightedTrainer, "compute_loss", short_of_memory(0))
    with pytest.raises(ModelError, match=r"one example at a time does not fit.*gradient_checkpointing"):
        train(start, tmp_path, ROWS)
    assert [path.name for path in tmp_path.iterdir()] == ["examples.parquet"]


def test_a_model_that_does_not_fit_is_not_tried_again(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")

    monkeypatch.setattr(trainer.WeightedTrainer, "create_optimizer", full)
    with pytest.raises(ModelError, match="the model and its optimizer do not fit into memory"):
        train(start, tmp_path, ROWS)


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(trainer.WeightedTrainer, "compute_loss", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        train(start, tmp_path, ROWS)


# Seeds


@pytest.mark.parametrize("use_peft", [False, True], ids=["full", "LoRA"])
def test_a_seed_gives_the_same_weights_bit_for_bit(use_peft: bool, start: Path, tmp_path: Path) -> None:
    made = []
    for turn, seed in enumerate([5, 5, 6]):
        torch.manual_seed(turn)  # what happened before must not matter
        out = tmp_path / str(turn)
        train(start, out, ROWS * 4, seed=seed, use_peft=use_peft, per_device_train_batch_size=2)
        made.append(next((out / "out").glob("*.safetensors")).read_bytes())
    assert made[0] == made[1]
    assert made[0] != made[2]


# What is left


def test_full_training_leaves_an_ordinary_folder(start: Path, tmp_path: Path) -> None:
    train(start, tmp_path, ROWS)
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "m_step.json",
        "weight_check.json",
    }
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1  # safetensors made its file 0600
    transformers.AutoModelForCausalLM.from_pretrained(out)
    for part in (transformers.AutoTokenizer, transformers.GenerationConfig):
        before, after = part.from_pretrained(start), part.from_pretrained(out)
        for name in ("chat_template", "eos_token_id", "pad_token_id"):
            assert getattr(after, name, None) == getattr(before, name, None)


def test_lora_leaves_an_adapter_and_goes_on_from_one(start: Path, tmp_path: Path) -> None:
    """The adapter's B is 0 at first; Adam's first step moves it by the rate, from where it then is."""
    first, second = tmp_path / "1" / "out", tmp_path / "2" / "out"
    train(start, tmp_path / "1", ROWS, use_peft=True, learning_rate=1e-3)
    train(first, tmp_path / "2", ROWS, use_peft=True, learning_rate=1e-5)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {p.name for p in first.iterdir()}
    assert not (first / "model.safetensors").exists()

    def adapter(folder: Path) -> dict[str, torch.Tensor]:
        stored = load_file(folder / "adapter_model.safetensors")
        return {name: weight for name, weight in stored.items() if "lora_B" in name}

    before, after = adapter(first), adapter(second)
    assert before.keys() == after.keys()
    assert max(w.abs().max() for w in before.values()) == pytest.approx(1e-3, rel=1e-2)
    moved = max((after[name] - before[name]).abs().max() for name in before)
    assert moved == pytest.approx(1e-5, rel=2e-2)


def test_an_adapter_is_not_trained_in_full(start: Path, tmp_path: Path) -> None:
    train(start, tmp_path / "1", ROWS, use_peft=True)
    with pytest.raises(ConfigError, match="use_peft"):
        train(tmp_path / "1" / "out", tmp_path / "2", ROWS)
    assert not (tmp_path / "2" / "out").exists()


def test_m_step_json_is_what_was_done(start: Path, tmp_path: Path) -> None:
    """24 rows of 9, 11 and 4 tokens, 3 times; batches of 10 rows: 3 steps an epoch."""
    steps: list[tuple[int, int]] = []
    done = train(
        start,
        tmp_path,
        ROWS * 8,
        on_step=lambda step, of, loss: steps.append((step, of)),
        num_train_epochs=3,
        per_device_train_batch_size=10,
    )
    assert (done.num_examples, done.num_steps) == (24, 9)
    assert done.trained_tokens == 3 * 8 * (9 + 11 + 4)
    assert steps == [(step, 9) for step in range(1, 10)]
    stored = json.loads((tmp_path / "out" / "m_step.json").read_text())
    assert MStep(**stored) == done


@pytest.mark.parametrize("use_peft", [False, True], ids=["full", "LoRA"])
def test_the_probe_is_what_an_engine_gives(use_peft: bool, start: Path, tmp_path: Path) -> None:
    """After and before, dropout notwithstanding; of positive weights the shorter ones, if enough."""
    from femtune.engines.hf.engine import TransformersEngine

    settings: dict[str, Any] = {"use_peft": True, "lora_dropout": 0.5} if use_peft else {}
    rows = [*_weighted(1.0, 2.5, -1.0), A, B, B, B, B]
    train(start, tmp_path, rows, learning_rate=1e-2, num_train_epochs=3, **settings)
    check = read_check(tmp_path / "out")
    assert check is not None
    assert len(check.prompts) == NUM_PAIRS
    pairs = list(zip(check.prompts, check.completions, strict=True))
    assert all((list(p), list(c)) in [(row[0], row[1]) for row in (A, B)] for p, c in pairs)
    engine = TransformersEngine(start, dtype="float32", device="cpu")
    assert check.logprobs_before == pytest.approx(engine.logprob(pairs), abs=1e-3)
    engine.load(tmp_path / "out")
    assert check.logprobs == pytest.approx(engine.logprob(pairs), abs=1e-3)
    assert abs(check.logprobs[0] - check.logprobs_before[0]) > 0.1
    check_served(engine, check, ROUNDING["float32"])


# What is exported in 16 bits


@pytest.fixture(scope="module")
def half_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("half"), "llama", sharpness=0.5, dtype=torch.bfloat16)


def test_three_m_steps_on_a_bfloat16_base_lose_nothing(half_start: Path, tmp_path: Path) -> None:
    """The float32 weights are those of M-steps without rounding, and what is served gains as much."""
    start, plain = half_start, half_start
    base = sum(logprob(half_start, row) for row in ROWS)
    for seed in (1, 2, 3):
        folder = tmp_path / str(seed)
        settings = {"seed": seed, "learning_rate": 2e-4, "num_train_epochs": 8, "bf16": True}
        done = train(start, folder, ROWS, dtype="bfloat16", master=folder / "master", **settings)
        train(plain, tmp_path / f"plain {seed}", ROWS, **settings)
        out, start, plain = folder / "out", folder / "master", tmp_path / f"plain {seed}" / "out"
        assert furthest(start, plain) == 0
        assert {weight.dtype for weight in load_file(out / "model.safetensors").values()} == {
            torch.bfloat16
        }
        assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
        exact, served = (sum(logprob(each, row) for row in ROWS) for each in (start, out))
        assert served - base == pytest.approx(exact - base, rel=0.02)
        check, before = read_check(out), read_check(start)
        assert check is not None and before is not None and done.exported_gain_share is not None
        gain = (sum(check.logprobs) - sum(check.logprobs_before)) / (
            sum(before.logprobs) - sum(before.logprobs_before)
        )
        assert done.exported_gain_share == pytest.approx(gain, abs=1e-5)
        assert sum(check.logprobs) == pytest.approx(served, abs=1e-3)  # of what was saved, in float32


def test_the_engine_serves_what_was_exported_and_old_weights_are_refused(
    half_start: Path, tmp_path: Path
) -> None:
    from femtune.engines.hf.engine import TransformersEngine

    train(half_start, tmp_path, ROWS, dtype="bfloat16", learning_rate=1e-3, num_train_epochs=3)
    engine = TransformersEngine(half_start, device="cpu")
    check = read_check(tmp_path / "out")
    assert check is not None and engine._model.dtype == torch.bfloat16
    with pytest.raises(EngineError, match="still serves the weights from before"):
        check_served(engine, check, ROUNDING["bfloat16"])
    engine.load(tmp_path / "out")
    assert engine._model.dtype == torch.bfloat16
    check_served(engine, check, ROUNDING["bfloat16"])


def test_what_was_exported_is_made_again_of_the_float32_weights(
    half_start: Path, tmp_path: Path
) -> None:
    master = tmp_path / "master"
    done = train(half_start, tmp_path, ROWS, dtype="bfloat16", master=master)
    made = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    shutil.rmtree(tmp_path / "out")
    silent = lambda *told: pytest.fail("it trained")  # noqa: E731
    again = train(half_start, tmp_path, ROWS, dtype="bfloat16", master=master, on_step=silent)
    assert again == done
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == made


def test_an_adapter_is_trained_and_stored_in_float32_on_a_bfloat16_base(
    half_start: Path, tmp_path: Path
) -> None:
    """Also where it goes on from a stored one: its steps are far below bfloat16's gaps."""
    first, second = tmp_path / "1", tmp_path / "2"
    settings: dict[str, Any] = {"use_peft": True, "dtype": "bfloat16", "master": tmp_path / "master"}
    train(half_start, first, ROWS, learning_rate=1e-2, **settings)
    train(first / "out", second, ROWS, learning_rate=1e-6, **settings)
    one, two = (load_file(each / "out" / "adapter_model.safetensors") for each in (first, second))
    assert {weight.dtype for weight in two.values()} == {torch.float32}
    moved = torch.cat([(two[name] - one[name]).abs().flatten() for name in one if "lora_B" in name])
    assert moved.median() == pytest.approx(1e-6, rel=0.05)
    assert not (tmp_path / "master").exists()


# The mean over iterations


@pytest.mark.parametrize("use_peft", [False, True])
def test_what_is_exported_is_the_mean_that_counts_iterations_by_their_number(
    use_peft: bool, start: Path, tmp_path: Path
) -> None:
    """And M-steps go on from their own weights, as without a mean."""
    own, plain, trained = start, start, []
    name = "adapter_model.safetensors" if use_peft else "model.safetensors"
    settings: dict[str, Any] = {"use_peft": use_peft, "learning_rate": 1e-3, "num_train_epochs": 3}
    for k in (1, 2, 3):
        folder, alone = tmp_path / str(k), tmp_path / f"plain {k}"
        mean = mean_before(k, lambda before: tmp_path / str(before) / "out")
        done = train(own, folder, ROWS, seed=k, master=folder / "master", mean=mean, **settings)
        train(plain, alone, ROWS, seed=k, **settings)
        own, plain = folder / "master" if mean else folder / "out", alone / "out"
        trained.append(load_file(plain / name))
        assert furthest(own, plain) == 0
        assert done.averaged_share == (None if k == 1 else pytest.approx(2 / (k + 1), abs=1e-6))
    made = load_file(tmp_path / "3/out" / name)
    for weight in made:
        wanted = sum(k * each[weight] for k, each in enumerate(trained, 1)) / 6
        assert torch.allclose(made[weight], wanted, atol=1e-6)
    assert furthest(tmp_path / "3/out", plain) > 1e-4  # so the mean is none of them


def test_the_check_beside_a_mean_is_of_the_mean(half_start: Path, tmp_path: Path) -> None:
    """An engine that still serves the mean before is refused; float32 weights give the same bytes."""
    first, second = tmp_path / "1", tmp_path / "2"
    settings: dict[str, Any] = {"learning_rate": 1e-3, "num_train_epochs": 3, "dtype": "bfloat16"}
    train(half_start, first, ROWS, master=first / "master", **settings)
    settings |= {"master": second / "master", "mean": Mean(first / "out", 0.5)}
    done = train(first / "master", second, ROWS, seed=1, **settings)
    check = read_check(second / "out")
    assert check is not None and done.exported_gain_share == pytest.approx(1, abs=0.05)
    rows = zip(check.prompts, check.completions, strict=True)
    pairs = [(list(prompt), list(completion), 1.0) for prompt, completion in rows]
    for folder, wanted in ((second, check.logprobs), (first, check.logprobs_before)):
        assert [logprob(folder / "out", row) for row in pairs] == pytest.approx(wanted, abs=1e-3)
    made = (second / "out/model.safetensors").read_bytes()
    shutil.rmtree(second / "out")
    assert train(first / "master", second, ROWS, seed=1, **settings) == done
    assert (second / "out/model.safetensors").read_bytes() == made


def test_a_mean_with_weights_of_another_size_is_refused(start: Path, tmp_path: Path) -> None:
    other = tiny_model(tmp_path / "other", "llama")
    with pytest.raises(ModelError, match="can't be averaged"):
        train(start, tmp_path, ROWS, mean=Mean(other, 0.5))


def test_a_share_of_the_gain_that_rounding_takes_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    check = WeightCheck([[1]], [[2, 3]], logprobs=[-1.0], logprobs_before=[-2.0])
    assert fit._gain_share(check, [-1.019]) == pytest.approx(0.981) and not caplog.records
    assert fit._gain_share(check, [-1.5]) == pytest.approx(0.5)
    assert "keep 50.0% of what the M-step gained" in caplog.text
    assert fit._gain_share(WeightCheck([[1]], [[2]], [-2.0], [-1.0]), [-2.0]) is None


# What is refused


def test_sharding_over_one_process_is_refused(start: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"fsdp shards over several processes"):
        train(start, tmp_path, ROWS, fsdp=True)


def test_an_example_longer_than_the_context_is_not_cut(start: Path, tmp_path: Path) -> None:
    """The context is 256: a row of 256 is trained on, one of 257 refused."""
    fits: Row = ([1] * 6, [2] * 249 + [END], 1.0)
    longer: Row = ([1] * 7, [2] * 249 + [END], 1.0)
    train(start, tmp_path / "fits", [A, fits])
    with pytest.raises(DataError, match=r"longest: 257; the first: row 2\b"):
        train(start, tmp_path / "longer", [A, longer])
    assert not (tmp_path / "longer" / "out").exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"learning_rate": 1e30, "num_train_epochs": 3}, r"the loss is nan .* rows \[3, 1, 2\]"),
        ({"learning_rate": 1e39}, "the last step"),
    ],
    ids=["at the second step", "at the last step"],
)
def test_a_loss_that_is_no_number_stops_the_run_and_leaves_nothing(
    settings: dict[str, Any], says: str, start: Path, tmp_path: Path
) -> None:
    with pytest.raises(FemtuneError, match=says):
        train(start, tmp_path, ROWS, **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["examples.parquet"]


def test_a_folder_that_holds_something_is_refused_before_training(start: Path, tmp_path: Path) -> None:
    train(start, tmp_path, ROWS)
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    with pytest.raises(RunError, match="holds something"):
        train(start, tmp_path, ROWS, on_step=lambda *told: pytest.fail("it trained"))
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before


def test_no_examples_are_nothing_to_learn_from(start: Path, tmp_path: Path) -> None:
    with pytest.raises(FemtuneError, match="nothing to learn from"):
        train(start, tmp_path, [(*A[:2], 0.0)])


def train(
    start: Path,
    folder: Path,
    rows: Sequence[Row],
    *,
    seed: int = 0,
    on_step: Any = None,
    dtype: str = "float32",
    master: Path | None = None,
    mean: Mean | None = None,
    **settings: Any,
) -> MStep:
    """One M-step on these rows to `folder`/out: one epoch of one batch unless said otherwise."""
    folder.mkdir(exist_ok=True)
    columns = ("prompt_tokens", "completion_tokens", "weight")
    values = zip(*rows, strict=True)
    pq.write_table(
        pa.table(dict(zip(columns, map(list, values), strict=True))), folder / "examples.parquet"
    )
    return m_step(
        folder / "examples.parquet",
        start,
        folder / "out",
        Training(**(ONE_PASS | settings)),
        ChatTokenizer(transformers.AutoTokenizer.from_pretrained(start)),
        seed=seed,
        dtype=dtype,
        master=master,
        mean=mean,
        **({"on_step": on_step} if on_step else {}),
    )


def short_of_memory(most: int) -> Any:
    """compute_loss on a device whose memory holds so many rows."""
    whole = trainer.WeightedTrainer.compute_loss

    def compute_loss(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if len(inputs["input_ids"]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return whole(self, model, inputs, *args, **kwargs)

    return compute_loss


def furthest(one: Path, other: Path) -> float:
    """The largest difference between weights of two models' folders."""
    some, others = (load_file(next(folder.glob("*.safetensors"))) for folder in (one, other))
    assert some.keys() == others.keys()
    return max((some[name] - others[name]).abs().max().item() for name in some)


def gradient(start: Path, folder: Path, rows: Sequence[Row], **settings: Any) -> torch.Tensor:
    """What the only optimizer step of an M-step gets, unclipped, as one vector."""
    seen: list[torch.Tensor] = []

    def look(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        seen.append(torch.cat([weight.grad.flatten() for weight in weights]))

    hook = register_optimizer_step_pre_hook(look)
    try:
        train(start, folder, rows, max_grad_norm=0.0, **settings)
    finally:
        hook.remove()
    assert len(seen) == 1
    return seen[0]


def logprob(model: Path, row: Row) -> float:
    """Nats of the completion by a plain forward of the row alone."""
    prompt, completion, _ = row
    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        logits = network(torch.tensor([[*prompt, *completion]])).logits[0].log_softmax(-1)
    return sum(logits[len(prompt) + at - 1, token].item() for at, token in enumerate(completion))


def assert_same(one: torch.Tensor, other: torch.Tensor) -> None:
    """Up to float32's rounding over sums of other order."""
    assert (one - other).norm() < 1e-5 * other.norm()


def _weighted(*weights: float) -> list[Row]:
    return [(*row[:2], weight) for row, weight in zip(ROWS, weights, strict=False)]
