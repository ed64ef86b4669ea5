"""How completions end: cut at the closed answer whoever wrote them, or forced to give one, once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from femtune.data.answer_format import parse_format
from femtune.data.demos import demos_digest
from femtune.data.truncation import Cut
from femtune.data.worlds import SEEDLING, WORLDS, make_splits
from femtune.engines.fake import END, ByteTokenizer, FakeEngine
from femtune.engines.hf.engine import TransformersEngine
from femtune.errors import ConfigError
from femtune.estep.driver import e_step
from femtune.estep.forced_answers import FORCED_TOKENS, Endings, check_cue
from femtune.estep.journal import journal_of, read_journal
from femtune.estep.scheduler import Chunk, Sampler
from femtune.runs.draws import read_draws, read_shard
from femtune.schemes.filters import Accepted
from femtune.schemes.named import pps, rejection
from femtune.types import Completion, Draw, DrawKey, Engine, Request, Sampling, Scheme, Stage, draw_seed

from ..oracle import DEMOS, LINE_CUT, problem, sampler

PROBLEMS = [problem(f"p{i}", i % 3, 0) for i in range(30)]
ALL = Scheme("all", (Stage("plain", 3, "all"), Stage("hinted", 2)), weigh=Accepted())
BYTES = ByteTokenizer()
MOST = 30
USUAL = Sampling(MOST)
WRITTEN = (
    "z0\nAnswer: y0",
    "z0\nAnswer: y0\nx7?\nz1\nAnswer: y1",  # goes on
    "z1\nAnswer: y1\n",  # ends after the line
    "z1, and that is it",  # no answer
    "z2, and so on, and so on, and so on, and so on",  # too long
)
SAID = (" y0", " y1\nx7?", " y0\n", " ", " that is hard to say, of all that there are to say of it")


def write(prompt: str, seed: int) -> str:
    return SAID[seed % 5] if prompt.endswith("Answer:") else WRITTEN[seed % 5]


def logprob(prompt: str, text: str) -> float:
    """Of a text after another, byte by byte."""
    return -math.fsum((1 + (len(prompt) + i + byte) % 7) / 8 for i, byte in enumerate(text.encode()))


def made(force: Any = "never", room: int = 8, order: int = 0, **more: Any) -> Sampler:
    engine = FakeEngine(write, logprob_of=logprob, room=room, order_seed=order)
    usual = replace(sampler(engine, chunk_size=7), sampling=Sampling(MOST), cut=LINE_CUT, context=200)
    return replace(usual, force=force, **more)


def drawn(prepared: Sampler, scheme: Scheme = ALL, **more: Any) -> list[Draw]:
    chunks: Iterator[Chunk] = e_step(PROBLEMS, scheme, prepared, iteration=1, **more)
    return [draw for chunk in chunks for draw in chunk.draws]


def asked_of(prepared: Sampler) -> list[Request]:
    assert isinstance(prepared.engine, FakeEngine)
    return prepared.engine.asked


# --- cut


def test_completions_end_where_their_answer_is_closed_as_likely_as_what_is_left() -> None:
    kinds = set()
    for draw in drawn(made()):
        done, whole = draw.completion, WRITTEN[draw.seed % 5]
        prompt = draw_prompt(draw)
        text, _, rest = whole.partition("\nAnswer: ")
        if "\n" in rest:
            text = f"{text}\nAnswer: {rest[:2]}\n"
            assert (done.tokens, done.text) == (tuple(text.encode()), text)
            assert done.finish_reason == "answered"
            assert done.logprob == pytest.approx(logprob(prompt, text), rel=1e-12)
            assert draw.score.answer == rest[:2]
        elif len(whole) < MOST:
            assert (done.tokens, done.finish_reason) == ((*whole.encode(), END), "stop")
            assert done.logprob == logprob(prompt, whole)
        else:
            assert (done.tokens, done.finish_reason) == (tuple(whole.encode()[:MOST]), "length")
            assert draw.score.reason == "truncated"
        assert done.drawn_logprob == done.logprob  # at temperature 1
        assert draw.temperature == 1 and not draw.demos and not done.num_forced
        kinds.add(whole)
    assert len(kinds) == len(WRITTEN)


def draw_prompt(draw: Draw) -> str:
    asked = f"x{int(draw.key.problem_id[1:]) % 3}"
    return asked if draw.prompt_kind == "plain" else f"{asked}\n\nThe correct answer is y0."


def settled(
    completion: Completion, sampling: Sampling = USUAL, force: Any = "never", **more: Any
) -> tuple[list[Any], list[Request]]:
    request = Request(DrawKey(1, "p", 0, 0), tuple(b"x0"), 77)
    endings = Endings(BYTES, more.pop("cut", LINE_CUT), force, more.pop("context", None))
    return endings.settle([(request, completion)], sampling)


def completion(text: str, reason: Any = "stop", end: int | None = END, **more: Any) -> Completion:
    tokens = (*text.encode(), *([end] if reason == "stop" and end else []))
    return Completion(tokens, text, reason, -5.0, **more)


def test_where_tokens_have_no_log_probabilities_a_cut_one_has_none() -> None:
    [(_, done)], _ = settled(completion("z0\nAnswer: y0\nmore"))
    assert math.isnan(done.logprob) and math.isnan(done.drawn_logprob)
    assert done.text == "z0\nAnswer: y0\n"
    each = tuple(-0.1 * i for i in range(18))
    [(_, done)], _ = settled(completion("z0\nAnswer: y0\nmore", token_logprobs=each))
    assert done.logprob == done.drawn_logprob == math.fsum(each[:14])


@pytest.mark.parametrize(
    "sampling", [Sampling(MOST, 0.7), Sampling(MOST, top_p=0.9), Sampling(MOST, top_k=5)]
)
def test_how_likely_a_draw_was_is_known_of_the_models_own_law_alone(sampling: Sampling) -> None:
    each = (-0.1,) * 18
    for text in ("z0\nAnswer: y0\nmore", "z0\nAnswer: y0"):
        [(_, done)], _ = settled(completion(text, token_logprobs=each), sampling)
        assert math.isfinite(done.logprob) and math.isnan(done.drawn_logprob)


def test_failed_completions_and_those_that_were_cut_stay_as_they_are() -> None:
    for done in (
        Completion((), "", "error", math.nan, error="out of ink"),
        Completion(tuple(b"z0\nAnswer: y0\n"), "z0\nAnswer: y0\n", "answered", -3.0),
    ):
        [(_, same)], more = settled(done, Sampling(MOST, 0.7), "all")
        assert same == done and not more


# --- the demo model, with and without an early stop


class Late:
    """An engine that knows of no cut."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.num_tokens = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def generate(self, pull: Callable[[int], Sequence[Request]], sampling: Sampling) -> Iterator[Any]:
        for finished in self.engine.generate(pull, replace(sampling, cut=None)):
            self.num_tokens += sum(len(completion.tokens) for _, completion in finished)
            yield finished


