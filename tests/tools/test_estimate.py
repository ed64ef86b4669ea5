"""What a run takes: formulas by hand-made numbers, laws by hypothesis, and plans of small runs."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from femtune.cli.main import main
from femtune.comparison.demo import write_world
from femtune.config import Train
from femtune.data.worlds import SEEDLING
from femtune.engines.hf.engine import default_max_batch
from femtune.errors import ConfigError, ModelError
from femtune.loop import Evaluation, LoopConfig
from femtune.mstep.config import Training
from femtune.schemes.filters import Accepted, Chain
from femtune.schemes.named import chain, every, importance, pps, rejection, star
from femtune.tools.estimate.disk import at_most, draws_bytes
from femtune.tools.estimate.estimate import EstimateOptions, look_ahead
from femtune.tools.estimate.formulas import (
    Asking,
    Attempt,
    Job,
    Phase,
    Shape,
    asking,
    fitting,
    loading,
    rounds,
    scoring,
    writing,
)
from femtune.tools.estimate.hardware import TABLE, Efficiency, Hardware, this_machine
from femtune.tools.estimate.memory import advice, batch_rows, engine_memory, training_memory
from femtune.tools.estimate.schedule import schedule
from femtune.tools.estimate.shapes import read_shape
from femtune.tools.estimate.table import notes
from femtune.types import Sampling, Scheme, Stage

from ..models import tiny_model

H100 = TABLE["h100"]
# Llama-3-8B: 32 layers of width 4,096, 8 of 32 heads for keys and values, a vocabulary of 128,256
HEAD = 128_256 * 4096
LAYER = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (1024, 4096),
    "self_attn.v_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (14336, 4096),
    "mlp.up_proj": (14336, 4096),
    "mlp.down_proj": (4096, 14336),
}
LLAMA = Shape(
    parameters=8_030_261_248,
    active=8_030_261_248 - 2 * HEAD,
    head=HEAD,
    embedding=HEAD,
    adapter={
        f"model.layers.{layer}.{name}": size for layer in range(32) for name, size in LAYER.items()
    },
    layers=32,
    width=4096,
    attention_width=4096,
    kv_width=1024,
    vocabulary=128_256,
    dtype="bfloat16",
)
JOB = Job(
    problems=1000,
    eval_problems=100,
    prompt_tokens={"plain": 300.0, "hinted": 340.0},
    longest=500,
    tokens_per_draw=200.0,
    longest_draw=512.0,
    tokens_per_example=200.0,
    max_new_tokens=512,
    asking=asking(rejection(4).stages, {"plain": 0.5, "hinted": 0.9}),
    iterations=4,
    evaluations=5,
    eval_draws=1,
    chunk_size=1024,
    engine="vllm",
    engine_dtype="bfloat16",
    training_dtype="bfloat16",
    max_batch=None,
    tensor_parallel=1,
    is_launched=False,
    training=Training(num_train_epochs=1),
)
shares = st.floats(0.01, 0.99)
stages = st.lists(
    st.builds(
        Stage,
        st.sampled_from(["plain", "hinted"]),
        draws=st.integers(1, 5),
        ask=st.sampled_from(["unsolved", "all"]),
    ),
    min_size=1,
    max_size=3,
)


def drawn(job: Job = JOB, shape: Shape = LLAMA, device: Hardware = H100, **more: Any) -> Any:
    rows = batch_rows(shape, job, device)
    return writing(shape, job, device, job.asking.attempts, job.problems, rows=rows, **more)


# --- draws


@given(p=shares, h=shares, budget=st.integers(1, 12))
def test_the_schemes_cost_what_their_docs_say(p: float, h: float, budget: int) -> None:
    right = {"plain": p, "hinted": h}
    missed = (1 - p) ** budget
    for scheme, draws, kept in (
        (rejection(budget), (1 - missed) / p, 1 - missed),
        (star(), 2 - p, p + (1 - p) * h),
        (pps(), 1, h),
    ):
        found = asking(scheme.stages, right)
        assert found.draws == pytest.approx(draws)
        assert found.kept == found.examples == pytest.approx(kept)


def test_a_stage_for_all_asks_the_solved_too_and_reads_its_prompt_once() -> None:
    mine = [Stage("plain", 2), Stage("hinted", 3, ask="all"), Stage("plain")]
    found = asking(mine, {"plain": 0.5, "hinted": 0.5}, one_each=False)
    assert found.attempts == [
        Attempt("plain", 1, 1.0, True),
        Attempt("plain", 1, 0.5, False),
        Attempt("hinted", 3, 1.0, True),
        Attempt("plain", 1, 0.25 * 0.125, True),
    ]
    assert found.draws == 1.5 + 3 + 0.03125
    assert found.kept == 1 - 0.25 * 0.125 * 0.5
    assert found.examples == 0.5 * found.draws  # every right draw


SIMPLE = [rejection(4), star(), pps(), pps(3)]


@pytest.mark.parametrize("scheme", SIMPLE, ids=lambda scheme: scheme.name)
def test_a_scheme_that_remembers_nothing_is_asked_alike_in_all_iterations(scheme: Scheme) -> None:
    right = {"plain": 0.25, "hinted": 0.75}
    run, once = schedule(scheme, right, 7), asking(scheme.stages, right)
    assert run.asking.draws == pytest.approx(once.draws)
    assert run.asking.kept == pytest.approx(once.kept)
    assert run.asking.examples == pytest.approx(once.kept)
    assert (run.scored, run.remembered) == ({}, 0)


def test_weights_cost_a_pass_over_what_the_engine_has_not_told() -> None:
    """pps(4): 3 of 4 hinted draws are right, whose log pi is not known."""
    right = {"plain": 0.5, "hinted": 0.75}
    assert schedule(importance(pps(4)), right, 3).scored == {"plain": pytest.approx(3.0)}


def test_memory_by_hand() -> None:
    """rejection(2), 3 iterations, half of the draws right: 1.5 draws, .75 of the problems solved."""
    right = {"plain": 0.5, "hinted": 1.0}
    run = schedule(chain(rejection(2)), right, 3)
    assert run.asking.draws == pytest.approx(1.5)
    assert run.remembered == pytest.approx((0.75 + 1 + 1) / 3) and run.scored == {}
    covered = (0.75, 1 - 0.25**2, 1 - 0.25**3)
    assert run.asking.examples == pytest.approx(sum(covered) / 3)
    # one half of the problems is asked in iterations 1 and 3, the other in 2
    seldom = schedule(every(chain(rejection(2)), 2), right, 3)
    assert seldom.asking.draws == pytest.approx((2 * 1.5 + 1.5) / 6)
    assert seldom.remembered == pytest.approx((0.75 + 0.75 + 1 + 0 + 0.75 + 0.75) / 6)


def test_scoring_by_hand() -> None:
    """100 tokens of prompt and 200 of completion, which alone pass the head; peak 1e15 by half."""
    job = replace(JOB, prompt_tokens={"plain": 100.0}, scored={"plain": 2.0})
    found = scoring(LLAMA, job, H100)
    read = 1000 * 2 * 300
    flops = read * (2 * LLAMA.active + LLAMA.attention(300)) + 2000 * 200 * 2 * HEAD
    assert found.prompt_tokens == read and found.flops == pytest.approx(flops)
    peak = H100.peak("bfloat16") * H100.efficiency("vllm").matrix
    assert found.seconds == pytest.approx(flops / peak)
    assert scoring(LLAMA, job, H100, 4).seconds == pytest.approx(found.seconds / 4)
    assert scoring(LLAMA, JOB, H100) == Phase()


def test_what_is_remembered_takes_of_the_disk() -> None:
    few, more = (
        at_most(
            LoopConfig(scheme=scheme, training=Training(), evaluation=Evaluation(every=0), iterations=4),
            SEEDLING,
            10,
            0,
            Sampling(100),
        )
        for scheme in (rejection(2), chain(rejection(2)))
    )
    assert few.draws == draws_bytes(4 * 10 * 2, 100)
    assert more.draws == draws_bytes(4 * 10 * (2 + 1), 100)


def test_nothing_is_asked_after_a_certain_draw() -> None:
    assert asking(rejection(1000).stages, {"plain": 1.0}).draws == 1
    assert asking(star().stages, {"plain": 1.0, "hinted": 0.5}).draws == 1
    assert len(asking(rejection(1000).stages, {"plain": 0.5}).attempts) < 40  # the rest are none


@given(stages=stages, p=shares, h=shares, problems=st.integers(1, 300), rows=st.integers(5, 64))
def test_rounds_write_all_draws_and_never_too_many(
    stages: list[Stage], p: float, h: float, problems: int, rows: int
) -> None:
    found = asking(stages, {"plain": p, "hinted": h})
    each = list(rounds(problems, found.attempts, rows))
    assert sum(map(sum, each)) == pytest.approx(problems * found.draws, rel=1e-4)
    assert max(map(sum, each)) <= rows * (1 + 1e-9)


# --- tokens, FLOPs, seconds


def test_an_e_step_by_hand() -> None:
    """100 problems at once, one draw of 10 tokens each after 90 of prompt, on a round device."""
    even = Hardware(name="even", peaks={"float32": 1e12}, bandwidth=1e12, memory=1e12)
    shape = Shape(
        parameters=1100,
        active=1000,
        head=100,
        embedding=0,
        adapter={},
        layers=2,
        width=10,
        attention_width=10,
        kv_width=5,
        vocabulary=10,
        dtype="float32",
    )
    once = asking(pps().stages, {"hinted": 1.0})
    job = replace(
        JOB,
        prompt_tokens={"plain": 0.0, "hinted": 90.0},
        tokens_per_draw=10.0,
        longest_draw=10.0,
        problems=100,
        asking=once,
        engine_dtype="float32",
    )
    found = writing(shape, job, even, once.attempts, 100, rows=256)
    context = 90 + 10 / 2
    assert (found.draws, found.tokens, found.prompt_tokens) == (100, 1000, 9000)
    read = 9000 * (2 * 1000 + 4 * 2 * 10 * 90)
    written = 1000 * (2 * 1100 + 4 * 2 * 10 * context)
    assert found.flops == read + written
    shares: Efficiency = even.efficiency("vllm")
    products, attention = 1000 * 2200 / 1e12 / shares.matrix, 1000 * 80 * context / 1e12 / shares.matrix
    keys = 1000 * context * (2 * 2 * 5 * 4) / 1e12 / shares.bandwidth
    sampled = 1000 * 10 * 4 * 8 / 1e12 / shares.bandwidth
    steps = 10 * 2 * shares.step_layer_s
    seconds = read / 1e12 / shares.matrix + products + max(attention, keys) + sampled + steps
    assert found.seconds == pytest.approx(seconds)


def test_a_single_row_is_bound_by_bandwidth() -> None:
    """The classic: an 8B model in bfloat16 on an H100 writes at most 3,350 / 15 tokens a second."""
    job = replace(
        JOB, problems=1, asking=asking(pps().stages, {"hinted": 1.0}), max_batch=1, longest_draw=200
    )
    found = drawn(job)
    best = H100.bandwidth / (2 * (LLAMA.parameters - LLAMA.embedding))
    assert 0.5 * best < found.tokens / found.seconds < best


def test_an_m_step_by_hand() -> None:
    found = fitting(LLAMA, JOB, H100, 1)
    examples = 1000 * (1 - 0.5**4)
    assert found.tokens == examples * 500
    each = 6 * LLAMA.active + 6 * HEAD * 0.4 + 12 * 32 * 4096 * 500
    assert found.flops == pytest.approx(examples * 500 * each)
    assert found.flops / found.tokens == pytest.approx(6 * 7.5e9, rel=0.03)  # 6 N, all but embeddings
    peft = fitting(LLAMA, replace(JOB, training=replace(JOB.training, use_peft=True)), H100, 1)
    assert peft.flops / found.flops == pytest.approx(4 / 6, rel=0.01)
    less = replace(JOB.training, gradient_checkpointing=True)
    assert fitting(LLAMA, replace(JOB, training=less), H100, 1).flops / found.flops == pytest.approx(
        8 / 6
    )


@given(
    more=st.sampled_from(["problems", "tokens_per_draw", "longest_draw", "prompt", "epochs", "budget"]),
    by=st.integers(1, 5000),
    engine=st.sampled_from(["transformers", "vllm"]),
)
def test_more_costs_more(more: str, by: int, engine: str) -> None:
    small = replace(JOB, engine=engine)
    large = small
    if more == "prompt":
        large = replace(small, prompt_tokens={"plain": 300.0 + by, "hinted": 340.0 + by})
    elif more == "epochs":
        large = replace(small, training=replace(small.training, num_train_epochs=1 + by / 100))
    elif more == "budget":
        large = replace(small, asking=asking(rejection(4 + by % 50).stages, {"plain": 0.5}))
    else:
        large = replace(small, **{more: getattr(small, more) + by})
    for name in ("flops", "seconds"):
        total = [
            getattr(drawn(job), name) + getattr(fitting(LLAMA, job, H100, 1), name)
            for job in (small, large)
        ]
        assert total[0] <= total[1] * (1 + 1e-9)


def test_engines_side_by_side_share_chunks_and_no_less() -> None:
    job = replace(JOB, problems=4096)
    one = drawn(job).seconds
    assert drawn(job, engines=4).seconds == pytest.approx(one / 4)
    assert drawn(job, engines=8).seconds == pytest.approx(one / 4)  # four chunks
    assert drawn(job, engines=3).seconds == pytest.approx(one / 2)
    job = replace(JOB, problems=1025)
    assert (
        drawn(job).seconds
        > drawn(job, engines=2).seconds
        == pytest.approx(drawn(replace(job, problems=1024)).seconds)
    )


def test_adapters_are_quicker_to_store() -> None:
    peft = replace(JOB, training=replace(JOB.training, use_peft=True))
    full = loading(LLAMA, JOB, H100).seconds
    assert loading(LLAMA, peft, H100).seconds < full
    assert loading(LLAMA, replace(JOB, is_launched=True), H100).seconds > full


# --- memory


def test_the_memory_of_an_8b_model() -> None:
    assert LLAMA.parameters * 2 == pytest.approx(16.06e9, rel=1e-3)
    assert LLAMA.kv_bytes("bfloat16") == 128 * 1024
    assert engine_memory(LLAMA, JOB, H100).parts["weights"] == LLAMA.parameters * 2
    assert engine_memory(LLAMA, JOB, H100).fits
    assert not engine_memory(LLAMA, JOB, replace(H100, memory=16e9)).fits
    half = replace(JOB, tensor_parallel=2)
    assert engine_memory(LLAMA, half, H100).parts["weights"] == LLAMA.parameters
    rows = batch_rows(LLAMA, JOB, replace(H100, memory=24e9))
    assert 1 < rows < 256 == batch_rows(LLAMA, JOB, H100)  # what memory holds, else vLLM's default
    assert batch_rows(LLAMA, replace(JOB, max_batch=7), H100) == 7


def test_the_memory_of_an_m_step() -> None:
    full = training_memory(LLAMA, JOB, H100, 1)
    assert full.parts["weights, gradients, Adam's moments"] == 18 * LLAMA.parameters
    plain = replace(JOB, training_dtype="float32")
    assert (
        training_memory(LLAMA, plain, H100, 1).parts["weights, gradients, Adam's moments"]
        == 16 * LLAMA.parameters
    )
    peft = training_memory(LLAMA, replace(JOB, training=replace(JOB.training, use_peft=True)), H100, 1)
    # r = 16 on all linear layers of Llama-3-8B: PEFT prints trainable params: 41,943,040
    assert LLAMA.lora(JOB.training) == 41_943_040
    assert LLAMA.lora(replace(JOB.training, lora_target_modules=r".*\.(q|v)_proj")) == 32 * 16 * (
        8192 + 5120
    )
    assert peft.parts["base"] == 2 * LLAMA.parameters
    assert peft.parts["adapter, its gradients and moments"] == 16 * 41_943_040
    assert peft.total < full.total
    sharded = training_memory(LLAMA, replace(JOB, training=replace(JOB.training, fsdp=True)), H100, 8)
    assert sharded.parts["weights, gradients, Adam's moments"] == 18 * LLAMA.parameters / 8
    less = training_memory(
        LLAMA, replace(JOB, training=replace(JOB.training, gradient_checkpointing=True)), H100, 1
    )
    assert less.total < full.total


def test_what_does_not_fit_is_told_with_what_would() -> None:
    (said,) = advice(LLAMA, JOB, H100, 1)
    assert said.startswith("the M-step does not fit into h100: set --use-peft --gradient-checkpointing")
    assert "--fsdp --gradient-checkpointing --max-tokens-per-batch 2048 --launch on 2 devices" in said
    assert "set --gradient-checkpointing (" not in said  # the moments alone are too much
    served, _ = advice(LLAMA, replace(JOB, engine_dtype="float32"), TABLE["l4"], 1)
    assert (
        "set --engine-dtype bfloat16, or set --engine vllm --engine-args tensor_parallel_size=2"
        in served
    )
    assert not [*advice(LLAMA, JOB, replace(H100, memory=1e12), 1)]
    tiny = replace(H100, memory=2e9)
    assert next(advice(LLAMA, JOB, tiny, 1)).endswith(
        "take a smaller model, or devices with more memory."
    )


def test_rows_are_those_that_the_engine_takes() -> None:
    config = AutoConfig.from_pretrained(SEEDLING)
    shape, job = read_shape(SEEDLING), replace(JOB, engine="transformers", engine_dtype="float32")
    cpu = Hardware(name="cpu", peaks={"float32": 1e11}, bandwidth=1e10, memory=64e9, is_gpu=False)
    assert batch_rows(shape, job, cpu) == default_max_batch(config, torch.device("cpu"))


# --- shapes and devices


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted_without_the_weights(tmp_path: Path, tied: bool) -> None:
    folder = tiny_model(tmp_path / "m", "llama", tie_word_embeddings=tied)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    shape = read_shape(folder)
    assert shape.parameters == sum(weight.numel() for weight in model.parameters())
    head = model.get_output_embeddings().weight.numel()
    assert (shape.head, shape.embedding) == (head, 0 if tied else head)
    assert shape.active == shape.parameters - head * (1 if tied else 2)
    from peft import LoraConfig, get_peft_model

    peft = get_peft_model(model, LoraConfig(r=3, target_modules="all-linear"))
    assert shape.lora(Training(lora_r=3)) == peft.get_nb_trainable_parameters()[0]
    peft.save_pretrained(tmp_path / "adapter")
    assert read_shape(tmp_path / "adapter") == shape


def test_experts_that_a_token_does_not_pass_cost_no_flops(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "m", "mixtral", num_local_experts=4, num_experts_per_tok=1)
    shape = read_shape(folder)
    experts = 2 * 4 * 3 * 32 * 64  # layers, experts, matrices
    assert shape.active == shape.parameters - 2 * shape.head - experts * 3 // 4


@pytest.mark.parametrize("damage", ["gone", "cut", "quantized"])
def test_weights_that_say_nothing_are_refused(tmp_path: Path, damage: str) -> None:
    folder = tiny_model(tmp_path / "m", "llama")
    file = folder / "model.safetensors"
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:100])
    else:
        file.write_bytes(file.read_bytes().replace(b'"dtype":"F32"', b'"dtype":"U8" '))
    with pytest.raises(
        ModelError, match={"cut": "not a complete safetensors file"}.get(damage, "safetensors|quantized")
    ):
        read_shape(folder)


def test_this_machine_is_measured() -> None:
    found = this_machine([(128, 128), (9000, 64)], ["float32"], "cpu")
    assert found.is_measured and not found.is_gpu
    assert 1e8 < found.peak("float32") < 1e14 and 1e8 < found.bandwidth < 1e13 and found.memory > 1e8


# --- plans


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_world("rubric", tmp_path_factory.mktemp("world"), 40, 20)


SETTINGS = Train(task="judge", raters="named", scale="1,5", max_new_tokens=48, iterations=2)


def test_a_plan_is_made_of_its_data_and_its_scheme(world: tuple[Path, Path]) -> None:
    settings = replace(SETTINGS, eval_data=str(world[1]), scheme="star", eval_every=2)
    found = look_ahead(
        world[0], "seedling", settings, EstimateOptions(hardware="h100", right=0.25, tokens_per_draw=20)
    )
    assert found.each["E-step"].draws == pytest.approx(40 * 1.75)
    assert found.each["E-step"].tokens == pytest.approx(40 * 1.75 * 20)
    assert found.each["evaluation"].draws == 20
    assert found.whole["evaluation"].draws == 40  # base and last
    assert found.each["bound"].draws == 20 * 4  # half of them plain, all problems asked of both
    assert found.whole["bound"].draws == 2 * 80
    # of the right ones of 40 plain and 40 hinted draws, the other prompt and the draw are read
    asked = found.job.prompt_tokens
    scored = 40 * 0.25 * (asked["hinted"] + 20) + 40 * 0.9 * (asked["plain"] + 20)
    read = 20 * (asked["plain"] + asked["hinted"]) + scored
    assert found.each["bound"].prompt_tokens == pytest.approx(read)
    assert found.whole["M-step"].tokens == pytest.approx(2 * found.each["M-step"].tokens)
    assert found.job.asking.kept == pytest.approx(0.25 + 0.75 * 0.9)
    assert found.assumed[0].startswith("90% of hinted draws are right")
    assert found.device_hours == pytest.approx(found.seconds / 3600)


def test_m_steps_are_planned_with_the_epochs_of_their_restarts(world: tuple[Path, Path]) -> None:
    def trained(scheme: str) -> float:
        settings = replace(SETTINGS, scheme=scheme)
        return (
            look_ahead(world[0], "seedling", settings, EstimateOptions(hardware="l4"))
            .whole["M-step"]
            .tokens
        )

    usual = trained("rejection:4")
    assert trained("rejection:4+restart:3") == pytest.approx(3 * usual)
    assert trained("rejection:4+restart:3+settle:1") == pytest.approx(2 * usual)  # 3 epochs, then 1


def test_a_scheme_of_ones_own_is_planned_by_its_stages(world: tuple[Path, Path]) -> None:
    mine = Scheme("mine", (Stage("plain", 3, ask="all"),), weigh=Chain(Accepted()))
    found = look_ahead(
        world[0],
        "seedling",
        replace(SETTINGS, eval_share=0),
        EstimateOptions(hardware="l4", right=0.5),
        mine,
    )
    assert found.each["E-step"].draws == 120 and found.job.asking.examples == 1.5
    assert found.whole["evaluation"].draws == 0


def test_a_run_without_the_bound_is_planned_without_it(world: tuple[Path, Path]) -> None:
    settings = replace(SETTINGS, eval_data=str(world[1]), bound_draws=0)
    found = look_ahead(world[0], "seedling", settings, EstimateOptions(hardware="l4"))
    assert "bound" not in found.each and found.disk.draws > 0


def test_devices_that_nothing_is_set_for_are_told_of(world: tuple[Path, Path]) -> None:
    options = EstimateOptions(hardware="a100", num_devices=4)
    idle = look_ahead(world[0], "seedling", SETTINGS, options).advice
    assert any("set --ray-workers 4" in said for said in idle)
    assert any("set --launch" in said for said in idle)
    set_ = replace(SETTINGS, ray_workers=4, launch="torchrun --nproc-per-node 4")
    said = "\n".join(look_ahead(world[0], "seedling", set_, options).advice)
    assert "--ray-workers" not in said and "--launch" not in said


def test_several_devices_that_stand_idle_are_told_of(world: tuple[Path, Path]) -> None:
    found = look_ahead(world[0], "seedling", SETTINGS, EstimateOptions(hardware="a100", num_devices=4))
    assert any("Set --chunk-size" in line for line in found.advice)
    assert found.device_hours == pytest.approx(4 * found.seconds / 3600)


def test_an_engine_that_is_not_here_is_planned_elsewhere(world: tuple[Path, Path]) -> None:
    there = replace(SETTINGS, engine="vllm", engine_args=("tensor_parallel_size=2",), device="cuda:1")
    found = look_ahead(world[0], "seedling", there, EstimateOptions(hardware="b200", num_devices=2))
    assert found.job.tensor_parallel == 2 and found.job.engine == "vllm"
    with pytest.raises(ConfigError, match="Set --num-devices 2 or more"):
        look_ahead(world[0], "seedling", there, EstimateOptions(hardware="b200"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hardware": "h10O"}, "Did you mean h100"),
        ({"right": 1.5}, "right must be from 0 to 1"),
        ({"tokens_per_draw": 0}, "at least 1"),
        ({"num_devices": 0}, "at least 1"),
        ({"price": -1.0}, "at least 0"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        EstimateOptions(**options)


def test_a_model_on_the_hub_that_is_out_of_reach_is_told_of(world: tuple[Path, Path]) -> None:
    with pytest.raises(ModelError, match="could not be downloaded from the Hub"):
        look_ahead(world[0], "nobody/nothing", SETTINGS, EstimateOptions(hardware="h100"))


def test_a_trial_measures_what_else_is_assumed(world: tuple[Path, Path]) -> None:
    settings = replace(SETTINGS, scheme="rejection:2", eval_data=str(world[1]))
    found = look_ahead(world[0], "seedling", settings, EstimateOptions(measure=16))
    assert 1 <= found.job.asking.draws <= 2
    assert 4 < found.job.tokens_per_draw <= found.job.longest_draw <= 48
    assert all(found.each[name].seconds > 0 for name in ("E-step", "M-step", "evaluation", "loading"))
    assert found.assumed == ["later iterations are like the first", "rewards take no time"]
    assert re.match(r"\d+ problems: .* give or take", found.measured[2])  # 16, or more if quick


def test_on_the_command_line(world: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--task", "judge", "--raters", "named", "--scale", "1,5", "--max-new-tokens", "48"]
    argv = ["estimate", str(world[0]), "--model", "seedling", *flags, "--hardware", "l4", "--price", "2"]
    assert main([*argv, "--show", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["money"] == pytest.approx(2 * found["device_hours"])
    assert found["whole"]["E-step"]["draws"] == 8 * found["each"]["E-step"]["draws"]
    assert found["engine"]["fits"] and found["training"]["total"] > 16 * found["shape"]["parameters"]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    for words in ("an iteration: E-step", "the run", "money", "memory of a device: 24 GB", "assumed:"):
        assert words in shown
    assert "fitted by us on an H200" in shown
    assert main([word.replace("l4", "h10") for word in argv]) == 1
    assert "Did you mean h100" in capsys.readouterr().err


def test_notes_do_without_a_price(world: tuple[Path, Path]) -> None:
    found = look_ahead(world[0], "seedling", SETTINGS, EstimateOptions(hardware="h200"))
    assert "--price" in next(notes(found)) and found.price is None


def test_what_is_asked_of_a_problem_is_a_mean() -> None:
    assert Asking([Attempt("plain", 2, 0.5, True), Attempt("hinted", 1, 0.25, True)], 1, 1).draws == 1.25


@pytest.mark.parametrize(
    "header",
    [
        b"\xff" * 8,  # longer than the file
        b"\x02" + bytes(7) + b"[]",
        b"\x0a" + bytes(7) + b'{"w": [1]}',
        b"\x2a" + bytes(7) + b'{"w": {"dtype": "F32", "shape": ["a", 1]}}',
    ],
)
def test_a_header_that_is_none(tmp_path: Path, header: bytes) -> None:
    shutil.copytree(SEEDLING, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(header)
    with pytest.raises(ModelError, match=r"is not a complete safetensors file"):
        read_shape(tmp_path / "model")


def test_an_index_that_maps_nothing(tmp_path: Path) -> None:
    shutil.copytree(SEEDLING, tmp_path / "model")
    for content in ("[]", "{}", '{"weight_map": 7}', "{"):
        (tmp_path / "model" / "model.safetensors.index.json").write_text(content)
        with pytest.raises(ModelError, match="is damaged: it maps no weights to files"):
            read_shape(tmp_path / "model")
