"""Round float32 weights to 16 bits without losing what was learnt.

A small M-step moves most weights by less than half a unit in the last place of bfloat16, so rounding
to nearest gives the old weights again. Stochastic rounding takes the upper or the lower neighbor, each
with a probability that makes the mean right: sums over many weights, as a layer computes, keep the
update.

    rounded(weight, torch.bfloat16, "7 model.embed_tokens.weight")

The random bits follow from the seed alone, on any device and in any version of torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}  # formats that weights are rounded to
_SLICE = 1 << 22  # values rounded at a time; a multiple of 4, as 64 random bits are for four values


def rounded(values: Tensor, dtype: torch.dtype, seed: str) -> Tensor:
    """Round float32 values stochastically to bfloat16 or float16, reproducibly for a seed.

    Each result is one of the two neighbors, and the value itself on average over seeds. Values that
    `dtype` has are kept, infinities and NaN too; those beyond its largest number become that.
    """
    if dtype not in HALVES.values():
        raise ValueError(f"dtype must be bfloat16 or float16, got {dtype}.")
    flat = values.detach().reshape(-1)
    made = torch.empty(flat.shape, dtype=dtype, device=flat.device)
    bits = _bits(seed)
    for start in range(0, len(flat), _SLICE):
        part = flat[start : start + _SLICE].float()
        raw = bits.random_raw(-(-len(part) // 4)).astype("<u8").view("<u2")[: len(part)]
        noise = torch.from_numpy(raw.astype(np.int32)).to(flat.device)
        made[start : start + _SLICE] = _neighbors(part, noise, dtype)
    return made.view(values.shape)


def rounded_state(state: Mapping[str, Any], dtype: torch.dtype, seed: str) -> dict[str, Any]:
    """Round all float32 tensors of a state dict; tied ones stay one tensor."""
    made: dict[str, Any] = {}
    done: dict[tuple[int, tuple[int, ...]], Tensor] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            made[name] = value
            continue
        key = (value.data_ptr(), tuple(value.shape))
        if key not in done:
            done[key] = rounded(value, dtype, f"{seed} {name}")
        made[name] = done[key]
    return made


@torch.no_grad()
def round_in_place(model: torch.nn.Module, dtype: torch.dtype, seed: str) -> None:
    """Give a model's float32 parameters values that `dtype` has; they stay float32.

    Where parameters are sharded, each process rounds its own part.
    """
    for name, weight in model.named_parameters():
        own = weight.to_local() if hasattr(weight, "to_local") else weight
        if own.dtype == torch.float32 and own.numel():
            own.copy_(rounded(own, dtype, f"{seed} {name}"))


def _bits(seed: str) -> np.random.PCG64:
    digest = hashlib.blake2b(seed.encode(), digest_size=16).digest()
    return np.random.PCG64(int.from_bytes(digest, "big"))


def _neighbors(part: Tensor, noise: Tensor, dtype: torch.dtype) -> Tensor:
    """Add 16 random bits [n] below the cut of float32 values [n], and cut."""
    bits = part.contiguous().view(torch.int32)
    if dtype == torch.bfloat16:  # the upper half of a float32
        moved = ((bits + noise) & ~0xFFFF).view(torch.float32)
    else:
        normal = ((bits + (noise & 0x1FFF)) & ~0x1FFF).view(torch.float32)
        # below float16's smallest normal number, its numbers are multiples of 2^-24
        small = (part.abs() * 2.0**24 + noise / 2.0**16).floor() * 2.0**-24
        moved = torch.where(part.abs() < 2.0**-14, small.copysign(part), normal)
    most = torch.finfo(dtype).max
    return torch.where(part.isfinite(), moved.clamp(-most, most), part).to(dtype)