@pytest.fixture(scope="module")
def seedling() -> TransformersEngine:
    torch.set_num_threads(1)
    return TransformersEngine(SEEDLING, dtype="float32", device="cpu", max_batch=8)


@pytest.mark.parametrize("spec", ["line", r"regex:write (\d), carry \d\.$"])
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_an_engine_that_stops_early_gives_what_the_driver_cuts(
    seedling: TransformersEngine, spec: str, temperature: float
) -> None:
    sums, quiz = (make_splits(WORLDS[name], 24, 1, seed=0)[0][:12] for name in ("sums", "quiz"))
    cut = Cut(parse_format(spec), seedling.tokenizer)
    found: list[list[Draw]] = []
    late = Late(seedling)
    for engine in (seedling, late):
        usual = replace(
            sampler(engine),  # type: ignore[arg-type]  # one of two engines
            sampling=Sampling(64, temperature),
            cut=cut,
            force="all",
            context=seedling.context,
        )
        [chunk] = e_step([*sums, *quiz], rejection(1), usual, iteration=1)
        found.append(chunk.draws)
    for early, other in zip(*found, strict=True):
        a, b = early.completion, other.completion
        assert (a.tokens, a.text, a.finish_reason) == (b.tokens, b.text, b.finish_reason)
        assert (a.num_forced, early.score, early.seed) == (b.num_forced, other.score, other.seed)
        if math.isfinite(a.logprob) and math.isfinite(b.logprob):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-3)
        if not a.num_forced:  # what it said of a cut completion is what scoring gives
            prompt = seedling.tokenizer.encode_prompt(
                next(p for p in (*sums, *quiz) if p.id == early.key.problem_id).prompt
            )
            assert [a.logprob] == pytest.approx(seedling.logprob([(prompt, a.tokens)]), abs=1e-3)
    reasons = [draw.completion.finish_reason for draw in found[0]]
    if spec != "line" or temperature:
        assert reasons.count("answered") >= 3
    assert sum(len(draw.completion.tokens) for draw in found[0]) <= late.num_tokens + 24 * 40


