"""Baselines by reinforcement learning, through TRL: what is refused, and each on few problems."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from femtune.comparison import rl
from femtune.comparison.baselines import Reinforced, baseline_settings, chosen, run_baseline
from femtune.comparison.compare import jobs
from femtune.comparison.demo import write_world
from femtune.comparison.table import rows
from femtune.config import RL, Train
from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.data.prompts import Prompts
from femtune.engines.hf.engine import read_tokenizer
from femtune.errors import ConfigError, RunError
from femtune.mstep.config import Training
from femtune.types import Problem

from ..models import EOS, TURN, byte_tokenizer, tiny_model

needs_trl = pytest.mark.skipif(find_spec("trl") is None, reason='TRL is not there: "femtune[trl]"')

NUM_PROBLEMS = 9
FEW = RL(rl_num_generations=2, rl_batch_size=8, rl_learning_rate=1e-3)  # 4 problems a step


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Train]:
    train, test = write_world("rubric", tmp_path_factory.mktemp("world"), NUM_PROBLEMS, 6)
    settings = Train(
        task="judge",
        raters="named",
        scale="1,5",
        max_new_tokens=32,
        iterations=2,
        eval_data=str(test),
        training=Training(use_cpu=True, per_device_train_batch_size=4),
    )
    return str(train), settings


# --- what is refused, and settings


def test_they_run_only_where_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rl, "find_spec", lambda name: object())
    settings = Train(task="math")
    assert not {*rl.RL_BASELINES} & {*chosen(None, settings)}
    assert chosen(("latro", "grpo", "votes"), settings) == ("votes", "grpo", "latro")
    with pytest.raises(ConfigError, match="Did you mean grpo"):
        chosen(("gpro",), settings)
    with pytest.raises(ConfigError, match="held-out problems"):
        chosen(("grpo",), replace(settings, eval_share=0.0))
    with pytest.raises(ConfigError, match="one process: leave launch"):
        chosen(("grpo",), replace(settings, launch="torchrun"))


def test_without_trl_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rl, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'baseline rloo needs TRL: pip install "femtune\[trl\]"'):
        chosen(("rloo",), Train())
    assert "votes" in chosen(None, Train())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rl_num_generations": 1}, "at least 2"),
        ({"rl_batch_size": 12}, "no multiple of rl_num_generations, 8"),
        ({"rl_learning_rate": 0.0}, "above 0"),
        ({"rl_tokens": 0}, "at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RL(**given)


def test_the_rate_is_a_tenth_of_the_m_steps_and_groups_no_more_than_problems() -> None:
    assert RL().rate(Training(learning_rate=1e-3)) == pytest.approx(1e-4)
    assert RL(rl_learning_rate=3e-4).rate(Training(learning_rate=1e-3)) == 3e-4
    assert (RL().groups_a_step(100), RL().groups_a_step(3)) == (32 // 8, 3)
    own = baseline_settings("grpo", Train(seed=3, iterations=7), 16, FEW)
    assert isinstance(own, Reinforced)
    assert (own.seed, own.iterations, own.rl_batch_size) == (3, 7, 8)
    made = jobs(("pps",), 1, Train(), Path("out"), ("votes", "grpo"))
    assert [(job.is_baseline, job.iterates) for job in made] == [
        *((True, False), (True, True), (False, True)),
    ]


def test_tokens_that_are_left() -> None:
    history = [{"iteration": 0}, {"e_step": {"generated_tokens": 30}}]
    assert rl.left(RL(rl_tokens=100), history) == 70
    assert rl.left(RL(), history) is None


# --- end to end


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@needs_trl
@pytest.mark.parametrize(
    "name", ["grpo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("rloo", "latro"))]
)
def test_a_run_has_a_schemes_history_and_goes_on_where_it_was_stopped(
    name: str, world: tuple[str, Train], tmp_path: Path
) -> None:
    data, settings = world
    one = baseline_settings(name, replace(settings, iterations=1), 1, FEW)
    first = run_baseline(data, "seedling", one, tmp_path / "run")
    assert [metrics["iteration"] for metrics in first] == [0, 1]
    assert "e_step" not in first[0]
    assert all(metrics["evaluation"]["num_problems"] == 6 for metrics in first)
    e_step = first[1]["e_step"]
    assert e_step["num_draws"] == 2 * 4 * 2  # two steps of four problems with two draws; one is left out
    assert e_step["num_problems"] == 8
    assert 0 <= e_step["reward"] <= 1
    assert e_step["num_draws"] < e_step["generated_tokens"] <= 32 * e_step["num_draws"]
    assert 0 < e_step["engine_s"] <= e_step["total_s"]
    assert first[1]["m_step"]["num_steps"] == 2
    assert first[1]["m_step"]["seconds"] > 0
    stored = json.loads((tmp_path / "run/iteration-001/metrics.json").read_text())
    assert stored == first[1]
    from femtune.data.worlds import SEEDLING

    assert any((w != weights(SEEDLING)[key]).any() for key, w in weights(tmp_path / "run/last").items())

    # one more pass, from the stored weights; the first is not done again
    second = run_baseline(data, "seedling", replace(one, iterations=2), tmp_path / "run")
    assert second[:2] == first
    run_baseline(data, "seedling", replace(one, iterations=2), tmp_path / "whole")
    resumed, at_once = (weights(tmp_path / place / "last") for place in ("run", "whole"))
    assert all((resumed[key] == at_once[key]).all() for key in resumed)
    models = [*tmp_path.glob("run/iteration-*/model")]
    assert len(models) <= 2 and (tmp_path / "run/last").resolve() in models  # the last, and the best
    with pytest.raises(RunError, match="another configuration"):
        run_baseline(data, "seedling", replace(one, rl_batch_size=4), tmp_path / "run")


@needs_trl
def test_a_budget_of_tokens_ends_it_at_the_step_that_reaches_it(
    world: tuple[str, Train], tmp_path: Path
) -> None:
    data, settings = world
    own = baseline_settings("grpo", settings, 1, replace(FEW, rl_tokens=1))
    history = run_baseline(data, "seedling", own, tmp_path / "run")
    assert len(history) == 2
    assert history[1]["m_step"]["num_steps"] == 1
    assert "evaluation" in history[1]
    job = jobs((), 1, settings, tmp_path, ("grpo",), rl=FEW)[0]
    (row,) = rows({job: history})
    assert row.name == "grpo"
    assert row.values["generated_tokens"][0] == history[1]["e_step"]["generated_tokens"]
    assert "kept_share" not in row.values


@needs_trl
def test_the_trained_adapter_alone_is_saved(world: tuple[str, Train], tmp_path: Path) -> None:
    data, settings = world
    lora = replace(settings, training=replace(settings.training, use_peft=True, lora_r=2), iterations=2)
    history = run_baseline(data, "seedling", baseline_settings("grpo", lora, 1, FEW), tmp_path / "run")
    assert "evaluation" in history[2]
    model = (tmp_path / "run/last").resolve()
    assert (model / "adapter_config.json").exists()
    assert not [path for path in model.iterdir() if path.is_dir()]


@needs_trl
@pytest.mark.parametrize("template", [True, False])
def test_trl_feeds_the_prompts_that_schemes_feed(
    template: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from femtune.comparison import policy_gradient

    model = tiny_model(
        tmp_path / "model",
        tokenizer=byte_tokenizer(bos=True, template=template),
        max_position_embeddings=512,
    )
    fed: set[tuple[int, ...]] = set()
    usual = policy_gradient.GRPO._generate_single_turn

    def watched(self: Any, prompt_ids: Any, *others: Any) -> Any:
        fed.update(map(tuple, prompt_ids))
        return usual(self, prompt_ids, *others)

    monkeypatch.setattr(policy_gradient.GRPO, "_generate_single_turn", watched)
    problems = [Problem(f"p{n}", f"What is {n} + 2?{TURN}{EOS}", str(n + 2)) for n in range(4)]
    held = tmp_path / "eval.jsonl"
    held.write_text('{"id": "x", "prompt": "What is 9 + 2?", "answer": "11"}\n')
    settings = Train(
        eval_data=str(held), iterations=1, max_new_tokens=8, training=Training(use_cpu=True)
    )
    run_baseline(problems, str(model), baseline_settings("grpo", settings, 1, FEW), tmp_path / "run")
    chat = read_tokenizer(model)
    assert fed == {chat.encode_prompt(Prompts().plain(problem)) for problem in problems}


# --- LaTRO


@pytest.mark.parametrize(
    ("text", "rationale", "answer"),
    [
        ("It is clear.\nAnswer: 3", "It is clear.\nAnswer: ", "12"),
        ("It is clear.\n**Answer: 3**", "It is clear.\n**Answer: ", "12"),
        ("3, so 3.\nAnswer: 3.", "3, so 3.\nAnswer: ", "12"),
        ("Answer: 3", "Answer: ", "12"),
        ("No idea.", "No idea.", "\nAnswer: 12"),
        ("", "", "\nAnswer: 12"),
    ],
)
@needs_trl
def test_the_right_answer_takes_the_place_of_the_one_that_was_written(
    text: str, rationale: str, answer: str
) -> None:
    from femtune.comparison.latro import told

    chat = ChatTokenizer(byte_tokenizer())
    kept, answered = told(chat.encode_completion(text), "12", Prompts(), chat)
    assert (chat.decode(kept), chat.decode(answered)) == (rationale, answer)
    assert answered[-1] == chat.end_token_id and chat.end_token_id not in kept
    cut, answered = told(chat.encode_completion(text)[:-1], "12", Prompts(), chat)  # no end token
    assert (chat.decode(cut), chat.decode(answered)) == (rationale, answer)


@needs_trl
def test_a_token_that_holds_the_end_of_the_rationale_stays_whole() -> None:
    from femtune.comparison.latro import told
    from femtune.data.worlds import SEEDLING

    chat = read_tokenizer(SEEDLING)  # it has a token ".\nAnswer: "
    tokens = chat.encode_completion("Start at 3.\nIt is clear: plus 2, so 4.\nAnswer: 4")
    kept, answered = told(tokens, "4", Prompts(), chat)
    assert (*kept, *answered) == tokens
    assert answered == tokens[-2:]


@needs_trl
def test_latros_rewards_and_loss_are_the_papers(
    world: tuple[str, Train], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from femtune.comparison.latro import LaTRO
    from femtune.mstep.examples import TokenExamples
    from femtune.mstep.fit import completion_logprobs

    losses: list[Any] = []
    usual = LaTRO._compute_loss

    def watched(self: Any, model: Any, inputs: Any) -> Any:
        loss = usual(self, model, inputs)
        if not losses:  # before the first step: the model is the one that wrote
            pairs = zip(self.prompt_ids, self.told, self.lengths, strict=True)
            split = [(p, list(ids[:n]), list(ids[n:])) for p, ids, n in pairs]
            ones = [1.0] * len(split)
            of_answers = TokenExamples([p + z for p, z, _ in split], [y for *_, y in split], ones)
            of_all = TokenExamples([p for p, *_ in split], [z + y for _, z, y in split], ones)
            rewards = torch.tensor(completion_logprobs(model, of_answers, range(len(split))))
            whole = torch.tensor(completion_logprobs(model, of_all, range(len(split))))
            groups = rewards.view(-1, 4)
            baselines = (groups.sum(1, keepdim=True) - groups) / 3
            advantages = (groups - baselines).flatten()
            assert advantages.abs().max() > 0.01
            sorted_ = inputs["advantages"].sort().values  # TRL shuffles them
            assert torch.allclose(sorted_, advantages.sort().values, atol=1e-4)
            losses.append((loss.item(), -(advantages * (whole - rewards) + rewards).mean().item()))
        return loss

    monkeypatch.setattr(LaTRO, "_compute_loss", watched)
    data, settings = world
    own = RL(rl_num_generations=4, rl_batch_size=8)
    at_once = replace(settings, iterations=1, training=Training(use_cpu=True))  # a step is one batch
    run_baseline(data, "seedling", baseline_settings("latro", at_once, 1, own), tmp_path / "run")
    ((found, expected),) = losses
    assert found == pytest.approx(expected, abs=1e-3)
    assert math.isfinite(found)
