"""Runs to look at with `femtune view`, made by hand, and what reads its pages."""

from __future__ import annotations

import math
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml
from starlette.testclient import TestClient

from femtune.data.problems import load_problems, save_problems
from femtune.estep.scoring import write_logprobs
from femtune.evaluation.readings import Reading, write_readings
from femtune.reporting.browser.app import make_app
from femtune.reporting.browser.index import Index
from femtune.runs.draws import write_draws
from femtune.runs.run import Run
from femtune.types import Completion, Draw, DrawKey, Problem, Score

TOKEN = "a-token"
REASONS = ("", "wrong", "truncated", "parse_error", "hint_leak")
WORDS = ("It", "is", "clear", "100%", "a_b", "ÄRGER", "<b>", "'--", "\\n", "ﬁt")


@dataclass(frozen=True)
class Stored:
    """A draw as a plain filter sees it."""

    run: str
    kind: str
    draw: Draw
    correct: str | None

    @property
    def name(self) -> str:
        key = self.draw.key
        return f"{self.run}/{self.kind}/{key.iteration}/{key.stage}/{key.index}/{key.problem_id}"


def made(
    text: str = "Because.\nAnswer: 3",
    problem_id: str = "p",
    *,
    iteration: int = 1,
    index: int = 0,
    **changes: Any,
) -> Draw:
    score = Score(1.0, "3", "", "", text.rpartition("\n")[0])
    values = {"prompt_kind": "plain", "seed": 7, "score": score} | changes
    completion = Completion(tuple(range(len(text) % 40)), text, "stop", -2.5)
    values = {"completion": completion} | values
    return Draw(DrawKey(iteration, problem_id, 0, index), **values)


def at_random(rng: random.Random, iteration: int, problem_id: str, index: int) -> Draw:
    reason = rng.choice(REASONS)
    answer = rng.choice(["1", "2", "3", "it's 4", "<5>"]) if reason != "truncated" else ""
    rationale = " ".join(rng.choices(WORDS, k=rng.randrange(12)))
    text = f"{rationale}\nAnswer: {answer}" if answer else rationale
    finish = "length" if reason == "truncated" else "stop"
    logprob = rng.choice([math.nan, -rng.random() * 9])
    reward = 1.0 if reason == "" else rng.choice([0.0, 0.5])
    return Draw(
        DrawKey(iteration, problem_id, rng.randrange(2), index),
        rng.choice(["plain", "hinted"]),
        rng.randrange(2**63),
        Completion(tuple(range(rng.randrange(30))), text, finish, logprob),
        Score(reward, answer, reason, f"why {reason}", rationale),
    )


def with_scores(draw: Draw) -> Draw:
    """Give a draw the scores of its rationale; some have one or none, or give y* no chance."""
    rng = random.Random(str(draw.key))
    after, without = -rng.random(), rng.choice([-rng.random(), None])
    return replace(
        draw, log_answer=rng.choice([after, after, after, -math.inf, None]), log_direct=without
    )


def readings_of(draws: Sequence[Draw]) -> dict[DrawKey, Reading]:
    """Return what a reader made of draws that have both scores."""
    return {
        draw.key: Reading(draw.log_answer, draw.log_direct)
        for draw in draws
        if draw.log_answer is not None and draw.log_direct is not None
    }


@dataclass(frozen=True)
class Folder:
    """Runs, and what is stored in them in this order."""

    root: Path
    draws: list[Stored]


