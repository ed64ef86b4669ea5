"""Answer formats: one answer that a person finds is read, two are none, and nothing hangs.

FEMTUNE_FORMAT_INPUTS is how many arbitrary texts are read, over all formats: 100000 takes some minutes.
"""

from __future__ import annotations

import os
import time
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from femtune.data.answer_format import AnswerFormat, bare, parse_format
from femtune.errors import ConfigError
from femtune.types import Parsed

NUM_INPUTS = int(os.environ.get("FEMTUNE_FORMAT_INPUTS", "1400"))
FORMS = {  # how each format writes an answer, with markup that models add
    "line": (
        *("Answer: {}", "**Answer:** {}", "**Answer: {}**", "**Answer: {}**.", "Answer: **{}**."),
        *("Final answer: {}", "**Final Answer**: {}", "Answer：{}", "### Answer: {}", "**Answer:**\n{}"),
        *("Answer:\n\n{}", '"Answer: {}"', "```\nAnswer: {}\n```", "answer: `{}`", "Answer: $$\n{}\n$$"),
        *("Answer: {}.", r"Answer: $\boxed{{{}}}$", "- Answer: [[{}]]"),
    ),
    "boxed": (r"\boxed{{{}}}", r"$\boxed{{{}}}$.", r"So it is $$\boxed{{ {} }}$$", r"**\fbox{{{}}}**"),
    "hash": ("#### {}", "**#### {}**", "#### **{}**", "####{}.", "```\n#### {}\n```", "#### Answer: {}"),
    "tag": ("<answer>{}</answer>", "**<answer>\n{}\n</answer>**", "<ANSWER> {}. </ANSWER>"),
    "bracket": ("[[{}]]", "**[[{}]]**", "Rating: [[ {} ]].", "[[**{}**]]"),
    "json:score": (
        '{{"score": {}}}',
        '```json\n{{"note": "fine", "score": "{}"}}\n```',
        '{{"a": {{"score":{}}}}}',
    ),
    r"regex:Score: (\d+)": ("Score: {}", "**Score: {}**", "> Score: {} of many"),
}
SPECS = list(FORMS)
REMARKS = (
    "",
    "\n",
    "\n\n",
    "\n\nI hope this helps!",
    "\nLet me know if you don't agree.",
    "\n```",
    "\n---\n",
)
words = st.text("abc .,!?0189é四+=\n*_`$-", max_size=60)
thoughts = st.sampled_from(
    ["{}", "<think>\n{}\n</think>\n\n", "<thinking>{}</thinking> Yes.\n", "{}</think>\n"]
)


@st.composite
def texts(draw: st.DrawFn, spec: str, answer: int) -> str:
    rationale = draw(thoughts).format(f"Because {draw(words)}")
    return f"{rationale}\n{draw(st.sampled_from(FORMS[spec])).format(answer)}"


@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=60)
@given(st.data())
def test_one_answer_is_found(spec: str, data: st.DataObject) -> None:
    answer = data.draw(st.integers(1, 10**6))
    text = data.draw(texts(spec, answer))
    parsed = parse_format(spec).read(text + data.draw(st.sampled_from(REMARKS)))
    assert (parsed.answer, parsed.error) == (str(answer), "")
    assert "Because" in parsed.rationale and "think" not in parsed.rationale


@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=60)
@given(st.data())
def test_two_different_answers_are_none_and_one_twice_is_one(spec: str, data: st.DataObject) -> None:
    first, second = data.draw(st.integers(1, 10**6)), data.draw(st.integers(1, 10**6))
    text = data.draw(texts(spec, first))
    again = data.draw(st.sampled_from(FORMS[spec]))
    between = data.draw(st.sampled_from(["\n", "\nWait.\n", "\n\nI hope this helps!\n\n"]))
    parsed = parse_format(spec).read(text + between + again.format(second))
    one = first == second
    assert (parsed.answer, parsed.error) == ((str(first), "") if one else ("", "two different answers"))
    assert parse_format(spec).read(text + between + again.format(first)).answer == str(first)


@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=60)
@given(st.data())
def test_what_is_closed_stays_closed_and_is_what_is_read(spec: str, data: st.DataObject) -> None:
    form, answer = parse_format(spec), data.draw(st.integers(1, 10**6))
    text = f"{data.draw(texts(spec, answer))}\n{data.draw(words)}\n{data.draw(texts(spec, 4))}"
    closed = [form.closed(text[:end]) for end in range(len(text) + 1)]
    assert closed == sorted(closed) and closed[-1]
    end = closed.index(True)
    assert text[end - 1] in form.closers  # so that only tokens with one need be looked at
    assert form.read(text[:end]).answer == str(answer)


