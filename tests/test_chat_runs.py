"""Runs through chat completions: the same answers as by tokens, resumed after kills, refused at once."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import femtune
from femtune.cli.main import main
from femtune.comparison.demo import write_world
from femtune.engines.hf.engine import TransformersEngine
from femtune.engines.model_files import load_tokenizer, local_model
from femtune.errors import BudgetReached, ConfigError
from femtune.reporting.browser.filters import Filter
from femtune.reporting.browser.index import Index
from femtune.reporting.browser.store import Store
from femtune.runs.draws import read_draws
from femtune.types import Completion, DrawKey, Request, Sampling

from .chat_server import ChatState, Messages, chatting, count, said, sums

RATINGS = ("--task", "judge", "--raters", "named", "--scale", "1,5", "--max-new-tokens", "64")


class Served:
    """The demo model behind chat completions: greedy, and it continues a partial message."""

    def __init__(self) -> None:
        self.folder = local_model("seedling")
        self.tokenizer = load_tokenizer(self.folder)
        self.engine = TransformersEngine(self.folder, tokenizer=self.tokenizer, dtype="float32")
        self.lock = threading.Lock()

    def __call__(self, messages: Messages, times: int) -> str:
        *asked, last = messages
        partial = last["content"] if last["role"] == "assistant" else ""
        tokens = self.tokenizer.encode_prompt(asked if partial else messages)
        tokens += self.tokenizer.encode_text(partial) if partial else ()
        todo = [Request(DrawKey(0, "p", 0, 0), tokens, 0)]
        with self.lock:
            parts = self.engine.generate(
                lambda room: [todo.pop()] if todo else [],
                Sampling(8 if partial else 64, temperature=0.0),
            )
            [[(_, completion)]] = list(parts)
        return completion.text


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_world("rubric", tmp_path_factory.mktemp("world"), num_train=40, num_test=40)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "sums.jsonl"
    rows = [
        {"id": f"q{i}", "prompt": f"What is {i} + {7 * i % 30}?", "answer": str(i + 7 * i % 30)}
        for i in range(24)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def completions(run: Path, kind: str, iteration: int = 0) -> dict[DrawKey, Completion]:
    folder = run / f"iteration-{iteration:03}" / kind
    return {d.key: d.completion for chunk, _ in read_draws(folder) for d in chunk}


# --- the same as by tokens


@pytest.mark.parametrize("owner", ["vllm", "somebody"])
def test_an_evaluation_by_text_is_that_by_tokens(
    owner: str, world: tuple[Path, Path], tmp_path: Path
) -> None:
    """Greedy, so the model writes the same: the cut at the answer and its parts are the same, too."""
    how: dict[str, Any] = {"task": "judge", "raters": "named", "scale": "1,5", "max_new_tokens": 64}
    data = tmp_path / "some.jsonl"
    data.write_text("".join(world[1].read_text().splitlines(keepends=True)[:14]))
    by_tokens = femtune.evaluate(data, "seedling", output_dir=tmp_path / "tokens", **how)
    with chatting(Served(), owner=owner) as server:
        by_text = femtune.evaluate(
            data,
            "seedling",
            engine="chat",
            base_url=server.url,
            output_dir=tmp_path / "text",
            **how,
        )
    if owner == "vllm":  # which continues a message, as the cue's tokens are continued
        assert by_text.accuracy == by_tokens.accuracy
    texts = {
        name: {
            key: c.text for key, c in completions(tmp_path / name, "eval").items() if not c.num_forced
        }
        for name in ("text", "tokens")
    }
    assert texts["text"] == texts["tokens"] and len(texts["text"]) > 10
    assert by_text.metrics["answered"] == by_tokens.metrics["answered"]


@pytest.mark.parametrize(("owner", "way"), [("vllm", "prefill"), ("llamacpp", "prefill"), ("x", "turn")])
@pytest.mark.parametrize("answer_format", ["line", "boxed", "tag", "json:score"])
def test_an_answer_is_forced_in_every_format(
    owner: str, way: str, answer_format: str, questions: Path, tmp_path: Path
) -> None:
    def write(messages: Messages, times: int) -> str:
        last = messages[-1]
        if last["role"] == "assistant" or "no further reasoning" in last["content"]:
            total = sums(messages[:1], 0).split()[-1]
            closing = {"boxed": "}", "tag": "</answer>", "json:score": "}"}.get(answer_format, "")
            return f"{total}{closing if last['role'] == 'assistant' else ''}"
        return "I add both numbers and am sure of what comes out."

    with chatting(write, owner=owner) as server:
        found = femtune.evaluate(
            questions,
            "a-model",
            engine="chat",
            base_url=server.url,
            answer_format=answer_format,
            output_dir=tmp_path / "run",
        )
        assert len(server.paid) == 48 and not server.repeats()
    for completion in completions(tmp_path / "run", "eval").values():
        assert completion.num_forced == 1 and completion.served is not None
        assert (completion.served.requests, completion.served.forced_by) == (2, way)
    assert found.metrics["answered"] == found.metrics["forced_share"] == 1.0
    assert found.accuracy > 0.5


def test_a_server_that_refuses_a_partial_message_is_asked_in_a_turn(
    questions: Path, tmp_path: Path
) -> None:
    def write(messages: Messages, times: int) -> str:
        return "4" if len(messages) > 1 else "I think about it for a while."

    def fault(body: dict[str, Any], number: int) -> Any:
        words = "Assistant response prefill is incompatible with enable_thinking."
        return (400, {}, {"error": {"message": words}}) if len(body["messages"]) == 2 else None

    how: dict[str, Any] = {"engine": "chat", "output_dir": tmp_path / "run"}
    with chatting(write, owner="llamacpp", fault=fault) as server:
        with pytest.raises(BudgetReached):
            femtune.evaluate(questions, "a-model", base_url=server.url, max_requests=40, **how)
        assert len(server.paid) == 40
    # the same command goes on where the server lists itself otherwise
    with chatting(write, owner="vllm") as other:
        femtune.evaluate(questions, "a-model", base_url=other.url, **how)
    assert len(other.paid) == 8
    ways = [c.served and c.served.forced_by for c in completions(tmp_path / "run", "eval").values()]
    assert sorted({*ways}) == ["prefill", "turn"]


def test_a_reply_that_has_the_form_itself_is_not_put_after_the_cue(
    questions: Path, tmp_path: Path
) -> None:
    def write(messages: Messages, times: int) -> str:
        return sums(messages[:1], 0) if len(messages) > 1 else "I think about it for a while."

    with chatting(write) as server:
        femtune.evaluate(
            questions, "a-model", engine="chat", base_url=server.url, output_dir=tmp_path / "run"
        )
    text = next(iter(completions(tmp_path / "run", "eval").values())).text
    assert text.startswith("I think about it for a while.\nI add") and text.count("Answer:") == 1


# --- commands


def test_all_commands_work_with_chat_alone(
    world: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No seed, no token limit by its old name, no log-probabilities; and 429s now and then."""
    refuses = frozenset({"seed", "max_tokens", "logprobs", "n"})
    busy = (429, {"retry-after": "0.01"}, {"error": {"message": "Rate limit reached"}})

    def write(messages: Messages, times: int) -> str:
        score = sum(map(ord, said(messages))) % 5 + 1
        return f"It is clear and short, and gives {times} examples.\nAnswer: {(score + times) % 5 + 1}"

    with chatting(
        write, refuses=refuses, fault=lambda body, number: busy if number % 7 == 3 else None
    ) as server:
        model = ["--model", "a-model", "--engine", "chat", "--base-url", server.url, *RATINGS]
        train, held_out = map(str, world)
        run, table = str(tmp_path / "run"), str(tmp_path / "predicted.jsonl")
        maps = str(tmp_path / "map.json")
        assert not main(["sample", train, *model, "--scheme", "pps:2", "--output-dir", run])
        assert not main(["evaluate", held_out, *model, "--output-dir", f"{run}-eval"])
        assert not main(["calibrate", held_out, *model, "--draws", "4", "--output", maps])
        more = ["--draws", "4", "--calibration", maps, "--output", table]
        assert not main(["predict", held_out, *model, *more])
        assert not main(["verify", run])
        capsys.readouterr()
        main(["check", train, *model, "--draws", "4"])
        shown = capsys.readouterr().out
    for topic, found in {
        "token limit": "max_completion_tokens",
        "seeds": "refused",
        "logprobs": "refused",
        "n": "refused",
        "token counts": "given",
        "answers by": "a-model-1",
    }.items():
        [line] = [line for line in shown.splitlines() if line.startswith(f"✓ {topic} ")]
        assert found in line
    rows = [json.loads(line) for line in Path(table).read_text().splitlines()]
    assert len(rows) == 40 and all(row["answer"] for row in rows)
    examples = pq.read_table(f"{run}/iteration-001/examples.parquet")
    assert "completion_tokens" not in examples.column_names and examples.num_rows > 0