# --- forced answers


def free(draw: Draw) -> str:
    return WRITTEN[draw.seed % 5]


@pytest.mark.parametrize("force", ["never", "ended", "all"])
def test_answers_are_forced_where_they_are_to_be_and_never_twice(force: str) -> None:
    prepared = made(force)
    draws = drawn(prepared)
    twice = {"never": (), "ended": WRITTEN[3:4], "all": WRITTEN[3:]}[force]
    requests: dict[DrawKey, list[Request]] = {}
    for request in asked_of(prepared):
        requests.setdefault(request.key, []).append(request)
    assert {draw.key for draw in draws} == requests.keys() and len(draws) == len(requests)
    cue = BYTES.encode_text("\nAnswer:")
    for draw in draws:
        first, *second = requests[draw.key]
        assert len(second) == (free(draw) in twice)
        assert first.seed == draw.seed == draw_seed(0, draw.key) and not first.cue
        if not second:
            assert not draw.completion.num_forced
            continue
        rationale = tuple(free(draw).encode()[:MOST])
        assert second[0].tokens == (*first.tokens, *rationale, *cue)
        assert second[0].cue == cue and second[0].max_new_tokens == FORCED_TOKENS
        assert second[0].seed != first.seed and 0 <= second[0].seed < 2**63
        said = SAID[second[0].seed % 5]
        answer = {" y1\nx7?": " y1\n"}.get(said, said)[:MOST]
        tokens = (*rationale, *cue, *answer.encode())
        ended = draw.completion.finish_reason == "stop"
        assert draw.completion.tokens == (*tokens, *([END] if ended else []))
        assert ended == (said in (" y0", " "))
        assert draw.completion.num_forced == len(cue) + len(answer) + ended
        assert math.isnan(draw.completion.logprob)
        # pi(z, end) pi(y | z, cue)
        before = prompt, z = draw_prompt(draw), bytes(rationale).decode()
        expected = logprob(*before) + logprob(f"{prompt}{z}\nAnswer:", answer)
        assert draw.completion.drawn_logprob == pytest.approx(expected, rel=1e-12)
        assert draw.score.answer == {" y0": "y0", " y0\n": "y0", " y1\n": "y1"}.get(answer, "")
    if twice:
        seeds = {request.seed for each in requests.values() for request in each}
        assert len(seeds) == len(asked_of(prepared))
        assert {SAID[each[1].seed % 5] for each in requests.values() if each[1:]} == {*SAID}


