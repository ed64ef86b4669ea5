"""Find a model's folder, here or on the Hub, and read its tokenizer and config."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from femtune._util.model_safety import check_fetched, check_weights, unreadable
from femtune._util.parsing import Unreadable, named_pairs, read_json, read_value
from femtune._util.redaction import check_values
from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.data.worlds import SEEDLING
from femtune.engines.dtypes import gpu_has_bfloat16
from femtune.errors import ModelError
from femtune.runs.checkpoints import best_model

log = logging.getLogger("femtune")

MODELS = {"seedling": SEEDLING}  # models that come with the package
INFO = "femtune.json"  # see model_info.py
_CONFIGS = ("config.json", "adapter_config.json", INFO)  # one of them is in each model's folder


def find_model(name: str) -> Path | str:
    """A local folder, one of `MODELS`, or the id of a model on the Hub.

    The folder of a run of `train` stands for its best model. Raises ModelError for a path that is no
    model folder, or has pickled weights alone, and ConfigError for a name that looks like a secret.
    """
    check_values({"model": name})  # as messages show it
    if name in MODELS:
        return MODELS[name]
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / file).exists() for file in _CONFIGS):
            if (best := best_model(path)) is not None:
                _say_best(path, best[1])
                return find_model(str(best[0]))
            found = sorted(child.name for child in path.iterdir())[:5]
            raise ModelError(f"{path} is no model folder: it has no config.json, but {found}.")
        check_weights(path)
        return path
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or path.exists()
    if looks_local:
        raise ModelError(f"{path} is no model folder. Give one, or the id of a model on the Hub.")
    return name


@cache
def _say_best(run: Path, why: str) -> None:
    """Log which model of a run is used, once."""
    log.info("%s is a run: its best model is used (%s).", run, why)


def local_model(name: str) -> Path:
    """A folder with the model's weights, fetched from the Hub (or its cache) where it is there.

    A folder of chosen examples has none: they are its base's. Raises ModelError where it is nowhere.
    """
    return weights_of(named_folder(name))


def weights_of(folder: Path) -> Path:
    """Return the folder of a model's weights: of chosen examples, their base's. Raises ModelError."""
    if not (folder / INFO).is_file() or any((folder / file).exists() for file in _CONFIGS[:2]):
        return folder
    try:
        found = read_json(folder / INFO)
    except Unreadable as error:
        raise ModelError(f"{folder / INFO} {error}. Restore it.") from error
    base = found.get("base") if isinstance(found, dict) else None
    if not isinstance(base, str) or not base:
        raise ModelError(f"{folder / INFO} names no `base`: write there the model that it is for.")
    return local_model(base)


def named_folder(name: str) -> Path:
    """The folder that a name stands for: as `local_model`, but of chosen examples their own."""
    found = find_model(name)
    if isinstance(found, Path):
        return found
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
        folder = Path(snapshot_download(found, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"model {name!r} is no folder here and can't be had from the Hub: {reason}"
        ) from error
    check_fetched(folder, name)
    return folder


def load_tokenizer(folder: Path, template_args: Sequence[str] = ()) -> ChatTokenizer:
    """The tokenizer of a model's folder. Raises ModelError if it is missing."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer("x")  # some settings of the wrong type show only here
    except Exception as error:  # of a damaged file, whatever transformers and tokenizers meet with
        raise unreadable(folder, "tokenizer", error) from error
    pairs = named_pairs("template_args", template_args)
    # what is too long is refused by `check_lengths`, in words that help
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    _name_end(tokenizer, folder)
    made = ChatTokenizer(tokenizer, tuple((key, read_value(value)) for key, value in pairs.items()))
    made.check()
    return made


def _name_end(tokenizer: Any, folder: Path) -> None:
    """Give a tokenizer without an end token the first one that the model's configuration names."""
    if tokenizer.eos_token_id is not None:
        return
    for name in ("generation_config.json", "config.json"):
        try:
            found = read_json(folder / name)
        except Unreadable:
            continue
        ends = found.get("eos_token_id") if isinstance(found, dict) else None
        for end in ends if isinstance(ends, list) else [ends]:
            if isinstance(end, int) and 0 <= end < len(tokenizer):
                tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
                return


def load_config(folder: Path) -> Any:
    """The config of a model's folder, or of the base that an adapter there is for."""
    from transformers import AutoConfig

    base = adapter_base(folder)
    folder = folder if base is None else local_model(base)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # of a damaged file, whatever transformers meets with
        raise unreadable(folder, "model config", error) from error
    _check_quantized(config, folder)
    return config


def _check_quantized(config: Any, folder: Path) -> None:
    """Refuse weights that bitsandbytes quantized where there is no GPU. Raises ModelError."""
    found = getattr(config, "quantization_config", None) or {}
    named = found if isinstance(found, dict) else vars(found)
    bits = 4 if named.get("load_in_4bit") else 8
    if named.get("quant_method") == "bitsandbytes" and gpu_has_bfloat16() is None:
        raise ModelError(
            f"{folder} holds {bits}-bit weights of bitsandbytes, which need a GPU, and torch sees none "
            "here. Use the model that they were made from, or a machine with a GPU."
        )


def adapter_base(folder: Path) -> str | None:
    """The model that the adapter in a folder is for; None where it holds none. Raises ModelError."""
    path = folder / "adapter_config.json"
    if not path.exists():
        return None
    try:
        found = read_json(path)
    except Unreadable as error:
        raise ModelError(f"{path} {error}. Download the adapter again.") from error
    base = found.get("base_model_name_or_path") if isinstance(found, dict) else None
    if not isinstance(base, str) or not base:
        raise ModelError(f"{path} names no `base_model_name_or_path`: write there what it is for.")
    return base


def base_of_adapter(folder: Path) -> Path | None:
    """The folder of the base that the adapter in a folder is for, None for a whole model."""
    base = adapter_base(folder)
    return None if base is None else local_model(base)