def make_folder(root: Path) -> Folder:
    """Three runs in a folder; one of them has no problems stored."""
    rng, stored = random.Random(0), []
    for name in ("pps", "rejection(4)", "star's"):
        run = Run(root / name)
        for iteration, kind in ((0, "eval"), (1, "draws"), (1, "eval"), (2, "draws")):
            problems = [Problem(f"{kind}-{i}", "What?", rng.choice("123")) for i in range(6)]
            if name != "star's" and iteration < 2:
                run.root.mkdir(parents=True, exist_ok=True)
                file = {"draws": "problems", "eval": "eval"}[kind]
                if not (run.root / f"{file}.parquet").exists():
                    save_problems(problems, run.root / f"{file}.parquet")
            known = {p.id: p.answer for p in _problems(run.root, kind)}
            for number in range(2):
                draws = [
                    at_random(rng, iteration, f"{kind}-{3 * number + i}", index)
                    for i in range(3)
                    for index in range(rng.randrange(4))
                ]
                write_draws(run.shard(iteration, kind, number), draws, {"total_s": 0.0})
                if number == 0:  # the rationales of the others were not scored
                    draws = [with_scores(draw) for draw in draws]
                    scored = {"draws": "scored", "eval": "eval_scored"}[kind]
                    path = run.shard(iteration, scored, number)
                    path.parent.mkdir()
                    if kind == "draws":
                        write_logprobs(path, [d for d in draws if d.log_answer is not None], {})
                    else:
                        write_readings(path, readings_of(draws), {})
                stored += [Stored(name, kind, draw, known.get(draw.key.problem_id)) for draw in draws]
    return Folder(root, stored)


def _problems(root: Path, kind: str) -> list[Problem]:
    path = root / {"draws": "problems.parquet", "eval": "eval.parquet"}[kind]
    return load_problems(path) if path.exists() else []


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"><svg/onload=alert(1)>'",
    "</textarea></title></div><style>*{display:none}</style>",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "'; DROP TABLE draws; --",
    "\x1b[2J\x1b]0;title\x07",
    "\u202egnp.exe\u2066\u200b\ufeff\U000e0041",
    "&lt;b&gt;&amp;",
    "\x00\x01\r",
    "../../etc/passwd%00",
]


def make_hostile(root: Path) -> Path:
    """A run all of whose texts are hostile."""
    draws = [
        Draw(
            DrawKey(1, f"{text}{number}", 0, 0),
            text,
            number,
            Completion((1,), f"{text} {text}\nAnswer: {text}", text, -1.0, error=text),  # type: ignore[arg-type]  # whatever the text is
            Score(0.5, text, text, text, f"{text} {text}"),  # type: ignore[arg-type]  # whatever the text is
        )
        for number, text in enumerate(HOSTILE)
    ]
    write_draws(Run(root).shard(1, "draws", 0), draws, {})
    save_problems(
        [Problem(d.key.problem_id, d.prompt_kind, d.prompt_kind) for d in draws],
        root / "problems.parquet",
    )
    names = ("scheme", "model", "data", "instruction")
    config = dict.fromkeys(names, "<script>alert(1)</script>\x1b\u202e")
    config["hint"] = "<img src=x onerror=alert(1)>{answer}"
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    return root


Look = Callable[..., TestClient]  # pages over places, for one who knows this token


@contextmanager
def looking() -> Iterator[Look]:
    """Opens pages."""
    opened: list[TestClient] = []

    def open_pages(*places: Path, token: str | None = TOKEN) -> TestClient:
        app = make_app(Index(places), TOKEN)
        cookies = {"femtune-view": token} if token else None
        client = TestClient(app, base_url="http://127.0.0.1:1234", cookies=cookies)
        opened.append(client.__enter__())
        return client

    yield open_pages
    for client in opened:
        client.__exit__(None, None, None)


class Page(HTMLParser):
    """The elements of a page, and what a reader sees of it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.parts: list[str] = []
        self.feed(html)
        self.shown = "".join(self.parts)
        self.spaced = " ".join(" ".join(self.parts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    def links(self, path: str) -> list[str]:
        return [
            a["href"] or "" for t, a in self.tags if t == "a" and (a.get("href") or "").startswith(path)
        ]

    def names(self) -> list[str]:
        """Of the draws in a list, in order."""
        return [dict(parse_qsl(urlsplit(link).query))["name"] for link in self.links("/draw?")]


def page(client: TestClient, path: str, status: int = 200, **query: Any) -> Page:
    answer = client.get(path, params=query or None)
    assert answer.status_code == status, answer.text
    return Page(answer.text)


def start(*argv: str) -> tuple[subprocess.Popen[str], str]:
    """`femtune view`, and the address that it says."""
    command = [sys.executable, "-m", "femtune", "view", *argv]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+/\?token=[\w-]+", line)
    assert found, (line, process.stderr and process.stderr.read())
    return process, found[0]