def test_a_run_of_text_is_shown_beside_one_of_tokens(questions: Path, tmp_path: Path) -> None:
    demos = tmp_path / "demos.jsonl"
    shown = {"prompt": "What is 50 + 50?", "completion": "50 and 50 are 100.\nAnswer: 100"}
    demos.write_text(json.dumps({**shown, "answer": "100"}) + "\n")
    place = tmp_path / "runs"
    with chatting(sums) as server:
        how: dict[str, Any] = {"engine": "chat", "base_url": server.url, "system_prompt": "Add."}
        femtune.sample(
            questions, "a-model", scheme="star", demos=str(demos), output_dir=place / "text", **how
        )
        assert [m["role"] for m in server.paid[0]["messages"]] == ["system", "user", "assistant", "user"]
        hinted = [body for body in server.paid if "correct answer is" in said(body["messages"])]
        assert hinted and "The correct answer is 100." in hinted[0]["messages"][1]["content"]
    femtune.evaluate(questions, "seedling", max_new_tokens=8, output_dir=place / "tokens")
    index = Index([place])
    index.refresh()
    seen = Store(index).page(Filter())
    index.close()
    assert not index.damaged and {draw.name.run for draw in seen} == {"text", "tokens"}
    for draw in seen:
        is_text = draw.name.run == "text"
        assert draw.num_tokens == count(draw.text) if is_text else draw.num_tokens > 8
    assert main(["report", str(place / "text")]) == 0
    assert main(["refilter", str(place / "text"), "--balance", "uniform", "--show", "quiet"]) == 0
    assert main(["replay", str(place / "text"), "--draw", "q1"]) == 1


