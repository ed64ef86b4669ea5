"""One pass over the problems by policy gradients, through TRL's trainers.

TRL provides generation, advantages and losses; femtune adds prompts, rewards, and the model's folder.
Training is on policy without a KL penalty (beta 0), as is usual for verifiable rewards.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import trl
from transformers import PrinterCallback, TrainerCallback, set_seed

from femtune._util.atomic_files import replacing
from femtune.comparison.latro import LaTRO
from femtune.config import RL
from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.data.prompts import Prompts
from femtune.engines.hf.engine import end_tokens
from femtune.engines.hf.memory import give_back, is_out_of_memory
from femtune.engines.hf.model import quiet_peft
from femtune.engines.weight_check import NUM_PAIRS, WeightCheck, write_check
from femtune.errors import FemtuneError, ModelError
from femtune.estep.scheduler import Grade
from femtune.evaluation.evaluate import estep_metrics
from femtune.mstep.config import MAX_BATCH, Training
from femtune.mstep.examples import TokenExamples
from femtune.mstep.fit import completion_logprobs
from femtune.mstep.model import load_model
from femtune.types import Completion, Draw, DrawKey, Problem, Sampling


class GRPO(trl.GRPOTrainer):  # type: ignore[misc]  # TRL is untyped to mypy
    def _send_telemetry(self) -> None:
        """Send no telemetry."""


class RLOO(trl.RLOOTrainer):  # type: ignore[misc]  # the same
    def _send_telemetry(self) -> None:
        """Send no telemetry."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Problems with their prompts, tokenizer, reward and sampling."""

    problems: Sequence[Problem]
    prompts: Prompts
    tokenizer: ChatTokenizer
    grade: Grade
    sampling: Sampling
    seed: int = 0  # of the run

    def rows(self) -> list[dict[str, Any]]:
        """Return plain prompts for TRL, with the number of each problem."""
        plain: list[Any] = [self.prompts.plain(problem) for problem in self.problems]
        if not self.tokenizer.tokenizer.chat_template:
            plain = [self.tokenizer.as_text(prompt) for prompt in plain]
        return [{"prompt": prompt, "number": number} for number, prompt in enumerate(plain)]

    def tokenized(self, prompts: Sequence[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Return the tokens of prompts of `rows`, in the form of TRL's `_tokenize_prompts`.

        TRL itself would read special tokens that data spell out as control tokens.
        """
        chat = self.tokenizer
        encode = chat.encode_prompt if chat.tokenizer.chat_template else chat.encode_plain
        return [list(encode(prompt)) for prompt in prompts], None, {}


def policy_gradient(
    name: str,
    world: Environment,
    start: Path,
    out: Path,
    training: Training,
    rl: RL,
    *,
    iteration: int,
    is_over: Callable[[Any, int], bool] = lambda model, tokens: False,
) -> None:
    """Train the weights in `start` for one pass and save them to `out`, with its cost in pass.json.

    A step takes whole groups of `rl_batch_size` completions. Problems that do not fill a last step are
    left out of this pass, different ones in each. After each step, `is_over` gets the model and the
    number of tokens generated so far; True ends the pass. `out` becomes an ordinary folder, as with
    `m_step`, complete or not at all.

    Raises ModelError for an unusable start or one that does not fit into memory, RewardError if a
    reward fails, and FemtuneError if the loss is NaN or infinite.
    """
    try:
        _train(name, world, start, out, training, rl, iteration, is_over)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(
            "a batch of completions does not fit into memory: lower per_device_train_batch_size or "
            f"max_new_tokens, or set gradient_checkpointing or use_peft. ({str(error).splitlines()[0]})"
        ) from None
    finally:
        give_back(torch.device("cuda" if torch.cuda.is_available() else "cpu"))  # for evaluation


def _train(
    name: str,
    world: Environment,
    start: Path,
    out: Path,
    training: Training,
    rl: RL,
    iteration: int,
    is_over: Callable[[Any, int], bool],
) -> None:
    seed = (world.seed + iteration) % 2**32
    with tempfile.TemporaryDirectory() as scratch, quiet_peft():
        set_seed(seed)  # before an adapter is initialized
        model = load_model(start, training)
        seen = _Seen(model, world, iteration, is_over)
        trainer = _TRAINERS[name](
            model,
            seen.rewards,
            _config(name, scratch, world, training, rl, seed),
            train_dataset=datasets.Dataset.from_list(world.rows()),
            processing_class=deepcopy(world.tokenizer.tokenizer),  # it may get a padding token
            callbacks=[seen],
            **_more(name, world),
        )
        trainer._tokenize_prompts = world.tokenized
        trainer.remove_callback(PrinterCallback)
        begun = time.perf_counter()
        num_steps = trainer.train().global_step
        seconds = time.perf_counter() - begun
    network = trainer.accelerator.unwrap_model(trainer.model)
    rest_s = round(max(0.0, seconds - seen.total_s), 3)
    m_step = {"num_examples": len(seen.draws), "num_steps": num_steps, "seconds": rest_s}
    adapters = {"selected_adapters": ["default"]} if training.use_peft else {}  # TRL adds its own
    with replacing(out) as part:
        network.save_pretrained(part, **adapters)
        world.tokenizer.tokenizer.save_pretrained(part)
        write_check(part, seen.check(network))
        done = {"e_step": seen.metrics(), "m_step": m_step}
        (part / "pass.json").write_text(json.dumps(done) + "\n")


_TRAINERS: dict[str, Any] = {"grpo": GRPO, "rloo": RLOO, "latro": LaTRO}


def _more(name: str, world: Environment) -> dict[str, Any]:
    """Return the additional arguments of LaTRO's trainer."""
    if name != "latro":
        return {}
    answers = [problem.answer for problem in world.problems]
    return {"answers": answers, "prompts": world.prompts, "tokenizer": world.tokenizer}


def _config(name: str, scratch: str, world: Environment, training: Training, rl: RL, seed: int) -> Any:
    """Return TRL's settings of a pass."""
    groups = rl.groups_a_step(len(world.problems))
    batch = groups * rl.rl_num_generations
    most = training.per_device_train_batch_size or MAX_BATCH
    fed = max(size for size in range(1, batch + 1) if batch % size == 0 and size <= most)
    on_gpu = torch.cuda.is_available() and not training.use_cpu
    kind = trl.GRPOConfig if name == "grpo" else trl.RLOOConfig
    return kind(
        output_dir=scratch,
        max_steps=len(world.problems) // groups,
        num_generations=rl.rl_num_generations,
        per_device_train_batch_size=fed,
        gradient_accumulation_steps=batch // fed,
        beta=0.0,
        max_completion_length=world.sampling.max_new_tokens,
        temperature=world.sampling.temperature,
        top_p=world.sampling.top_p,
        top_k=world.sampling.top_k,
        chat_template_kwargs=world.tokenizer.rendering_args,
        learning_rate=rl.rate(training),
        lr_scheduler_type=training.lr_scheduler_type,
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        gradient_checkpointing=training.gradient_checkpointing,
        bf16=training.computes_in_bf16("float32"),
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


class _Seen(TrainerCallback):  # type: ignore[misc]  # transformers is untyped to mypy
    """A record of a pass's completions and times; it also computes femtune's reward.

    The generation time of a step ends when TRL calls the reward.
    """

    def __init__(
        self, model: Any, world: Environment, iteration: int, is_over: Callable[[Any, int], bool]
    ) -> None:
        self.model, self.world, self.iteration, self.is_over = model, world, iteration, is_over
        self.ends = end_tokens(model, world.tokenizer)
        self.draws: list[Draw] = []
        self.tokens = 0
        self.engine_s = self.total_s = self.since = 0.0
        self.check_examples = TokenExamples((), (), ())
        self.before: list[float] = []

    def rewards(
        self, completion_ids: Sequence[Sequence[int]], number: Sequence[int], **_: Any
    ) -> list[float]:
        """Return rewards for TRL; `number` is each completion's problem."""
        self.engine_s += time.perf_counter() - self.since
        texts = map(self.world.tokenizer.decode, completion_ids)
        made = [
            Completion(tuple(ids), text, "stop" if ids[-1] in self.ends else "length", math.nan)
            for text, ids in zip(texts, completion_ids, strict=True)
        ]
        asked = [self.world.problems[i] for i in number]
        no = [False] * len(asked)
        scores = self.world.grade(asked, made, hinted=no, accept_at=[1.0] * len(asked))
        index: Counter[str] = Counter()
        for problem, completion, score in zip(asked, made, scores, strict=True):
            key = DrawKey(self.iteration, problem.id, 0, index[problem.id])
            index[problem.id] += 1
            self.draws.append(Draw(key, "plain", 0, completion, score))
            self.tokens += len(completion.tokens)
        self.total_s += time.perf_counter() - self.since
        if not self.before:
            self._begin_check(asked, made)
        return [score.reward for score in scores]

    def _begin_check(self, asked: Sequence[Problem], made: Sequence[Completion]) -> None:
        rows = range(0, len(asked), max(1, len(asked) // NUM_PAIRS))[:NUM_PAIRS]
        encode = self.world.tokenizer.encode_prompt
        prompts = [encode(self.world.prompts.plain(asked[row])) for row in rows]
        self.check_examples = TokenExamples(
            prompts, [made[row].tokens for row in rows], [1.0] * len(rows)
        )
        self.before = completion_logprobs(self.model, self.check_examples, range(len(rows)))

    def check(self, network: Any) -> WeightCheck:
        """Return a check that an engine serves the trained weights: see weight_check.py."""
        after = completion_logprobs(network, self.check_examples, range(len(self.check_examples)))
        if not all(map(math.isfinite, after)):
            raise FemtuneError("the last step gave NaN or infinite weights: lower rl_learning_rate.")
        return WeightCheck(
            self.check_examples.prompts, self.check_examples.completions, after, self.before
        )

    def metrics(self) -> dict[str, Any]:
        """Return metrics like an E-step's, without those of a filter."""
        timing = {"engine_s": self.engine_s, "total_s": self.total_s}
        by_id = {problem.id: problem for problem in self.world.problems}
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
