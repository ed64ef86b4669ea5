"""Samplers: a model's tokenizer, its prompts, and the inference engine."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from femtune._util.parsing import named_pairs, read_value
from femtune._util.safetensors_header import stored_dtype
from femtune.config import Ask
from femtune.data.chat_tokenizer import ChatTokenizer, fit_prompts, no_tokenizer
from femtune.data.problems import check_lengths
from femtune.data.prompts import Prompts
from femtune.data.truncation import Cut
from femtune.engines.chat.budget import read_caps
from femtune.engines.dtypes import usable_dtype
from femtune.engines.model_files import (
    load_config,
    load_tokenizer,
    local_model,
    named_folder,
)
from femtune.engines.weight_check import NUM_PAIRS, ROUNDING, WeightCheck
from femtune.errors import ConfigError, DataError, EngineError, ModelError
from femtune.estep.forced_answers import check_cue
from femtune.estep.scheduler import EnginePool, Sampler
from femtune.model_info import FILE as INFO
from femtune.model_info import (
    checked_info,
    is_base,
    model_folder,
    read_info,
    served_name,
    unchanged_base,
)
from femtune.mstep.config import Training, context_length
from femtune.resolve import TaskInputs
from femtune.rewards.builtin import score
from femtune.types import SCORED, Demo, Demos, DrawKey, Engine, Need, Problem, Request, Reward, Sampling

_log = logging.getLogger("femtune")


@dataclass(frozen=True, kw_only=True)
class SamplerBuilder:
    """A builder of samplers for a model; it does not load the weights."""

    base: Path
    tokenizer: ChatTokenizer
    prompts: Prompts  # of x: with the worked examples only if they are part of it
    reward: Reward
    settings: Ask
    demos: Demos = ()  # worked examples that are shown but not part of x

    @contextmanager
    def sampler(
        self,
        sampling: Sampling,
        check_on: Sequence[Problem] = (),
        needs: Collection[Need] = (),
        folder: Path | None = None,
    ) -> Iterator[Sampler]:
        """Open the model in one engine, or in those of many workers, until the block ends.

        Some of the problems `check_on` form `base_check`; `needs` are the scheme's. `folder` is the
        run's, where an engine that pays for answers stores them. Takes a minute for a large model.
        Raises ConfigError if a requirement of the engine is missing, ModelError if the
        model cannot be served, and EngineError if the engine lacks what the scheme needs.
        """
        remote = self.settings.engine in ("openai", "chat")
        # otherwise the model is read for the check before the engine takes the memory
        check = self.base_check(check_on) if check_on and not remote else None
        made = self.open_sampler(sampling, check, needs, folder)
        try:
            if check_on and remote:
                made = replace(made, base_check=self.base_check(check_on))
            yield made
        finally:
            made.engine.close()

    def open_sampler(
        self,
        sampling: Sampling,
        base_check: WeightCheck | None = None,
        needs: Collection[Need] = (),
        folder: Path | None = None,
    ) -> Sampler:
        """Open a sampler for callers that close its `engine` themselves."""
        no_foreign_bars()
        settings = self.settings
        grade = partial(
            score,
            prompts=self.prompts,
            reward=self.reward,
            timeout_s=settings.reward_timeout,
            on_error=settings.on_reward_error,
        )
        has_tokens = settings.engine != "chat"
        pooled = settings.ray_workers > 0
        return Sampler(
            self._pool(sampling, base_check, needs) if pooled else self._fit_engine(needs, folder),
            self.tokenizer,
            self.prompts,
            grade,
            sampling,
            seed=settings.seed,
            chunk_size=settings.chunk_size,
            rounding=_rounding(settings, self.base) if has_tokens else ROUNDING["float32"],
            base_check=base_check,
            overlap=settings.overlap,
            resume=settings.resume,
            cut=self._cut() if has_tokens else None,
            context=self.context,
            # the setting for evaluation; the loop overrides it in its E-steps
            force="never" if settings.force_answers == "never" else "all",
        )

    @property
    def context(self) -> int | None:
        """Return the tokens that the model takes; None where a server keeps that to itself."""
        return None if self.settings.engine == "chat" else context_length(load_config(self.base))

    def check_lengths(self, problems: Sequence[Problem]) -> None:
        """Check prompts against the model's context, where both are known. Raises DataError."""
        if self.context is not None:
            shown = self.prompts.with_demos(self.demos or self.prompts.demos)
            room = self.settings.max_new_tokens
            check_lengths(problems, shown, self.tokenizer, self.context, room)

    def _cut(self) -> Cut:
        return Cut(self.prompts.format, self.tokenizer, self.tokenizer.opening)

    def _pool(
        self, sampling: Sampling, base_check: WeightCheck | None, needs: Collection[Need]
    ) -> EnginePool:
        from femtune.estep.ray_cluster import WorkerSpec
        from femtune.estep.ray_pool import Pool

        settings = self.settings
        alone = replace(
            self,
            base=self.base.absolute(),
            settings=replace(settings, ray_workers=0, ray_address=None, worker_gpus=None),
        )
        gpus = settings.worker_gpus
        if gpus is None:
            gpus = engine_args(settings).get("tensor_parallel_size")
        spec = WorkerSpec(settings.ray_workers, settings.ray_address, settings.worker_cpus, gpus)
        return Pool(partial(alone.open_sampler, sampling, needs=needs), spec, base_check)

    def _fit_engine(self, needs: Collection[Need], folder: Path | None) -> Engine:
        """Return an engine that can do what a scheme needs. Raises EngineError."""
        engine = self._engine(folder)
        try:
            check_able(engine, needs)
        except EngineError:
            engine.close()
            raise
        return engine

    def _engine(self, folder: Path | None) -> Engine:
        settings = self.settings
        if settings.engine == "chat":
            from femtune.engines.chat.engine import engine_of

            return engine_of(served_name(str(self.base), settings), settings, folder)
        if settings.engine == "vllm":
            from femtune.engines.vllm.engine import VllmEngine

            return VllmEngine(
                self.base,
                tokenizer=self.tokenizer,
                dtype=_numbers(settings, self.base),  # vLLM's own "auto" would halve 32-bit weights
                max_batch=settings.max_batch,
                args=engine_args(settings),
                lora_rank=_lora_rank(settings),
                share_device=getattr(settings, "share_device", True),
            )
        if settings.engine == "openai":
            from femtune.engines.openai.engine import OpenAIEngine

            return OpenAIEngine(
                self.base,
                tokenizer=self.tokenizer,
                base_url=settings.base_url,
                served_model=settings.served_model,
                max_batch=settings.max_batch,
                timeout_s=settings.engine_timeout,
            )
        from femtune.engines.hf.engine import TransformersEngine

        return TransformersEngine(
            self.base,
            tokenizer=self.tokenizer,
            dtype=_numbers(settings, self.base),  # the same in every iteration
            device=settings.device,
            max_batch=settings.max_batch,
        )

    def base_check(self, problems: Sequence[Problem]) -> WeightCheck | None:
        """Return a check that an engine other than transformers serves the base.

        Takes as long as reading the model once; returns None for the transformers engine.
        """
        settings = self.settings
        if settings.engine in ("transformers", "chat"):
            return None
        from femtune.engines.hf.engine import TransformersEngine

        dtype = "auto" if _lora_rank(settings) else "float32"  # the M-step's
        engine = TransformersEngine(
            self.base, tokenizer=self.tokenizer, dtype=dtype, device=settings.device
        )
        todo = [
            Request(DrawKey(0, p.id, 0, 0), self.tokenizer.encode_prompt(self.prompts.plain(p)), 0)
            for p in problems[:NUM_PAIRS]
        ]
        prompts = [request.tokens for request in todo]
        # the model's likeliest words: in 16 bits, log-probabilities of unlikely ones are inaccurate
        greedy = Sampling(min(32, settings.max_new_tokens), temperature=0.0)
        parts = engine.generate(lambda room: [todo.pop(0) for _ in range(min(room, len(todo)))], greedy)
        made = {request.tokens: completion.tokens for part in parts for request, completion in part}
        completions = [made[tokens] for tokens in prompts]
        logprobs = engine.logprob(list(zip(prompts, completions, strict=True)))
        engine.close()
        return WeightCheck(prompts, completions, logprobs, logprobs)


