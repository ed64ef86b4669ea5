"""A forward pass for models of Llama's shape, over the model's own weights, with fewer operations.

The queries', keys' and values' projections are one product, and so are the MLP's gate and up; a pass
that only fills slots stops once the last layer's keys and values are stored. In a step no key is copied
for the heads that share it, and a prefix that rows share is read once for all of them. Sums round in
another order than in the model, so `model.quickest` compares logits before it takes this for the model.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.cache_utils import Cache

from femtune.engines.hf.kv_slots import Slots

# of transformers, which differ only in biases and in whether queries and keys are normed
_MODEL_TYPES = {"llama", "mistral", "qwen2", "qwen3"}
# torch's attention on a CPU, which also gives the logs of softmax's denominators
_on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}  # of a layer


@dataclass(frozen=True, slots=True)
class _Layer:
    """Weights of one layer; H hidden, D a head's size, Q and K heads of queries and of keys."""

    norm: Tensor  # [H]
    qkv: Tensor  # [(Q + 2 K) D, H]
    qkv_bias: Tensor | None
    head_norm: Tensor | None  # [Q + K, D]: Qwen 3's, of queries and keys
    _: KW_ONLY
    out: Any
    mlp_norm: Tensor  # [H]
    gate_up: Tensor  # [2 F, H]
    gate_up_bias: Tensor | None
    down: Any


def fuse(model: Any) -> Fused | None:
    """The fast pass of a model; None where its shape is another."""
    name = getattr(model.config, "model_type", "")
    known = name in _MODEL_TYPES and type(model).__module__.startswith("transformers.models.")
    return Fused(model) if known and all(map(_is_plain, model.model.layers)) else None


