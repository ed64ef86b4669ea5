"""The fake engine keeps the protocol that drivers are written against."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from femtune.engines.fake import END, ByteTokenizer, FakeEngine
from femtune.types import Completion, DrawKey, Engine, Request, Sampling, Tokenizer

SAMPLING = Sampling(max_new_tokens=64)


def request(name: str, seed: int = 0) -> Request:
    return Request(DrawKey(1, name, 0, 0), ByteTokenizer().encode_prompt(name), seed)


def pull_from(todo: list[Request]) -> Callable[[int], Sequence[Request]]:
    def pull(room: int) -> Sequence[Request]:
        given, todo[:room] = todo[:room], []
        return given

    return pull


def run(engine: FakeEngine, todo: list[Request]) -> list[tuple[Request, Completion]]:
    return [pair for batch in engine.generate(pull_from(todo), SAMPLING) for pair in batch]


def test_it_is_an_engine() -> None:
    engine: Engine = FakeEngine(lambda prompt, seed: "")
    tokenizer: Tokenizer = ByteTokenizer()
    assert isinstance(engine, FakeEngine)
    assert tokenizer == ByteTokenizer()


def test_every_request_ends_once_and_in_a_scrambled_order() -> None:
    asked = [request(str(i), seed=i) for i in range(100)]
    done = run(FakeEngine(lambda prompt, seed: f"{prompt}:{seed}"), list(asked))
    assert {r.key.problem_id: c.text for r, c in done} == {str(i): f"{i}:{i}" for i in range(100)}
    assert len(done) == 100
    assert [r for r, _ in done] != asked
    assert done == run(FakeEngine(lambda prompt, seed: f"{prompt}:{seed}"), list(asked))
    other = FakeEngine(lambda prompt, seed: f"{prompt}:{seed}", order_seed=1)
    assert done != run(other, list(asked))


def test_pull_is_asked_for_no_more_than_there_is_room() -> None:
    todo = [request(str(i)) for i in range(20)]
    rooms = []

    def pull(room: int) -> Sequence[Request]:
        rooms.append(room)
        return pull_from(todo)(min(room, 2))

    engine = FakeEngine(lambda prompt, seed: "", room=3)
    assert len([pair for batch in engine.generate(pull, SAMPLING) for pair in batch]) == 20
    assert min(rooms) >= 1
    assert max(rooms) == 3


def test_a_retry_made_while_iterating_is_completed_too() -> None:
    todo = [request("first")]
    seen = []
    for batch in FakeEngine(lambda prompt, seed: "").generate(pull_from(todo), SAMPLING):
        for asked, _ in batch:
            seen.append(asked.key.problem_id)
            if asked.key.problem_id == "first":
                todo.append(request("retry"))
    assert seen == ["first", "retry"]


def test_tokens_are_bytes_and_an_end() -> None:
    [(_, completion)] = run(FakeEngine(lambda prompt, seed: "é!"), [request("x")])
    logprob = -4 * math.log(257)  # two bytes, one byte, the end
    assert completion == Completion((195, 169, 33, END), "é!", "stop", logprob)


def test_a_long_completion_is_cut_off() -> None:
    engine = FakeEngine(lambda prompt, seed: "x" * 64)  # 65 tokens with its end
    [(_, completion)] = run(engine, [request("x")])
    assert (completion.finish_reason, len(completion.tokens)) == ("length", 64)
    assert END not in completion.tokens


def test_write_may_give_the_log_probability() -> None:
    engine = FakeEngine(lambda prompt, seed: ("yes", -1.5), logprob_of=lambda prompt, text: -len(text))
    [(asked, completion)] = run(engine, [request("x")])
    assert completion.logprob == -1.5
    assert engine.logprob([(asked.tokens, completion.tokens)]) == [-3]


def test_continuations_get_what_their_pairs_get() -> None:
    engine = FakeEngine(
        lambda prompt, seed: "", logprob_of=lambda prompt, text: -len(prompt) - len(text) / 8
    )
    found = engine.logprobs_after([(b"ab", [tuple(b"c"), tuple(b"de"), ()]), (b"abc", [])])
    assert found == [[-2.125, -2.25, -2.0], []]
    assert engine.logprobs_after([]) == []


def test_what_write_raises_is_data() -> None:
    def write(prompt: str, seed: int) -> str:
        raise RuntimeError("out of ink")

    [(_, completion)] = run(FakeEngine(write), [request("x")])
    assert completion == Completion((), "", "error", 0.0, error="RuntimeError: out of ink")


def test_it_keeps_what_was_loaded_and_asked() -> None:
    engine = FakeEngine(lambda prompt, seed: "")
    engine.load(Path("model"))
    run(engine, [request("a"), request("b")])
    assert engine.loaded == [Path("model")]
    assert [asked.key.problem_id for asked in engine.asked] == ["a", "b"]
