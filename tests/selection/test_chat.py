"""Examples for a model behind chat completions: messages in, text out, without log-probabilities."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import femtune
from femtune.cli.main import main
from femtune.data.demos import read_demos
from femtune.model_info import read_info

from ..chat_server import ChatState, Messages, chatting, said
from .test_choice import BY_PROMPT, DEV, HARDNESS, TEST, TRAIN


def reply(messages: Messages, times: int) -> str:
    """Answer as `Learner` does; half of the reasons are clear, by the item."""
    text = said(messages)
    problem = BY_PROMPT[re.findall(r"Item \d\d", text)[-1]]
    is_right = HARDNESS[problem.id] < 30 + 30 * text.count("clear")
    answer = problem.answer if is_right else {"x": "y", "y": "x"}[problem.answer]
    return f"{'clear' if (HARDNESS[problem.id] + times) % 2 else 'vague'} reason\nAnswer: {answer}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("items")
    for name, problems in (("train", [*TRAIN, *DEV]), ("test", TEST)):
        rows = [{"id": each.id, "prompt": each.prompt, "answer": each.answer} for each in problems]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def command(data: Path, run: Path, server: ChatState, *more: str) -> list[str]:
    asked = [str(data / "train.jsonl"), "--eval-data", str(data / "test.jsonl"), "--model", "some-judge"]
    choice = ["--m-step", "examples", "--num-examples", "2", "--selection-requests", "210"]
    where = ["--engine", "chat", "--base-url", server.url, "--output-dir", str(run)]
    return ["train", *asked, *choice, "--iterations", "1", "--max-new-tokens", "64", *where, *more]


def accuracy(run: Path, iteration: int) -> float:
    found = json.loads((run / f"iteration-{iteration:03}" / "metrics.json").read_text())
    return float(found["evaluation"]["accuracy"])


def test_a_model_behind_chat_completions_gets_its_examples(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with chatting(reply) as server:
        assert main(command(data, run, server)) == 0
        asked = len(server.paid)
        # the same command pays for nothing
        assert main(command(data, run, server)) == 0
        assert len(server.paid) == asked
        examples = read_demos(run / "best" / "examples.jsonl")
        assert all(demo.completion.startswith("clear") for demo in examples) and len(examples) == 2
        assert accuracy(run, 1) > accuracy(run, 0) + 0.3
        info = read_info(run / "best")
        assert info is not None and (info.base, info.base_sha256) == ("some-judge", None)
        # the run's folder stands for its best model
        found = femtune.evaluate(
            data / "test.jsonl",
            str(run),
            engine="chat",
            base_url=server.url,
            max_new_tokens=64,
            output_dir=tmp_path / "evaluation",
            progress="quiet",
        )
        assert found.accuracy == accuracy(run, 1)
        assert {body["model"] for body in server.asked} == {"some-judge"}
    m_step = json.loads((run / "best" / "m_step.json").read_text())
    assert m_step["num_requests"] <= 210 and m_step["prompt_tokens"] > 0


def test_a_run_that_its_caps_stop_goes_on_and_pays_for_no_answer_twice(
    data: Path, tmp_path: Path
) -> None:
    with chatting(reply) as server:
        assert main(command(data, tmp_path / "whole", server, "--max-batch", "1")) == 0
        alone = len(server.paid)
    run = tmp_path / "run"
    with chatting(reply) as server:
        caps = [*range(60, alone, 60)]
        for cap in caps:
            assert main(command(data, run, server, "--max-requests", str(cap), "--max-batch", "1")) != 0
            assert len(server.paid) <= cap
        assert main(command(data, run, server, "--max-batch", "1")) == 0
        assert len(server.paid) == alone
    one, other = (each / "best" / "examples.jsonl" for each in (run, tmp_path / "whole"))
    assert one.read_bytes() == other.read_bytes()


def test_a_ladder_without_training_of_weights(data: Path, tmp_path: Path) -> None:
    with chatting(reply) as server:
        result = femtune.ladder(
            data / "train.jsonl",
            "some-judge",
            eval_data=data / "test.jsonl",
            engine="chat",
            base_url=server.url,
            max_new_tokens=64,
            m_step="examples",
            num_examples=2,
            selection_requests=210,
            draws=2,
            output_dir=tmp_path / "ladder",
            progress="quiet",
            answer=data / "test.jsonl",
            output=tmp_path / "answers.jsonl",
        )
        asked = len(server.paid)
    assert [*result.table] == ["majority", "base", "votes", "chosen-examples"]
    assert result.not_run["fem"] == "--m-step examples trains no weights"
    assert result.chosen == "chosen-examples" and "chosen-examples/best" in result.command
    row = result.table["chosen-examples"]
    assert row["accuracy"] > result.table["base"]["accuracy"] + 0.3
    # the words of prompts, as the server counts them, of E-step, choice and held-out problems
    assert row["setup"]["prompt"] > row["use"]["prompt"] > 0
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == len(TEST) and asked > 0
