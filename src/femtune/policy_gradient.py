"""One pass over the problems by policy gradients, through TRL's trainers.

TRL brings generation, advantages and losses; ours are prompts, rewards, and the model's folder. On
policy and without a penalty for leaving the start (beta 0), as is usual where a reward can be checked.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
import trl
from transformers import PrinterCallback, TrainerCallback, set_seed

from femtune.chunks import Setup
from femtune.config import RL
from femtune.engines.memory import is_out_of_memory
from femtune.engines.transformers import end_tokens
from femtune.errors import FemtuneError, ModelError
from femtune.evaluate import estep_metrics
from femtune.examples import TokenExamples
from femtune.files import replacing
from femtune.latro import LaTRO
from femtune.mstep import completion_nats, load_model
from femtune.prompts import ChatTokenizer
from femtune.served import NUM_PAIRS, Probe, write_probe
from femtune.trainer import numbers
from femtune.training import Training
from femtune.types import Completion, Draw, DrawKey, Problem


class GRPO(trl.GRPOTrainer):  # type: ignore[misc]  # TRL is untyped to mypy
    def _send_telemetry(self) -> None:
        """Nobody is told what is trained here."""


class RLOO(trl.RLOOTrainer):  # type: ignore[misc]
    def _send_telemetry(self) -> None:
        """The same."""


def policy_gradient(
    name: str,
    problems: Sequence[Problem],
    start: Path,
    out: Path,
    training: Training,
    rl: RL,
    setup: Setup,
    tokenizer: ChatTokenizer,
    *,
    iteration: int,
    is_over: Callable[[Any, int], bool] = lambda model, tokens: False,
) -> None:
    """Train the weights in `start` for one pass and save them to `out`, with what it took in pass.json.

    A step takes whole groups of `rl_batch_size` completions; problems that do not fill a last step are
    left out of this pass, others in each. `is_over` is asked after each step, with the model and the number
    of tokens generated so far, whether the pass ends with it. `out` becomes what `m_step` makes: an ordinary
    folder, whole or not at all.

    Raises ModelError for an unusable start or one that does not fit into memory, RewardError where a
    reward fails, and FemtuneError where the loss stops being a number.
    """
    seed = (setup.seed + iteration) % 2**32
    try:
        with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
            # TRL 1.16 asks by names of transformers' past
            warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
            set_seed(seed)  # before an adapter is drawn at random
            model = load_model(start, training)
            config = _config(name, scratch, len(problems), training, rl, setup, tokenizer, seed)
            seen = _Seen(model, problems, setup, tokenizer, iteration, is_over)
            trainer = {"grpo": GRPO, "rloo": RLOO, "latro": _latro(problems, setup, tokenizer)}[name](
                model,
                seen.rewards,
                config,
                train_dataset=datasets.Dataset.from_list(_rows(problems, setup, tokenizer)),
                processing_class=tokenizer.tokenizer,
                callbacks=[seen],
            )
            trainer.remove_callback(PrinterCallback)
            begun = time.perf_counter()
            result = trainer.train()
            seconds = time.perf_counter() - begun
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(
            "a batch of completions does not fit into memory: lower per_device_train_batch_size or "
            f"max_new_tokens, or set gradient_checkpointing or use_peft. ({str(error).splitlines()[0]})"
        ) from None
    network = trainer.accelerator.unwrap_model(trainer.model)
    done = {
        "e_step": seen.metrics(),
        "m_step": {
            "num_examples": len(seen.draws),
            "num_steps": result.global_step,
            "seconds": round(max(0.0, seconds - seen.total_s), 3),
        },
    }
    adapters = {"selected_adapters": ["default"]} if training.use_peft else {}  # TRL adds its own
    with replacing(out) as part:
        network.save_pretrained(part, **adapters)
        tokenizer.tokenizer.save_pretrained(part)
        write_probe(part, seen.probe(network))
        (part / "pass.json").write_text(json.dumps(done) + "\n")


def _latro(problems: Sequence[Problem], setup: Setup, tokenizer: ChatTokenizer) -> Callable[..., Any]:
    answers = [problem.answer for problem in problems]
    return partial(LaTRO, answers=answers, prompts=setup.prompts, tokenizer=tokenizer)


def _config(
    name: str,
    scratch: str,
    num_problems: int,
    training: Training,
    rl: RL,
    setup: Setup,
    tokenizer: ChatTokenizer,
    seed: int,
) -> Any:
    """TRL's settings of a pass."""
    groups = rl.groups_a_step(num_problems)
    batch = groups * rl.rl_num_generations
    most = training.per_device_train_batch_size
    fed = max(size for size in range(1, batch + 1) if batch % size == 0 and size <= most)
    on_gpu, bf16 = numbers(training)
    kind = trl.GRPOConfig if name == "grpo" else trl.RLOOConfig
    return kind(
        output_dir=scratch,
        max_steps=num_problems // groups,
        num_generations=rl.rl_num_generations,
        per_device_train_batch_size=fed,
        gradient_accumulation_steps=batch // fed,
        beta=0.0,
        max_completion_length=setup.sampling.max_new_tokens,
        temperature=setup.sampling.temperature,
        top_p=setup.sampling.top_p,
        top_k=setup.sampling.top_k,
        chat_template_kwargs=dict(tokenizer.template_args),
        learning_rate=rl.rate(training),
        lr_scheduler_type=training.lr_scheduler_type,
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        gradient_checkpointing=training.gradient_checkpointing,
        bf16=bf16,
        use_cpu=not on_gpu,
        seed=seed,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        dataloader_pin_memory=on_gpu,
        log_level="error",
    )


