"""In which dtype a model is served: that of its weights, where the processor is fast in it."""

from __future__ import annotations

import platform
from functools import cache


def usable_dtype(stored: str, device: str | None) -> str:
    """Return the dtype to compute in for weights that are stored in another.

    A CPU without bfloat16 instructions takes six times as long in 16 bits as in float32, which holds
    every bfloat16 and float16 number exactly.
    """
    on_cpu = device == "cpu" if device else gpu_has_bfloat16() is None
    return "float32" if on_cpu and stored != "float32" and not cpu_has_bfloat16() else stored


@cache
def cpu_has_bfloat16() -> bool:
    """True if this processor has bfloat16 instructions, or torch can not tell."""
    import torch  # slow to import

    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@cache
def gpu_has_bfloat16() -> bool | None:
    """True if the GPU has bfloat16 instructions; None if there is no GPU."""
    import torch

    return torch.cuda.is_bf16_supported() if torch.cuda.is_available() else None
