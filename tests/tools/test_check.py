"""Check of data and prompts: what it finds and warns of, and that it shows what is trained on."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from femtune.cli.main import main
from femtune.config import Train
from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.data.tasks.frames import Frame
from femtune.data.worlds import WORLDS, make_rows, make_splits
from femtune.errors import ConfigError, DataError, FemtuneError
from femtune.reporting.terminal import console
from femtune.resolve import TaskInputs, read_inputs
from femtune.sampler import SamplerBuilder
from femtune.schemes.named import parse_scheme
from femtune.tools.check import examine, show_prompts, show_tokens, token_pieces
from femtune.tools.check_data import Finding, data_findings, held_out_items
from femtune.tools.check_model import Planned, plan_trials, try_model
from femtune.tools.check_report import Counting, finding_line
from femtune.types import Completion, Draw, DrawKey, Problem, Score

from ..models import byte_tokenizer, tiny_model

TRAIN, _ = make_splits(WORLDS["rubric"], 30, 10, seed=0)
SETTINGS = Train(max_new_tokens=48)
AUTO = parse_scheme("auto")
JUDGE = replace(SETTINGS, task="judge", raters="named", scale="1,5")


def write(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings}


def test_a_sound_setup_has_every_finding_and_no_warning() -> None:
    examined = examine(TRAIN, "seedling", SETTINGS)
    findings = examined.findings
    assert examined.problems == TRAIN
    found = by_name(findings)
    assert [*found] == [
        *("problems", "held out", "development", "answers", "labels", "majority", "right by luck"),
        *("reward", "model"),
        *("chat template", "end token", "plain prompt", "hinted prompt"),
    ]
    assert [finding.what for finding in findings if finding.warning] == ["held out"]  # 9 problems
    assert found["problems"].found == "30; further columns: evidence, rater, truth, world"
    assert found["reward"].found == "exact; every correct answer earns at least 1"
    assert "context 512 tokens" in found["model"].found
    assert found["chat template"].found == "found"


@pytest.mark.parametrize(("same", "warned"), [(24, False), (25, True)])  # 24 of 30 is 80%
def test_one_sided_answers_are_warned_of(same: int, warned: bool) -> None:
    problems = [replace(p, answer="3" if i < same else "4") for i, p in enumerate(TRAIN)]
    answers = by_name(examine(problems, "seedling", SETTINGS).findings)["answers"]
    assert answers.found == f"2 different: 3 ({same}), 4 ({30 - same})"
    assert bool(answers.warning) == warned
    assert not warned or answers.warning.startswith("83% are the same")  # 25 / 30


def test_a_second_bos_token_is_warned_of(tmp_path: Path) -> None:
    """The template writes one; so does the message's text, as a template with two would."""
    tokenizer = byte_tokenizer(bos=True)
    for name, doubled in (("once", False), ("twice", True)):
        tokenizer.chat_template = "{{ bos_token }}" * (1 + doubled) + "{{ messages[0]['content'] }}"
        folder = tiny_model(tmp_path / name, "llama", tokenizer=tokenizer, max_position_embeddings=1024)
        found = by_name(examine(TRAIN, str(folder), SETTINGS).findings)
        for prompt in ("plain prompt", "hinted prompt"):
            assert ("two BOS tokens" in found[prompt].warning) == doubled


def test_a_model_without_a_chat_template_is_said_to_have_none(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(template=False)
    folder = tiny_model(tmp_path / "m", "llama", tokenizer=tokenizer, max_position_embeddings=1024)
    found = by_name(examine(TRAIN, str(folder), SETTINGS).findings)
    assert found["chat template"].found.startswith("none")


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        (replace(SETTINGS, reward="ordinal(4,5)"), DataError),
        (replace(SETTINGS, reward="exakt"), ConfigError),
        (Train(), DataError),  # 512 tokens to write do not fit beside the prompt
    ],
)
def test_what_training_refuses_is_refused(settings: Train, kind: type[FemtuneError]) -> None:
    with pytest.raises(kind):
        examine(TRAIN, "seedling", settings)


