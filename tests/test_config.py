"""Settings: what they are made into, what is refused, and what is stored of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from femtune.config import Ask, Evaluate, Sample, Train, check_types
from femtune.data.worlds import SEEDLING
from femtune.engines.model_files import find_model, load_config, load_tokenizer
from femtune.errors import ConfigError, DataError, ModelError, RunError
from femtune.mstep.config import Training
from femtune.resolve import held_out, make_loop_config, read_inputs, sampling
from femtune.rewards.builtin import ordinal
from femtune.run_folder import check_new, fingerprint, resolved, run_place
from femtune.sampler import make_sampler_builder
from femtune.schemes.filters import paper_filter
from femtune.schemes.named import AUTO, star
from femtune.types import Problem, Sampling, Scheme, Stage
from femtune.workflows.keywords import train_settings

PROBLEMS = [Problem(str(i), f"What is {i} + 1?", str(i + 1)) for i in range(50)]

TWICE = (Stage("plain", 2),)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Ask(max_new_tokens=0), "max_new_tokens must be at least 1, got 0"),
        (lambda: Train(chunk_size=-1), "chunk_size must be at least 1, got -1"),
        (lambda: Sample(max_batch=0), "max_batch must be at least 1, got 0"),
        (lambda: Ask(device="gpu"), "device 'gpu' is not known: use cpu, cuda"),
        (lambda: Ask(accept_at=0), "accept_at must be above 0 and at most 1, got 0"),
        (lambda: Ask(accept_at=1.5), "at most 1, got 1.5"),
        (lambda: make_loop_config(Train(eval_every=-1)), "eval_every must be at least 0, got -1"),
        (lambda: Evaluate(draws=0), "draws 0, temperature 0.0: at least 1 and at least 0"),
        (lambda: Evaluate(draws=3), "draws is 3, and at temperature 0 all draws are the same"),
        (lambda: Evaluate(max_new_tokens=0), "max_new_tokens"),  # what is true of Ask is of it too
        (
            lambda: make_loop_config(Train(bound_draws=3)),
            "bound_draws 3, bound_problems 100: half of the draws",
        ),
        (lambda: make_loop_config(Train(bound_draws=-2)), "an even number of them (0: none)"),
        (lambda: make_loop_config(Train(bound_problems=0)), "at least 1 problem"),
        (lambda: make_loop_config(Train(iterations=0)), "iterations must be from 1 to 100,000, got 0"),
        (lambda: make_loop_config(Train(eval_draws=2)), "set eval_temperature 1"),
        (lambda: make_loop_config(Train(scheme="ppo")), "'ppo'"),
        (lambda: make_loop_config(Train(soft_accept=1.0)), "needs ratings and their own reward"),
        *(
            (
                partial(make_loop_config, Train(scheme=scheme, **changes)),
                f"Scheme {name} weighs draws by the model's own law: it needs temperature 1, without "
                "top_p and top_k.",
            )
            for scheme, name in (("rejection:4+hard", "rejection(4)+hard(0.7)"),)
            for changes in ({"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 40})
        ),
        *(
            (
                partial(make_loop_config, Train(scheme="pps:4+importance", **changes)),
                "Scheme pps(4)+importance weighs draws by the probability that they were drawn with, "
                "and top_p and top_k leave tokens out: drop them.",
            )
            for changes in ({"top_p": 0.9}, {"top_k": 40})
        ),
        (
            lambda: make_loop_config(Train(scheme="pps+importance", temperature=0.0)),
            "Scheme pps+importance weighs draws by the probability that they were drawn with, and "
            "temperature 0 draws the likeliest tokens alone: set --temperature 1.",
        ),
        *(
            (
                partial(
                    make_loop_config, Train(scheme="pps+importance", engine=engine, temperature=0.7)
                ),
                f"which --engine {engine} tells at temperature 1 alone, got 0.7: set --temperature 1, "
                "or --engine transformers.",
            )
            for engine in ("vllm", "openai")
        ),
        (
            lambda: make_loop_config(
                Train(scheme="pps:4+importance", force_answers="always", temperature=0.7)
            ),
            "Scheme pps(4)+importance weighs forced answers at temperature 1 alone, got 0.7: set "
            "--temperature 1, or --force-answers evaluation.",
        ),
        *(
            (
                partial(make_loop_config, Train(scheme=scheme, **changes)),
                "needs draws of the plain prompt: drop --demos and --force-answers always, or choose "
                "importance.",
            )
            for scheme in ("rejection:4+hard", "rejection:8+chain+hard")
            for changes in ({"demos": "mine.jsonl"}, {"force_answers": "always"})
        ),
        (lambda: sampling(Sample(temperature=-1)), "temperature -1"),
        (lambda: sampling(Sample(top_p=0)), "top_p 0"),
        (lambda: sampling(Sample(top_k=-1)), "top_k -1"),
        (lambda: sampling(Sample(scheme="rejection:4", temperature=0)), "rejection(4) at temperature 0"),
        (lambda: sampling(Sample(scheme="pps:2", temperature=0)), "every attempt is the same"),
        (
            lambda: sampling(Sample(temperature=0), Scheme("my own", TWICE, weigh=paper_filter)),
            "my own at temperature 0",
        ),
        (
            lambda: held_out(read_inputs(PROBLEMS, Train(eval_share=1)), PROBLEMS),
            "eval_share is 1",
        ),
        (lambda: read_inputs("x.jsonl", Ask(columns=("answer",))), "columns needs the form name=value"),
        (lambda: load_tokenizer(SEEDLING, ["thinking"]), "template_args needs the form name=value"),
    ],
)
def test_what_is_impossible_is_refused(make: Any, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        make()
    assert said in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"scheme": "pps:4+importance", "temperature": 0.7},
        {"scheme": "pps:4+importance", "force_answers": "always"},
        {"scheme": "pps:4+importance", "demos": "mine.jsonl"},
        {"scheme": "rejection:4+chain", "temperature": 0.7, "top_p": 0.9, "force_answers": "always"},
        {"scheme": "rejection:4", "temperature": 0.7, "top_p": 0.9, "demos": "mine.jsonl"},
        {"scheme": "rejection:4+hard", "demos": "auto", "force_answers": "evaluation"},
    ],
)
def test_laws_that_a_scheme_can_allow_for_are_taken(changes: Any) -> None:
    assert make_loop_config(Train(**changes)).force == changes.get("force_answers", "evaluation")


def test_greedy_draws_suit_schemes_that_ask_a_prompt_once() -> None:
    for scheme in ("pps", "star", "rejection:1"):
        assert sampling(Sample(scheme=scheme, temperature=0)) == Sampling(512, temperature=0)


def test_a_plan_has_every_setting_of_the_loop() -> None:
    training = Training(learning_rate=1e-3)
    settings = Train(
        scheme="rejection:4",
        accept_at=0.75,
        iterations=3,
        start_from="base",
        eval_draws=2,
        eval_temperature=0.5,
        eval_every=2,
        bound_draws=6,
        bound_problems=7,
        training=training,
    )
    made = make_loop_config(settings)
    assert (made.scheme.name, made.scheme.accept_at, made.training) == ("rejection(4)", 0.75, training)
    assert (made.iterations, made.scheme.m_steps.start) == (3, "base")
    assert (made.evaluation.draws, made.evaluation.temperature, made.evaluation.every) == (2, 0.5, 2)
    assert (made.bound_draws, made.bound_problems) == (6, 7)
    assert make_loop_config(settings, star()).scheme.name == "star"


def test_a_scheme_that_restarts_has_more_epochs_from_the_base() -> None:
    own = Train(scheme="star+restart:2.5", training=Training(num_train_epochs=2))
    longer = ("base", replace(own.training, num_train_epochs=5))
    usual = ("previous", own.training)
    assert [make_loop_config(own).m_step(iteration) for iteration in (1, 2, 30)] == [longer] * 3
    settled = make_loop_config(replace(own, scheme=f"{own.scheme}+settle:2"))
    falling = ("previous", replace(own.training, lr_scheduler_type="linear"))
    assert [settled.m_step(iteration) for iteration in (1, 2, 7)] == [longer] * 3
    assert [settled.m_step(iteration) for iteration in (3, 6, 30)] == [falling] * 3
    cosine = replace(own.training, lr_scheduler_type="cosine")
    assert replace(settled, training=cosine).m_step(3) == ("previous", cosine)
    assert make_loop_config(replace(own, scheme="star")).m_step(1) == usual
    from_base = make_loop_config(replace(own, scheme="star", start_from="base"))
    assert from_base.m_step(7) == ("base", own.training)
    with pytest.raises(ConfigError, match="drop start_from, or settle"):
        make_loop_config(replace(own, scheme=f"{own.scheme}+settle", start_from="base"))


def test_what_auto_stands_for_is_stored() -> None:
    """So that a run is what it was when another femtune has another."""
    for kind in (Sample, Train):
        assert read_inputs(PROBLEMS, kind(scheme="auto")).settings.scheme == AUTO
    assert read_inputs(PROBLEMS, Train(scheme="pps:2")).settings.scheme == "pps:2"


def test_no_setting_of_the_m_step_has_the_name_of_another() -> None:
    assert not {f.name for f in fields(Training)} & {f.name for f in fields(Train)}


def test_settings_are_stored_flat_as_plain_values() -> None:
    stored = resolved(Train(columns=("a=b",), training=Training(lora_r=4)), model="m")
    assert json.loads(json.dumps(stored)) == stored
    assert (stored["columns"], stored["lora_r"], stored["model"]) == (["a=b"], 4, "m")
    assert "training" not in stored


def test_keywords_become_settings_and_an_unknown_one_gets_the_nearest() -> None:
    made = train_settings({"iterations": 2, "lora_r": 4})
    assert made == replace(Train(iterations=2), training=Training(lora_r=4))
    with pytest.raises(ConfigError, match=r"learning_rat is no setting\. Did you mean learning_rate"):
        train_settings({"learning_rat": 1})


def test_a_run_is_named_by_its_configuration_but_for_what_may_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def name(verb: str = "train", **changes: Any) -> str:
        place, _ = run_place(None, verb, "a/judge.jsonl", "seedling", Train(**changes), PROBLEMS)
        return str(place)

    assert name(scheme="rejection:4").startswith("runs/train-judge-rejection-4-")
    assert name() == name(iterations=9) == name(max_batch=1) == name(reward_timeout=1)
    assert len({name(), name("sample"), name(seed=1), name(scheme="star"), name(hint="{answer}!")}) == 5


@given(st.integers(0, 49), st.sampled_from(["id", "prompt", "answer"]))
def test_data_are_known_again_by_every_field(number: int, field: str) -> None:
    other = [*PROBLEMS]
    changes: dict[str, Any] = {field: "changed"}
    other[number] = replace(other[number], **changes)
    assert fingerprint(PROBLEMS) == fingerprint([*PROBLEMS])
    assert fingerprint(PROBLEMS) != fingerprint(other)


def test_data_on_the_other_side_are_other_data() -> None:
    assert fingerprint(PROBLEMS[:9], PROBLEMS[9:]) != fingerprint(PROBLEMS[:8], PROBLEMS[8:])


def test_gold_answers_must_earn_the_reward_unless_told_otherwise() -> None:
    with pytest.raises(DataError, match="of 50 problems are not accepted"):
        read_inputs(PROBLEMS, Ask(), ordinal((1, 5)))
    for asked in (
        read_inputs(PROBLEMS, Ask(check_gold=False), ordinal((1, 5))),
        read_inputs(PROBLEMS, Ask(reward="ordinal(1,5)"), answers=False),  # to predict
    ):
        assert asked.problems == PROBLEMS


def test_a_model_is_the_seedling_a_folder_or_an_id(tmp_path: Path) -> None:
    assert find_model("seedling") == SEEDLING
    assert find_model(str(SEEDLING)) == SEEDLING
    assert find_model("Qwen/Qwen3-1.7B") == "Qwen/Qwen3-1.7B"
    for name in ("./here", "/nowhere", "~/nowhere", "a/b/c", str(tmp_path)):
        with pytest.raises(ModelError, match="is no model folder"):
            find_model(name)


def test_a_folder_without_tokenizer_or_with_a_broken_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for load in (load_tokenizer, load_config):
        with pytest.raises(ModelError, match=str(tmp_path)):
            load(tmp_path)


def test_prompts_of_all_groups_must_fit_the_context() -> None:
    long = [Problem("long", "It is long. " * 500, "1")]
    asked = read_inputs(PROBLEMS, Ask(max_new_tokens=48))
    make_sampler_builder("seedling", asked, PROBLEMS)
    with pytest.raises(DataError, match='of "long"'):
        make_sampler_builder("seedling", asked, PROBLEMS, long)


def test_a_new_place_is_neither_taken_nor_under_a_file(tmp_path: Path) -> None:
    check_new(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file exists already: choose another --output\."):
        check_new(tmp_path / "file", "--output")
    with pytest.raises(RunError, match="is no folder"):
        check_new(tmp_path / "file" / "x" / "y")


def test_every_default_is_of_its_type_and_others_are_refused() -> None:
    for kind in (Ask, Evaluate, Sample, Train, Training):
        check_types(kind, {field.name: getattr(kind(), field.name) for field in fields(kind)})
    wrong: dict[str, Any] = {
        **{"task": "judges", "columns": ["a=b"], "scale": 5, "accept_at": "1", "check_gold": 1},
        **{"seed": 1.5, "max_batch": True, "device": ("cpu",), "raters": None, "attributes": (1,)},
    }
    for name, value in wrong.items():
        with pytest.raises(ConfigError, match=rf"^{name} is "):
            check_types(Ask, {name: value})
    check_types(Ask, {"accept_at": 1, "max_batch": None, "attributes": ("a", "b")})


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("adapter_config.json", "{", "adapter_config.json is not valid JSON"),
        (
            "adapter_config.json",
            '{"base_model_name_or_path": [1]}',
            "names no `base_model",
        ),
        ("adapter_config.json", "[]", "names no `base_model"),
        (
            "config.json",
            '{"model_type": "llama", "vocab_size": "many"}',
            "its model config can't be read",
        ),
        ("config.json", '{"model_type": []}', "its model config can't be read"),
    ],
)
def test_a_damaged_model_is_refused(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ModelError, match=said):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("tokenizer.json", "{}"), ("tokenizer.json", '{"version": 7}'), ("tokenizer_config.json", "[]")],
)
def test_a_damaged_tokenizer_is_refused(tmp_path: Path, name: str, content: str) -> None:
    shutil.copytree(SEEDLING, tmp_path / "model")
    (tmp_path / "model" / name).write_text(content)
    with pytest.raises(ModelError, match="its tokenizer can't be read"):
        load_tokenizer(tmp_path / "model")


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"m_step": "examples"}, "trains no weights"), ({"training": Training(fsdp=True)}, "fsdp")],
    ids=["examples", "fsdp"],
)
def test_weights_that_can_not_be_averaged_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Train(average_weights=True, **settings)
