"""LaTRO: a rationale's reward is log pi(y* | x, z) under the model that wrote it; no answer is graded.

    grad J = E_z [ A(z) grad log pi(z | x) + grad log pi(y* | x, z) ],   z ~ pi(. | x)
    A(z_k) = log pi(y* | x, z_k) - mean over the others of the group

(Chen et al. 2024, arXiv 2411.04282, their gradient with leave-one-out baselines.) Differences: no KL
penalty (beta 0), and z ends where the answer begins, not at a fixed length. y* replaces the model's
answer; a truncated rationale, or one without an answer, gets y* too.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import torch
from trl import RLOOTrainer
from trl.trainer.utils import pad

from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.data.prompts import Prompts


class LaTRO(RLOOTrainer):  # type: ignore[misc]  # TRL is untyped to mypy
    """TRL's RLOOTrainer on rationales, each followed by y*; its reward function only records.

    `answers` has y* by a row's `number`. It runs in one process. It uses RLOOTrainer's generation,
    padding and leave-one-out advantages. The overridden methods are not public, so TRL is pinned.
    """

    def __init__(
        self,
        *arguments: Any,
        answers: Sequence[str],
        prompts: Prompts,
        tokenizer: ChatTokenizer,
        **settings: Any,
    ) -> None:
        self.answers, self.prompts, self.chat_tokenizer = answers, prompts, tokenizer
        super().__init__(*arguments, **settings)

    def _send_telemetry(self) -> None:
        """Send no telemetry."""

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self.asked = [row["number"] for row in inputs]
        made = super()._generate_and_score_completions(inputs)
        made["rationale_mask"] = self._rationale_mask(made["completion_ids"])
        return made

    def _generate_single_turn(self, prompt_ids: Any, images: Any, multimodal_fields: Any) -> Any:
        """Return rationales as sampled, with y* in place of their answers."""
        self.sampled = super()._generate_single_turn(prompt_ids, images, multimodal_fields)
        self.prompt_ids, self.lengths, self.told = prompt_ids, [], []
        for number, tokens in zip(self.asked, self.sampled, strict=True):
            rationale, answer = told(tokens, self.answers[number], self.prompts, self.chat_tokenizer)
            self.lengths.append(len(rationale))
            self.told.append([*rationale, *answer])
        return self.told

    @torch.no_grad()
    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, ids: Any) -> torch.Tensor:
        """Compute log pi(y* | x, z) in nats [B, 1]."""
        super()._calculate_rewards(inputs, prompts, completions, self.sampled)
        filler, device = self.chat_tokenizer.pad_token_id, self.accelerator.device

        def padded(rows: Any, side: str, value: int) -> torch.Tensor:
            made: torch.Tensor = pad([torch.tensor(row) for row in rows], value, side)
            return made.to(device)

        rows = (self.prompt_ids, "left"), (self.told, "right")
        tokens = torch.cat([padded(each, side, filler) for each, side in rows], 1)
        mask = torch.cat([padded([[1] * len(row) for row in each], side, 0) for each, side in rows], 1)
        width = max(map(len, self.told))
        size = self.args.per_device_train_batch_size
        logprobs = self._get_per_token_logps_and_entropies(self.model, tokens, mask, width, size)[0]
        of_answer = mask[:, -width:] - self._rationale_mask(tokens[:, -width:])
        rewards: torch.Tensor = (logprobs * of_answer).sum(1, keepdim=True)
        return rewards

    def _compute_loss(self, model: Any, inputs: Any) -> torch.Tensor:
        tokens = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        width = inputs["completion_ids"].shape[1]
        logprobs = self._get_per_token_logps_and_entropies(model, tokens, mask, width)[0]  # [B, C]
        of_rationale = inputs["rationale_mask"]
        rationale = (logprobs * of_rationale).sum(1)
        answer = (logprobs * (inputs["completion_mask"] - of_rationale)).sum(1)
        loss: torch.Tensor = -(inputs["advantages"] * rationale + answer).mean()
        return loss

    def _rationale_mask(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return 1 for each token of z, else 0; [B, C]."""
        lengths = torch.tensor(self.lengths, device=tokens.device)
        return (torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]).int()


def told(
    tokens: Sequence[int], answer: str, prompts: Prompts, tokenizer: ChatTokenizer
) -> tuple[Sequence[int], Sequence[int]]:
    """Return a completion's tokens before its answer, and the tokens of y* that replace the answer.

    The words "Answer: " belong to the rationale, as their tokens may begin before them. A completion
    without an answer is all rationale, and gets a line with y* after it.
    """
    text = tokenizer.decode(tokens)
    written = prompts.parse(text).answer
    if not written:
        ended = bool(tokens) and not tokenizer.decode(tokens[-1:])  # any of the model's end tokens
        rationale = tokens[:-1] if ended else tokens
        return rationale, tokenizer.encode_completion(f"\nAnswer: {answer}")
    begin = text.rindex(written)
    # the first token that holds a part of the answer
    first = bisect_right(range(len(tokens)), begin, key=lambda n: len(tokenizer.decode(tokens[: n + 1])))
    between = text[len(tokenizer.decode(tokens[:first])) : begin]  # a space that belongs to the answer
    return tokens[:first], tokenizer.encode_completion(between + answer)