def test_text_examples_train_a_local_model(questions: Path, tmp_path: Path) -> None:
    with chatting(sums) as server:
        drawn = femtune.sample(
            questions,
            "a-model",
            scheme="star",
            engine="chat",
            base_url=server.url,
            output_dir=tmp_path / "run",
        )
    assert drawn.num_kept == 24
    fitted = femtune.fit(drawn.examples, "seedling", output_dir=tmp_path / "model", num_train_epochs=1)
    assert fitted.metrics["num_examples"] == 24


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train {data}", "needs the weights of a model"),
        ("compare {data}", "femtune compare needs the weights of a model"),
        ("ladder {data}", "femtune ladder needs the weights of a model"),
        ("sample {data} --scheme pps:4+importance", "the model's law"),
        ("sample {data} --scheme rejection:4+hard", "the model's law"),
        ("evaluate {data} --aggregate probabilities", "needs log-probabilities"),
        ("evaluate {data} --reader-problems 3", "needs log-probabilities"),
        ("evaluate {data} --ray-workers 2", "not for --engine chat"),
        ("evaluate {data} --max-cost 3", "needs prices"),
        ("evaluate {data} --prices prompt=1", "give numbers"),
        ("evaluate {data} --max-requests 0", "above 0"),
    ],
)
def test_what_chat_cannot_do_is_refused_before_anything_is_asked(
    command: str, words: str, questions: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with chatting(sums) as server:
        place = ["--engine", "chat", "--base-url", server.url, "--model", "a-model"]
        place += ["--output-dir", str(tmp_path / "run")]
        with pytest.raises(SystemExit) as ended:
            raise SystemExit(main([*command.format(data=questions).split(), *place]))
        assert ended.value.code == 1
        assert server.asked == []
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_caps_are_for_chat_alone() -> None:
    with pytest.raises(ConfigError, match="max_requests is for --engine chat"):
        femtune.evaluate([], "seedling", max_requests=3)


# --- killed, and capped


def command(url: str, data: Path, run: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "femtune", "sample", str(data), "--model", "a-model"),
        *("--engine", "chat", "--base-url", url, "--scheme", "star", "--output-dir", str(run)),
        *("--max-batch", "4", "--show", "quiet", *more),
    ]