@given(
    st.sampled_from(["ended", "all"]),
    st.sampled_from([ALL, rejection(4), pps(2)]),
    st.integers(1, 40),
    st.integers(1, 20),
    st.integers(0, 3),
    st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_draws_depend_on_neither_batches_chunks_order_nor_overlap(
    force: str, scheme: Scheme, chunk_size: int, room: int, order: int, overlap: bool
) -> None:
    usual = drawn(made(force), scheme)
    other = made(force, room, order, chunk_size=chunk_size, overlap=overlap)
    assert same(drawn(other, scheme), usual)
    assert any(draw.completion.num_forced for draw in usual)


def same(one: Sequence[Draw], other: Sequence[Draw]) -> bool:
    """Whether all is the same; nan, of a forced draw's log-probability, is itself."""
    return [repr(draw) for draw in one] == [repr(draw) for draw in other]


def test_nothing_is_forced_where_the_context_is_full_and_less_where_it_is_short() -> None:
    done = completion("z1, and that is it")  # 2 + 18 + 8 tokens with its prompt and the cue
    for context, room in {28: None, 29: 1, 40: 12, 60: FORCED_TOKENS, 200: FORCED_TOKENS}.items():
        ready, more = settled(done, force="ended", context=context)
        assert [request.max_new_tokens for request in more] == ([room] if room else [])
        assert len(ready) == (room is None)


@pytest.mark.parametrize(
    ("done", "force"),
    [
        (completion("z2, and so on", "length"), "ended"),
        (completion("z2, and so on", end=65), "ended"),  # of another end token
        (completion("z1. The answer is 4."), "all"),  # read without its form
        (completion("z1\nAnswer: y0"), "all"),
        (Completion((), "", "stop", 0.0), "all"),
        (Completion((), "", "error", math.nan, error="out of ink"), "all"),
    ],
)
def test_nothing_is_forced_where_there_is_an_answer_or_no_rationale_that_ended(
    done: Completion, force: str
) -> None:
    [(_, same)], more = settled(done, force=force)
    assert not more and same.tokens == done.tokens and not same.num_forced


def test_a_format_without_a_cue_forces_none() -> None:
    cut = Cut(parse_format(r"regex:^= (\d)$"), BYTES)
    assert not settled(completion("no idea"), force="all", cut=cut)[1]


def test_an_open_thinking_block_is_closed_before_the_cue() -> None:
    for cut, text in (
        (LINE_CUT, "<think>so and so"),
        (replace(LINE_CUT, opening="<think>"), "so and so"),  # opened by the template
    ):
        _, [second] = settled(completion(text, "length"), force="all", cut=cut)
        assert BYTES.decode(second.cue) == "\n</think>\n\nAnswer:"
        endings = Endings(BYTES, cut, "ended")
        tokens = (*text.encode(), *second.cue, *b" y0\n")
        split = tuple(text.encode()), second.cue, tuple(b" y0\n")
        forced = Completion(tokens, BYTES.decode(tokens), "answered", math.nan)
        # the block may also have been closed before the end token
        closed = tokens[: len(text) + 10], tuple(b"\nAnswer:"), tuple(b" y0\n")
        assert endings.forced_ways(forced, Sampling(99)) == [split, closed]
    _, [second] = settled(completion("<think>so</think> and", "length"), force="all")
    assert BYTES.decode(second.cue) == "\nAnswer:"


def test_a_failed_second_phase_is_a_failed_draw() -> None:
    endings = Endings(BYTES, LINE_CUT, "all")
    request = Request(DrawKey(1, "p", 0, 0), tuple(b"x0"), 77)
    _, [second] = endings.settle([(request, completion("no idea"))], Sampling(MOST))
    failed = Completion((), "", "error", math.nan, error="out of ink")
    assert endings.settle([(second, failed)], Sampling(MOST)) == ([(request, failed)], [])


PIECES = [
    "z0",
    " y1",
    "\n",
    "\nAnswer:",
    "\nAnswer: y1",
    " A or B",
    "...",
    ". ",
    "The answer is",
    " 4",
    "**",
]
texts = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)