def check_able(engine: Engine, needs: Collection[Need]) -> None:
    """Refuse a server that lacks the log-probabilities that a scheme needs. Raises EngineError."""
    able = engine.capabilities
    if not SCORED & {*needs}:
        return
    lacks = "can't score given completions (no prompt_logprobs, no echo with logprobs)"
    as_drawn = "log_pi" in needs and {"temperature_1", "untruncated"} & {*needs}
    if able.scores and as_drawn and not able.logprobs:
        lacks = "does not return log-probabilities of what it samples"
    elif able.scores:
        return
    raise EngineError(
        f"the server {lacks}, and the scheme weighs draws by them. Serve the model with vLLM, or take "
        "--engine vllm or transformers. Or choose a scheme without importance, expected "
        "and reasons, such as --scheme rejection:4."
    )


def engine_args(settings: Ask) -> dict[str, Any]:
    """Return further arguments of the engine, parsed as JSON. Raises ConfigError."""
    pairs = named_pairs("engine_args", settings.engine_args)
    return {name.replace("-", "_"): read_value(value) for name, value in pairs.items()}


def _lora_rank(settings: Ask) -> int | None:
    """Return the rank of a run's adapters, or None without LoRA."""
    training = getattr(settings, "training", None)
    return training.lora_r if training is not None and training.use_peft else None


