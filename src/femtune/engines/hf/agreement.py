"""Compare two ways to compute a model's next-token distributions, on ordinary text.

The measure is the KL divergence of the distributions after the last tokens of each text, in nats.
Logits themselves are no measure: of 50,000, the unlikely ones differ by far more than anything that is
ever sampled. Rounding alone gives 1e-10 in float32; in 16 bits it depends on the model, so a difference
is held against the model's own: between a whole pass, one token at a time by its own cache, and a whole
pass by transformers' plain ("eager") attention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

TEXTS = (
    "The kettle is on the stove.",
    "Question: A baker sold 14 loaves in the morning and 23 in the afternoon. How many did she sell in "
    "all? Answer: 14 + 23 = 37.",
    "Most plants take in water through their roots. It rises through narrow tubes in the stem to the "
    "leaves, where some of it is used to make sugar and the rest evaporates into the air.",
)
STEPS = 3  # last tokens of each text, which are passed one at a time
_LONGEST = 96  # tokens of a text at most: byte tokenizers make hundreds of them

# KL that counts as rounding for any model, and KL that never does, whatever the model's own rounding
_FLOOR = {torch.float32: 1e-7}
_FLOOR_16 = 1e-3
_CEILING = 0.05
# the model's own KL, which is of other roundings and so not the same: of its cache, where most sums are
# alike, and of plain attention. A trained SmolLM2's fused pass is .0044 apart, its cache .0003, plain
# attention .0020, float32 .0039; a mask that is wrong by one column 7 times plain attention's at least.
_TIMES_CACHED, _TIMES_EAGER = 8.0, 4.0


def text_rows(config: Any, tokenizer: Any = None) -> list[list[int]]:
    """Return the tokens of each text, or ids spread over the vocabulary where no tokenizer is given.

    `config` is the text model's. Rows have different lengths, all within its context.
    """
    vocab = int(config.vocab_size)
    longest = min(_LONGEST, int(getattr(config, "max_position_embeddings", None) or _LONGEST))
    rows = [list(tokenizer(text)["input_ids"]) for text in TEXTS] if tokenizer is not None else []
    rows = [row[:longest] for row in rows]
    if not rows or any(len(row) <= STEPS or max(row) >= vocab for row in rows):
        lengths = [max(STEPS + 1, longest * part // 16) for part in (2, 7, 15)]
        rows = [[(7919 * (31 * n + i) + vocab // 3) % vocab for i in range(n)] for n in lengths]
    return rows


@torch.inference_mode()
def whole_logits(model: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    """Logits [rows, STEPS, V] of the model's plain pass over each row by itself."""
    made = []
    for row in rows:
        tokens = torch.tensor([row], device=model.device)
        made.append(model(input_ids=tokens, use_cache=False, logits_to_keep=STEPS).logits[0, -STEPS:])
    return torch.stack(made).float()


@torch.inference_mode()
def cached_logits(model: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    """The same, the last STEPS tokens passed one at a time with the model's own cache."""
    made = []
    for row in rows:
        tokens = torch.tensor([row], device=model.device)
        output = model(input_ids=tokens[:, :-STEPS], use_cache=True, logits_to_keep=1)
        for place in range(len(row) - STEPS, len(row)):
            cache = output.past_key_values
            output = model(input_ids=tokens[:, place : place + 1], past_key_values=cache, use_cache=True)
            made.append(output.logits[0, -1])
    return torch.stack(made).view(len(rows), STEPS, -1).float()


@torch.inference_mode()
def eager_logits(model: Any, rows: Sequence[Sequence[int]]) -> Tensor | None:
    """The same by plain attention, which sums in another order; None where a model has none."""
    chosen = getattr(model.config, "_attn_implementation", None)
    if chosen in (None, "eager") or not hasattr(model, "set_attn_implementation"):
        return None
    try:
        model.set_attn_implementation("eager")
        return whole_logits(model, rows)
    except (ValueError, RuntimeError):
        return None
    finally:
        model.set_attn_implementation(chosen)


def divergence(expected: Tensor, found: Tensor) -> float:
    """Mean KL divergence in nats a token between the distributions of two sets of logits [..., V]."""
    log_p, log_q = expected.double().log_softmax(-1), found.double().log_softmax(-1)
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


class Reference:
    """A model's own distributions after the last tokens of some texts, computed once."""

    def __init__(self, model: Any, tokenizer: Any = None) -> None:
        self.model = model
        self.rows = text_rows(model.config.get_text_config(), tokenizer)
        self.expected = whole_logits(model, self.rows)
        self._own: float | None = None

    def differs(self, logits: Tensor) -> tuple[float, float] | None:
        """Return None if logits [rows, STEPS, V] agree up to rounding, else their KL and the tolerance.

        The model's own other passes are run only where the KL is above what rounding gives in any model.
        """
        found = divergence(self.expected, logits)
        allowed = _FLOOR.get(self.model.dtype, _FLOOR_16)
        if found > allowed:
            if self._own is None:
                self._own = self._rounding()
            if math.isfinite(self._own):
                allowed = max(allowed, min(_CEILING, self._own))
        return None if found <= allowed else (found, allowed)  # a NaN differs

    def _rounding(self) -> float:
        """Return the KL that rounding may give, by how far apart the model's own passes are."""
        cached = divergence(self.expected, cached_logits(self.model, self.rows))
        eager = eager_logits(self.model, self.rows)
        other = 0.0 if eager is None else divergence(self.expected, eager)
        return max(_TIMES_CACHED * cached, _TIMES_EAGER * other)