def test_test_problems_are_looked_at_too(tmp_path: Path) -> None:
    data, file = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    train, test = make_rows(WORLDS["rubric"], 30, 10, seed=0)
    write(data, train)
    settings = replace(JUDGE, eval_data=str(file))
    write(file, test)
    examine(data, "seedling", settings)
    write(file, [train[0] | {"rater": "Sasha"}])  # of another rater, but the same response
    with pytest.raises(DataError, match="1 of 1 test problems are also training problems"):
        examine(data, "seedling", settings)
    table = ({"prompt": p.prompt, "answer": p.answer} for p in TRAIN[:1])
    write(file, table)
    plain = [replace(p, columns={}) for p in TRAIN]
    with pytest.raises(DataError, match="1 of 1 test problems are also training problems"):
        examine(plain, "seedling", replace(SETTINGS, eval_data=str(file)))


def test_a_task_brings_its_words_and_its_reward(tmp_path: Path) -> None:
    rows, _ = make_rows(WORLDS["rubric"], 30, 10, seed=0)
    write(file := tmp_path / "rated.jsonl", rows)
    examined = examine(file, "seedling", JUDGE)
    assert examined.problems == TRAIN
    reward = by_name(examined.findings)["reward"].found
    assert reward.startswith('ordinal("1,5"); every correct answer earns')
    for panel in show_prompts(examined.builder, TRAIN[0]):
        assert "the rating, a whole number from 1 to 5." in shown(panel)


def test_of_pairs_both_orders_are_looked_at(tmp_path: Path) -> None:
    rows, test = make_rows(WORLDS["tldr"], 30, 10, seed=0)
    for name, group in (("train", rows), ("test", test)):
        write(tmp_path / f"{name}.jsonl", group)
    settings = replace(SETTINGS, task="summarize", raters="named", max_new_tokens=96)
    examined = examine(tmp_path / "train.jsonl", "seedling", settings)
    assert len(examined.problems) == 60
    answers = by_name(examined.findings)["answers"].found
    assert answers.startswith("2 different: ") and answers.count("(30)") == 2  # neither is likelier
    own = replace(settings, eval_data=str(tmp_path / "test.jsonl"))
    assert len(examine(tmp_path / "train.jsonl", "seedling", own).problems) == 30


def test_the_reward_is_not_said_to_be_earned_where_nobody_looked() -> None:
    settings = replace(SETTINGS, check_gold=False)
    assert "were not checked" in by_name(examine(TRAIN, "seedling", settings).findings)["reward"].found


def shown(panel: object) -> str:
    console = Console(file=io.StringIO(), width=1000)
    console.print(panel)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]  # the file is a StringIO


@pytest.fixture(scope="module")
def builder() -> SamplerBuilder:
    return examine(TRAIN, "seedling", SETTINGS).builder


def test_prompts_are_shown_as_the_model_gets_them(builder: SamplerBuilder) -> None:
    for panel, name in zip(show_prompts(builder, TRAIN[0]), ("plain", "hinted"), strict=True):
        tokens = builder.tokenizer.encode_prompt(builder.prompts.render(name, TRAIN[0]))
        text = shown(panel)
        assert f"{name} prompt of {TRAIN[0].id}" in text
        for line in builder.tokenizer.tokenizer.decode(tokens).splitlines():
            assert line in text


def test_tokens_shown_are_prompt_and_completion_and_only_the_latter_is_bold(
    builder: SamplerBuilder,
) -> None:
    problem = Problem("a", "How [bold] is it?", "3")  # no markup
    written = builder.tokenizer.tokenizer("It is so.\nAnswer: 3", add_special_tokens=False)["input_ids"]
    tokens = (*written, builder.tokenizer.end_token_id)
    completion = Completion(tokens, "", "stop", -1.0)
    draw = Draw(DrawKey(0, "a", 1, 0), "hinted", 0, completion, Score(1.0, "3"))
    panel = show_tokens(builder, problem, draw)
    text = panel.renderable
    prompt = builder.tokenizer.encode_prompt(builder.prompts.plain(problem))
    decode = builder.tokenizer.tokenizer.decode
    expected = decode(prompt), decode(tokens)
    styles = [(text.plain[span.start : span.end], span.style) for span in text.spans]
    read = "".join(part for part, style in styles if style.startswith("dim"))
    trained = "".join(part for part, style in styles if style.startswith("bold green"))
    assert (read.replace("⏎", ""), trained.replace("⏎", "")) == expected
    assert text.plain == read + trained
    assert str(panel.title) == f"an example: {len(prompt)} tokens read, {len(tokens)} in the loss (bold)"


def _draw(builder: SamplerBuilder) -> Draw:
    completion = Completion((builder.tokenizer.end_token_id,), "", "stop", -1.0)
    return Draw(DrawKey(0, "a", 1, 0), "hinted", 0, completion, Score(1.0, "3"))


