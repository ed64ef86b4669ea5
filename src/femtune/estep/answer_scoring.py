"""The probability of the correct answer after each draw's rationale, for rules that weigh by it.

    prompt x   rationale z   cue "\\nAnswer:"   y* " 4"   closed by the end token or a line break

log_answer     log pi(y* | x, z), closing included
log_direct     log pi(y* | x): the same right after prompt and cue
is_likeliest   no other answer is likelier after z: of the closed set, or where any answer may be given,
               of y* and the wrong answers that the problem's draws gave
log_ratio      log pi(z | x) - log q(z), of rationale and cue
right          the draw with y* in the place of its answer, and the end token

All are of theta_{k-1} under the plain prompt without worked examples, in nats.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

from femtune.estep.answer_probs import (
    AnswerLogprobs,
    closed_set,
    direct_logprobs,
    is_spaced,
    logprobs_of_answers,
    prefix_of,
    prompt_tokens,
    with_answer,
    written,
)
from femtune.estep.scheduler import Sampler
from femtune.types import Completion, Draw, DrawKey, Need, Problem, Score, Tokens


def sampled_prefix(completion: Completion, sampler: Sampler) -> Tokens | None:
    """Return a completion's tokens up to and including its first cue, None where it has none.

    It depends on these tokens alone, not on what follows: so whatever was sampled next, the model would
    have given y* here with probability pi(y* | x, z). A cue does not count within a thinking block, or
    after an answer in another form, or where a token goes beyond its end: except by the space that
    stands before an answer, which some tokenizers join to it.
    """
    assert sampler.cut is not None
    form, opening, decode = sampler.cut.format, sampler.cut.opening, sampler.tokenizer.decode
    tokens, end = completion.tokens, 0
    text = opening + decode(tokens)
    while (place := text.find(form.cue, end)) >= 0:
        end, before = place + len(form.cue), text[:place]
        num = bisect_left(range(len(tokens) + 1), end, key=lambda n: len(opening + decode(tokens[:n])))
        thinks = "<think>" in before and "</think>" not in before
        said = opening + decode(tokens[:num])
        is_whole = said in (text[:end], f"{text[:end]} ") and form.written("").startswith(said[end:])
        if is_whole and not thinks and not form.read(before).answer:
            return tokens[:num]
    return None


def right_draw(draw: Draw, problem: Problem, sampler: Sampler) -> tuple[Tokens, Draw] | None:
    """Return a draw's rationale and cue, and the draw with y* as its answer.

    None where they were not sampled as they stand, or where y* does not fit after them.
    """
    if draw.completion.finish_reason == "error":
        return None
    prefix = sampled_prefix(draw.completion, sampler)
    if prefix is None:
        return None
    spaced = is_spaced(prefix, sampler)
    [ways] = written([problem.answer], sampler, closed=True, spaced=spaced).ways
    if len(prefix) + max(map(len, ways)) > sampler.sampling.max_new_tokens:
        return None
    made = with_answer(draw.completion, problem.answer, sampler, prefix)
    parsed = sampler.prompts.parse(made.text)
    score = Score(1.0, parsed.answer, rationale=parsed.rationale)
    return prefix, Draw(
        draw.key,
        draw.prompt_kind,
        draw.seed,
        made,
        score,
        demos=draw.demos,
        temperature=draw.temperature,
    )


def right_draws(
    draws: Sequence[Draw], problems: Mapping[str, Problem], sampler: Sampler
) -> dict[DrawKey, tuple[Tokens, Draw]]:
    """Return `right_draw` of each draw for which the reward and the filter accept it.

    So rationales that leak the hint, or are empty, have none.
    """
    found = [
        made for draw in draws if (made := right_draw(draw, problems[draw.key.problem_id], sampler))
    ]
    if not found:
        return {}
    scores = sampler.grade(
        [problems[right.key.problem_id] for _, right in found],
        [right.completion for _, right in found],
        hinted=[right.prompt_kind == "hinted" for _, right in found],
        accept_at=[1.0] * len(found),
    )
    pairs = zip(found, scores, strict=True)
    return {right.key: (prefix, right) for (prefix, right), score in pairs if not score.reason}


def add_answer_logprobs(
    chosen: Sequence[Draw],
    draws: Sequence[Draw],
    rights: Mapping[DrawKey, tuple[Tokens, Draw]],
    problems: Mapping[str, Problem],
    needs: Set[Need],
    sampler: Sampler,
) -> list[Draw]:
    """Return the chosen ones of these draws with what the rules need of their answers.

    Where rules need "answers", draws without a right one (`rights`) are left as they are. Raises
    EngineError where the engine can't score.
    """
    sampler = replace(sampler, demos=())
    todo = [draw for draw in chosen if draw.key in rights or "answers" not in needs]
    asked = [problems[draw.key.problem_id] for draw in todo]
    prompts = {problem.id: prompt_tokens("plain", problem, sampler) for problem in asked}
    prefixes: list[Tokens | None] = []
    for draw in todo:
        known = rights.get(draw.key)
        before = known[0] if known else sampled_prefix(draw.completion, sampler)
        prefixes.append(
            (*prompts[draw.key.problem_id], *(before or prefix_of(draw.completion, sampler)[0]))
        )
    compared = _compared(draws, problems) if "gain" in needs else {}
    answers = [compared.get(problem.id, (problem.answer,)) for problem in asked]
    found = logprobs_of_answers(prefixes, answers, sampler, closed=True)
    direct = _direct(asked, sampler) if "gain" in needs else {}
    ratios = _log_ratios(todo, rights, problems, sampler) if "ratio" in needs else {}
    made: dict[DrawKey, Draw] = {}
    for draw, problem, after in zip(todo, asked, found, strict=True):
        assert after is not None
        logprob = after.of(problem.answer)
        made[draw.key] = replace(
            draw,
            log_answer=logprob,
            log_direct=direct.get(problem.id),
            is_likeliest=logprob >= max(after.logprobs) if "gain" in needs else None,
            log_ratio=ratios.get(draw.key),
            right=rights[draw.key][1] if draw.key in rights else None,
        )
    return [made.get(draw.key, draw) for draw in chosen]


def _compared(draws: Sequence[Draw], problems: Mapping[str, Problem]) -> dict[str, tuple[str, ...]]:
    """Return the answers of which y* is to be the likeliest, y* among them, by problem."""
    given: dict[str, dict[str, None]] = {}
    for draw in draws:
        answer = problems[draw.key.problem_id].answer
        names = given.setdefault(draw.key.problem_id, {answer: None})
        if draw.score.reason == "wrong" and draw.score.answer:  # others may be y* in another spelling
            names[draw.score.answer] = None
    closed = {name: closed_set(problems[name]) for name in given}
    return {
        name: closed[name] if problems[name].answer in closed[name] else tuple(names)
        for name, names in given.items()
    }


def _direct(problems: Sequence[Problem], sampler: Sampler) -> dict[str, float]:
    """Return log pi(y* | x) by problem."""
    once = list({problem.id: problem for problem in problems}.values())
    found: Sequence[AnswerLogprobs | None] = direct_logprobs(
        once, sampler, closed=True, answers=lambda problem: (problem.answer,)
    )
    return {
        problem.id: each.logprobs[0]
        for problem, each in zip(once, found, strict=True)
        if each is not None
    }


def _log_ratios(
    draws: Sequence[Draw],
    rights: Mapping[DrawKey, tuple[Tokens, Draw]],
    problems: Mapping[str, Problem],
    sampler: Sampler,
) -> dict[DrawKey, float]:
    """Return log pi(z | x) - log q(z) of rationale and cue; the answer has no part in it."""
    hinted = [draw for draw in draws if draw.prompt_kind == "hinted" and draw.key in rights]
    pairs = [
        (prompt_tokens(name, problems[draw.key.problem_id], sampler), rights[draw.key][0])
        for draw in hinted
        for name in ("plain", "hinted")
    ]
    logprobs = iter(sampler.engine.logprob(pairs) if pairs else [])
    ratios = {draw.key: next(logprobs) - next(logprobs) for draw in hinted}
    return {draw.key: ratios.get(draw.key, 0.0) for draw in draws}
