"""Forms of tables beside the published ones: preferences, labels, nested cells, dialects of CSV."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from .mangling import Row, as_csv


def _said(*texts: str) -> list[Row]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


# by task: tables, each with the `--columns` that it needs
FORMS: dict[str, list[tuple[list[Row], dict[str, str]]]] = {
    "judge": [
        ([{"prompt": f"Why {n}?", "chosen": f"So {n}.", "rejected": "No."} for n in range(4)], {}),
        (
            [
                {"chosen": _said(f"Why {n}?", "So."), "rejected": _said(f"Why {n}?", "No.")}
                for n in range(4)
            ],
            {},
        ),
        (
            [
                {"prompt": f"{n}?", "output_1": "So.", "output_2": f"No {n}.", "label": 1 + n % 2}
                for n in range(4)
            ],
            {},
        ),
        (
            [
                {
                    "conversation_a": _said(f"Why {n}?", "So."),
                    "conversation_b": _said(f"Why {n}?", "No."),
                    "winner": ("model_a", "model_b", "tie", "tie (bothbad)")[n],
                }
                for n in range(4)
            ],
            {},
        ),
        (
            [{"prompt": f"{n}?", "response": "So.", "al": 1 + n, "bo": 4 - n} for n in range(4)],
            {"score": "al,bo"},
        ),
        (
            [
                {"instruction": f"{n}?", "Output ": "So.", "Human Score": 1 + n, "worker id": "w"}
                for n in range(4)
            ],
            {},
        ),
    ],
    "summarize": [
        ([{"post": f"Long {n}.", "chosen": "L.", "rejected": "Lo."} for n in range(4)], {}),
        ([{"article": f"Long {n}.", "summary": "L.", "stars": 1 + n} for n in range(4)], {}),
    ],
    "choice": [
        (
            [
                {"question": f"{n}?", "A": "x", "B": "y", "C": f"z {n}", "answer": "ABC"[n % 3]}
                for n in range(4)
            ],
            {},
        ),
        (
            [
                {
                    "question": {
                        "stem": f"Which {n}?",
                        "choices": [{"label": "A", "text": "x"}, {"label": "B", "text": "y"}],
                    },
                    "key": "A",
                }
                for n in range(4)
            ],
            {"question": "question.stem", "choices": "question.choices[].text", "answer": "key"},
        ),
    ],
    "math": [
        ([{"input": f"{n} + 1?", "target": n + 1} for n in range(4)], {}),
        (
            [{"messages": _said(f"{n} + 1?", str(n + 1))} for n in range(4)],
            {"prompt": "messages[:-1]", "answer": "messages[-1].content"},
        ),
    ],
}

_DELIMITERS = (",", ",", ",", ";", "\t", "|")
_ENCODINGS = ("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252", "latin-1")


def as_dialect(rng: Random, made: Sequence[Any]) -> bytes:
    """Rows as CSV with some separator, in some encoding."""
    text = as_csv(rng, made, rng.choice(_DELIMITERS))
    encoding = rng.choice(_ENCODINGS)
    return text if encoding == "utf-8" else text.decode("utf-8", "replace").encode(encoding, "replace")