def _numbers(settings: Ask, base: Path) -> str:
    """Return the engine's dtype: engine_dtype if set, else the base's; servers count as bfloat16.

    On a CPU that is slow in 16 bits, float32 replaces the base's 16-bit dtype.
    """
    if settings.engine_dtype != "auto":
        return settings.engine_dtype
    if settings.engine == "openai":
        return "bfloat16"
    stored = stored_dtype(base)
    return stored if settings.engine == "vllm" else usable_dtype(stored, settings.device)


def _lora_dtype(training: Training, base: Path) -> str:
    """Return the dtype of the frozen base under LoRA."""
    if training.dtype != "auto":
        return training.dtype
    return usable_dtype(stored_dtype(base), "cpu" if training.use_cpu else None)


def _rounding(settings: Ask, base: Path) -> float:
    """Return the tolerance of log-probabilities between engine and M-step: see weight_check.py."""
    training = getattr(settings, "training", None)
    dtypes = {_numbers(settings, base)}
    if training is not None and training.fsdp and training.bf16 is not False:
        dtypes.add("bfloat16")  # with sharded weights, the M-step scores in its training dtype
    if training is not None and training.use_peft:  # it scores with the frozen base as stored
        dtypes.add(_lora_dtype(training, base))
    return max(ROUNDING.get(dtype, ROUNDING["bfloat16"]) for dtype in dtypes)


