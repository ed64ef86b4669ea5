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
    return choose_with_logprobs(logits, seeds, positions, sampling)[0]


def choose_with_logprobs(
    logits: Tensor, seeds: Tensor, positions: Tensor, sampling: Sampling
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `choose` gives, with two log-probabilities [B] float32 of each token in nats.

    The first is at temperature 1 without top_p and top_k, the second that of drawing the token so.
    """
    if sampling.temperature == 0:
        tokens = logits.argmax(-1)
        logprobs = token_logprobs_of(logits, tokens)
        return tokens, logprobs, torch.zeros_like(logprobs)
    plain = sampling.follows_model
    scaled = logits if plain else _filtered(logits.float() / sampling.temperature, sampling)
    # float32's least is e^-103: a block that is lost to 0 would lose to any noise, which spans 41
    probs = scaled.softmax(-1, dtype=torch.float32)
    mass = _block_sums(probs).log_()
    names = torch.arange(mass.shape[-1], device=mass.device)
    # a block's noise goes by a negative id, so that it is no token's
    block = (mass + gumbel(seeds, positions, -1 - names)).argmax(-1, keepdim=True)
    tokens = block * _BLOCK + torch.arange(_BLOCK, device=mass.device)
    size = scaled.shape[-1]
    within = scaled.gather(1, tokens.clamp_max(size - 1)).float()
    within.masked_fill_(tokens >= size, -math.inf)
    best = (within + gumbel(seeds, positions, tokens)).argmax(-1, keepdim=True)
    chosen = tokens.gather(1, best)
    # a chosen token's probability is at least e^-82, and so as precise as any
    drawn = probs.gather(1, chosen).squeeze(1).log_()
    chosen = chosen.squeeze(1)
    return chosen, drawn if plain else token_logprobs_of(logits, chosen), drawn


def token_logprobs_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities [...] float32 of tokens [...] under logits [..., V]."""
    logits = logits.float()
    of_tokens: Tensor = logits.gather(-1, tokens[..., None]).squeeze(-1)
    return of_tokens - logits.logsumexp(-1)


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


def _block_sums(probs: Tensor) -> Tensor:
    """Sums [B, blocks] of each block of [B, V]; the last one may be short."""
    whole = probs.shape[-1] // _BLOCK * _BLOCK
    sums: Tensor = probs[:, :whole].reshape(len(probs), -1, _BLOCK).sum(-1)
    if whole == probs.shape[-1]:
        return sums
    return torch.cat((sums, probs[:, whole:].sum(-1, keepdim=True)), 1)


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