PIECES = (
    *(
        "Answer",
        ":",
        "：",
        "\n",
        "\n\n",
        " ",
        "4",
        "5",
        ".",
        "**",
        "*",
        "`",
        "```",
        "$",
        "#",
        "####",
        "\\boxed{",
    ),
    *(
        "{",
        "}",
        "\\{",
        "\\}",
        "\\",
        "<answer>",
        "</answer>",
        "[[",
        "]]",
        "[",
        "]",
        '{"score": ',
        '"',
        "null",
    ),
    *(
        "<think>",
        "</think>",
        "Score: ",
        "The answer is ",
        "not ",
        "or ",
        "if ",
        "your answer",
        "X",
        "...",
    ),
    *(
        "\ud800",
        "\x00",
        "\u2028",
        "…",
        "é",
        "so ",
        "I hope this helps!",
        ", ",
        "Final ",
        "So A is better. ",
        "rating: ",
        "it deserves a ",
        "9" * 5000,
        "{" * 99,
    ),
)


def test_arbitrary_text_is_read_or_says_why() -> None:
    rng, slowest = Random(0), 0.0
    for number in range(NUM_INPUTS):
        form = parse_format(SPECS[number % len(SPECS)])
        text = "".join(rng.choices(PIECES, k=rng.randint(0, 40))) * rng.choice((1, 1, 1, 2, 30))
        begun = time.process_time()
        parsed = form.read(text)
        if form.closed(text):
            assert form.closed(text + "\n</think>5")
        slowest = max(slowest, time.process_time() - begun)
        assert bool(parsed.error) or bool(parsed.answer and parsed.rationale), (form, text)
        assert bare(parsed.answer) == parsed.answer
    assert slowest < 2


@pytest.mark.parametrize("spec", [*SPECS, "regex:(x+x+)+y"])
def test_long_texts_are_read_fast(spec: str) -> None:
    form = parse_format(spec)
    units = (
        "*",
        "Answer:\n",
        "Answer: X\n",
        "\\boxed{",
        "[[",
        "<answer>",
        '{"score":',
        " \n",
        "the answer is, ",
        "so A is better ",
        "so, *A* is the ",
        "rating: 4 as ",
        ", ",
    )
    for text in (
        *(unit * (20_000 // len(unit)) for unit in units),
        "x" * 5_000 + "\n",
        "4 rating" + "\n" * 20_000 + "9",
    ):
        begun = time.process_time()
        form.read(text), form.closed(text)
        assert time.process_time() - begun < 4  # twice the pattern's second


PLACEHOLDERS = (
    *(
        "...",
        "X",
        "[your answer]",
        "<answer>",
        "your answer",
        "___",
        "\\boxed{}",
        "and your answer",
        "**",
    ),
    *("and the rating, 1, 2 or 3.", "[answer here]", "<rating>", "\\text{your answer}", "…"),
)


@pytest.mark.parametrize("spec", ["line", "boxed", "hash", "tag", "bracket"])
def test_placeholders_are_no_answers(spec: str) -> None:
    form = parse_format(spec)
    for placeholder in PLACEHOLDERS:
        if spec == "bracket" and "[" in placeholder:
            continue
        text = f"Because.\n{FORMS[spec][0].format(placeholder)}\n"
        assert not form.closed(text) and form.read(text).answer == "", placeholder
        assert form.read(f"{text}\n{FORMS[spec][0].format(4)}").answer == "4", placeholder


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("We add. The answer is 5.", "5"),
        ("2 + 3 = 5, so the answer is **5**.\n\nI hope this helps!", "5"),
        ("Two and three.\n\n**The final answer is: $\\boxed{5}$.**", "5"),
        ("We add. The answer is 5 because 2 + 3 = 5.", "5"),
        ("We add. The answer is not 5.", ""),
        ("If the answer is 5, all is well.", ""),
        ("We add. The answer is 5. Wait, it is 6.", ""),
        ("We add. The answer is 5. The answer is 6.", ""),
        ("We add. The answer is 5.\n\nThen we look at it again.", ""),
        ("We add. Is it so that the answer is 5?", ""),
        ("We add. The answer to this question is 5.", "5"),
        ("We add. The answer to the question is B", "B"),
        ("It is short. So the rating of the response is 4.", "4"),
        ("We add. So answer: B", "B"),
        ("We add. Write the answer: B", ""),
        ("We add. So end with the line answer: and your answer.", ""),
        ("We add. The answer to the first question is 5.", ""),  # and to the second?
        ("We add. The answer to the question is 5. So the answer to this problem is 6.", ""),
        ("Both are good. The answer is a tie.", "tie"),
        ("We add.\nAnswer: 5\n\nThe answer is 6.", ""),
        ("We add.\nAnswer: 5\n\nExplanation: 2 + 3 = 5.", "5"),
        ("We add.\nAnswer: 5\n\nWait, that is wrong.", ""),
        ("We add.\nAnswer: 4 or 5", ""),
        ("We add.\nAnswer: A, B or C", ""),
        ("We add.\nAnswer: red or blue", "red or blue"),
    ],
)
def test_sentences_and_what_follows_an_answer(text: str, answer: str) -> None:
    form = parse_format("line")
    parsed = form.read(text)
    assert (parsed.answer, bool(parsed.error)) == (answer, not answer)
    assert not form.closed(text + "\n") or "Answer:" in text  # a sentence closes nothing


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("It is short. So B is better.", "B"),
        ("Response A is long, so response B is the better one.", "B"),
        ("It is short. **Response B is better than response A.**", "B"),
        ("Response A is not polite, so B is better.", "B"),
        ("It is short. Therefore, (C) is correct because it is.", "C"),
        ("Both are short. So it is a tie.", "tie"),
        ("It is short. It deserves a rating of 4.", "4"),
        ("It is short. It gets 4 out of 5.", "4 out of 5"),
        ("It is short.\nRating: 4", "4"),
        ("So A is better.\nSo A is better.", "A"),
        ("So A is better. It is short.", "A"),
        ("The answer is A. So B is better.", ""),
        ("Response A is better, and short. Or is it?\nThe answer is B", "B"),
        ("Response A is better. So the answer is B.", "B"),  # which names it as the answer
        ("It is short.\nAnswer: Response B\n\nSo B is better.", "Response B"),
        ("So A is better. So B is better.", ""),
        ("So A is better. Wait.", ""),
        ("It is short.\nAnswer: A\n\nSo B is better.", ""),
        ("If it is short, A is better.", ""),
        ("I do not think that A is better.", ""),
        ("So A might be better.", ""),
        ("A is better in style.", ""),
        ("Response A is right. It is short.", ""),
        ("Is A better? It is short.", ""),
        ("It deserves the highest rating.", ""),
        ("It gets 3 of 4 points.", ""),
        ("It deserves a rating of 3 or 4.", ""),
    ],
)
def test_a_sentence_says_which_is_better_or_how_good(text: str, answer: str) -> None:
    form = parse_format("line")
    assert form.read(text, require_rationale=False).answer == answer
    assert not form.closed(text + "\n") or "Answer:" in text


