"""A Hugging Face causal model as femtune uses it: read, checked, and passed through.

Steps hand the model a mask that is ready to add, as it is the same in all layers of a kind: columns
of a row after its position are hidden, and in layers with a sliding window, those that left it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from femtune.engines.fused import fuse
from femtune.engines.slots import Slots
from femtune.errors import ModelError
from femtune.trust import check_weights, unreadable

_KINDS = {"full_attention", "sliding_attention"}  # of layers, by transformers' names


def read_model(weights: str | Path, dtype: str | torch.dtype, device: Any, trust: bool) -> Any:
    """The causal model of a folder or Hub id, or of a PEFT adapter's folder with its base.

    An adapter is merged only in float32: at 16 bits the sum's rounding would lose small updates,
    so there it runs beside the base, as it was trained. Raises ModelError where a weight is missing
    or the architecture keeps its past in anything but keys and values.
    """
    if Path(weights, "adapter_config.json").is_file():
        model = _read_adapter(Path(weights), dtype, trust)
    else:
        model = _read_full(weights, dtype, trust)
    model = model.eval().requires_grad_(False).to(device)
    _check_kind(model)
    _check_slots(model)
    return model


def quickest(model: Any) -> Any:
    """What to hand to `fill` and `step_logits`: the fused pass where it does as the model, or that."""
    if _layer_kinds(model.config.get_text_config()) != {"full_attention"}:
        return model
    fused = fuse(model)
    if fused is None:
        return model
    tolerance = 1e-4 if model.dtype == torch.float32 else 0.1
    return fused if _apart(model, fused) <= tolerance else model


def stamp_of(folder: Path) -> tuple[Any, ...]:
    """What tells weights from others: the folder, and its files' names, sizes and times."""
    if not folder.is_dir():  # an id on the Hub
        return (str(folder),)
    files = sorted(folder.glob("*.safetensors"))
    return (
        folder.resolve(),
        *((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files),
    )


def fill(model: Any, slots: Slots, prompts: Sequence[Sequence[int]], to: Sequence[list[int]]) -> None:
    """Pass prompts less their last tokens, and keep the keys and values of prompts[i] in slots to[i]."""
    tokens = pad([prompt[:-1] for prompt in prompts], model.device)
    pairs = [(slot, source) for source, targets in enumerate(to) for slot in targets]
    rows, source = torch.tensor(pairs, device=model.device).T
    slots.fill(rows, source, tokens.shape[1])
    # padding is at the right, where causal attention hides it: the model's own mask will do
    model(input_ids=tokens, past_key_values=slots, use_cache=True, logits_to_keep=1)


def step_logits(model: Any, slots: Slots, tokens: Tensor, positions: Tensor, longest: int) -> Tensor:
    """Logits [n, V] after one more token for each row: tokens [n] at positions [n], < longest."""
    slots.step(positions, longest)
    output = model(
        input_ids=tokens[:, None],
        attention_mask=_masks(model.config.get_text_config(), positions, slots.width, model.dtype),
        position_ids=positions[:, None],
        past_key_values=slots,
        use_cache=True,
        logits_to_keep=1,
    )
    logits: Tensor = output.logits[:, -1]
    return logits


def pad(rows: Sequence[Sequence[int]], device: Any) -> Tensor:
    """Token rows as one tensor [n, longest], zeros at the right."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)


def spans(lengths: Sequence[int], limit: int) -> Iterator[tuple[int, int]]:
    """Cut rows, in order of length, into (start, stop) with at most `limit` padded tokens each.

    >>> list(spans([2, 2, 3, 9], limit=8))
    [(0, 2), (2, 3), (3, 4)]
    """
    start = 0
    for stop, length in enumerate(lengths):
        if stop > start and (stop + 1 - start) * length > limit:
            yield start, stop
            start = stop
    if lengths:
        yield start, len(lengths)


def _masks(config: Any, positions: Tensor, width: int, dtype: torch.dtype) -> Any:
    """The mask [n, 1, 1, width] to add, or one for each kind of layer where a model mixes them."""
    columns = torch.arange(width, device=positions.device)
    after = columns > positions[:, None]
    masks = {}
    for kind in sorted(_layer_kinds(config)):
        hidden = after
        if kind == "sliding_attention":
            hidden = after | (columns <= positions[:, None] - config.sliding_window)
        mask = torch.zeros(hidden.shape, dtype=dtype, device=positions.device)
        # not -inf: a row of nothing else would be NaN
        masks[kind] = mask.masked_fill_(hidden, torch.finfo(dtype).min)[:, None, None]
    return masks if len(masks) > 1 else next(iter(masks.values()))


def _layer_kinds(config: Any) -> set[str]:
    """Kinds of attention layers, by the rules of transformers.masking_utils."""
    if getattr(config, "layer_types", None):
        return set(config.layer_types)
    if getattr(config, "sliding_window", None) is not None:
        return {"sliding_attention"}
    if getattr(config, "attention_chunk_size", None) is not None:
        return {"chunked_attention"}
    return {"full_attention"}


def _read_full(weights: str | Path, dtype: str | torch.dtype, trust: bool) -> Any:
    if isinstance(weights, Path) and not (weights / "config.json").is_file():
        raise ModelError(
            f"{weights} holds neither config.json nor adapter_config.json: expected a folder that "
            "save_pretrained wrote."
        )
    check_weights(weights)
    try:
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            weights,
            dtype=dtype,
            trust_remote_code=trust,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # OSError, ValueError, SafetensorError, or the model's own
        raise unreadable(weights, "causal language model", error) from error
    absent = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if absent:  # transformers would fill them with random numbers
        raise ModelError(f"{weights} lacks weights that its model needs: {', '.join(absent[:3])}.")
    return model


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without warnings that no user can mend: PEFT 0.21 and TRL 1.16 ask by transformers' old names."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
        yield


def _read_adapter(folder: Path, dtype: str | torch.dtype, trust: bool) -> Any:
    import peft

    check_weights(folder)
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        base = _read_full(config.base_model_name_or_path, dtype, trust)
        if config.is_prompt_learning:
            raise ModelError(f"{folder} is a {config.peft_type} adapter: use LoRA, or merge it.")
        with quiet_peft():
            adapted = peft.PeftModel.from_pretrained(base, str(folder), use_safetensors=True)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"can't read the PEFT adapter in {folder}: {error}") from error
    if base.dtype == torch.float32:
        return adapted.merge_and_unload(safe_merge=True)
    return adapted.get_base_model()  # the adapter's layers are in it


def _check_kind(model: Any) -> None:
    name = type(model).__name__
    unknown = _layer_kinds(model.config.get_text_config()) - _KINDS
    if unknown or getattr(model, "_is_stateful", False) or model.config.is_encoder_decoder:
        what = ", ".join(sorted(unknown)) or "state or an encoder"
        raise ModelError(
            f"{name} keeps its past in {what}, expected keys and values of full or sliding-window "
            "attention alone: serve it by the vllm engine."
        )


def _check_slots(model: Any) -> None:
    """Raise ModelError where two short rows in slots get other logits than each by itself.

    A guard against architectures whose positions or masks work in a way this file does not know.
    """
    try:
        apart = _apart(model, model)
    except Exception as error:
        raise ModelError(f"{type(model).__name__} can't be served in slots: {error}") from error
    tolerance = 0.01 if model.dtype == torch.float32 else 0.25
    if not apart <= tolerance:  # a NaN is no pass
        raise ModelError(
            f"{type(model).__name__} gives other logits in slots than by itself (apart by "
            f"{apart:.2g} of their deviation): serve it by the vllm engine."
        )


@torch.inference_mode()
def _apart(model: Any, served: Any) -> float:
    """How far logits that `served` gives to rows in slots are from the model's own of each row.

    The largest difference, as a share of the logits' standard deviation.
    """
    prompts = [[5, 3, 4, 2, 6, 1, 7], [2, 5, 3]]
    slots = Slots(len(prompts))
    fill(served, slots, prompts, [[0], [1]])
    tokens, positions = torch.tensor([[7, 3], [6, 2]], device=model.device)
    slotted = step_logits(served, slots, tokens, positions, longest=7).float()
    alone = [model(input_ids=pad([prompt], model.device)).logits[0, -1] for prompt in prompts]
    expected = torch.stack(alone).float()
    return float((slotted - expected).abs().max() / expected.std())