@pytest.mark.parametrize(
    "text", ["评价：很好 🎉", "naïve — שלום", "a\ufffdb 日本", "plain words\nand more", ""]
)
def test_pieces_of_tokens_are_the_text_in_every_script(builder: SamplerBuilder, text: str) -> None:
    for tokenizer in (builder.tokenizer, ChatTokenizer(byte_tokenizer())):
        tokens = tokenizer.encode_text(text)
        pieces = list(token_pieces(tokenizer, tokens))
        assert "".join(pieces) == tokenizer.tokenizer.decode(tokens)
        assert all(pieces) and len(pieces) >= len(text.split())  # and not all at once
        assert ("\ufffd" in "".join(pieces)) == ("\ufffd" in text)


def test_a_cut_draw_is_shown_as_it_is_trained(builder: SamplerBuilder) -> None:
    """The line break that closed its answer gives way to the end token."""
    tokens = builder.tokenizer.encode_text("So it is.\nAnswer: 3\n")
    completion = Completion(tokens, "", "answered", -1.0)
    panel = show_tokens(builder, TRAIN[0], replace(_draw(builder), completion=completion))
    assert shown(panel).rstrip("─╯╰│ \n").endswith("Answer: 3<|end|>")


def test_one_prompt_with_several_answers_is_warned_of() -> None:
    twice = [*TRAIN, *(replace(p, id=f"{p.id}-2", answer="3") for p in TRAIN)]
    found = by_name(examine(twice, "seedling", SETTINGS).findings)
    same = sum(p.answer == "3" for p in TRAIN) / len(TRAIN)
    assert f"all agree in {same:.0%} of them" in found["same prompt"].found
    most = (1 + same) / 2  # a prompt with two different answers: one of them
    assert found["same prompt"].found.endswith(f"right for at most {most:.0%} of the problems")
    assert "--raters" in found["same prompt"].warning


def test_the_luck_of_guesses_is_exact() -> None:
    problems = [replace(p, answer="12345"[i % 5]) for i, p in enumerate(TRAIN)]
    found = by_name(examine(problems, "seedling", SETTINGS).findings)["right by luck"].found
    assert found.startswith("20% of guesses") and "4 attempts keep 59% of" in found  # 1 - .8^4 = .590
    near = replace(JUDGE, task="table", scale=None, accept_at=0.75, reward="ordinal(1,5)")
    assert "attempts" not in by_name(examine(problems, "seedling", near).findings)["right by luck"].found
    free = [replace(p, columns={}) for p in TRAIN]
    assert "right by luck" not in by_name(examine(free, "seedling", SETTINGS).findings)


def test_rows_that_are_left_out_are_counted(tmp_path: Path) -> None:
    rows, _ = make_rows(WORLDS["rubric"], 30, 10, seed=0)
    rows[3]["score"], rows[5]["score"], rows[8]["response"] = 9, 0, " "
    write(file := tmp_path / "rated.jsonl", rows)
    examined = examine(file, "seedling", replace(JUDGE, bad_rows="skip"))
    found = by_name(examined.findings)["rows left out"]
    assert found.found == "3 of 30 (10%)" and found.warning
    assert found.details == (
        "`score` is off the scale, 1 to 5: 2 (for example line 4: 9)",
        "`response` is empty: 1 (for example line 9)",
    )
    assert examined.rows.num_skipped == 3
    lines = finding_line(found).plain.splitlines()
    assert lines[0].startswith("! rows left out") and lines[1].strip() == found.details[0]


def test_what_was_found_in_the_rows_is_not_logged_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows, _ = make_rows(WORLDS["rubric"], 30, 10, seed=0)
    rows[3]["score"] = 2.5
    rows[5]["score"] = 9
    write(file := tmp_path / "rated.jsonl", rows)
    settings = replace(JUDGE, bad_rows="skip", round_scores=True, scale=None)
    with caplog.at_level("INFO", logger="femtune"):
        found = examine(file, "seedling", replace(settings, scale="1,5")).findings
    assert {"rounded", "rows left out"} <= {*by_name(found)}
    assert not any("left out" in said or "between two" in said for said in caplog.messages)