VERDICTS = (
    *("The answer is {}.", "The answer to this question is {}", "So the answer to the question is {}."),
    *(
        "So {} is better.",
        "Response {} is better.",
        "Therefore, option {} is correct.",
        "**{} is best**",
    ),
)


@given(st.lists(st.tuples(st.sampled_from(VERDICTS), st.sampled_from("AB")), min_size=1, max_size=4))
def test_sentences_that_differ_give_none(said: list[tuple[str, str]]) -> None:
    named = [place for place, (sentence, _) in enumerate(said) if "answer" in sentence]
    # those that name it as the answer count, and what is said after the last of them
    counted = [*named, *range(named[-1], len(said))] if named else range(len(said))
    answers = {said[place][1] for place in counted}
    text = "It is short.\n" + "\n".join(sentence.format(letter) for sentence, letter in said)
    assert parse_format("line").read(text).answer == (answers.pop() if len(answers) == 1 else "")


@pytest.mark.parametrize(
    ("spec", "text", "problem"),
    [
        ("line", "<think>\n\n</think>\n\nAnswer: 4", "no rationale before the answer"),
        ("line", "</think>\nAnswer: 4", "no rationale before the answer"),
        ("line", "---\nAnswer: 4", "no rationale before the answer"),
        ("line", "Answer: X\nAnswer: 4", "no rationale before the answer"),
        ("line", "The answer is 4.", "no rationale before the answer"),
        ("boxed", "So the answer is $\\boxed{4}$.", "no rationale before the answer"),
        ("json:score", '```json\n{"score": 4}\n```', "no rationale before the answer"),
        ("json:score", '{"why": "It is good.", "score": 4.50}', ""),
        ("json:score", '{"score": 4, "why": "It is good."}', "no rationale before the answer"),
        ("line", "<think>Reason\nAnswer: 4", "the thinking block is not closed"),
        ("line", "<think>Reason\nAnswer: 4\n</think>", 'the last line is not "Answer: ..."'),
        ("regex:(x+x+)+y", "x" * 5_000, "the pattern takes over a second"),
    ],
)
def test_problems(spec: str, text: str, problem: str) -> None:
    assert parse_format(spec).read(text).error == problem


