"""Count what a reader stumbles over, and fail where there is more of it than before.

    python scripts/check_words.py            # part of `make check`
    python scripts/check_words.py --list     # where each stands
    python scripts/check_words.py --update   # lower the baseline; it never rises

Counted in the package: docstrings whose first word is no verb, words that the field does not use,
messages with a sentence of over 30 words, and imports of the package within functions. The baseline lies
in scripts/words_baseline.json.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
BASELINE = ROOT / "scripts" / "words_baseline.json"
LONGEST = 30  # words of a sentence in a message

# first words of a docstring that leave out what is meant
NO_VERBS = re.compile(r"(What|Of|Whether|Says|How|Which|Who|Where|When|Why|That|Those|If)\b")
ODD_WORDS = re.compile(
    r"\b(hangs? on|anew|whoever|(?:them|those) who|(?:is|are) none|for ever|told of|by heart"
    r"|(?:is|are|was|were) told|(?:goes|go|gone|going|went) on (?:with|from)|dies|of no use"
    r"|begun|mend(?:s|ed)?|by that|nats of)\b"
)
# f-strings are tokens of their own kinds from Python 3.12 on
TEXTS = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
# calls whose strings a user reads
SPEAKERS = re.compile(r"(Error|Kept|warning|error|info|BadRow|Unreadable|Parameter)$")


def main() -> int:
    """Compare today's counts with the baseline; return 1 where one has risen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print each place")
    parser.add_argument("--update", action="store_true", help="write lower counts as the new baseline")
    args = parser.parse_args()
    kinds = ("docstrings", "odd_words", "long_sentences", "lazy_imports")
    found: dict[str, list[str]] = {kind: [] for kind in kinds}
    for path in sorted((ROOT / "src").rglob("*.py")):
        for kind, line, text in faults(path.read_text(encoding="utf-8")):
            found[kind].append(f"{path.relative_to(ROOT)}:{line}: {text}")
    counts = {kind: len(places) for kind, places in found.items()}
    before = json.loads(BASELINE.read_text()) if BASELINE.exists() else counts
    if args.list:
        print("\n".join(place for places in found.values() for place in places))
    risen = {kind: places for kind, places in found.items() if len(places) > before[kind]}
    for kind, places in counts.items():
        print(f"{kind}: {places}, baseline {before[kind]}")
    if args.update:
        lower = {kind: min(number, before[kind]) for kind, number in counts.items()}
        BASELINE.write_text(json.dumps(lower, indent=2) + "\n")
    if risen:
        print(f"More than before: {', '.join(risen)}. `--list` shows each place; write it plainly.")
    return int(bool(risen))


def faults(source: str) -> Iterator[tuple[str, int, str]]:
    """Yield the kind, line and text of each fault in a module's source."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and NO_VERBS.match(text) and not isinstance(node, ast.Module):
                yield "docstrings", getattr(node, "lineno", 1), text.splitlines()[0]
        elif isinstance(node, ast.Call) and SPEAKERS.search(ast.unparse(node.func)):
            said = "".join(_texts(node))
            for sentence in re.split(r"(?<=[.?!]) ", said):
                if len(sentence.split()) > LONGEST:
                    yield "long_sentences", node.lineno, sentence
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            for node in function.body:
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("femtune"):
                    yield "lazy_imports", node.lineno, str(node.module)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in TEXTS:
            for match in ODD_WORDS.finditer(token.string):
                line = token.start[0] + token.string.count("\n", 0, match.start())
                yield "odd_words", line, match[0]


def _texts(call: ast.Call) -> Iterator[str]:
    """Yield the text of a call's arguments, with a word for each value that is filled in."""
    for argument in (*call.args, *(keyword.value for keyword in call.keywords)):
        parts = argument.values if isinstance(argument, ast.JoinedStr) else [argument]
        for part in parts:
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                yield part.value
            elif isinstance(part, ast.FormattedValue):
                yield "value"


if __name__ == "__main__":
    sys.exit(main())
