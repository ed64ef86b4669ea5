"""An engine over any Hugging Face causal model, whose batch is refilled as rows end.

    engine = TransformersEngine("Qwen/Qwen3-1.7B")
    for finished in engine.generate(pull, Sampling(max_new_tokens=512)):
        ...                                         # (request, completion) of rows that ended now

No barrier: where `model.generate` waits for the longest row of a batch, here ended rows make room
for new prompts. The schedule follows from the requests and their order alone, so the same requests
give the same batches, bit for bit; and the noise of a draw is its own (gumbel.py), so its tokens
do not depend on the batch beyond the rounding of sums (bench/flips.py measures how often).
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from femtune._util.model_safety import unreadable
from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.engines.hf import answer_tree
from femtune.engines.hf.batch import Batch, PromptTokens, Row, most_pass_tokens
from femtune.engines.hf.batch_size import usual_kept_bytes, usual_room, usual_rows
from femtune.engines.hf.gumbel import token_logprobs_of
from femtune.engines.hf.memory import give_back, is_out_of_memory, trim
from femtune.engines.hf.model import pad, read_served, spans, stamp_of
from femtune.engines.hf.prefix_tree import PrefixTree
from femtune.errors import EngineError, ModelError
from femtune.types import Asked, Capabilities, Completion, Request, Sampling, Tokens

_PASS_TOKENS = 8192  # padded tokens in one scoring pass at most
_KEPT_TOKENS = 384  # of a prompt and its completion, where it is counted how many are kept
_MOST_SCORED = 256  # completions scored together between steps
_PASS_LOGITS = 1 << 26  # logits in one scoring pass at most: 256 MB of float32

_LESS_MEMORY = (
    "ask for a shorter max_new_tokens, set engine_dtype to bfloat16, take a smaller model, or "
    "write with --engine vllm."
)

_log = logging.getLogger("femtune")

Pair = tuple[Sequence[int], Sequence[int]]  # prompt and completion


class TransformersEngine:
    """Serves one model, of a folder or a Hub id, in this process.

    `max_batch` rows are written at once, by default as many as `default_max_batch` says, and fewer where
    long ones would take more than 2 GiB on a CPU, or 0.3 of a GPU. The batch is refilled when a
    sixteenth of it is free, as a pass over several prompts costs little more than one over one. During a
    call of `generate`, up to `kept_bytes` of keys and values of prompts are kept for
    prompts that begin alike: by default 512 MiB on a CPU; 0 keeps none.

    Raises ModelError where the model can't be read or served (see `model.read_served`), or has no end
    token.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        tokenizer: ChatTokenizer | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
        max_batch: int | None = None,
        kept_bytes: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = dtype
        self.trust_remote_code = trust_remote_code
        self.tokenizer = tokenizer or read_tokenizer(model, trust_remote_code)
        self._model, self._quickest = self._read(model)
        self._config = self._model.config.get_text_config()  # stays when the model is released
        self.kept_bytes = usual_kept_bytes(_gpu_bytes(self.device)) if kept_bytes is None else kept_bytes
        # half of the rows that are kept, as others come meanwhile
        num_kept = self.kept_bytes / (_KEPT_TOKENS * _token_bytes(self._config))
        self.capabilities = Capabilities(scores_between=min(_MOST_SCORED, int(num_kept / 2)))
        self._stamp = stamp_of(Path(model))
        self._ends = end_tokens(self._model, self.tokenizer)
        self.max_batch = max_batch or default_max_batch(self._config, self.device)
        room = usual_room(_gpu_bytes(self.device))
        self._most_tokens = None if max_batch else int(room / _token_bytes(self._config))
        self.prompt_tokens = PromptTokens()  # since the engine was made
        self._tree, self._thread = PrefixTree(0), 0  # of the `generate` that is going on
        self._pass_tokens = _PASS_TOKENS
        self._pass_logits = max(1, _PASS_LOGITS // self._config.vocab_size)  # tokens with logits

    @property
    def context(self) -> int:
        """Tokens that a prompt and its completion may have together."""
        return int(getattr(self._config, "max_position_embeddings", None) or 1 << 30)

    def load(self, weights: Path) -> None:
        """Serve the weights of a Hugging Face folder, or of a PEFT adapter's, from now on."""
        stamp = stamp_of(Path(weights))
        if self._model is not None and stamp == self._stamp:
            return  # it has them
        model, quickest = self._read(Path(weights))
        old, new = self._config.vocab_size, model.config.get_text_config().vocab_size
        if new != old:
            raise ModelError(
                f"{weights} has a vocabulary of {new} tokens, the engine's model {old}: "
                "make a new engine for another model."
            )
        self._model, self._quickest, self._stamp = model, quickest, stamp
        self._tree = PrefixTree(0)
        self._ends = end_tokens(model, self.tokenizer)

    def _read(self, weights: str | Path) -> tuple[Any, Any]:
        tokenizer = self.tokenizer.tokenizer
        return read_served(weights, self.dtype, self.device, self.trust_remote_code, tokenizer)

    def release(self) -> None:
        """Forget the model until the next `load`, and give a GPU's memory back."""
        self._model = self._quickest = None
        self._tree = PrefixTree(0)
        give_back(self.device)

    def close(self) -> None:
        """The same."""
        self.release()

    def generate(
        self, pull: Callable[[int], Sequence[Request]], sampling: Sampling
    ) -> Iterator[Sequence[tuple[Request, Completion]]]:
        """Complete what `pull` gives; see `types.Engine`.

        Where memory runs out, half as many rows are written from then on, and those in flight start
        again. Raises EngineError for a prompt too long, and where memory is short for a single row.
        """
        try:
            yield from self._generate(pull, sampling)
        finally:
            if not sampling.continued:  # else the last completions are scored before the next call
                self._tree = PrefixTree(0)
            trim()

    def _generate(
        self, pull: Callable[[int], Sequence[Request]], sampling: Sampling
    ) -> Iterator[Sequence[tuple[Request, Completion]]]:
        batch = self._batch(sampling)
        waiting: list[Request] = []  # pulled, and not in the batch
        short = True  # the last pull gave less than there was room for: ask after every yield
        while True:
            num_going = batch.num_going
            room, fitting = batch.max_batch - num_going, 0
            refill = room > 0 and (short or room >= batch.max_batch // 16)
            if refill and len(waiting) < room:
                waiting += self._checked(pull(room - len(waiting)), sampling)
                short = len(waiting) < room
            if refill:
                fitting = batch.num_fitting(waiting)
                refill = fitting >= min(len(waiting), num_going // 16)
            finished = None
            try:
                if refill:
                    batch.admit(waiting[:fitting])
                    del waiting[:fitting]
                    if short or waiting:
                        batch.close_gaps()
                if not batch.rows:
                    return
                finished = batch.step()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            if finished is None:  # not within the except: there the error still holds its tensors
                waiting = [*batch.unfinished, *waiting]
                self._halve_batch()
                batch = self._batch(sampling)
                give_back(self.device)
            elif finished:
                yield [(row.request, self._completion(row)) for row in finished]

    def _batch(self, sampling: Sampling) -> Batch:
        # of this call alone: what a draw meets follows from the call's requests, whatever was before
        self._tree, self._thread = PrefixTree(self.kept_bytes), threading.get_ident()
        return Batch(
            self._quickest,
            self.max_batch,
            self._ends,
            sampling,
            tree=self._tree,
            counts=self.prompt_tokens,
            most_tokens=self._most_tokens,
        )

    @torch.inference_mode()
    def logprob(self, pairs: Sequence[Pair]) -> list[float]:
        """Nats of each completion given its prompt, summed over the completion's tokens.

        Prompts that begin alike pass what they share once where that saves a tenth: see answer_tree.py.
        Where memory runs out, passes are halved from then on. Raises EngineError for a pair too long,
        and where memory is short for a single one.
        """
        for prompt, completion in pairs:
            self._check_length(len(prompt), len(completion), "a pair to score")
        if answer_tree.saves(pairs):
            after: dict[Tokens, dict[Tokens, float]] = {}
            for prompt, completion in pairs:
                after.setdefault(tuple(prompt), {})[tuple(completion)] = 0.0
            asked = [(prompt, [*completions]) for prompt, completions in after.items()]
            for (prompt, completions), nats in zip(asked, self.logprobs_after(asked), strict=True):
                after[prompt] = dict(zip(completions, nats, strict=True))
            return [after[tuple(prompt)][tuple(completion)] for prompt, completion in pairs]
        logprobs = [0.0] * len(pairs)
        order = sorted(range(len(pairs)), key=lambda index: sum(map(len, pairs[index])))
        order = [index for index in order if pairs[index][1]]
        while order:
            lengths = [sum(map(len, pairs[index])) for index in order]
            _, stop = next(spans(lengths, min(self._pass_tokens, self._pass_logits)))
            values = None
            try:
                values = self._score([pairs[index] for index in order[:stop]]).tolist()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            if values is None:
                self._halve_pass(stop, stop * lengths[stop - 1])
                continue
            for index, value in zip(order[:stop], values, strict=True):
                logprobs[index] = value
            del order[:stop]
        return logprobs

    @torch.inference_mode()
    def logprobs_after(self, asked: Sequence[Asked]) -> list[list[float]]:
        """Return log-probabilities (nats) of continuations, in two passes: see answer_tree.py.

        Prompts that `generate` keeps do not pass again while it waits to be resumed. Where its sampling
        is `continued`, completions do not either, also between its end and the next call. Where memory
        runs out, passes are halved from then on. Raises EngineError for a continuation that is too long,
        and where memory is short for a single prefix.
        """
        for prefix, several in asked:
            longest = max(map(len, several), default=0)
            self._check_length(len(prefix), longest, "a continuation to score")
        logprobs = [[0.0] * len(several) for _, several in asked]
        left = {index for index, (_, several) in enumerate(asked) if any(several)}
        # of another thread's it may be dropped meanwhile
        kept = self._tree if self._thread == threading.get_ident() else PrefixTree(0)
        while left:
            most = min(self._pass_tokens, most_pass_tokens(self.device))
            made = answer_tree.batches(asked, sorted(left), most, self._pass_logits, kept)
            for batch in made:
                values = None
                try:
                    values = answer_tree.score(self._quickest, asked, batch, kept)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                if values is None:  # what is left is batched again
                    self._halve_pass(sum(len(each.members) for each in batch), answer_tree.padded(batch))
                    break
                for index, found in values:
                    logprobs[index] = found
                    left.remove(index)
        return logprobs

    def _halve_batch(self) -> None:
        """After memory ran out with `max_batch` rows."""
        if self.max_batch == 1:
            raise EngineError(f"out of memory while writing a single completion: {_LESS_MEMORY}")
        rows, self.max_batch = self.max_batch, self.max_batch // 2
        self.kept_bytes //= 2
        _log.warning("out of memory with %d rows at a time: continuing with %d", rows, self.max_batch)

    def _halve_pass(self, pairs: int, tokens: int) -> None:
        """After memory ran out in a pass over so many pairs, of so many tokens with padding."""
        if pairs == 1:
            raise EngineError(f"out of memory while scoring a single completion: {_LESS_MEMORY}")
        give_back(self.device)
        self._pass_tokens = tokens // 2
        _log.warning(
            "out of memory scoring %d tokens at a time: continuing with %d", tokens, self._pass_tokens
        )

    def _score(self, pairs: Sequence[Pair]) -> Tensor:
        """Nats [n] float64 of completions; the logits before the shortest prompt's end are not made."""
        tokens = pad([[*prompt, *completion] for prompt, completion in pairs], self.device)
        first = min(len(prompt) for prompt, _ in pairs) - 1
        keep = torch.arange(first, tokens.shape[1] - 1, device=self.device)
        # padding is at the right, where causal attention hides it
        logits = self._model(input_ids=tokens, use_cache=False, logits_to_keep=keep).logits
        logprobs = token_logprobs_of(logits, tokens[:, first + 1 :]).double()
        starts = torch.tensor([[len(prompt) - 1] for prompt, _ in pairs], device=self.device)
        stops = torch.tensor([[sum(map(len, pair)) - 1] for pair in pairs], device=self.device)
        return logprobs.masked_fill((keep < starts) | (keep >= stops), 0.0).sum(-1)

    def _completion(self, row: Row) -> Completion:
        text = self.tokenizer.decode(row.tokens)
        logprob = math.nan if row.logprob is None else row.logprob
        if not math.isfinite(logprob) or row.finish_reason is None:
            error = f"the log-probability of its tokens is {logprob}: the model gives no numbers"
            return Completion(tuple(row.tokens), text, "error", logprob, error=error)
        drawn = row.drawn_logprob
        return Completion(tuple(row.tokens), text, row.finish_reason, logprob, drawn_logprob=drawn)

    def _checked(self, requests: Sequence[Request], sampling: Sampling) -> Sequence[Request]:
        for request in requests:
            name = f'problem "{request.key.problem_id}"'
            self._check_length(len(request.tokens), request.most_tokens(sampling), name)
        return requests

    def _check_length(self, prompt: int, new: int, name: str) -> None:
        if not prompt or prompt + new > self.context:
            raise EngineError(
                f"{name}: a prompt of {prompt} tokens and up to {new} new ones, expected at least "
                f"one and no more than the model's {self.context} in all."
            )


def default_max_batch(config: Any, device: torch.device) -> int:
    """`batch_size.usual_rows` of a model of this shape on a device."""
    return usual_rows(_token_bytes(config), _gpu_bytes(device))


def _token_bytes(config: Any) -> int:
    """Return the bytes of a token's keys and values."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    number_bytes = torch.tensor([], dtype=config.dtype or torch.float32).element_size()
    return int(2 * config.num_hidden_layers * heads * size * number_bytes)


def _gpu_bytes(device: torch.device) -> int | None:
    """Return a GPU's memory; None for a CPU."""
    on_gpu = device.type == "cuda"
    return torch.cuda.get_device_properties(device).total_memory if on_gpu else None


def read_tokenizer(model: str | Path, trust_remote_code: bool = False) -> ChatTokenizer:
    """The tokenizer of a folder or Hub id. Raises ModelError if it is missing."""
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            model, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # OSError, ValueError, or the tokenizer's own
        raise unreadable(model, "tokenizer", error) from error
    return ChatTokenizer(tokenizer)


def end_tokens(model: object, tokenizer: ChatTokenizer) -> frozenset[int]:
    """All ids that end a completion: the generation config's, the tokenizer's, the template's."""
    ends: set[int] = {tokenizer.end_token_id}
    for holder in (getattr(model, "generation_config", None), tokenizer.tokenizer):
        found = getattr(holder, "eos_token_id", None)
        ends.update([found] if isinstance(found, int) else found or [])
    return frozenset(ends)
