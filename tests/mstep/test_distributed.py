"""The M-step in two processes (gloo, on the CPU) takes the steps that it takes in one."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from safetensors.torch import load_file

from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.engines.weight_check import read_check
from femtune.errors import ConfigError, FemtuneError
from femtune.mstep.config import Training
from femtune.mstep.fit import MStep, m_step
from femtune.mstep.launch import check_launch, launch_m_step

from ..models import tiny_model

TORCHRUN = "torchrun --standalone --nproc-per-node 2"  # standalone: on a port that is free
END = 257  # </s> of the byte tokenizer
# 10 rows that count, of weight 2 and of negative ones too, in micro-batches of 2: 3 epochs of 5 are 15,
# no multiple of 2 processes, and the last of the steps of 4 has 3
WEIGHTS = (1.0, 2.0, 0.0, -0.5, 1.0, 0.3, 1.0, 1.0, 2.0, 1.0, -1.0)
COMMON: dict[str, Any] = {
    "num_train_epochs": 3,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "use_cpu": True,
}
CASES: dict[str, dict[str, Any]] = {
    "DDP": {},
    "DDP, LoRA": {"use_peft": True, "lora_r": 4},
    "FSDP": {"fsdp": True, "max_grad_norm": 0.1, "weight_decay": 0.1},
    "FSDP, LoRA": {"fsdp": True, "use_peft": True, "lora_r": 4},
    "FSDP, tied embeddings": {"fsdp": True, "gradient_checkpointing": True},
    "FSDP, on from an adapter": {"fsdp": True, "use_peft": True, "num_train_epochs": 1},
    "DDP after FSDP": {"lr_scheduler_type": "linear"},
}

# Each process runs all cases and says how it saw the weights at the first step of each.
WORKER = """
import json, os, sys
from pathlib import Path
import transformers
from torch.optim.optimizer import register_optimizer_step_pre_hook
from femtune.mstep.fit import m_step
from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.mstep.config import Training

folder = Path(sys.argv[1])
seen = []

def look(optimizer, args, kwargs):
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    own = [weight.to_local() if hasattr(weight, "to_local") else weight for weight in weights]
    kinds = sorted({type(weight).__name__ for weight in weights})
    seen.append([kinds, sum(weight.numel() for weight in weights), sum(part.numel() for part in own)])

register_optimizer_step_pre_hook(look)
found = {}
for name, (start, settings) in json.loads((folder / "cases.json").read_text()).items():
    seen.clear()
    losses = []
    tokenizer = ChatTokenizer(transformers.AutoTokenizer.from_pretrained(folder / "whole"))
    done = m_step(folder / "examples.parquet", Path(start), folder / "two" / name, Training(**settings),
                  tokenizer, seed=3, on_step=lambda step, steps, loss: losses.append(loss))
    found[name] = {"seen": seen[0], "done": vars(done), "losses": losses}
