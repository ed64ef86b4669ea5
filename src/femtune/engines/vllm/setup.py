"""Settings of vLLM before it starts, and model folders in the form that it reads."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import transformers
from safetensors.torch import load_file, save_file

from femtune._util.safetensors_header import stored_dtype
from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.engines.hf.engine import end_tokens
from femtune.engines.hf.model import rounding_seed
from femtune.engines.rounding import HALVES, rounded_state
from femtune.engines.vllm.requests import one_line
from femtune.engines.weight_check import check_file
from femtune.errors import ConfigError, ModelError

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # of adapters, that vLLM has room for
_KV_BYTES = 2**32  # of keys and values on a CPU, where vLLM would take nine tenths of all memory


def import_vllm() -> Any:
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # a worker's errors appear there alone
    # this process has used torch, and maybe a GPU: a fork of it may hang
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    try:
        with quietly():
            import vllm
            import vllm.platforms
    except ImportError as error:
        raise ConfigError(
            f"the vllm engine needs vLLM, which can't be imported ({error}): `pip install vllm`, or "
            "on a machine without a GPU as docs/scale.md says."
        ) from error
    return vllm


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep Python's warnings of vLLM's own code from the reader, in processes started here too."""
    said = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.environ.pop("PYTHONWARNINGS")
        if said is not None:
            os.environ["PYTHONWARNINGS"] = said


def prepare_cpu(args: dict[str, Any]) -> None:
    """Bounds of memory and threads on a CPU, where nobody has said others."""
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # the system's own choice of cores
    said = {"kv_cache_memory_bytes", "gpu_memory_utilization"} & set(args)
    if not said and "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
        args["kv_cache_memory_bytes"] = _KV_BYTES
    # a prompt that is cut in two fails with a seed here: vLLM sets back a generator that can't be (0.32)
    args.setdefault("enable_chunked_prefill", False)


def check_format(args: Mapping[str, Any]) -> None:
    """Refuse formats of weights by which vLLM reads pickles. Raises ConfigError."""
    told = args.get("load_format", "safetensors")
    if told in ("auto", "pt", "npcache"):
        raise ConfigError(
            f"vLLM's load_format {told} reads pickled weights, which can run code: leave it out, "
            "femtune takes safetensors."
        )


def rounded_copy(weights: Path, dtype: str, copy: Path) -> Path:
    """Return a folder whose weights lose nothing in the engine's dtype: `weights`, or a copy of it.

    vLLM casts to nearest, by which small updates are lost. So float32 weights that femtune trained, of a
    model or an adapter, are rounded stochastically in `copy` where the engine's dtype has 16 bits.
    """
    if dtype not in HALVES or check_file(weights) is None:
        return weights
    seed = rounding_seed(weights)
    is_adapter = (weights / "adapter_config.json").is_file()
    if not is_adapter and stored_dtype(weights) != "float32":
        return weights
    copy.mkdir(parents=True)
    for file in weights.iterdir():
        if file.suffix == ".safetensors":
            state = rounded_state(load_file(file), HALVES[dtype], seed)
            save_file(state, copy / file.name, {"format": "pt"})
        elif file.is_file():
            shutil.copyfile(file, copy / file.name)
    return copy


def check_arguments(args: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse engine arguments that are femtune's `own`, or that vLLM lacks. Raises ConfigError."""
    from vllm.engine.arg_utils import EngineArgs

    taken = sorted(set(args) & set(own))
    if taken:
        raise ConfigError(f"vLLM's {', '.join(taken)} is set by femtune: leave it out.")
    unknown = sorted(set(args) - {field.name for field in dataclasses.fields(EngineArgs)})
    if unknown:
        raise ConfigError(f"vLLM has no engine argument {', '.join(unknown)}: see `vllm serve --help`.")


def lora_args(rank: int | None) -> dict[str, Any]:
    if rank is None:
        return {}
    room = next((size for size in _RANKS if size >= rank), None)
    if room is None:
        raise ConfigError(f"lora_rank {rank}: vLLM serves adapters up to rank {_RANKS[-1]}.")
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": room}


def adapter_config(folder: Path) -> dict[str, Any] | None:
    """Return the settings in a PEFT adapter's folder; None for any other folder."""
    path = folder / "adapter_config.json"
    return json.loads(path.read_text()) if path.is_file() else None


def adapter_rank(adapter: Mapping[str, Any]) -> int:
    ranks: list[int] = [adapter["r"], *(adapter.get("rank_pattern") or {}).values()]
    return max(ranks)


def check_adapter(folder: Path, adapter: Mapping[str, Any], lora_rank: int | None) -> None:
    """Refuse an adapter of a higher rank than the engine was started for. Raises ModelError."""
    rank = adapter_rank(adapter)
    if rank > (lora_rank or 0):
        raise ModelError(
            f"{folder} is an adapter of rank {rank}, the engine was started for "
            f"{f'rank {lora_rank}' if lora_rank else 'full models'}: make it with lora_rank={rank}."
        )


def check_vocabulary(weights: Path, size: int, trust_remote_code: bool) -> None:
    """Refuse a folder that is no model, or whose vocabulary has not `size` tokens. Raises ModelError."""
    try:
        config = transformers.AutoConfig.from_pretrained(weights, trust_remote_code=trust_remote_code)
    except Exception as error:  # OSError, ValueError, or the model's own
        raise ModelError(f"{weights} holds no model that can be read: {one_line(error)}") from error
    new = config.get_text_config().vocab_size
    if new != size:
        raise ModelError(
            f"{weights} has a vocabulary of {new} tokens, the engine's model {size}: "
            "make a new engine for another model."
        )


def read_end_tokens(
    model: str | Path, tokenizer: ChatTokenizer, trust_remote_code: bool = False
) -> frozenset[int]:
    """All ids that end a completion, of a folder or Hub id; see `engine.end_tokens`."""
    try:
        generation = transformers.GenerationConfig.from_pretrained(model)
    except OSError:  # it has none: a model takes its defaults from its configuration
        config = transformers.AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
        generation = transformers.GenerationConfig.from_model_config(config)
    return end_tokens(SimpleNamespace(generation_config=generation), tokenizer)
