"""Reading of safetensors headers: names, dtypes and shapes of weights, without the weights."""

from __future__ import annotations

import json
import math
import operator
import struct
from pathlib import Path

from femtune.errors import ModelError


def read_header(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the dtype and shape of each weight, by name.

    Raises ModelError if the header is missing, or the file's length does not match it.
    """
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > file.stat().st_size:
                raise ValueError("the header is truncated")
            header = {k: v for k, v in json.loads(stream.read(length)).items() if k != "__metadata__"}
        ends = [info["data_offsets"][1] for info in header.values()]
        found = {
            name: (str(info["dtype"]), tuple(map(operator.index, info["shape"])))
            for name, info in header.items()
        }
        if 8 + length + max(ends, default=0) != file.stat().st_size:
            raise ValueError("its length does not match its header")
    except (
        OSError,
        struct.error,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RecursionError,
    ) as error:
        raise ModelError(f"{file} is not a complete safetensors file: {error}.") from error
    return found


def num_parameters(folder: Path) -> int:
    """Return the number of parameters of all weights in a folder. Raises ModelError."""
    sizes = [size for file in folder.glob("*.safetensors") for _, size in read_header(file).values()]
    return sum(math.prod(size) for size in sizes)


_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def stored_dtype(folder: Path) -> str:
    """Return the dtype in which transformers loads a model "as stored": its config's, else its weights'.

    float32 for any dtype but float32, bfloat16 and float16. Raises ModelError for a damaged file.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        config = {}
    named = config.get("dtype") or config.get("torch_dtype") if isinstance(config, dict) else None
    if isinstance(named, str):
        return named if named in _NAMES.values() else "float32"
    for file in sorted(folder.glob("*.safetensors")):
        for kind, _ in read_header(file).values():
            if kind in _NAMES:  # the first floating-point weight
                return _NAMES[kind]
    return "float32"
