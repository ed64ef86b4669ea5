"""Disk space of an M-step's model, and a check for enough free space."""

from __future__ import annotations

import shutil
from pathlib import Path

from femtune._util.safetensors_header import num_parameters, stored_dtype
from femtune.errors import ModelError, RunError
from femtune.mstep.config import Training

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def exported_dtype(base: Path, training: Training) -> str:
    """Return the dtype of an M-step's model: the base's; adapters are float32."""
    return "float32" if training.use_peft else stored_dtype(base)


def model_bytes(start: Path, training: Training, dtype: str = "float32") -> int:
    """Return a lower bound on the bytes of an M-step's model; 0 if the start does not show it."""
    if training.use_peft and not (start / "adapter_config.json").exists():
        return 0  # a new adapter, far smaller than its base
    try:
        return _BYTES[dtype] * num_parameters(start)
    except ModelError:
        return 0  # loading the weights reports the error


def check_room(
    out: Path, start: Path, training: Training, dtype: str = "float32", with_master: bool = False
) -> None:
    """Refuse an M-step before it starts if its model does not fit on the disk. Raises RunError.

    `with_master`: float32 weights are stored beside it.
    """
    needed = model_bytes(start, training, dtype) + with_master * model_bytes(start, training)
    free = free_bytes(out)
    if needed > free:
        raise RunError(
            f"{out} would take {sized(needed)}, and {sized(free)} are free there. Make room, or set "
            "--keep-last 1 to remove older models; then run the same command to resume."
        )


def free_bytes(path: Path) -> int:
    """Return the free bytes at the place of a path, which need not exist."""
    return shutil.disk_usage(
        next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    ).free


def sized(number: float) -> str:
    """Format bytes for people.

    >>> sized(4_210), sized(4_210_000), sized(2.5e9)
    ('4 kB', '4 MB', '2.5 GB')
    """
    for unit, size, least in (("GB", 1e9, 1e8), ("MB", 1e6, 1e6)):
        if number >= least:
            return f"{number / size:.{int(unit == 'GB')}f} {unit}"
    return f"{number / 1e3:.0f} kB"