@given(texts, texts)
@settings(max_examples=300, deadline=None)
def test_a_forced_answer_that_counts_could_have_been_written_freely(z: str, said: str) -> None:
    """So that it has its place in pi, and its split is found: see scoring.drawn_logprobs."""
    sampling, endings = Sampling(200), Endings(BYTES, LINE_CUT, "ended")
    request = Request(DrawKey(1, "p", 0, 0), tuple(b"x0"), 77)
    ready, more = endings.settle([(request, completion(z))], sampling)
    if ready:
        return
    first = completion(z)
    [second] = more
    tokens = (*said.encode(), END)[:FORCED_TOKENS]
    answer = Completion(tokens, BYTES.decode(tokens), "stop" if tokens[-1] == END else "length", -1.0)
    [(_, whole)], _ = endings.settle([(second, answer)], sampling)
    if whole.finish_reason == "length" or not LINE_CUT.format.read(whole.text).answer:
        return
    assert endings.could_be_free(whole, sampling)
    assert not endings.could_be_free(whole, Sampling(len(whole.tokens) - 1))
    num = len(whole.tokens) - whole.num_forced
    split = first.tokens[:-1], second.cue, whole.tokens[num + len(second.cue) :]
    assert split in endings.forced_ways(whole, sampling)


def test_a_cue_that_can_not_be_written_is_refused() -> None:
    class Deaf(ByteTokenizer):
        def encode_text(self, text: str) -> tuple[int, ...]:
            return ()

    check_cue(LINE_CUT, BYTES)
    with pytest.raises(ConfigError, match=r"can't write the cue '\\nAnswer:' of answer_format line"):
        check_cue(LINE_CUT, Deaf())


# --- what is stored, and a kill


class Dies(FakeEngine):
    """Fails after so many batches."""

    def __init__(self, batches: int) -> None:
        super().__init__(write, logprob_of=logprob, room=8)
        self.batches = batches

    def generate(self, pull: Any, sampling: Sampling) -> Iterator[Any]:
        for finished in super().generate(pull, sampling):
            self.batches -= 1
            if self.batches < 0:
                raise KeyboardInterrupt
            yield finished


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("batches", [1, 3, 6, 11])
def test_a_kill_between_both_phases_costs_no_more_than_that_draw(
    tmp_path: Path, batches: int, overlap: bool
) -> None:
    place = lambda index: tmp_path / f"{index:05}.parquet"  # noqa: E731
    usual = made("all")
    whole = drawn(usual)
    prepared = replace(made("all", demos=()), engine=Dies(batches), overlap=overlap)
    with pytest.raises(KeyboardInterrupt):
        drawn(prepared, place=place)
    known = {
        repr(draw)
        for index in range(5)
        if not place(index).exists() and journal_of(place(index)).exists()
        for draw in read_journal(journal_of(place(index))).draws
    }
    stored = {repr(draw) for chunk, _ in read_draws(tmp_path) for draw in chunk}
    assert known | stored <= {repr(draw) for draw in whole}  # whole draws alone

    again = made("all", overlap=overlap)
    drawn(again, place=place)
    assert same([draw for chunk, _ in read_draws(tmp_path) for draw in chunk], whole)
    both = {repr(draw): 1 + (draw.completion.num_forced > 0) for draw in whole}
    left = sum(num for draw, num in both.items() if draw not in known | stored)
    assert len(asked_of(again)) == left


def test_what_a_draw_was_drawn_under_is_stored(tmp_path: Path) -> None:
    place = lambda index: tmp_path / f"{index:05}.parquet"  # noqa: E731
    prepared = made("ended", demos=DEMOS, sampling=Sampling(MOST, 0.7))
    draws = drawn(prepared, place=place)
    back = [draw for index in range(5) for draw in read_shard(place(index))[0]]
    assert same(back, draws)
    assert {draw.demos for draw in back} == {demos_digest(DEMOS)} != {""}
    assert {draw.temperature for draw in back} == {0.7}
    assert {draw.completion.num_forced > 0 for draw in back} == {True, False}
    assert all(b"x8" in bytes(request.tokens) for request in asked_of(prepared))
