"""Conversion of published rows to a task's rows, with one function for each published schema.

A published row (comparisons of openai/summarize_from_feedback), and the task's row made from it:

    {"info": {"id": "t3_1", "post": "My cat ...", "title": "Cat", "subreddit": "pets", ...},
     "summaries": [{"text": "Cat sad.", "policy": "sup1", "note": null}, {"text": "Cat fat.", ...}],
     "choice": 1, "worker": "w7", "batch": "batch3", "split": "train", "extra": {"confidence": 8}}
    {"item": "9a0f...", "post": "My cat ...", "title": "Cat", "summary_a": "Cat sad.",
     "summary_b": "Cat fat.", "preference": "B", "rater": "w7", "confidence": 8, ...}

A task's row lacks its score, preference or answer if the published row does. `item` names what was
judged. Each function raises BadRow for a row that it can't convert.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping
from typing import Any

from femtune._util.text import brief
from femtune.data.messages import read_prompt
from femtune.data.rows import BadRow
from femtune.data.tasks.cells import (
    Row,
    item_of,
    lean,
    opened_list,
    read_conversation,
    read_list,
    read_number,
    read_object,
    read_plain,
    read_score,
    read_text,
    wrong,
)
from femtune.data.tasks.pair_forms import plain_names
from femtune.data.tasks.sides import AS_TEXT, read_response

# --- judge: {prompt, response, score, attribute?, rater?, criterion?, reference?} or
#            {prompt, response_a, response_b, preference: A, B or tie, attribute?, rater?}, item


def rating_rows(row: Row) -> Iterator[dict[str, Any]]:
    prompt = read_conversation(row.get("prompt"), "prompt")
    yield _rating(row, {"prompt": prompt}, "response")


def _rating(row: Row, given: dict[str, str], thing: str) -> dict[str, Any]:
    """Return the row of a rated text; `given` is what it responds to."""
    text, as_text = read_response(row, thing)
    values = given | {thing: text, "score": read_score(row.get("score"), "score"), AS_TEXT: as_text}
    values |= {name: read_plain(row.get(name), name) for name in plain_names(given)}
    return lean(row, *row, **values | {"item": values["item"] or item_of(*given.values(), text)})


HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


def helpsteer2_rows(row: Row) -> Iterator[dict[str, Any]]:
    """Yield a row for each attribute, and for each rater if the cell is a list of ratings.

    Raters are numbered within the row: rater 1 of two rows may be different people.
    """
    prompt, response = _turns(read_text(row, "prompt")), read_text(row, "response")
    values = {"item": item_of(prompt, response), "prompt": prompt, "response": response}
    for name in HELPSTEER:
        given = opened_list(row.get(name), name)
        if not isinstance(given, list):
            yield lean(row, **values, attribute=name, score=read_number(given, name))
            continue
        for number, score in enumerate(given, 1):
            rater = f"rater {number}"
            yield lean(row, **values, attribute=name, score=read_number(score, name), rater=rater)


def _turns(prompt: str) -> str:
    """Label the turns of a HelpSteer2 prompt, split at its marks, with the names of their roles.

    >>> _turns("Hi\\n<extra_id_1>Assistant\\nYes?\\n<extra_id_1>User\\nBye")
    'User: Hi\\n\\nAssistant: Yes?\\n\\nUser: Bye'
    """
    parts = re.split(r"\s*<extra_id_1>(User|Assistant)\n", prompt)
    roles, texts = ["User", *parts[1::2]], parts[::2]
    said = [f"{role}: {text.strip()}" for role, text in zip(roles, texts, strict=True)]
    return "\n\n".join(said) if len(said) > 1 else prompt


def helpsteer2_pair_rows(row: Row) -> Iterator[dict[str, Any]]:
    prompt = _turns(read_text(row, "prompt"))
    a, b = read_text(row, "response_1"), read_text(row, "response_2")
    preferred = _strength(row.get("preference_strength"), "preference_strength")
    yield lean(row, item=item_of(prompt, a, b), prompt=prompt, response_a=a, response_b=b, **preferred)


def _strength(value: Any, name: str) -> dict[str, Any]:
    """Return the preference and its strength (0 to 3) of a number from -3 (first is better) to 3."""
    number = read_number(value, name)
    if number is None:
        return {}
    if number not in range(-3, 4):
        raise wrong(name, "a whole number from -3 to 3", value)
    return {"preference": "A" if number < 0 else "B" if number else "tie", "strength": abs(number)}


def helpsteer3_rows(row: Row) -> Iterator[dict[str, Any]]:
    """Yield a row for each individual preference, or one for the overall preference without them.

    Raters are numbered within the row: rater 1 of two rows may be different people.
    """
    prompt = read_conversation(row.get("context"), "context")
    a, b = read_text(row, "response1"), read_text(row, "response2")
    values = {"item": item_of(prompt, a, b), "prompt": prompt, "response_a": a, "response_b": b}
    single = row.get("individual_preference")
    given = [] if single is None else read_list(single, "individual_preference")
    name = "individual_preference.score"
    found = [_strength(read_object(one, name).get("score"), name) for one in given]
    if not any(found):
        overall = _strength(row.get("overall_preference"), "overall_preference")
        yield lean(row, "domain", "language", **values, **overall)
    for number, preferred in enumerate(found, 1):
        if preferred:
            rater = f"rater {number}"
            yield lean(row, "domain", "language", **values, **preferred, rater=rater)


ULTRAFEEDBACK = ("helpfulness", "honesty", "instruction_following", "truthfulness")


def ultrafeedback_rows(row: Row) -> Iterator[dict[str, Any]]:
    """Yield a row for each completion and aspect, without `overall_score`, whose scale differs."""
    prompt = read_text(row, "instruction")
    for completion in read_list(row.get("completions"), "completions"):
        one = read_object(completion, "completions[]")
        response = read_text(one, "response", "completions.")
        annotations = read_object(one.get("annotations"), "completions.annotations")
        values = {"item": item_of(prompt, response), "prompt": prompt, "response": response}
        policy = read_plain(one.get("model"), "completions.model")
        for name in ULTRAFEEDBACK:
            rated = read_object(annotations.get(name) or {}, f"completions.annotations.{name}")
            score = read_number(rated.get("Rating"), f"completions.annotations.{name}.Rating")
            yield lean(row, "source", **values, policy=policy, attribute=name, score=score)


def feedback_collection_rows(row: Row) -> Iterator[dict[str, Any]]:
    prompt, response = read_text(row, "orig_instruction"), read_text(row, "orig_response")
    criterion = [read_text(row, "orig_criteria").strip()]
    for score in range(1, 6):
        said = read_plain(row.get(f"orig_score{score}_description"), f"orig_score{score}_description")
        criterion += [f"Score {score}: {said}"] if said else []
    yield lean(
        row,
        item=item_of(prompt, response),
        prompt=prompt,
        response=response,
        criterion="\n".join(criterion),
        reference=read_plain(row.get("orig_reference_answer"), "orig_reference_answer"),
        score=read_number(row.get("orig_score"), "orig_score"),
    )


def mt_bench_rows(row: Row) -> Iterator[dict[str, Any]]:
    """Yield one row; in turn 2, prompt and responses hold both turns of the user and of the model."""
    turn = read_number(row.get("turn"), "turn")
    if not isinstance(turn, int) or turn < 1:
        raise wrong("turn", "a whole number from 1", row.get("turn"))
    asked, a = _sides(row, "conversation_a", turn)
    _, b = _sides(row, "conversation_b", turn)
    winner = read_plain(row.get("winner"), "winner")
    # GPT-4 judged each pair in both orders; "inconsistent" marks a verdict that changed with the order
    known = {"model_a": "A", "model_b": "B", "tie": "tie", "tie (inconsistent)": "tie"}
    known |= {"tie (bothbad)": "tie"}
    if winner is not None and winner not in known:
        raise wrong("winner", f"one of {', '.join(known)}", winner)
    yield lean(
        row,
        "question_id",
        item=item_of(asked, a, b),
        prompt=asked,
        response_a=a,
        response_b=b,
        preference=known.get(winner or ""),
        rater=read_plain(row.get("judge"), "judge"),
        policy_a=read_plain(row.get("model_a"), "model_a"),
        policy_b=read_plain(row.get("model_b"), "model_b"),
        turn=turn,
    )


def _sides(row: Row, name: str, turns: int) -> tuple[str, str]:
    """Return the user's text in the first turns of a conversation, and the model's."""
    messages = [read_object(message, f"{name}[]") for message in read_list(row.get(name), name)][
        : 2 * turns
    ]
    if [message.get("role") for message in messages] != ["user", "assistant"] * turns:
        raise BadRow(f"`{name}` must alternate user and assistant")
    said = [read_text(message, "content", f"{name}.") for message in messages]
    user = "\n\n".join(f"User: {text}" for text in said[::2])
    model = "\n\n".join(f"Assistant: {text}" for text in said[1::2])
    return (user, model) if turns > 1 else (said[0], said[1])


# --- summarize: {post, title?, summary_a, summary_b, preference, rater?} or
#                {post, title?, summary, score, attribute?, rater?}, item


def summary_rating_rows(row: Row) -> Iterator[dict[str, Any]]:
    yield _rating(row, {"post": read_text(row, "post")}, "summary")


def comparison_rows(row: Row) -> Iterator[dict[str, Any]]:
    about = _about(row)
    summaries = [read_object(one, "summaries[]") for one in read_list(row.get("summaries"), "summaries")]
    if len(summaries) != 2:
        raise BadRow("`summaries` must be two", str(len(summaries)))
    a, b = (read_text(one, "text", "summaries.") for one in summaries)
    choice = read_number(row.get("choice"), "choice")
    if choice not in (None, 0, 1):
        raise wrong("choice", "0 or 1", choice)
    extra = read_object(row.get("extra") or {}, "extra")
    yield lean(
        row,
        "batch",
        **about,
        item=item_of(about["post"], a, b),
        summary_a=a,
        summary_b=b,
        preference=None if choice is None else "AB"[int(choice)],
        confidence=read_number(extra.get("confidence"), "extra.confidence"),
        policy_a=read_plain(summaries[0].get("policy"), "summaries.policy"),
        policy_b=read_plain(summaries[1].get("policy"), "summaries.policy"),
    )


AXES = ("overall", "accuracy", "coverage", "coherence")


def axis_rows(row: Row) -> Iterator[dict[str, Any]]:
    """Yield a row for each axis, rated from 1 to 7; posts and articles have different axes."""
    about, summary = _about(row), read_object(row.get("summary"), "summary")
    text = read_text(summary, "text", "summary.")
    axes = read_object(summary.get("axes") or {}, "summary.axes")
    policy = read_plain(summary.get("policy"), "summary.policy")
    values = about | {"item": item_of(about["post"], text), "summary": text, "policy": policy}
    for name in AXES:
        score = read_number(axes.get(name), f"summary.axes.{name}")
        yield lean(row, "batch", **values, attribute=name, score=score)


def _about(row: Row) -> dict[str, Any]:
    """Return post (Reddit) or article (CNN, Daily Mail), its title and source, and the rater."""
    info = read_object(row.get("info"), "info")
    where = "article" if info.get("post") in (None, "") and info.get("article") else "post"
    return {
        "post": read_text(info, where, "info."),
        "title": read_plain(info.get("title"), "info.title"),
        "source": read_plain(info.get("site") or info.get("subreddit"), "info.site"),
        "post_id": read_plain(info.get("id"), "info.id"),
        "rater": read_plain(row.get("worker"), "worker"),
    }


# --- choice: {question, choices: [text], labels: [text], answer: a label, subject?}, id?


def choice_rows(row: Row) -> Iterator[dict[str, Any]]:
    """Yield one row; its answer is as published, and decoded by `codings`."""
    labels, choices = _choices(row.get("choices"), row.get("labels"))
    values = {
        "question": read_prompt(row.get("question"), "question"),
        "choices": choices,
        "labels": labels,
        "answer": read_plain(row.get("answer"), "answer"),
        "labels_given": row.get("labels") is not None or _is_keyed(row.get("choices")) or None,
    }
    yield lean(row, *row, **values | {"id": read_plain(row.get("id"), "id")})


def keyed_rows(row: Row) -> Iterator[dict[str, Any]]:
    """Yield one row of ARC, OpenBookQA or CommonsenseQA; labels are A to E, in parts of ARC 1 to 4."""
    labels, choices = _choices(read_object(row.get("choices"), "choices"), None)
    answer = read_plain(row.get("answerKey"), "answerKey")
    if answer is not None and answer not in labels:
        raise BadRow(
            "`answerKey` is not the label of a choice", f"{brief(answer)} of {', '.join(labels)}"
        )
    name = "question_stem" if "question_stem" in row else "question"
    question = read_prompt(row.get(name), name)
    values = {"question": question, "choices": choices, "labels": labels, "answer": answer}
    yield lean(row, **values, id=read_plain(row.get("id"), "id"))


def _is_keyed(choices: Any) -> bool:
    """Return True for {"text": [...], "label": [...]} and for [{"text": ..., "label": ...}, ...]."""
    one = choices[0] if isinstance(choices, list) and choices else choices
    return isinstance(one, Mapping)


def _choices(choices: Any, labels: Any) -> tuple[list[str], list[str]]:
    """Return labels and texts of choices: a list of texts, or texts with their labels. Raises BadRow."""
    if isinstance(choices, Mapping):
        labels = read_list(choices.get("label"), "choices.label")
        choices = read_list(choices.get("text"), "choices.text")
    elif _is_keyed(choices):
        keyed = [read_object(choice, "choices[]") for choice in choices]
        labels = [choice.get("label") for choice in keyed]
        choices = [choice.get("text") for choice in keyed]
    texts = [read_plain(choice, "choices") for choice in read_list(choices, "choices")]
    if len(texts) < 2 or len(texts) > len(string.ascii_uppercase):
        raise BadRow("`choices` must be 2 to 26", str(len(texts)))
    given = string.ascii_uppercase[: len(texts)] if labels is None else read_list(labels, "labels")
    names = [read_plain(label, "labels") for label in given]
    if len({*names}) != len(texts) or len(names) != len(texts):
        raise BadRow("choices and labels must match one to one", f"{len(texts)} and {names}"[:60])
    if None in texts or None in names:
        raise BadRow("a choice, or its label, is empty")
    return [name for name in names if name], [text for text in texts if text]


# --- math: {prompt, answer, level?, subject?}, id?


def math_rows(row: Row) -> Iterator[dict[str, Any]]:
    prompt = read_prompt(row.get("prompt"), "prompt")
    own = {name: read_plain(row.get(name), name) for name in ("answer", "id")}
    yield lean(row, *row, **own, prompt=prompt)


def gsm8k_rows(row: Row) -> Iterator[dict[str, Any]]:
    """Yield one row; its answer is the text after the last "####" without commas, or else all of it."""
    solution = read_plain(row.get("answer"), "answer")
    _, marked, final = (solution or "").rpartition("####")
    # the publisher drops commas too: openai/grade-school-math, grade_school_math/dataset.py
    answer = final.strip().replace(",", "") if marked else solution
    if solution and not answer:
        raise BadRow("`answer` has nothing after ####")
    kept = [name for name in row if name not in ("question", "prompt", "answer")]
    values = {
        "prompt": read_prompt(row.get("question"), "question"),
        "answer": answer,
        "id": read_plain(row.get("id"), "id"),
    }
    yield lean(row, *kept, **values)


def math500_rows(row: Row) -> Iterator[dict[str, Any]]:
    answer, name = read_plain(row.get("answer"), "answer"), read_plain(row.get("unique_id"), "unique_id")
    prompt = read_prompt(row.get("problem"), "problem")
    yield lean(row, "level", "subject", id=name, prompt=prompt, answer=answer)


def hendrycks_rows(row: Row) -> Iterator[dict[str, Any]]:
    solution = read_plain(row.get("solution"), "solution")
    answer = None if solution is None else boxed(solution)
    if solution and not answer:
        raise BadRow(r"`solution` has no \boxed{answer}")
    prompt, subject = read_prompt(row.get("problem"), "problem"), read_plain(row.get("type"), "type")
    yield lean(row, "level", prompt=prompt, answer=answer, subject=subject)


def boxed(solution: str) -> str:
    r"""Return the content of the last \boxed{}, nested braces included; "" without a box.

    >>> boxed(r"So $x = \boxed{\frac{1}{2}}$."), boxed(r"It is \boxed 7.")
    ('\\frac{1}{2}', '7')
    """
    start = max(solution.rfind("\\boxed"), solution.rfind("\\fbox"))
    if start < 0:
        return ""
    rest = re.sub(r"^\\(boxed|fbox)\s*", "", solution[start:])
    if not rest.startswith("{"):
        return rest[:1].strip()  # TeX takes one token as the argument
    depth = 0
    for at, letter in enumerate(rest):
        escaped = at > 0 and rest[at - 1] == "\\"
        depth += 0 if escaped else {"{": 1, "}": -1}.get(letter, 0)
        if depth == 0:
            return rest[1:at].strip()
    return ""
