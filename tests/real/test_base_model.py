"""A base model without a chat template goes from check to predictions by the commands alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import transformers

from femtune.cli.main import main

ROOT = Path(__file__).parents[2]
TASK = ("--task", "math", "--max-new-tokens", "48", "--max-batch", "32", "--temperature", "0.7")

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(1800)]


def test_a_base_model_is_checked_trained_evaluated_and_asked(
    real_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [sys.executable, ROOT / "examples" / "word_problems.py", "20"]
    Path("problems.jsonl").write_bytes(subprocess.run(words, check=True, capture_output=True).stdout)

    def run(*arguments: str) -> str:
        """Run a command that must end well; gives what it prints."""
        capfd.readouterr()
        status = main([*arguments])
        printed = capfd.readouterr()
        assert status == 0, (arguments, printed)
        return printed.out

    base = ["--model", str(real_base)]
    found = json.loads(run("check", "problems.jsonl", *base, *TASK, "--draws", "4", "--show", "json"))
    said = {finding["what"]: finding["found"] for finding in found["findings"]}
    assert said["chat template"] == "none: prompts are fed as plain text"
    names = [trial["name"] for trial in found["trials"]]
    assert names[:2] == ["plain", "plain, examples"] and names[-1] == "hinted, examples"
    problems = [json.loads(line)["prompt"] for line in Path("problems.jsonl").read_text().splitlines()]
    asked = found["prompts"]["plain prompt"].removeprefix(problems[0])
    assert asked.startswith("\n\n") and asked.endswith("\n") and "<|" not in asked
    texts = {problem + asked for problem in problems}

    scheme = ["--scheme", "rejection:2", "--bound-draws", "0", "--eval-share", "0.2"]
    train = ["train", "problems.jsonl", *base, *TASK, *scheme, "--iterations", "2", "--show", "json"]
    history = [json.loads(line) for line in run(*train, "--output-dir", "run").splitlines()]
    assert [each["iteration"] for each in history] == [0, 1, 2]
    assert "evaluation_demos" in history[0]  # a base is shown worked examples as well

    tokenizer = transformers.AutoTokenizer.from_pretrained("run/last")
    assert not tokenizer.chat_template
    examples = pq.read_table("run/iteration-001/examples.parquet").to_pylist()
    assert examples
    for row in examples:  # trained under the plain text alone, without worked examples, and with an end
        assert tokenizer.decode(row["prompt_tokens"]) in texts
        assert row["completion_tokens"][-1] == tokenizer.eos_token_id

    metrics = json.loads(run("evaluate", "problems.jsonl", "--model", "run/best", "--show", "json"))
    assert 0 <= metrics["accuracy"] <= 1
    run("predict", "problems.jsonl", "--model", "run/best", "--draws", "2", "--output", "answers.jsonl")
    assert len(Path("answers.jsonl").read_text().splitlines()) == 20
