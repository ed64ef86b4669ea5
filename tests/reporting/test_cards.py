"""Cards say what a run's files say, their code runs as it stands, and no name breaks them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from femtune import sample, train
from femtune._util import markdown
from femtune.comparison.demo import write_world
from femtune.data.problems import load_problems
from femtune.data.tasks.load import read_task
from femtune.data.worlds import WORLDS
from femtune.evaluation.item_scores import compare_iterations, describe_difference
from femtune.reporting.cards import (
    MEASURES,
    data_card,
    example_question,
    hub_model,
    model_card,
    read_told,
    shown_name,
    write_data_card,
    write_model_card,
)
from femtune.schemes.filters import Chain
from femtune.schemes.named import parse_scheme, star
from femtune.schemes.serialization import scheme_to_data
from femtune.types import Draw, Example

SHORT: dict[str, Any] = {"num_train_epochs": 1, "per_device_train_batch_size": 16}  # the M-step
PARSER = MarkdownIt("commonmark").enable("table")


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on ratings of the rubric world."""
    folder = tmp_path_factory.mktemp("judged")
    data, test = write_world("rubric", folder / "secret-place", 60, 24)
    return train(
        str(data),
        "seedling",
        output_dir=folder / "run",
        iterations=2,
        eval_data=str(test),
        task="judge",
        raters="named",
        scale="1,5",
        scheme="rejection:2",
        learning_rate=3e-4,
        max_new_tokens=40,
        bound_draws=0,
        **SHORT,
    ).run


def head_and_body(card: Path) -> tuple[dict[str, Any], str]:
    _, head, body = card.read_text().split("---\n", 2)
    return yaml.safe_load(head), body


def python_blocks(body: str) -> list[str]:
    return [token.content for token in PARSER.parse(body) if token.info == "python"]


def test_numbers_of_a_card_are_those_of_the_run(judged: Path) -> None:
    head, body = head_and_body(judged / "last" / "README.md")
    told = json.loads((judged / "iteration-002" / "metrics.json").read_text())
    before = json.loads((judged / "iteration-000" / "metrics.json").read_text())["evaluation"]
    now, (results,) = told["evaluation"], head["model-index"][0]["results"]
    listed = {metric["type"]: metric["value"] for metric in results["metrics"]}
    assert listed == {name: now[name] for name in MEASURES if name in now} and len(listed) > 5
    for name in ("accuracy", "mae", "spearman"):
        shown = [
            f"{e[name]:.3f} ({low:.3f} to {high:.3f})"
            for e in (before, now)
            for low, high in [e[f"{name}_ci"]]
        ]
        assert f"| {MEASURES[name]} | {shown[0]} | {shown[1]} |" in body
    kept = told["e_step"]
    assert f"{kept['kept_share']:.3f} ({kept['num_kept']} of 60)" in body
    assert "the ratings that people gave" in body and "24 held-out problems" in body


def test_a_cards_head_is_what_the_hub_reads(judged: Path) -> None:
    head, _ = head_and_body(judged / "last" / "README.md")
    assert head["library_name"] == "transformers" and head["pipeline_tag"] == "text-generation"
    assert "femtune" in head["tags"]
    assert not {"base_model", "datasets", "license"} & head.keys()  # none of them is on the Hub


def test_a_card_names_no_place_on_the_machine(judged: Path) -> None:
    for name in ("last", "best"):
        text = (judged / name / "README.md").read_text()
        assert "`train.jsonl`" in text and "`test.jsonl`" in text
        assert not re.search(r"/(tmp|home|root|usr)/|secret-place", text)
        told = load_problems(judged / "problems.parquet")[0]
        assert str(told.prompt) not in text  # no problem of the data is shown


def test_a_cards_code_runs_in_its_folder(judged: Path) -> None:
    block, vllm = python_blocks((judged / "last" / "README.md").read_text())
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=judged / "last", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Answer: " in done.stdout
    compile(vllm, "vllm", "exec")
    problem = load_problems(judged / "problems.parquet")[0]
    config = yaml.safe_load((judged / "config.yaml").read_text())
    said: dict[str, Any] = {}
    exec(
        "\n".join(block.partition("question =")[1:]).partition("inputs =")[0].replace("\n", "", 1), said
    )
    asked, trained = said["messages"][0]["content"], str(problem.prompt)
    # the made-up question is worded as the data's, with the run's own instruction after it
    assert asked.endswith("\n\n" + config["instruction"])
    assert asked.splitlines()[0].replace("NAME", "Robin") == trained.splitlines()[0]
    assert re.findall(r"^\w+:$", asked, re.M) == re.findall(r"^\w+:$", trained, re.M)