def test_few_held_out_items_are_warned_of_and_a_pair_is_one() -> None:
    ratings = [problem("rating", item=str(n)) for n in range(50)]
    pairs = [problem("pair", item=str(n // 2), swapped=n % 2 == 1) for n in range(98)]
    assert [held_out_items(each) for each in (ratings, pairs, TRAIN)] == [50, 49, 30]
    for num, warned in ((50, False), (49, True)):
        [found] = [f for f in data_findings(TRAIN, num, inputs(), AUTO) if f.what == "held out"]
        assert bool(found.warning) == warned
        assert found.found == f"{num}; an accuracy of 50% is measured to ±14%"  # 1.96 * .5 / sqrt(50)


def problem(form: Any, **known: Any) -> Problem:
    columns = {"frame": Frame(form=form, **known).column()}
    return Problem(f"{known}", "Which?", "", columns)


def inputs() -> TaskInputs[Train]:
    return read_inputs(TRAIN, SETTINGS)


@pytest.mark.parametrize(
    ("answer", "warned"),
    [
        ("5", False),
        ("No, as it is dark.", False),
        ("x = 5", False),
        ("So 2 + 3 = 5", True),
        ("#### 5", True),
        (r"So it is \boxed{5}", True),
        ("The answer is 5", True),
        ("so that " * 13, True),  # 104 characters
    ],
)
def test_a_correct_answer_that_is_a_whole_solution_is_warned_of(answer: str, warned: bool) -> None:
    problems = [Problem("a", "Why?", answer), Problem("b", "How?", "4")]
    found = by_name([*data_findings(problems, 0, inputs(), AUTO)])
    assert ("whole solutions" in found) == warned
    assert not warned or found["whole solutions"].found.startswith("1 of 2 correct answers")


def test_columns_that_femtune_adds_are_not_the_tables(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{n}?", "response": "So.", "score": 1 + n % 4 * 0.8, "rater": f"r{n % 2}", "note": n}
        for n in range(40)
    ]
    write(file := tmp_path / "rated.jsonl", rows)
    for raters in ("mean", "each"):
        settings = replace(JUDGE, raters=raters, soft_labels=True)
        names = by_name(examine(file, "seedling", settings).findings)["problems"].found
        assert names == f"40; further columns: note{', rater' * (raters == 'each')}"


def test_a_draw_is_kept_from_the_reward_on_that_was_asked_for(builder: SamplerBuilder) -> None:
    def close(problems: object, completions: list[Completion], parsed: object) -> list[float]:
        return [0.5 for _ in completions]

    reasons = {}
    for accept_at in (0.5, 0.51):
        settings = replace(SETTINGS, accept_at=accept_at)
        made = replace(builder, settings=settings, reward=close)
        tried = try_model(made, TRAIN, settings, 4)
        assert [trial.prompt for trial in tried.trials] == ["plain", "plain", "hinted"]  # T .7 too
        assert [len(trial.draws) for trial in tried.trials] == [4, 4, 4]
        reasons[accept_at] = [draw.score.reason for draw in tried.draws]
    assert "wrong" in reasons[0.51]
    assert reasons[0.5] == ["" if reason == "wrong" else reason for reason in reasons[0.51]]


def check_of_ratings(folder: Path) -> list[str]:
    """Write 30 rated responses; return the arguments of a check of them."""
    rows, _ = make_rows(WORLDS["rubric"], 30, 10, seed=0)
    write(file := folder / "rated.jsonl", rows)
    words = ["--task", "judge", "--raters", "named", "--scale", "1,5", "--max-new-tokens", "48"]
    return ["check", str(file), "--model", "seedling", *words]


@pytest.mark.parametrize("flags", [["--no-try"], ["--draws", "8"]])
def test_the_command_fits_80_columns_and_ends_with_a_verdict(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console(), "width", 80)
    assert main([*check_of_ratings(tmp_path), *flags]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    table = lines[lines.index(next(line for line in lines if "╰" in line)) :]
    assert all(cell_len(line) <= 80 for line in table if not line.startswith(("✓", "!")))
    assert lines[-1].startswith("Ready, 1 warning.")  # few are held out
    assert ("answered  truncated" in out) == (flags != ["--no-try"])


def test_json_has_all_that_is_shown_and_nothing_else_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = check_of_ratings(tmp_path)
    assert main([*words, "--draws", "8", "--show", "json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert not printed.err
    assert [*found["prompts"]] == ["plain prompt", "hinted prompt"]
    first, *_, hinted = found["trials"]
    assert (first["prompt"], first["num_draws"], first["temperature"]) == ("plain", 8, 1.0)
    assert hinted["prompt"] == "hinted" and hinted["tokens_median"] <= hinted["tokens_99th"] <= 48
    refused = sum(each["count"] for each in first["unanswered"])
    assert refused <= 8 and first["kept"] <= first["right"] <= first["answered"] <= 1
    assert {label["label"] for label in found["labels"]} == set("12345")
    assert found["ready"] and first["kept"] and found["verdict"] == "Ready, 1 warning."
    assert (found["rows"]["num_rows"], found["rows"]["skipped"]) == (30, [])

    assert main([*words, "--no-try", "--show", "json"]) == 0
    bare = json.loads(capsys.readouterr().out)
    assert bare["ready"] is None and "trials" not in bare
    assert bare["prompts"] == found["prompts"]
    told = [finding["what"] for finding in found["findings"]]
    assert told[: len(bare["findings"])] == [finding["what"] for finding in bare["findings"]]

    assert main([*words, "--no-try", "--show", "quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_what_will_be_drawn_is_said_first_and_what_is_done_as_it_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*check_of_ratings(tmp_path), "--draws", "3"]) == 0  # none of 3 proves nothing
    lines = capsys.readouterr().out.splitlines()
    assert "  So few draws show little: raise --draws." in lines
    assert lines[-1].startswith("Ready, 3 warnings.")
    start = lines.index("drawing for each prompt: 3 completions of at most 48 tokens")
    assert lines[start + 1 : start + 4] == [
        "prompts: plain; hinted",
        "if few are right: 3 more at temperature 0.7",
        "loading the model",
    ]
    done = [re.sub(r", [\d.]+ s$", "", line) for line in lines[start + 4 :] if " of 3 draws, " in line]
    assert done[0] == "plain: 3 of 3 draws" and done[-1] == "hinted: 3 of 3 draws"
    assert lines[start + 4].startswith(done[0])


def test_long_draws_are_counted_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 10.0, 20.0, 24.0, 100.0, 101.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    said: list[str] = []
    count = Counting(Planned(("plain", "hinted"), 4, False), said.append, every_s=15)
    for name, done in (
        ("plain", 0),
        ("plain", 1),
        ("plain", 2),
        ("plain", 4),
        ("hinted", 0),
        ("hinted", 3),
    ):
        count(name, done)
    assert said == ["plain: 2 of 4 draws, 15.0 s", "plain: 4 of 4 draws, 19.0 s"]


@pytest.mark.parametrize(
    ("problems", "draws", "temperature", "expected"),
    [
        (40, 32, 1.0, (32, True)),
        (10, 32, 1.0, (30, True)),  # as many for each
        (10, 32, 0.0, (10, False)),  # greedy draws of one problem are the same
        (40, 32, 0.7, (32, False)),
    ],
)
def test_as_many_draws_as_planned_are_made(
    problems: int, draws: int, temperature: float, expected: tuple[int, bool], builder: SamplerBuilder
) -> None:
    planned = plan_trials(builder, replace(SETTINGS, temperature=temperature), problems, draws)
    assert (planned.num_draws, planned.cooler) == expected


def test_check_of_nothing_is_an_error_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    write(tmp_path / "one.jsonl", [{"prompt": "Is it?", "answer": "yes"}])
    for file, words in (("empty.jsonl", []), ("none.jsonl", []), ("one.jsonl", ["--draws", "0"])):
        flags = ["--model", "seedling", "--max-new-tokens", "8", *words]
        assert main(["check", str(tmp_path / file), *flags]) == 1
        said = capsys.readouterr().err.splitlines()
        assert "Error: " in said[0] and said[-1] == "Not ready: 1 error."
    assert main(["check", str(tmp_path / "none.jsonl"), "--model", "seedling", "--show", "json"]) == 1
    refused = json.loads(capsys.readouterr().out)
    assert (refused["ready"], refused["verdict"]) == (False, "Not ready: 1 error.")
    assert "no file" in refused["error"]
    flags = ["--model", "seedling", "--max-new-tokens", "8", "--draws", "16", "--eval-share", "0"]
    assert main(["check", str(tmp_path / "one.jsonl"), *flags]) == 1  # a single problem
    said = capsys.readouterr().out.splitlines()
    assert "No draw was kept, so there is no training example to show." in said
    assert said[-1].startswith("Not ready: 1 error, ")
