"""Sampling by noise that belongs to the draw, not to the batch: counter-based Gumbel noise.

The arg max of logits / temperature + Gumbel noise is a draw from their softmax (Gumbel 1954). Here
the noise is a hash of (seed of the draw, position in the completion, token id), so a draw is the
same alone, in a batch of 512, on another worker, or after a resume.

    >>> seeds, positions, logits = torch.tensor([7, 8]), torch.tensor([0, 0]), torch.zeros(2, 300)
    >>> together = choose(logits, seeds, positions, Sampling())
    >>> torch.equal(together[1:], choose(logits[1:], seeds[1:], positions[1:], Sampling()))
    True
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from femtune.types import Sampling

_BLOCK = 128  # tokens; near the root of a vocabulary, and part of what a seed means: never change it

# SplitMix64 (Steele, Lea and Flood 2014, fig. 16): a Weyl sequence of this step, then the mix below.
# Its constants are unsigned, torch's integers signed: 2**64 is taken off where they exceed 2**63.
_STEP = 0x9E3779B97F4A7C15 - 2**64
_MIX = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))


def choose(logits: Tensor, seeds: Tensor, positions: Tensor, sampling: Sampling) -> Tensor:
    """One token per row: [B] int64 of logits [B, V], the draws' seeds [B], positions [B].

    Positions count from 0 at the completion's first token. A block of 128 tokens is drawn by its
    mass, then a token within it: the same law as one draw over all tokens, exactly, with noise for
    V / 128 + 128 numbers instead of V. Padding of the vocabulary (logits of -inf) changes nothing.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    scaled = _filtered(logits.float() / sampling.temperature, sampling)
    padded = functional.pad(scaled, (0, -scaled.shape[-1] % _BLOCK), value=-math.inf)
    blocks = padded.view(len(padded), -1, _BLOCK)
    mass = blocks.logsumexp(-1)
    names = torch.arange(mass.shape[-1], device=mass.device)
    # a block's noise goes by a negative id, so that it is no token's
    block = (mass + gumbel(seeds, positions, -1 - names)).argmax(-1, keepdim=True)
    within = blocks.gather(1, block[:, :, None].expand(-1, -1, _BLOCK)).squeeze(1)
    tokens = block * _BLOCK + torch.arange(_BLOCK, device=mass.device)
    best = (within + gumbel(seeds, positions, tokens)).argmax(-1, keepdim=True)
    return tokens.gather(1, best).squeeze(1)


def gumbel(seeds: Tensor, positions: Tensor, ids: Tensor) -> Tensor:
    """Standard Gumbel noise [B, N] float32 for seeds [B], positions [B], ids [N] or [B, N], int64.

    Always finite, between -2.9 and 37.5. The upper tail, which decides arg maxes, is exact to a
    chance of 1e-16, as small uniforms keep all of 53 bits; the lower is cut at a chance of 6e-8.
    """
    rows = _mix(_mix(seeds + _STEP) + positions * _STEP)
    bits = _mix(rows[:, None] + ids * _STEP)
    # float32 keeps 24 digits of however small a value; the half keeps it above 0, the clamp below 1
    uniform = _shift(bits, 11).float().add_(0.5).mul_(2.0**-53).clamp_(max=1 - 2.0**-24)
    exponential = uniform.neg_().log1p_().neg_()
    return exponential.log_().neg_()


def _mix(bits: Tensor) -> Tensor:
    """SplitMix64's finalizer, in place: a bijection of 64 bits that spreads each over all."""
    for by, factor in _MIX:
        bits.bitwise_xor_(_shift(bits, by)).mul_(factor)
    return bits.bitwise_xor_(_shift(bits, 31))


def _shift(bits: Tensor, by: int) -> Tensor:
    """A logical shift to the right: torch's own copies the sign bit in."""
    return (bits >> by).bitwise_and_((1 << (64 - by)) - 1)


def _filtered(scaled: Tensor, sampling: Sampling) -> Tensor:
    """Logits [B, V] with -inf outside the top_k likeliest and the smallest set of mass top_p."""
    if 0 < sampling.top_k < scaled.shape[-1]:
        least = scaled.topk(sampling.top_k).values[:, -1:]
        scaled = scaled.masked_fill(scaled < least, -math.inf)
    if sampling.top_p < 1:
        ordered = scaled.sort(-1, descending=True).values
        probs = ordered.double().softmax(-1)
        before = probs.cumsum(-1) - probs  # the mass of likelier tokens
        last = (before < sampling.top_p).sum(-1, keepdim=True) - 1
        scaled = scaled.masked_fill(scaled < ordered.gather(-1, last.clamp_min(0)), -math.inf)
    return scaled
