"""A model's shape without its weights: from its config and the headers of its safetensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from femtune._util.parsing import Unreadable, read_json
from femtune._util.safetensors_header import read_header
from femtune.engines.model_files import adapter_base, find_model, load_config, local_model
from femtune.errors import ModelError
from femtune.tools.estimate.formulas import BYTES, Shape

_NUMBERS = {"F32", "BF16", "F16", "F64", "I64", "BOOL"}  # unquantized dtypes in safetensors


def config_folder(model: str, whole: bool) -> tuple[Path, str | None]:
    """Return a folder with config and tokenizer, and the name on the Hub if the model is there."""
    found = find_model(model)
    if whole or isinstance(found, Path):
        return local_model(model), None
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.model", "*.txt", "*.jinja"]
        return Path(snapshot_download(found, allow_patterns=patterns)), found
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"model {model!r} is no local folder and could not be downloaded from the Hub: {reason}"
        ) from error


def read_shape(folder: Path, name: str | None = None) -> Shape:
    """Read a model's shape from its config and the headers of its weights, local or on the Hub.

    For an adapter, reads its base. Raises ModelError without safetensors, or if they are quantized.
    """
    base = adapter_base(folder)
    if base is not None:
        return read_shape(*config_folder(base, whole=False))
    sizes = _headers(folder, name)
    try:
        return _shape(sizes, load_config(folder).get_text_config())
    except (AttributeError, TypeError, ArithmeticError) as error:
        raise ModelError(f"{folder}: its config says no shape of a causal model: {error}.") from error


def _shape(sizes: Mapping[str, tuple[int, ...]], config: Any) -> Shape:
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    table = config.vocab_size * config.hidden_size
    parameters = sum(math.prod(size) for size in sizes.values())
    tied = bool(getattr(config, "tie_word_embeddings", True))
    routed = sum(math.prod(size) for key, size in sizes.items() if ".experts." in key)
    experts = next(
        (
            count
            for key in ("num_local_experts", "num_experts", "n_routed_experts")
            if (count := getattr(config, key, None))
        ),
        1,
    )
    passed = (getattr(config, "num_experts_per_tok", None) or experts) / experts
    others = ("embed", "wte", "wpe", "lm_head", "router")
    dtype = str(getattr(config, "dtype", None)).removeprefix("torch.")
    return Shape(
        parameters=parameters,
        active=round(parameters - (1 if tied else 2) * table - routed * (1 - passed)),
        head=table,
        embedding=0 if tied else table,
        adapter={
            key.removesuffix(".weight"): (size[0], size[1])
            for key, size in sizes.items()
            if len(size) == 2 and not any(word in key for word in others)
        },
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        attention_width=heads * head_dim,
        kv_width=kv_heads * head_dim,
        vocabulary=config.vocab_size,
        dtype=dtype if dtype in BYTES else "float32",
    )


def _headers(folder: Path, name: str | None) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights, by name."""
    files = sorted(folder.glob("model*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = [folder / str(file) for file in sorted({*map(str, _index(index).values())})]
    if files and all(file.exists() for file in files):
        found = {key: info for file in files for key, info in read_header(file).items()}
    elif name is not None:
        found = _hub_headers(name)
    else:
        raise ModelError(
            f"{folder} has no weights as safetensors, by whose headers parameters are counted."
        )
    strange = sorted({kind for kind, _ in found.values()} - _NUMBERS)
    if strange:
        raise ModelError(
            f"{name or folder} holds weights of {', '.join(strange)}: what a quantized model takes is "
            "not known here. Give the model that it was made of."
        )
    return {key: size for key, (_, size) in found.items()}


def _index(path: Path) -> dict[str, Any]:
    """Read the map from weights to files, for a model of several files."""
    try:
        found = read_json(path)
        weights: dict[str, Any] = dict(found["weight_map"])
    except (Unreadable, LookupError, TypeError, ValueError) as error:
        raise ModelError(f"{path} is damaged: it maps no weights to files. Restore it.") from error
    return weights


def _hub_headers(name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    from huggingface_hub import get_safetensors_metadata
    from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

    try:
        metadata = get_safetensors_metadata(name)
    except (OSError, ValueError, NotASafetensorsRepoError, SafetensorsParsingError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"the weights of {name!r} can't be looked at on the Hub: {reason}") from error
    return {
        key: (info.dtype, tuple(info.shape))
        for file in metadata.files_metadata.values()
        for key, info in file.tensors.items()
    }