def no_foreign_bars() -> None:
    """Disable transformers' progress bars, which would mix with femtune's."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def make_sampler_builder(
    model: str, asked: TaskInputs[Any], *groups: Sequence[Problem]
) -> SamplerBuilder:
    """Build a model's tokenizer and prompts; check the groups' prompts against its context length.

    Raises ModelError if the model is not available, DataError if prompts are too long, ConfigError if
    the requested GPU does not exist.
    """
    settings = asked.settings
    _check_device(settings)
    engine_args(settings)
    check_installed(settings)
    if settings.engine == "chat":
        return _chat_builder(model, asked)
    base = local_model(model)
    info = checked_info(model, settings)
    tokenizer = load_tokenizer(base, settings.template_args)
    form = asked.prompts.format
    if settings.force_answers != "never" and form.cue:
        check_cue(Cut(form, tokenizer), tokenizer)
    if info is not None and info.demos and settings.demos == "auto":  # they are part of its x
        own = tuple(Demo(**demo) for demo in info.demos)
        asked = replace(asked, prompts=asked.prompts.with_demos(own))
    demos = asked.demos if settings.demos != "auto" or is_base(model, settings) else ()
    shown = asked.prompts.with_demos(demos or asked.prompts.demos)
    try:
        shown = fit_prompts(shown, tokenizer)
    except ModelError as error:
        if settings.demos != "auto" or not demos:
            raise
        _log.warning("no worked examples are shown: %s", error)
        demos, shown = (), fit_prompts(asked.prompts, tokenizer)
    context = context_length(load_config(base))
    try:
        for problems in groups:
            check_lengths(problems, shown, tokenizer, context, settings.max_new_tokens, asked.name_of)
    except DataError as error:
        if settings.demos != "auto" or not demos:
            raise
        _log.warning("no worked examples are shown: %s", error)
        demos, shown = (), fit_prompts(asked.prompts, tokenizer)
        for problems in groups:
            check_lengths(problems, shown, tokenizer, context, settings.max_new_tokens, asked.name_of)
    shown = replace(shown, opening=tokenizer.opening)
    in_prompt = settings.demos_in_prompt
    prompts = shown if in_prompt else replace(shown, demos=asked.prompts.demos)
    return SamplerBuilder(
        base=base,
        tokenizer=tokenizer,
        prompts=prompts,
        reward=asked.reward,
        settings=settings,
        demos=() if in_prompt else demos,
    )


def _check_device(settings: Ask) -> None:
    """Raise ConfigError for a GPU that is not there."""
    if settings.device and settings.device.startswith("cuda"):
        import torch  # slow import; only needed for --device cuda

        count = torch.cuda.device_count()
        if int(settings.device.partition(":")[2] or 0) >= count:
            raise ConfigError(
                f"device {settings.device}: torch sees {count} GPUs here. Leave --device out."
            )


def _chat_builder(model: str, asked: TaskInputs[Any]) -> SamplerBuilder:
    """Build for chat completions: prompts stay messages, and a model's own examples stand in them."""
    settings, folder = asked.settings, model_folder(model, asked.settings)
    info = None if folder is None else read_info(folder)
    prompts, demos = asked.prompts, asked.demos if settings.demos != "auto" else ()
    if info is not None and info.demos and settings.demos == "auto":
        prompts = prompts.with_demos(tuple(Demo(**demo) for demo in info.demos))
    if settings.demos_in_prompt:
        prompts, demos = prompts.with_demos(demos), ()
    return SamplerBuilder(
        base=folder or Path(model),
        tokenizer=no_tokenizer(),
        prompts=prompts,
        reward=asked.reward,
        settings=settings,
        demos=demos,
    )


def trained_from(model: str) -> Path:
    """Return the folder of the base that a model was trained from; for a base, its own folder.

    Raises ModelError if the base is unknown, missing, or has changed.
    """
    folder = named_folder(model)
    info = read_info(folder)
    if info is None:
        return folder
    if info.base is None:
        raise ModelError(
            f"{folder / INFO} does not name the base of {model}, which is to read its rationales. Leave "
            "out --reader-problems."
        )
    return unchanged_base(model, info)


def check_installed(settings: Ask) -> None:
    """Raise ConfigError if a library that an engine needs is missing, before a model is read."""
    wanted = {"vllm": settings.engine == "vllm", "ray": settings.ray_workers > 0}
    for name, is_wanted in wanted.items():
        if is_wanted and find_spec(name) is None:
            setting = "--engine vllm" if name == "vllm" else "--ray-workers"
            raise ConfigError(f"{setting} needs {name}: pip install {name} (see docs/scale.md).")
    is_remote = settings.engine in ("openai", "chat")
    if is_remote and not (settings.base_url or os.environ.get("OPENAI_BASE_URL")):
        raise ConfigError(
            f"the {settings.engine} engine needs a server's URL: set OPENAI_BASE_URL, or --base-url "
            "http://127.0.0.1:8000/v1, say."
        )
    read_caps(settings)
    if settings.ray_address:
        _check_reachable(settings.ray_address)


def _check_reachable(address: str) -> None:
    """Check a Ray address quickly; Ray would try for two minutes. Raises ConfigError."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return  # "auto": Ray finds a cluster, or fails at once
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ConfigError(
            f"no Ray cluster at {address} ({error.strerror or error}): `ray start --head` makes one."
        ) from error