class Fused:
    """Called as `causal` and `tree` call a model, with full attention alone."""

    def __init__(self, model: Any) -> None:
        self.config, self.device, self.dtype = model.config, model.device, model.dtype
        self._base, self._head = model.model, model.lm_head
        attention = model.model.layers[0].self_attn
        self._size: int = attention.head_dim
        self._scale: float = attention.scaling
        self._num_keys: int = attention.k_proj.out_features // self._size
        self._num_queries: int = attention.q_proj.out_features // self._size
        self._act = model.model.layers[0].mlp.act_fn
        self._eps: float = model.config.rms_norm_eps
        self._layers = [self._layer(layer) for layer in model.model.layers]

    def _layer(self, layer: Any) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        qkv, qkv_bias = _merged(attention.q_proj, attention.k_proj, attention.v_proj)
        gate_up, gate_up_bias = _merged(mlp.gate_proj, mlp.up_proj)
        head_norm = None
        if hasattr(attention, "q_norm"):
            query, key = attention.q_norm.weight, attention.k_norm.weight
            rows = [query.expand(self._num_queries, -1), key.expand(self._num_keys, -1)]
            head_norm = torch.cat(rows)
        return _Layer(
            norm=layer.input_layernorm.weight,
            qkv=qkv,
            qkv_bias=qkv_bias,
            head_norm=head_norm,
            out=attention.o_proj,
            mlp_norm=layer.post_attention_layernorm.weight,
            gate_up=gate_up,
            gate_up_bias=gate_up_bias,
            down=mlp.down_proj,
        )

    def __call__(
        self,
        *,
        input_ids: Tensor,
        past_key_values: Cache,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> SimpleNamespace:
        """Pass tokens [n, t]: where they only fill slots, or have no mask, there are no logits.

        Else there are logits of the last `logits_to_keep` tokens; 0: of all.
        """
        num, length = input_ids.shape
        is_slots = isinstance(past_key_values, Slots)
        fills = past_key_values.filling if is_slots else attention_mask is None
        if position_ids is None:
            begin = past_key_values.get_seq_length()
            position_ids = torch.arange(begin, begin + length, device=input_ids.device)[None]
        hidden = self._base.embed_tokens(input_ids)
        turns = [turn.unsqueeze(2) for turn in self._base.rotary_emb(hidden, position_ids)]
        for index, layer in enumerate(self._layers):
            normed = self._norm(hidden, layer.norm)
            heads = functional.linear(normed, layer.qkv, layer.qkv_bias)
            heads = heads.view(num, length, -1, self._size)  # of queries, then keys, then values
            turned, value = heads[:, :, : -self._num_keys], heads[:, :, -self._num_keys :]
            if layer.head_norm is not None:
                turned = self._norm(turned, None) * layer.head_norm
            turned = _turn(turned, *turns)
            query, key = turned[:, :, : self._num_queries], turned[:, :, self._num_queries :]
            keys, values = past_key_values.update(key.transpose(1, 2), value.transpose(1, 2), index)
            if fills and layer is self._layers[-1]:
                break
            if attention_mask is not None and length == 1 and not fills:
                seen = self._attend_step(query, keys, values, attention_mask, past_key_values, index)
            else:
                seen = self._attend(query, keys, values, attention_mask)
            hidden = hidden + layer.out(seen)
            gate_up = functional.linear(
                self._norm(hidden, layer.mlp_norm), layer.gate_up, layer.gate_up_bias
            )
            gate, up = gate_up.chunk(2, -1)
            hidden = hidden + layer.down(self._act(gate).mul_(up))
        else:
            kept = hidden[:, -logits_to_keep:]
            return SimpleNamespace(logits=self._head(self._norm(kept, self._base.norm.weight)))
        return SimpleNamespace(logits=None)

    def _norm(self, hidden: Tensor, weight: Tensor | None) -> Tensor:
        return functional.rms_norm(hidden, hidden.shape[-1:], weight, self._eps)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Attend: return [n, t, Q D] for queries [n, t, Q, D] and keys and values [n, K, columns, D]."""
        num, length = query.shape[:2]
        columns = keys.shape[2]
        if (
            mask is None and columns > length
        ):  # what follows a prefix: is_causal would count from its end
            mask = torch.ones(length, columns, dtype=torch.bool, device=query.device)
            mask = mask.tril_(columns - length)
        seen = functional.scaled_dot_product_attention(
            query.transpose(1, 2),
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None,
            scale=self._scale,
            enable_gqa=self._num_queries != self._num_keys,
        )
        return seen.transpose(1, 2).reshape(num, length, -1)

    def _attend_step(
        self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, cache: Cache, layer: int
    ) -> Tensor:
        """Attend with one query a row [n, 1, Q, D]; return [n, 1, Q D].

        Queries that share their keys pass as if they were tokens, so that no key is copied for them. A
        prefix that slots leave out is attended to by all of its rows at once, and the two parts are
        weighted by their shares of the softmax's denominator.
        """
        num, heads, size = len(query), self._num_keys, self._size
        grouped = query.view(num, heads, -1, size)
        beginnings = cache.beginnings(layer) if isinstance(cache, Slots) and cache.apart else []
        if not beginnings and query.device.type == "cpu":
            group_mask = mask.expand(-1, -1, grouped.shape[2], -1)
            seen = functional.scaled_dot_product_attention(
                grouped, keys, values, attn_mask=group_mask, scale=self._scale
            )
            return seen.view(num, 1, -1)
        seen, total = self._weighed(grouped, keys, values, mask)
        for rows, before, before_values in beginnings:
            own = grouped if rows is None else grouped[rows]
            together = own.transpose(0, 1).reshape(1, heads, -1, size)
            part, part_total = self._weighed(together, before, before_values)
            part = part.view(heads, len(own), -1, size).transpose(0, 1)
            part_total = part_total.view(heads, len(own), -1).transpose(0, 1)
            if rows is None:
                seen = seen.lerp(part, torch.sigmoid(part_total - total)[..., None].to(seen.dtype))
            else:
                share = torch.sigmoid(part_total - total[rows])[..., None].to(seen.dtype)
                seen[rows] = seen[rows].lerp(part, share)
        return seen.reshape(num, 1, -1)

    def _weighed(
        self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attend [n, K, t, D] to [n, K, columns, D].

        Return what is seen [n, K, t, D] and the logs of softmax's denominators [n, K, t].
        """
        if query.device.type == "cpu":
            mask = None if mask is None else mask.expand(-1, -1, query.shape[2], -1)
            seen, total = _on_cpu(query, keys, values, attn_mask=mask, scale=self._scale)
            return seen, total
        scores = (query @ keys.transpose(2, 3)).float().mul_(self._scale)
        if mask is not None:
            scores.add_(mask)
        total = scores.logsumexp(-1)
        return (scores - total[..., None]).exp_().to(values.dtype) @ values, total


def _is_plain(layer: Any) -> bool:
    """Return True if a layer has the known parts, and no projection belongs to an adapter."""
    attention, mlp = layer.self_attn, layer.mlp
    projections = [attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj]
    return {name for name, _ in layer.named_children()} == _PARTS and all(
        type(projection) is nn.Linear for projection in projections
    )


def _merged(*projections: Any) -> tuple[Tensor, Tensor | None]:
    """Weights of several projections of one input below each other, and their biases.

    Each projection keeps its own as a view of it, so that nothing is held twice.
    """
    merged: list[Tensor | None] = []
    for name in ("weight", "bias"):
        parts = [getattr(projection, name) for projection in projections]
        if parts[0] is None:
            merged.append(None)
            continue
        whole = torch.cat(parts)
        start = 0
        for part in parts:
            part.data = whole[start : start + len(part)]
            start += len(part)
        merged.append(whole)
    weight, bias = merged
    assert weight is not None
    return weight, bias


def _turn(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: heads [n, t, heads, D] turned by angles whose cos and sin are [., t, 1, D]."""
    half = heads.shape[-1] // 2
    crossed = torch.cat((-heads[..., half:], heads[..., :half]), -1)
    return torch.addcmul(heads * cos, crossed, sin)
