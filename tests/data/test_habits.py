"""Tables as other people make them: each is read right, or refused with the line that mends it."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from femtune._util.parsing import named_pairs
from femtune.data.tasks.codings import parse_labels
from femtune.data.tasks.load import Options, TaskData, read_task
from femtune.errors import FemtuneError


@dataclass(frozen=True)
class Habit:
    """A file, how it is read, and either its answers or a part of the refusal."""

    task: str
    text: str
    answers: str = ""  # of the data's own order, with blanks between
    flags: str = ""
    refused: str = ""
    mended: str = ""  # flags that the refusal shows, filled in
    kind: str = "csv"
    more: dict[str, Any] = field(default_factory=dict)


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


PAIRS = "prompt,response_a,response_b"
TWO = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]
OTHER = [TWO[0], {"role": "assistant", "content": "No."}]
HABITS = {
    "a score under other names": Habit(
        "judge",
        "instruction,output,human_score\nP,R,1\nP,S,2\nP,T,3\n",
        "1 2 3",
        refused="--columns prompt=instruction response=output score=human_score",
        mended="--columns prompt=instruction response=output score=human_score",
    ),
    "a header with capitals and spaces": Habit(
        "judge",
        'Prompt, Response,"Score "\nP,R,1\nP,S,2\nP,T,3\n',
        "1 2 3",
        refused="--columns prompt=Prompt 'response= Response' 'score=Score '",
        mended='--columns prompt=Prompt "response= Response" "score=Score "',
    ),
    "words for scores": Habit(
        "judge",
        "prompt,response,score\nP,R,good\nP,S,bad\nP,T,good\n",
        "5 1 5",
        refused="Set --scale 1,5",
        mended="--scale 1,5 --labels good=5 bad=1",
    ),
    "half points": Habit(
        "judge",
        "prompt,response,score\nP,R,1.5\nP,S,2\nP,T,5\n",
        "1.5 2 5",
        refused="--scale 1,5,0.5",
        mended="--scale 1,5,0.5",
    ),
    "scores as shares of the highest": Habit(
        "judge", "prompt,response,score\nP,R,4/5\nP,S,2/5\n", "4 2", "--scale 1,5"
    ),
    "a column for each rater": Habit(
        "judge",
        "prompt,response,kim,toni,alex\nP,R,5,4,5\nP,S,1,,1\n",
        "5 1",
        "--scale 1,5 --columns score=kim,toni,alex --raters majority",
    ),
    "a list of scores as text": Habit(
        "judge",
        'prompt,response,score\nP,R,"[5, 4, 5]"\nP,S,"[1, 2]"\n',
        "5 4 5 1 2",
        "--scale 1,5",
    ),
    "1 and 2": Habit("judge", f"{PAIRS},label\nP,a,b,2\nQ,a,b,1\n", "B A"),
    "1, 2 and 0 for a tie": Habit("judge", f"{PAIRS},winner\nP,a,b,2\nQ,a,b,0\nR,a,b,1\n", "B tie A"),
    "-1, 0 and 1": Habit(
        "judge",
        f"{PAIRS},preference\nP,a,b,-1\nQ,a,b,0\nR,a,b,1\n",
        "B tie A",
        refused="--labels=-1=<A, B or tie> --labels=0=<A, B or tie> --labels=1=<A, B or tie>",
        mended="--labels=-1=B --labels=0=tie --labels=1=A",
    ),
    "true and false": Habit(
        "judge",
        f"{PAIRS},first_is_better\nP,a,b,True\nQ,a,b,False\n",
        "A B",
        "--columns preference=first_is_better",
        refused="--labels true=<A, B or tie> false=<A, B or tie>",
        mended="--labels true=A false=B",
    ),
    "1 for the first, 0 for the second": Habit(
        "judge",
        f"{PAIRS},a_wins\nP,a,b,1\nQ,a,b,0\n",
        "A B",
        "--columns preference=a_wins",
        refused="--labels 1=A 0=B if 1 says that the first is better",
        mended="--labels 1=A 0=B",
    ),
    "one annotator of several": Habit(
        "judge",
        f"{PAIRS},annotator2\nP,a,b,1\nQ,a,b,0\n",
        "A tie",
        "--columns preference=annotator2",
        refused="--labels 1=A 2=B 0=tie if 1 is the first and 0 is a tie",
        mended="--labels 1=A 2=B 0=tie",
    ),
    "left and right": Habit("judge", "prompt,left,right,winner\nP,a,b,left\nQ,a,b,right\n", "A B"),
    "a column for each winner": Habit(
        "judge",
        f"{PAIRS},winner_model_a,winner_model_b,winner_tie\nP,a,b,0,1,0\nQ,a,b,0,0,1\nR,a,b,1,0,0\n",
        "B tie A",
    ),
    "an arena of named models": Habit(
        "judge",
        f"{PAIRS},model_a,model_b,winner\nP,a,b,m-1,m-2,m-2\nQ,a,b,m-1,m-2,tie (bothbad)\n",
        "B tie",
    ),
    "1 where the first is preferred, by its publisher": Habit(
        "judge",
        "history,human_ref_A,human_ref_B,labels\nP,a,b,1\nQ,a,b,0\n",
        "A B",
    ),
    "chosen and rejected after a question": Habit(
        "judge",
        "system,question,chosen,rejected\n,P,good,bad\n",
        "good",
        refused="set --columns prompt=question",
        mended="--columns prompt=question",
    ),
    "messages in a cell": Habit(
        "judge",
        lines({"chosen": json.dumps(TWO), "rejected": json.dumps(OTHER)}),
        "Yes.",
        kind="jsonl",
    ),
    "choices in columns": Habit("choice", "question,A,B,C,answer\nQ?,x,y,z,C\nR?,x,y,,A\n", "C A"),
    "choices in numbered columns": Habit(
        "choice", "question,option_1,option_2,option_3,answer\nQ?,x,y,z,3\nR?,x,y,z,1\n", "C A"
    ),
    "choices in columns of two words": Habit(
        "choice", "question,Option 1,Option 2,Option 3,answer\nQ?,x,y,z,3\nR?,x,y,z,1\n", "C A"
    ),
    "choices in columns with letters": Habit(
        "choice", "question,choiceA,choiceB,choiceC,answer\nQ?,x,y,z,C\nR?,x,y,,A\n", "C A"
    ),
    "two columns for one choice": Habit(
        "choice",
        "question,choice 1,choice_1,choice 2,answer\nQ?,x,y,z,C\nR?,x,y,z,A\n",
        "C A",
        refused="has columns `answer`, `choice 1`",
        mended="--columns 'choices=choice 1,choice_1,choice 2'",
    ),
    "choices of a medical exam": Habit(
        "choice",
        "question,opa,opb,opc,opd,cop\nQ?,w,x,y,z,0\nR?,w,x,y,z,3\n",
        "A D",
        refused="--columns choices=opa,opb,opc,opd answer=cop",
        mended="--columns answer=cop",
    ),
    "endings and a number as text": Habit(
        "choice",
        lines(*({"ctx": "It", "endings": ["a", "b", "c", "d"], "label": each} for each in "03")),
        "A D",
        "--columns question=ctx choices=endings answer=label",
        kind="jsonl",
    ),
    "choices as objects": Habit(
        "choice",
        lines(
            {
                "question": "Q?",
                "choices": [{"label": "1", "text": "x"}, {"label": "2", "text": "y"}],
                "answer": "1",
            }
        ),
        "1",
        kind="jsonl",
    ),
    "choices as objects in a csv": Habit(
        "choice",
        'question,choices,answer\nQ?,"{""text"": [""x"", ""y""], ""label"": [""A"", ""B""]}",B\n',
        "B",
    ),
    "the answer's own text": Habit(
        "choice",
        lines({"question": "Q?", "choices": ["red", "blue"], "answer": "blue"}),
        "B",
        kind="jsonl",
    ),
    "positions that do not say their start": Habit(
        "choice",
        lines({"question": "Q?", "choices": ["red", "blue", "green"], "answer": 1}),
        "A",
        kind="jsonl",
        refused="--labels 1=A 2=B 3=C if they count from 1",
        mended="--labels 1=A 2=B 3=C",
    ),
}


def options(flags: str) -> Options:
    """Options of flags as a user gives them."""
    given: dict[str, list[str]] = {}
    for word in shlex.split(flags):
        flag = re.match(r"--([a-z]+)=?", word)
        name = flag[1] if flag else [*given][-1]
        rest = word[flag.end() :] if flag else word
        given.setdefault(name, []).extend([rest] if rest else [])
    made: dict[str, Any] = {name: values[0] for name, values in given.items()}
    made |= {"columns": named_pairs("columns", given.get("columns", []))}
    made |= {"labels": parse_labels(given.get("labels", []))}
    return Options(**made)


def read(habit: Habit, flags: str, folder: Path) -> TaskData:
    file = folder / f"data.{habit.kind}"
    file.write_text(habit.text)
    return read_task(file, habit.task, options(flags))


def answers(found: TaskData) -> str:
    """The answers in the data's order; of chosen and rejected the chosen text."""
    own = [p for p in found.problems if not (p.columns.get("frame") or {}).get("swapped")]
    texts = [
        re.findall(r"Response [AB]:\n(.*)", str(p.prompt))["AB".index(p.answer)]
        if any("`chosen`" in said for said in found.report.codings)
        else p.answer
        for p in own
    ]
    return " ".join(texts)


@pytest.mark.parametrize("name", HABITS)
def test_a_habit_is_read_or_refused_with_the_line_that_mends_it(name: str, tmp_path: Path) -> None:
    habit = HABITS[name]
    if habit.refused:
        with pytest.raises(FemtuneError) as error:
            read(habit, habit.flags, tmp_path)
        assert habit.refused in str(error.value)
    found = read(habit, f"{habit.flags} {habit.mended}".strip(), tmp_path)
    assert answers(found) == habit.answers
    assert not found.report.skipped