(folder / f"found-{os.environ['RANK']}.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    tiny_model(folder / "whole", sharpness=0.5)
    tiny_model(folder / "tied", sharpness=0.5, tie_word_embeddings=True)
    rng = random.Random(0)
    columns: dict[str, list[Any]] = {
        "prompt_tokens": [_tokens(rng, rng.randint(2, 20)) for _ in WEIGHTS],
        "completion_tokens": [[*_tokens(rng, rng.randint(1, 20)), END] for _ in WEIGHTS],
        "weight": list(WEIGHTS),
    }
    pq.write_table(pa.table(columns), folder / "examples.parquet")
    return folder


@pytest.fixture(scope="module")
def alone(place: Path) -> dict[str, MStep]:
    """Each case in this process, with twice the accumulation."""
    return {
        name: m_step(
            place / "examples.parquet",
            _start(place, name),
            place / "one" / name,
            Training(**(COMMON | settings | {"fsdp": False, "gradient_accumulation_steps": 4})),
            _tokenizer(place),
            seed=3,
        )
        for name, settings in CASES.items()
    }


@pytest.fixture(scope="module")
def found(place: Path, alone: dict[str, MStep]) -> list[dict[str, Any]]:
    """What each of two processes saw of each case."""
    cases = {
        name: (str(_start(place, name)), COMMON | settings | {"gradient_accumulation_steps": 2})
        for name, settings in CASES.items()
    }
    (place / "cases.json").write_text(json.dumps(cases))
    (place / "worker.py").write_text(WORKER)
    run = subprocess.run(
        [*check_launch(TORCHRUN), str(place / "worker.py"), str(place)],
        env=os.environ | {"PYTHONPATH": _source(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=290,
    )
    assert run.returncode == 0, run.stderr[-5000:]
    return [json.loads((place / f"found-{rank}.json").read_text()) for rank in (0, 1)]


# The steps


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_take_the_steps_of_one(
    name: str, place: Path, alone: dict[str, MStep], found: list[dict[str, Any]]
) -> None:
    """Weights that moved by 1e-3 or so agree to 1e-6; what is told is the same in both."""
    one, two = place / "one" / name, place / "two" / name
    assert furthest(one, two) < 1e-6
    mine, theirs = found[0][name], found[1][name]
    assert mine["done"] == theirs["done"]
    assert mine["losses"] == theirs["losses"]
    done = MStep(**mine["done"])
    assert done.num_steps == alone[name].num_steps
    assert (done.num_examples, done.trained_tokens) == (10, alone[name].trained_tokens)
    assert done.loss == pytest.approx(alone[name].loss, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_folder_and_its_probe_are_those_of_one_process(
    name: str, place: Path, found: list[dict[str, Any]]
) -> None:
    one, two = place / "one" / name, place / "two" / name
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())
    assert not [path for path in two.parent.iterdir() if path.name.startswith(".")]
    mine, theirs = read_check(one), read_check(two)
    assert mine is not None and theirs is not None
    assert theirs.prompts == mine.prompts
    assert theirs.logprobs == pytest.approx(mine.logprobs, abs=1e-4)
    assert theirs.logprobs_before == pytest.approx(mine.logprobs_before, abs=1e-4)
    assert theirs.logprobs != pytest.approx(theirs.logprobs_before, abs=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if not CASES[name].get("use_peft")])
def test_the_folder_is_loaded_as_any(name: str, place: Path, found: list[dict[str, Any]]) -> None:
    _, said = transformers.AutoModelForCausalLM.from_pretrained(
        place / "two" / name, output_loading_info=True
    )
    assert not any(said.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_each_process_holds_half_of_what_is_sharded(name: str, found: list[dict[str, Any]]) -> None:
    """Not DDP under another name, as transformers' own flag gives on the CPU."""
    for process in found:
        kinds, whole, own = process[name]["seen"]
        if CASES[name].get("fsdp"):
            assert kinds == ["DTensor"]
            assert own == pytest.approx(whole / 2, rel=0.02)
        else:
            assert kinds == ["Parameter"]
            assert own == whole


# The launcher


@pytest.mark.slow
def test_a_launched_m_step_is_that_of_one_process(
    place: Path, alone: dict[str, MStep], tmp_path: Path, here: None
) -> None:
    told: list[tuple[int, int]] = []
    done = launch(
        TORCHRUN, place, tmp_path / "out", on_step=lambda step, steps, _: told.append((step, steps))
    )
    assert told == [(step, alone["DDP"].num_steps) for step in range(1, alone["DDP"].num_steps + 1)]
    assert done.loss == pytest.approx(alone["DDP"].loss, rel=1e-5)
    assert furthest(place / "one" / "DDP", tmp_path / "out") < 1e-6
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_accelerate_s_own_fsdp_is_taken_as_it_is(
    place: Path, alone: dict[str, MStep], tmp_path: Path, here: None
) -> None:
    """A user's `accelerate config`; here given as flags."""
    flags = "--use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP"
    launch(f"accelerate launch --num_processes 2 --main_process_port 0 {flags}", place, tmp_path / "out")
    assert furthest(place / "one" / "DDP", tmp_path / "out") < 1e-6


@pytest.mark.slow
def test_what_a_process_raises_is_raised_here(place: Path, tmp_path: Path, here: None) -> None:
    """A loss that is no number, in the second step of two: the job ends, and nothing is left."""
    with pytest.raises(FemtuneError, match=r"the loss is nan in a batch of the examples at rows"):
        launch(TORCHRUN, place, tmp_path / "out", learning_rate=1e30)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_out_of_memory_in_one_process_starts_all_again_with_half(
    place: Path,
    alone: dict[str, MStep],
    tmp_path: Path,
    here: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The second process has room for one row; the steps stay those of micro-batches of 2."""
    out = tmp_path / "out"
    with caplog.at_level(logging.WARNING, "femtune"):
        done = launch(f"{sys.executable} {_short_of_memory(tmp_path, 1)}", place, out)
    assert furthest(place / "one" / "DDP", out) < 1e-6
    assert done.num_steps == alone["DDP"].num_steps
    assert ["starts over" in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.slow
def test_ctrl_c_ends_all_processes(place: Path, tmp_path: Path, here: None) -> None:
    def stop(step: int, steps: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch(TORCHRUN, place, tmp_path / "out", on_step=stop, num_train_epochs=2000)
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(tmp_path) not in listed
    assert not list(tmp_path.iterdir())


def test_a_launcher_that_fails_is_quoted(place: Path, tmp_path: Path, here: None) -> None:
    with pytest.raises(FemtuneError, match=r"status 2(?s:.*)unrecognized arguments: --bogus"):
        launch("torchrun --bogus", place, tmp_path / "out")


@pytest.mark.parametrize("command", ["", "no-such-launcher --n 2", "torchrun 'unclosed"])
def test_a_command_that_is_none_is_refused_at_once(command: str) -> None:
    with pytest.raises(ConfigError, match="launch "):
        check_launch(command)


# The command line


@pytest.mark.slow
def test_fit_under_a_launcher_saves_and_tells_once(place: Path, tmp_path: Path) -> None:
    flags = ["--use-cpu", "--learning-rate", "1e-3", "--num-train-epochs", "3"]
    flags += ["--per-device-train-batch-size", "2", "--gradient-accumulation-steps", "2", "--seed", "3"]
    run = subprocess.run(
        [
            *check_launch(TORCHRUN),
            *("-m", "femtune", "fit", str(place / "examples.parquet"), "--model", str(place / "whole")),
            *("--output-dir", str(tmp_path / "out"), *flags, "--show", "lines"),
        ],
        env=os.environ | {"PYTHONPATH": _source(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr[-5000:]
    assert run.stdout.count("num_examples") == 1
    assert run.stdout.count(f"model: {tmp_path / 'out'}") == 1
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Started processes find this source, and do not fight over cores."""
    monkeypatch.setenv("PYTHONPATH", _source())
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield


def launch(command: str, place: Path, out: Path, on_step: Any = None, **settings: Any) -> MStep:
    return launch_m_step(
        command,
        place / "examples.parquet",
        place / "whole",
        out,
        Training(**(COMMON | {"gradient_accumulation_steps": 2} | settings)),
        _tokenizer(place),
        seed=3,
        **({"on_step": on_step} if on_step else {}),
    )


def furthest(one: Path, other: Path) -> float:
    """The largest difference between weights of two models' folders."""
    some, others = (load_file(next(folder.glob("*.safetensors"))) for folder in (one, other))
    assert some.keys() == others.keys()
    assert all(weight.dtype == torch.float32 for weight in others.values())
    return max((some[name] - others[name]).abs().max().item() for name in some)


def _short_of_memory(folder: Path, most: int) -> Path:
    """A launcher of two processes, forked for speed, of which the second has memory for so many rows."""
    launcher = folder.with_suffix(".launcher.py")
    launcher.write_text(
        f"""
import os, socket, sys
from pathlib import Path
import torch
from femtune.mstep import launch
from femtune.mstep import trainer
whole = trainer.WeightedTrainer.compute_loss

def compute_loss(self, model, inputs, *args, **kwargs):
    if os.environ["RANK"] == "1" and len(inputs["input_ids"]) > {most}:
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return whole(self, model, inputs, *args, **kwargs)

trainer.WeightedTrainer.compute_loss = compute_loss
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
processes = []
for rank in ("0", "1"):
    if (process := os.fork()) == 0:
        os.environ.update(RANK=rank, LOCAL_RANK=rank)
        launch.main(Path(sys.argv[-1]))
        os._exit(0)
    processes.append(process)
while processes:
    ended, status = os.wait()
    processes.remove(ended)
    if status:
        for process in processes:
            os.kill(process, {signal.SIGKILL:d})
        sys.exit(1)
"""
    )
    return launcher


def _start(place: Path, name: str) -> Path:
    if name == "FSDP, on from an adapter":
        return place / "one" / "DDP, LoRA"
    return place / ("tied" if "tied" in name else "whole")


def _tokenizer(place: Path) -> ChatTokenizer:
    return ChatTokenizer(transformers.AutoTokenizer.from_pretrained(place / "whole"))


def _tokens(rng: random.Random, number: int) -> list[int]:
    return [rng.randrange(256) for _ in range(number)]


def _source() -> str:
    return str(Path(__file__).parents[2] / "src")
