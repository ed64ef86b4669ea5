"""A Hugging Face causal model as femtune uses it: read, checked, and passed through.

Steps hand the model a mask that is ready to add, as it is the same in all layers of a kind: columns
of a row after its position are hidden, and in layers with a sliding window, those that left it.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from femtune._util.model_safety import check_weights, unreadable
from femtune._util.safetensors_header import stored_dtype
from femtune.engines.hf.agreement import STEPS, Reference
from femtune.engines.hf.fused import Fused, fuse
from femtune.engines.hf.kv_slots import Slots
from femtune.engines.model_files import local_model
from femtune.engines.rounding import HALVES, rounded
from femtune.engines.weight_check import check_file
from femtune.errors import ModelError

_log = logging.getLogger("femtune")

_KINDS = {"full_attention", "sliding_attention"}  # of layers, by transformers' names


def read_model(
    weights: str | Path, dtype: str | torch.dtype, device: Any, trust: bool, tokenizer: Any = None
) -> Any:
    """Read the causal model of a folder or Hub id, or of a PEFT adapter's folder with its base.

    An adapter is merged only in float32: at 16 bits the sum's rounding would lose small updates,
    so there it runs beside the base, as it was trained. For the same reason float32 weights that
    femtune trained are rounded stochastically where `dtype` has 16 bits. The model is checked on text
    that `tokenizer` encodes. Raises ModelError where a weight is missing or the architecture keeps its
    past in anything but keys and values.
    """
    return _read_checked(weights, dtype, device, trust, tokenizer)[0]


def read_served(
    weights: str | Path, dtype: str | torch.dtype, device: Any, trust: bool, tokenizer: Any = None
) -> tuple[Any, Any]:
    """Read a model as `read_model` does; gives it and what to hand to `fill` and `step_logits`."""
    model, reference = _read_checked(weights, dtype, device, trust, tokenizer)
    return model, quickest(model, reference)


def _read_checked(
    weights: str | Path, dtype: str | torch.dtype, device: Any, trust: bool, tokenizer: Any
) -> tuple[Any, Reference]:
    if Path(weights, "adapter_config.json").is_file():
        model = _read_adapter(Path(weights), dtype, trust)
    else:
        model = _read_full(weights, dtype, trust)
    model = model.eval().requires_grad_(False).to(device)
    _check_kind(model)
    return model, _check_slots(model, tokenizer)


def quickest(model: Any, reference: Reference) -> Any:
    """Return what to hand to `fill` and `step_logits`: the fused pass if it agrees with the model.

    Where it does not, that is logged, and the model's own slower pass is returned.
    """
    if _layer_kinds(model.config.get_text_config()) != {"full_attention"}:
        return model
    fused = fuse(model)
    if fused is None:
        return model
    try:
        differs = reference.differs(_slotted_logits(fused, reference.rows))
    except Exception as error:
        _log.warning("the fused pass fails for this model, its own is used, which is slower: %s", error)
        return model
    if differs is None:
        return fused
    _log.warning(
        "the fused pass differs from the model by a KL divergence of %.2g nats a token, where rounding "
        "explains %.2g: the model's own pass is used, which is slower.",
        *differs,
    )
    return model


def stamp_of(folder: Path) -> tuple[Any, ...]:
    """Return what identifies weights: the folder, and its files' names, sizes and times."""
    if not folder.is_dir():  # an id on the Hub
        return (str(folder),)
    files = sorted(folder.glob("*.safetensors"))
    return (
        folder.resolve(),
        *((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files),
    )


def fill(
    model: Any,
    slots: Slots,
    prompts: Sequence[Sequence[int]],
    to: Sequence[list[int]],
    prefix: tuple[int, ...] = (),
) -> None:
    """Pass prompts less their last tokens, and keep the keys and values of prompts[i] in slots to[i].

    All begin with `prefix`, and have two tokens more at least; it passes once, and is kept.
    """
    if prefix and prefix not in slots.prefixes:
        slots.record(prefix)
        _pass(model, slots, [prefix])
    rest = [prompt[len(prefix) : -1] for prompt in prompts]
    pairs = [(slot, source) for source, targets in enumerate(to) for slot in targets]
    rows, source = torch.tensor(pairs, device=model.device).T
    slots.fill(rows, source, max(map(len, rest)), prefix)
    _pass(model, slots, rest)


def extend(
    model: Any,
    slots: Slots,
    prompts: Sequence[Sequence[int]],
    starts: Sequence[int],
    to: Sequence[int],
    prefix: tuple[int, ...] = (),
) -> None:
    """Pass prompts less their last tokens and their first starts[i], which slots to[i] hold.

    All begin with `prefix`, which is kept, and have a token to pass at least.
    """
    rows = torch.tensor(to, device=model.device)
    stops = [len(prompt) - 1 for prompt in prompts]
    width = slots.extend(rows, starts, stops, prefix)
    triples = zip(prompts, starts, stops, strict=True)
    tokens = pad([prompt[start:stop] for prompt, start, stop in triples], model.device)
    first, last = torch.tensor([[*starts], [stop - 1 for stop in stops]], device=model.device)[..., None]
    # padding is at the right, where no token sees it; its positions stay within the context
    positions = (first + torch.arange(tokens.shape[1], device=model.device)).minimum(last)
    before = positions[..., None] - torch.arange(width, device=model.device)
    model(
        input_ids=tokens,
        attention_mask=masks(model.config.get_text_config(), before < 0, before, model.dtype),
        position_ids=positions,
        past_key_values=slots,
        use_cache=True,
        logits_to_keep=1,
    )


def _pass(model: Any, slots: Slots, rows: Sequence[Sequence[int]]) -> None:
    # padding is at the right, where causal attention hides it: the model's own mask will do
    tokens = pad(rows, model.device)
    model(input_ids=tokens, past_key_values=slots, use_cache=True, logits_to_keep=1)


def common_prefix(prompts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return the first tokens that all prompts share, short of the last two of the shortest.

    >>> common_prefix([(1, 2, 3, 4, 5), (1, 2, 3, 9, 9, 9)])
    (1, 2, 3)
    """
    rows = [tuple(prompt) for prompt in prompts]
    low, high = min(rows), max(rows)  # others lie between these
    most = max(0, min(map(len, rows)) - 2)
    return low[: next((n for n in range(most) if low[n] != high[n]), most)]


def step_logits(model: Any, slots: Slots, tokens: Tensor, positions: Tensor, longest: int) -> Tensor:
    """Logits [n, V] after one more token for each row: tokens [n] at positions [n].

    Rows have up to `longest` tokens, besides those of a prefix that their slots leave out.
    """
    columns = slots.step(positions, longest)
    before = columns[:, None, None] - torch.arange(slots.width, device=positions.device)
    output = model(
        input_ids=tokens[:, None],
        attention_mask=masks(model.config.get_text_config(), before < 0, before, model.dtype),
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


def masks(config: Any, hidden: Tensor, before: Tensor, dtype: torch.dtype) -> Any:
    """Return the mask [n, 1, t, columns] to add, or one for each kind of layer where these are mixed.

    `hidden` [n, t, columns] is True where a token may not attend. `before` says by how many positions a
    column comes before the token.
    """
    made = {}
    for kind in sorted(_layer_kinds(config)):
        own = hidden
        if kind == "sliding_attention":
            own = hidden | (before >= config.sliding_window)
        mask = torch.zeros(own.shape, dtype=dtype, device=own.device)
        # not -inf: a row of nothing else would be NaN
        made[kind] = mask.masked_fill_(own, torch.finfo(dtype).min)[:, None]
    return made if len(made) > 1 else next(iter(made.values()))


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
    if not Path(weights).is_dir():  # an id on the Hub: transformers would fetch what its index names
        weights = local_model(str(weights))
    try:
        model, report = _loaded(weights, dtype, trust)
        if wants_rounding(weights, str(dtype)):
            _round_again(model, _loaded(weights, torch.float32, trust)[0], rounding_seed(Path(weights)))
    except Exception as error:  # OSError, ValueError, SafetensorError, or the model's own
        raise unreadable(weights, "causal language model", error) from error
    absent = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if absent:  # transformers would fill them with random numbers
        raise ModelError(f"{weights} lacks weights that its model needs: {', '.join(absent[:3])}.")
    return model


def _loaded(weights: str | Path, dtype: str | torch.dtype, trust: bool) -> tuple[Any, Any]:
    """The model as transformers reads it, and its report."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        weights, dtype=dtype, trust_remote_code=trust, use_safetensors=True, output_loading_info=True
    )
    return model, report


def wants_rounding(weights: str | Path, dtype: str) -> bool:
    """Return whether a folder has float32 weights that femtune trained, and `dtype` has 16 bits."""
    is_trained = check_file(Path(weights)) is not None
    halves = dtype.removeprefix("torch.") in HALVES
    return halves and is_trained and stored_dtype(Path(weights)) == "float32"


def rounding_seed(folder: Path) -> str:
    """Return a seed that follows from trained weights: from the log-probabilities that they give."""
    path = check_file(folder)
    assert path is not None, f"{folder} has no weight check"
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


@torch.no_grad()
def _round_again(model: Any, exact: Any, seed: str) -> None:
    """Replace 16-bit parameters of a model by stochastically rounded ones of its float32 copy."""
    own = dict(model.named_parameters())
    for name, weight in exact.named_parameters():
        if own[name].dtype in HALVES.values():
            own[name].copy_(rounded(weight, own[name].dtype, f"{seed} {name}"))


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Hide warnings that no user can act on: PEFT 0.21 and TRL 1.16 use old names of transformers."""
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


def _check_slots(model: Any, tokenizer: Any) -> Reference:
    """Raise ModelError where text in slots gets other next-token distributions than by itself.

    A guard against architectures whose positions or masks work in a way this file does not know.
    """
    try:
        reference = Reference(model, tokenizer)
        differs = reference.differs(_slotted_logits(model, reference.rows))
    except Exception as error:
        raise ModelError(f"{type(model).__name__} can't be served in slots: {error}") from error
    if differs is not None:
        apart, allowed = differs
        raise ModelError(
            f"{type(model).__name__} gives other logits in slots than by itself: the KL divergence is "
            f"{apart:.2g} nats a token, rounding explains {allowed:.2g}. Serve it by the vllm engine."
        )
    return reference


@torch.inference_mode()
def _slotted_logits(served: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    """Logits [rows, STEPS, V] after the last tokens of rows, passed one at a time in shared slots."""
    slots = Slots(len(rows), apart=isinstance(served, Fused))
    starts = [len(row) - STEPS for row in rows]
    prompts = [row[: start + 1] for row, start in zip(rows, starts, strict=True)]
    fill(served, slots, prompts, [[number] for number in range(len(rows))])
    for number, prompt in list(enumerate(prompts))[1::2]:  # some again, after a part that is kept
        fill(served, slots, [prompt], [[number]], tuple(prompt[: len(prompt) // 2]))
    for number, prompt in list(enumerate(prompts))[::2]:  # others after tokens that are copied
        half = len(prompt) // 2
        if slots.is_uniform and half + 1 < len(prompt):
            slots.write(number, [(slots.read(number, 0, half), half)])
            extend(served, slots, [prompt], [half], [number])
    longest = max(map(len, rows))
    made = []
    for step in range(STEPS):
        places = [start + step for start in starts]
        tokens = [row[place] for row, place in zip(rows, places, strict=True)]
        given, at = torch.tensor([tokens, places], device=served.device)
        made.append(step_logits(served, slots, given, at, longest).float())
    return torch.stack(made, 1)