def killed_at(server: ChatState, paid: int, words: Sequence[str]) -> int:
    """Run a command and kill it once so many requests are paid for; return how many were open then."""
    env = os.environ | {"PYTHONPATH": "src", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, cwd=Path(__file__).parents[1], env=env)
    while len(server.paid) < paid and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.1)  # what was open is answered to nobody
    return process.returncode


@pytest.mark.slow
def test_a_killed_command_pays_for_no_answer_twice(questions: Path, tmp_path: Path) -> None:
    """But for those that were open at a kill, at most 4, as nobody was there to store them."""
    with chatting(sums, delay_s=0.05) as server:
        words = command(server.url, questions, tmp_path / "run")
        kills = [5, 17]
        for paid in kills:
            assert killed_at(server, paid, words) == -signal.SIGKILL
        done = subprocess.run(
            words, cwd=Path(__file__).parents[1], env=os.environ | {"PYTHONPATH": "src"}, check=False
        )
        assert done.returncode == 0
    twice = sum(num - 1 for num in server.repeats().values())
    assert twice <= 4 * len(kills)
    draws = completions(tmp_path / "run", "draws", 1)
    assert len(server.paid) - twice == len(draws)
    log = (tmp_path / "run" / "requests.jsonl").read_text().splitlines()
    answers = [json.loads(line[9:]) for line in log]
    stored = [entry["answer"] for entry in answers if "answer" in entry]
    assert len(stored) == len({*stored}) == len(draws)
    assert len(stored) >= len(server.paid) - 4 * len(kills)


@pytest.mark.slow
def test_an_interrupted_command_pays_for_nothing_twice(questions: Path, tmp_path: Path) -> None:
    """The first Ctrl-C or SIGTERM waits for what is open."""
    with chatting(sums, delay_s=0.05) as server:
        words = command(server.url, questions, tmp_path / "run")
        env = os.environ | {"PYTHONPATH": "src", "OMP_NUM_THREADS": "1"}
        root = Path(__file__).parents[1]
        with subprocess.Popen(words, cwd=root, env=env) as process:
            while len(server.paid) < 9 and process.poll() is None:
                time.sleep(0.002)
            process.send_signal(signal.SIGTERM)
        assert process.returncode == 128 + signal.SIGTERM
        assert subprocess.run(words, cwd=root, env=env, check=False).returncode == 0
        assert server.repeats() == {}


def test_what_is_held_for_a_forced_answer_survives_a_cap(questions: Path, tmp_path: Path) -> None:
    """The first half of a forced answer is in no journal yet, but in the log."""

    def write(messages: Messages, times: int) -> str:
        return "4" if len(messages) > 1 else "I think about it for a while."

    with chatting(write) as server:
        for most in itertools.count(7, 7):
            try:
                femtune.evaluate(
                    questions,
                    "a-model",
                    engine="chat",
                    base_url=server.url,
                    max_requests=most,
                    output_dir=tmp_path / "run",
                )
                break
            except BudgetReached:
                assert len(server.paid) == most
        assert len(server.paid) == 48 and not server.repeats()
