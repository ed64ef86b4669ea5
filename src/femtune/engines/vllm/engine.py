"""An engine over vLLM in this process: tokens in, tokens out, weights changed while it runs.

    engine = VllmEngine("Qwen/Qwen3-1.7B", tokenizer=tokenizer, args={"tensor_parallel_size": 2})
    engine.load(folder)                             # of an M-step: a full model, or a LoRA adapter
    for finished in engine.generate(pull, Sampling(max_new_tokens=512)):
        ...                                         # (request, completion) of rows that ended now

vLLM batches by itself, in a process of its own; this file keeps its queue filled, and its weights right:

    adapter        a LoRA request under a new name, so that nothing cached under an old one is used
    full folder    vLLM's reload in place, then what that leaves stale (see worker.py)
    check failed   the engine ended, and started on the folder

vLLM starts its processes by `spawn`: a script that makes this engine needs `if __name__ == "__main__":`.
"""

from __future__ import annotations

import copy
import gc
import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from femtune._util import interrupts
from femtune._util.model_safety import check_weights
from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.engines.hf.model import stamp_of
from femtune.engines.pairs import logprobs_by_pairs
from femtune.engines.vllm.requests import SPARE, make_prompt, one_line, read_completion
from femtune.engines.vllm.scoring import SCORED_AT_ONCE, Pair, Work, score_continuations, score_pairs
from femtune.engines.vllm.setup import (
    adapter_config,
    adapter_rank,
    check_adapter,
    check_arguments,
    check_format,
    check_vocabulary,
    import_vllm,
    lora_args,
    prepare_cpu,
    quietly,
    read_end_tokens,
    rounded_copy,
)
from femtune.engines.vllm.worker import Reloader
from femtune.engines.weight_check import MOST, ROUNDING, check_served, read_check
from femtune.errors import EngineError, ModelError
from femtune.types import Asked, Capabilities, Completion, Request, Sampling

_log = logging.getLogger("femtune")