def _rows(problems: Sequence[Problem], setup: Setup, tokenizer: ChatTokenizer) -> list[dict[str, Any]]:
    """Plain prompts as TRL takes them, which makes the very tokens of `encode_prompt` of them."""
    plain = [setup.prompts.plain(problem) for problem in problems]
    if tokenizer.tokenizer.chat_template:
        return [{"prompt": prompt, "number": i} for i, prompt in enumerate(plain)]
    return [{"prompt": tokenizer.as_text(prompt), "number": i} for i, prompt in enumerate(plain)]


class _Seen(TrainerCallback):  # type: ignore[misc]
    """What a pass has generated, and how long that took; the reward of it is femtune's.

    Of a step, generation is what comes before the reward is asked for.
    """

    def __init__(
        self,
        model: Any,
        problems: Sequence[Problem],
        setup: Setup,
        tokenizer: ChatTokenizer,
        iteration: int,
        is_over: Callable[[Any, int], bool],
    ) -> None:
        self.model, self.problems, self.setup, self.tokenizer = model, problems, setup, tokenizer
        self.iteration, self.is_over = iteration, is_over
        self.ends = end_tokens(model, tokenizer)
        self.draws: list[Draw] = []
        self.tokens = 0
        self.engine_s = self.total_s = self.since = 0.0
        self.probed = TokenExamples((), (), ())
        self.before: list[float] = []

    def rewards(
        self, completion_ids: Sequence[Sequence[int]], number: Sequence[int], **_: Any
    ) -> list[float]:
        """TRL's reward function: `number` is each completion's problem."""
        self.engine_s += time.perf_counter() - self.since
        texts = map(self.tokenizer.decode, completion_ids)
        made = [
            Completion(tuple(ids), text, "stop" if ids[-1] in self.ends else "length", math.nan)
            for text, ids in zip(texts, completion_ids, strict=True)
        ]
        asked = [self.problems[i] for i in number]
        no = [False] * len(asked)
        scores = self.setup.grade(asked, made, hinted=no, accept_at=[1.0] * len(asked))
        index: Counter[str] = Counter()
        for problem, completion, score in zip(asked, made, scores, strict=True):
            key = DrawKey(self.iteration, problem.id, 0, index[problem.id])
            index[problem.id] += 1
            self.draws.append(Draw(key, "plain", 0, completion, score))
            self.tokens += len(completion.tokens)
        self.total_s += time.perf_counter() - self.since
        if not self.before:
            self._begin_probe(asked, made)
        return [score.reward for score in scores]

    def _begin_probe(self, asked: Sequence[Problem], made: Sequence[Completion]) -> None:
        rows = range(0, len(asked), max(1, len(asked) // NUM_PAIRS))[:NUM_PAIRS]
        prompts = [self.tokenizer.encode_prompt(self.setup.prompts.plain(asked[row])) for row in rows]
        self.probed = TokenExamples(prompts, [made[row].tokens for row in rows], [1.0] * len(rows))
        self.before = completion_nats(self.model, self.probed, range(len(rows)))

    def probe(self, network: Any) -> Probe:
        """By which an engine shows that it serves what was trained: see served.py."""
        after = completion_nats(network, self.probed, range(len(self.probed)))
        if not all(map(math.isfinite, after)):
            raise FemtuneError("the last step left weights that are no numbers: lower rl_learning_rate.")
        return Probe(self.probed.prompts, self.probed.completions, after, self.before)

    def metrics(self) -> dict[str, Any]:
        """As an E-step's, but that nothing is filtered out."""
        timing = {"engine_s": self.engine_s, "total_s": self.total_s}
        by_id = {problem.id: problem for problem in self.problems}
        made = estep_metrics(by_id, [(self.draws, timing)])
        mean = sum(draw.score.reward for draw in self.draws) / max(1, len(self.draws))
        kept = ("num_kept", "kept_share")
        return {"reward": mean} | {name: value for name, value in made.items() if name not in kept}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.since = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.is_over(self.model, self.tokens):
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and not math.isfinite(logs.get("loss", 0.0)):
            raise FemtuneError(f"the loss is {logs['loss']}: lower rl_learning_rate.")