def test_a_card_says_where_it_is_not_told_apart_from_its_base(judged: Path) -> None:
    found = compare_iterations(judged, 2)
    assert found is not None and found.p_value >= 0.05  # 24 problems tell little
    _, body = head_and_body(judged / "last" / "README.md")
    line = next(line for line in body.splitlines() if "Not told apart" in line)
    assert f"Accuracy less the base's, on the same problems: {describe_difference(found)}" in line
    assert "development problem" not in body  # 60 problems are too few for a part of them
    assert "One run with one seed" in body and "measured no biases" in body


@pytest.mark.parametrize(
    ("scheme", "longer"), [("star", False), ("star+restart:2", True), ("star+restart+settle", True)]
)
def test_a_card_says_where_m_steps_start_anew_for_longer(
    scheme: str, longer: bool, judged: Path
) -> None:
    told = read_told(judged, 2)
    card = model_card(
        replace(
            told,
            config={
                **told.config,
                "scheme": scheme,
                "scheme_data": scheme_to_data(parse_scheme(scheme)),
            },
        ),
        judged / "last",
    )
    assert ("restarts from the base take more" in str(card)) == longer
    assert ("(`constant`, without a restart `linear`)" in str(card)) == scheme.endswith("settle")


def test_an_owners_card_is_left_alone(judged: Path, tmp_path: Path) -> None:
    card = judged / "last" / "README.md"
    before = card.read_text()
    card.write_text(before.replace("tags:", "license: mit\ntags:", 1))
    write_model_card(judged, 2)
    assert "license: mit" in card.read_text()
    card.write_text(before)


@dataclass(frozen=True)
class AwayFromWrong:
    """Train away from wrong draws, a little."""

    def __call__(self, draws: Sequence[Draw], examples: Sequence[Example]) -> Sequence[Example]:
        wrong = [Example(draw, -0.1) for draw in draws if draw.score.reason == "wrong"]
        return [*examples, *wrong]


def test_rows_that_a_trainer_must_not_take_as_they_are_are_told_and_left_out(tmp_path: Path) -> None:
    """By the card's own lines of code, which are run."""
    data, _ = write_world("rubric", tmp_path / "world", 24, 6)
    scheme = replace(star(), name="away", weigh=Chain(star().weigh, AwayFromWrong()))
    told = train(
        str(data), "seedling", scheme=scheme, output_dir=tmp_path / "run", task="judge", scale="1,5",
        raters="named", iterations=1, eval_share=0, max_new_tokens=40, **SHORT,
    )  # fmt: skip
    card = write_data_card(told.run, 1)
    table = pq.read_table(told.run / "iteration-001" / "examples.parquet")
    rows = table.to_pylist()
    bad = [row for row in rows if row["weight"] < 0]
    body = card.read_text()
    assert f"**{len(bad)} of the rows have a weight below 0**" in body and bad
    [line] = [line for line in body.splitlines() if line.startswith("examples = examples.filter(")]
    assert "weight" in line
    kept = eval(line.partition("#")[0].removeprefix("examples = examples."), {"filter": rows_by(rows)})
    assert kept == [row for row in rows if row not in bad]


def rows_by(rows: list[dict[str, Any]]) -> Any:
    return lambda test: [row for row in rows if test(row)]


def test_an_adapters_card_uses_peft_and_stands_in_place_of_pefts_own(tmp_path: Path) -> None:
    data, test = write_world("rubric", tmp_path / "world", 24, 6)
    options = {"task": "judge", "raters": "named", "scale": "1,5", "use_peft": True, "lora_r": 4}
    options |= {"iterations": 1, "eval_every": 0, "max_new_tokens": 40, **SHORT}
    run = train(str(data), "seedling", output_dir=tmp_path / "run", eval_data=str(test), **options).run
    head, body = head_and_body(run / "last" / "README.md")
    assert head["library_name"] == "peft" and "lora" in head["tags"]
    assert "a LoRA adapter of rank 4" in body and "Not measured" in body
    assert str(tmp_path) not in body and "assets" not in body
    block, vllm = python_blocks(body)
    assert "AutoPeftModelForCausalLM" in block and "enable_lora=True, max_lora_rank=4" in vllm
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=run / "last", capture_output=True, text=True
    )
    assert done.returncode == 0 and "Answer: " in done.stdout, done.stderr
    compile(vllm, "vllm", "exec")