class VllmEngine:
    """Serves one model, of a folder or a Hub id, or of a PEFT adapter's folder with its base.

    `max_batch` rows are written at once (vLLM's `max_num_seqs`), by default as many as vLLM says. `args`
    are further vLLM engine arguments. `lora_rank` is that of the adapters to come, None for none. With
    `share_device`, `release` gives a GPU's memory back by vLLM's sleep mode; on a CPU vLLM has none, and
    its memory stays. Raises ConfigError where vLLM is not installed, refuses an argument's name, or is
    told to read pickles, and ModelError where it can't serve the model.
    """

    capabilities = Capabilities()  # all of them

    def __init__(
        self,
        model: str | Path,
        *,
        tokenizer: ChatTokenizer,
        dtype: str = "auto",
        max_batch: int | None = None,
        args: Mapping[str, Any] = MappingProxyType({}),
        lora_rank: int | None = None,
        share_device: bool = True,
        trust_remote_code: bool = False,
        seed: int = 0,
    ) -> None:
        check_format(args)
        check_weights(model)
        adapter = adapter_config(Path(model))
        if adapter:
            lora_rank = max(lora_rank or 0, adapter_rank(adapter))
        self.tokenizer = tokenizer
        self.lora_rank = lora_rank
        self.trust_remote_code = trust_remote_code
        self._base = str(adapter["base_model_name_or_path"] if adapter else model)
        self._args = {
            "dtype": dtype,
            "max_num_seqs": max_batch,
            "trust_remote_code": trust_remote_code,
            "load_format": "safetensors",  # its own default falls back on pickles
            "seed": seed,
            "enable_prefix_caching": True,
            **lora_args(lora_rank),
            **args,
        }
        self._share_device = share_device
        self._in_place = True  # whether weights may be changed in a running engine
        self._lora: Any = None  # vllm's LoRARequest of the adapter that is served
        self._num_adapters = 0  # so far: each gets a number of its own
        self._adapter: tempfile.TemporaryDirectory[str] | None = None  # a rounded copy of it
        self._num_requests = 0
        self._llm: Any = None
        self._engine: Any = None  # the LLMEngine within
        self._asleep = False
        self._loaded: tuple[Any, ...] | None = None  # stamp of the full weights that it holds
        with self._rounded(Path(self._base), dtype) as folder:
            self._start(str(folder))
        self._loaded = stamp_of(Path(self._base))
        if adapter:
            self.load(Path(model))

    @property
    def context(self) -> int:
        """Tokens that a prompt and its completion may have together."""
        return int(self._engine.model_config.max_model_len)

    def load(self, weights: Path) -> None:
        """Serve the weights of a Hugging Face folder, or of a LoRA adapter's, from now on.

        Raises ModelError where vLLM can't serve them, with its reason. Weights that are not those of the
        check beside them are loaded again into a new engine: the caller checks that one.
        """
        check_weights(weights)
        adapter = adapter_config(weights)
        if adapter:
            check_adapter(weights, adapter, self.lora_rank)
            self._wake()
            self._serve_adapter(weights)
        elif stamp_of(weights) == self._loaded:
            self._wake()
            self._drop_adapter()
        else:
            self._serve_full(weights)

    def release(self) -> None:
        """Put a GPU's share to sleep until the next `load`, if it is shared; on a CPU do nothing."""
        if not self._can_sleep or self._asleep:
            return
        # the base is needed again under the next adapter; other weights come from the next folder
        self._llm.sleep(level=1 if self.lora_rank else 2)
        self._asleep = True
        if not self.lora_rank:
            self._loaded = None

    def close(self) -> None:
        """End vLLM's processes, which frees their memory; a second time does nothing."""
        if self._llm is not None:
            core = self._engine.engine_core
            core.shutdown()
            context = getattr(core, "ctx", None)  # of its sockets; vLLM leaves it to the collector
            if context is not None:
                context.destroy(linger=0)
            self._llm = self._engine = self._lora = None
            gc.collect()
        self._discard_copy()

    def generate(
        self, pull: Callable[[int], Sequence[Request]], sampling: Sampling
    ) -> Iterator[Sequence[tuple[Request, Completion]]]:
        """Complete what `pull` gives; see `types.Engine`.

        Raises EngineError for a prompt too long, and where vLLM fails. A caller that stops early
        leaves nothing behind in vLLM.
        """
        self._check_awake()
        going: dict[str, Request] = {}
        most = self.max_batch + math.ceil(self.max_batch * SPARE)
        params = self._params(sampling)
        ask = True  # there may be more: at first, and after each yield
        try:
            while True:
                if ask and len(going) <= self.max_batch:
                    for request in pull(most - len(going)):
                        self._check_length(request, sampling)
                        going[self._add(request.tokens, self._seeded(params, request))] = request
                if not going:
                    return
                finished = []
                for output in self._step():
                    completion = read_completion(output.outputs[0], sampling, self.tokenizer)
                    finished.append((going.pop(output.request_id), completion))
                ask = bool(finished)
                if finished:
                    yield finished
        finally:
            self._abort(going)

    def logprob(self, pairs: Sequence[Pair]) -> list[float]:
        """Return each completion's log-probability after its prompt, in nats.

        Raises EngineError for a pair that is longer than the model's context, and where vLLM fails.
        """
        self._check_awake()
        for prompt, completion in pairs:
            self._check_tokens(len(prompt), len(completion), "a pair to score")
        return score_pairs(self._one_token_each, pairs, by_token=bool(self.lora_rank))

    def logprobs_after(self, asked: Sequence[Asked]) -> list[list[float]]:
        """Return each continuation's log-probability after its prefix, in nats.

        Each text that continuations follow is one request, for all tokens that come next; vLLM keeps
        the keys and values of a prefix between them. An older vLLM, which can't give log-probabilities
        of tokens by name, scores pairs. Raises EngineError for a continuation that is too long, and
        where vLLM fails.
        """
        from vllm import SamplingParams

        if not hasattr(SamplingParams(), "logprob_token_ids"):
            return logprobs_by_pairs(self.logprob, asked)
        self._check_awake()
        for prefix, several in asked:
            longest = max(map(len, several), default=0)
            self._check_tokens(len(prefix), longest, "a continuation to score")
        return score_continuations(self._one_token_each, asked)

    def _one_token_each(
        self, asked: Iterable[tuple[Work, Sequence[int], Any]]
    ) -> Iterator[tuple[Work, Any]]:
        """Ask for one token after each of some tokens; gives the work with vLLM's output."""
        left = iter(asked)
        while some := list(islice(left, SCORED_AT_ONCE)):
            going: dict[str, Work] = {}
            try:
                for work, tokens, params in some:
                    going[self._add(tokens, params)] = work
                while going:
                    for output in self._step():
                        yield going.pop(output.request_id), output
            finally:
                self._abort(going)

    # --- vLLM itself

    def _start(self, model: str) -> None:
        vllm = import_vllm()
        on_gpu = vllm.platforms.current_platform.is_cuda_alike()
        own = {
            "model": model,
            "skip_tokenizer_init": True,
            "generation_config": "vllm",  # no defaults of the model's: Sampling says all
            "logprobs_mode": "raw_logprobs",
            "worker_extension_cls": f"{Reloader.__module__}.{Reloader.__name__}",
            "use_tqdm_on_load": False,
            "enable_sleep_mode": self._share_device and on_gpu,
        }
        args = {name: value for name, value in self._args.items() if value is not None}
        if vllm.platforms.current_platform.is_cpu():
            prepare_cpu(args)
        check_arguments(args, own)
        check_weights(model)
        try:
            with quietly(), interrupts.isolate_children():
                self._llm = vllm.LLM(**args, **own)
        except Exception as error:  # ValidationError, ValueError, RuntimeError, OSError, or CUDA's
            raise ModelError(f"vLLM can't serve {model}: {one_line(error)}") from error
        self._llm.collective_rpc("femtune_watch", args=(os.getpid(),))
        self._engine = self._llm.llm_engine
        self.max_batch = int(self._engine.vllm_config.scheduler_config.max_num_seqs)
        self._can_sleep = bool(self._engine.model_config.enable_sleep_mode)
        self._asleep = False
        self._lora = None
        self._loaded = stamp_of(Path(model))
        self._ends = read_end_tokens(model, self.tokenizer, self.trust_remote_code)

    def _restart(self, weights: Path) -> None:
        dtype = self._dtype
        self.close()
        with self._rounded(weights, dtype) as folder:
            self._start(str(folder))
        self._loaded = stamp_of(weights)

    @property
    def _dtype(self) -> str:
        return str(self._engine.model_config.dtype).removeprefix("torch.")

    @contextmanager
    def _rounded(self, weights: Path, dtype: str | None = None) -> Iterator[Path]:
        """A folder whose weights lose nothing in the engine's dtype, for as long as vLLM reads it."""
        with tempfile.TemporaryDirectory(prefix="femtune-") as scratch:
            yield rounded_copy(weights, dtype or self._dtype, Path(scratch) / "weights")

    def _wake(self) -> None:
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False

    def _step(self) -> list[Any]:
        """Outputs that ended in one step of vLLM, aborted ones of an earlier caller left out."""
        try:
            return [output for output in self._engine.step() if output.finished]
        except Exception as error:  # EngineDeadError, or what a worker raised
            raise EngineError(f"vLLM failed, see what it wrote before: {one_line(error)}") from error

    def _add(self, tokens: Sequence[int], params: Any) -> str:
        """Queue a prompt in vLLM; gives the request's id."""
        self._num_requests += 1
        name = str(self._num_requests)
        try:
            self._engine.add_request(name, make_prompt(tokens), params, lora_request=self._lora)
        except Exception as error:
            raise EngineError(
                f"vLLM refuses a prompt of {len(tokens)} tokens: {one_line(error)}"
            ) from error
        return name

    def _abort(self, going: Mapping[str, Any]) -> None:
        if going and self._llm is not None:
            self._engine.abort_request(list(going))

    # --- requests and what comes of them

    def _params(self, sampling: Sampling) -> Any:
        """Return the parameters that all requests of a `generate` share; `_seeded` adds the seed."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=0,
            stop_token_ids=sorted(self._ends),
            ignore_eos=True,  # the line above says which tokens end it, the EOS among them
            logprobs=0,  # the chosen token's alone
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _seeded(self, params: Any, request: Request) -> Any:
        own = copy.copy(params)  # no deep copy: nobody changes its lists
        own.seed = request.seed if params.temperature > 0 else None
        own.max_tokens = min(request.max_new_tokens or params.max_tokens, params.max_tokens)
        own.skip_clone = True
        return own

    def _check_awake(self) -> None:
        if self._llm is None or self._asleep:
            state = "closed" if self._llm is None else "released"
            raise EngineError(f"the vLLM engine is {state}: load weights before it is asked.")

    def _check_length(self, request: Request, sampling: Sampling) -> None:
        name = f'problem "{request.key.problem_id}"'
        self._check_tokens(len(request.tokens), request.most_tokens(sampling), name)

    def _check_tokens(self, prompt: int, new: int, name: str) -> None:
        if not prompt or prompt + new > self.context:
            raise EngineError(
                f"{name}: a prompt of {prompt} tokens and up to {new} new ones, expected at least "
                f"one and no more than the engine's {self.context} in all (vLLM's max_model_len)."
            )

    # --- weights

    def _serve_adapter(self, folder: Path) -> None:
        from vllm.lora.request import LoRARequest

        if self._loaded != stamp_of(Path(self._base)):
            self._restart(Path(self._base))
        self._drop_adapter()
        self._num_adapters += 1
        # until the next adapter: vLLM may read it again
        self._discard_copy()
        self._adapter = tempfile.TemporaryDirectory(prefix="femtune-")
        read = rounded_copy(folder, self._dtype, Path(self._adapter.name) / "adapter")
        lora = LoRARequest(f"femtune-{self._num_adapters}", self._num_adapters, str(read))
        try:
            self._engine.add_lora(lora)
        except Exception as error:  # what the worker raised: files, shapes, kinds of adapter
            raise ModelError(f"vLLM can't serve the adapter in {folder}: {one_line(error)}") from error
        self._lora = lora

    def _discard_copy(self) -> None:
        """Remove the rounded copy of the last adapter, where there is one."""
        if self._adapter is not None:
            self._adapter.cleanup()
            self._adapter = None

    def _drop_adapter(self) -> None:
        """Serve the base again; what is cached of an adapter's keys and values goes with it."""
        if self._lora is not None:
            self._engine.remove_lora(self._lora.lora_int_id)
            self._lora = None
            self._llm.reset_prefix_cache()

    def _serve_full(self, weights: Path) -> None:
        size = self._engine.model_config.get_vocab_size()
        check_vocabulary(weights, size, self.trust_remote_code)
        # vLLM wraps the layers of a model with adapters: those are not reloaded in place
        if self.lora_rank or not self._in_place:
            self._restart(weights)
            return
        problem = self._reload(weights)
        if problem:
            _log.warning(
                "vLLM did not take the weights of %s in place (%s): it is restarted for these "
                "and all later ones.",
                weights,
                problem,
            )
            self._in_place = False
            self._restart(weights)

    def _reload(self, weights: Path) -> str:
        """Change the weights of the running engine; what is wrong with it then, or ""."""
        try:
            if self._asleep:  # the cache's memory comes last, when the folder's copy is freed
                self._llm.wake_up(tags=["weights"])
            with self._rounded(weights) as folder:
                self._llm.collective_rpc("femtune_reload", args=(str(folder),))
            if self._asleep:
                self._llm.wake_up(tags=["kv_cache"])
                self._asleep = False
            self._llm.reset_prefix_cache()
            self._loaded = stamp_of(weights)
            self._ends = read_end_tokens(weights, self.tokenizer, self.trust_remote_code)
            check = read_check(weights)
            if check is not None:
                check_served(self, check, ROUNDING.get(self._dtype, MOST))
        except ModelError:
            raise
        except Exception as error:  # a worker's, EngineDeadError, or check_served's EngineError
            return one_line(error)
        return ""