def test_an_answer_within_thinking_closes_nothing() -> None:
    form = parse_format("line")
    assert not form.closed("<think>So.\nAnswer: 4\nBut.\n")
    assert not form.closed("<think>So.\nAnswer: 4\n</think>\nHere:\n")
    assert form.closed("<think>So.\nAnswer: 4\n</think>\nAnswer: 4\n")
    assert form.read("So.\nAnswer: 3\n</think>\nAnswer: 4").answer == "4"


def test_boxes_of_any_depth() -> None:
    text = r"\boxed{\frac{\sqrt{5}}{\{4\}^{2^{n}}}}"
    assert bare(f"${text}$") == parse_format("boxed").read(f"So {text}").answer == text[7:-1]


def test_instructions() -> None:
    assert parse_format("line").ending() == 'end with the line "Answer: " and your answer.'
    for spec in SPECS:
        form = parse_format(spec)
        assert form.ending("A or B").startswith("end with ") and "A or B" in form.ending("A or B")
        assert (form.cue == "") == spec.startswith("regex")
        # a copied instruction answers nothing, and an answer after the cue is read
        assert form.read(f"Because.\n{form.ending()}").answer == ""
        close = {"boxed": "}", "tag": "</answer>", "bracket": "]]", "json:score": "}"}.get(spec, "")
        assert not form.cue or form.read(f"Because.{form.cue} 4{close}").answer == "4"


@pytest.mark.parametrize("spec", ["lines", "", "json", "json:", "regex:", "regex:4", "regex:(", "regex"])
def test_unknown_formats_are_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"Choose line, boxed|Put parentheses|Use the syntax"):
        AnswerFormat(spec)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("A", "A"),
        ("**B**", "B"),
        ("(A)", "(A)"),
        ("4", "4"),
        ("Response B.", "Response B"),
        ("85%", "85%"),
    ],
)
def test_an_answer_alone_is_read_and_is_no_reasoning(text: str, answer: str) -> None:
    line = parse_format("line")
    assert line.read(text) == Parsed("", answer, "no rationale before the answer")
    assert line.read(text, require_rationale=False) == Parsed("", answer)
    assert parse_format("boxed").read(text) == line.read(text)
    assert parse_format("json:score").read(text).answer == ""


@pytest.mark.parametrize("text", ["A or B", "Yes", "4 apples", "A B", "AB", ""])
def test_a_few_words_are_no_answer(text: str) -> None:
    assert parse_format("line").read(text).answer == ""


@pytest.mark.parametrize(
    ("spec", "text", "answer"),
    [
        ("line", "B covers more.\n[[B]]", "B"),
        ("line", "One gap.\nRating: [[4]]", "4"),
        ("line", "So it is $\\boxed{12}$.", "12"),
        ("line", "We subtract.\n### Answer\n\n**73**", "73"),
        ("line", "B is longer.\nGiven the text, the correct answer is:\n\nB", "B"),
        ("line", "很好，但缺一个例子。\n评分：4", "4"),
        ("line", "Wir zählen.\nAntwort: 7", "7"),
        ("line", "The motor runs cool.\n\nC", "C"),
        ("line", "A\n\nB\n\nC", ""),
        ("line", "Half of 28.\nAnswer: 14\n\nQuestion: Tom has 4 apples.\nAnswer: 9", "14"),
        ("line", "Question: Half of 28?\nIt is 14.\nAnswer: 14", "14"),
        (
            "line",
            "We add.\nFinal Answer: The final answer is $71$. I hope it is correct.",
            "The final answer is $71$",
        ),
        ("line", "It fits.\nAnswer: 4\n\nIt is not long, so few errors are there.", "4"),
        ("line", "It fits.\nAnswer: 4\n\nBut that is not right.", ""),
        ("line", "The box is $\\boxed{3}$, the rest 4.\n[[4]]", ""),
        ("line", "D. The answer is A.\n\nHunger drives it.\n\nE. The answer is E.", ""),
        ("line", "Note: each pen counts.\nSo the answer is 5.", "5"),
        ("line", "#### Step 1: Count\nWe count.\n#### Conclusion\nSo the answer is 5.", "5"),
        ("line", "We add 3 and 4.\n#### 7", "7"),
        ("boxed", "7 * 6 = 42 pens, so the answer is 42.", "42"),
        ("boxed", "We add.\nAnswer: 8", "8"),
        ("boxed", "We add.\n#### 8\nThe answer is 9.", ""),
        ("hash", "We add.\n\\boxed{8}", "8"),
    ],
)
def test_an_answer_in_another_form_is_read_if_people_would(spec: str, text: str, answer: str) -> None:
    parsed = parse_format(spec).read(text)
    assert (parsed.answer, bool(parsed.error)) == (answer, not answer)