def test_a_data_card_counts_and_loads(tmp_path: Path) -> None:
    data, _ = write_world("rubric", tmp_path / "world", 40, 3)
    made = sample(
        data,
        "seedling",
        output_dir=tmp_path / "drawn",
        task="judge",
        raters="named",
        scale="1,5",
        scheme="star",
        max_new_tokens=40,
    )
    folder, metrics = made.examples.parent, made.metrics
    head, body = head_and_body(folder / "README.md")
    assert [each["config_name"] for each in head["configs"]] == ["examples", "draws"]
    assert head["size_categories"] == "n<1K"
    for prompt, reasons in metrics["reasons"].items():
        for reason, count in reasons.items():
            assert f"| {prompt} prompt, {reason} | {count} |" in body
    assert "told the correct answer" in body  # star hints
    (block,) = python_blocks(body)
    draws = "\nprint(len(examples), load_dataset(name, 'draws', split='train').num_rows)"
    argv = [sys.executable, "-c", block + draws]
    own = os.environ | {"HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(argv, cwd=folder.parent, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{metrics['num_kept']} {metrics['num_draws']}"
    assert "Answer: " in done.stdout


@pytest.mark.parametrize("name", sorted(WORLDS))
def test_the_example_is_worded_as_the_data(name: str, tmp_path: Path) -> None:
    world = WORLDS[name]
    train_data, _ = write_world(name, tmp_path, 30, 3)
    problem = read_task(train_data, world.task, world.options).problems[0]
    asked = example_question(problem, {"task": world.task, "raters": world.options.raters})
    if world.task == "math":
        assert asked == "What is 17 + 25?"
        return
    given = str(problem.prompt)
    if world.task == "choice":
        assert re.findall(r"^\w\. ", asked, re.M) == re.findall(r"^\w\. ", given, re.M)
        return
    whose = str(problem.columns.get("rater", "NAME"))
    assert asked.splitlines()[0].replace("NAME", whose) == given.splitlines()[0]
    headings = r"^(?:Title|Post|Prompt|(?:Response|Summary)(?: [AB])?):$"
    assert re.findall(headings, asked, re.M) == re.findall(headings, given, re.M) != []


# --- hostile names

HOSTILE = [
    "x\n---\nlicense: mit\n---\n# owned",
    "a | b | c",
    "`code` ``two``",
    "<script>alert(1)</script>",
    "[click](javascript:alert(1)) ![x](http://e.vil/p.png)",
    "```\n# heading\n```",
    "${{ x }} {% raw %}",
    "\u202egnp.exe",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text(judged: Path, name: str, tmp_path: Path) -> None:
    config = yaml.safe_load((judged / "config.yaml").read_text())
    config |= {"data": name, "model": name, "eval_data": name, "instruction": name, "reward": name}
    for kept in (
        "environment.json",
        "problems.parquet",
        "eval.parquet",
        "iteration-000",
        "iteration-001",
        "iteration-002",
    ):
        (tmp_path / kept).symlink_to(judged / kept)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    told = read_told(tmp_path, 2)
    clean = str(model_card(read_told(judged, 2), judged / "last"))
    for card, fair in (
        (str(model_card(told, judged / "last")), clean),
        (str(data_card(told, judged / "iteration-001")), None),
    ):
        (tmp_path / "README.md").write_text(card)
        head, body = head_and_body(tmp_path / "README.md")
        assert "license" not in head and "base_model" not in head
        tokens = PARSER.parse(body)
        inline = [child for token in tokens for child in token.children or ()]
        assert not [
            token for token in [*tokens, *inline] if token.type in ("html_block", "html_inline", "image")
        ]
        links = {token.attrs["href"] for token in inline if token.type == "link_open"}
        assert links == {"https://arxiv.org/abs/2512.20169"}
        if fair is not None:  # the same headings, rows and blocks as with harmless names
            shape = [t.type for t in tokens if t.type != "inline"]
            assert shape == [
                t.type for t in PARSER.parse(fair.split("---\n", 2)[2]) if t.type != "inline"
            ]
            said: dict[str, Any] = {}
            block = next(token.content for token in tokens if token.info == "python")
            exec(next(re.finditer(r"^instruction = .*?(?=^messages)", block, re.M | re.S))[0], said)
            assert said["instruction"] == name


@given(st.text())
def test_any_text_is_shown_as_it_is_read(text: str) -> None:
    (paragraph,) = [t for t in PARSER.parse(f"x {markdown.text(text)} x") if t.type == "inline"]
    assert all(
        child.type == "text" or child.type == "text_special" for child in paragraph.children or ()
    )
    shown = "".join(child.content for child in paragraph.children or ())
    assert shown.split() == ["x", *markdown.on_a_line(text).split(), "x"]
    said: dict[str, Any] = {}
    exec(f"value = {markdown.literal(text)}", said)
    assert said["value"] == text
    markdown.literal(text).encode()


@given(st.text())
def test_any_code_on_a_line_keeps_to_its_cell(text: str) -> None:
    tokens = PARSER.parse(f"| a | b |\n|---|---|\n| {markdown.code(text)} | x |")
    cells = [t.content for t in tokens if t.type == "inline"]
    assert len(cells) == 4 and cells[-1] == "x"


def test_names_are_shown_without_their_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = tmp_path / "models" / "qwen"
    tiny.mkdir(parents=True)
    assert shown_name("models/qwen") == "qwen" and hub_model("models/qwen") is None
    assert shown_name("Qwen/Qwen3-1.7B") == hub_model("Qwen/Qwen3-1.7B") == "Qwen/Qwen3-1.7B"
    assert hub_model("gpt2") == "gpt2" and hub_model("seedling") is None
    assert shown_name("../data/train.jsonl") == "train.jsonl"
