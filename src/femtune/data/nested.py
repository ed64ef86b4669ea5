"""Lists and objects that stand as text in a cell: JSON, or what Python and numpy print.

[{"role": "user", "content": "Hi"}]            JSON
[{'role': 'user', 'content': 'Hi'}]            a column of lists, written by pandas to CSV
['a' 'b']                                      a column of arrays
{'text': array(['a', 'b'], dtype=object)}      a column of objects with arrays
"""

from __future__ import annotations

import ast
import io
import json
import tokenize
from collections import deque
from typing import Any

_Tokens = deque[tokenize.TokenInfo]

_CONSTANTS = {"True": True, "False": False, "None": None, "nan": None}
_CLOSING = {"[": "]", "(": ")"}
_SKIPPED = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def parse_nested(text: str) -> Any:
    """Return the list or object that a text holds, with tuples and arrays as lists.

    >>> parse_nested('["a", 1]'), parse_nested("['a' 'b']"), parse_nested("{'a': (1, None)}")
    (['a', 1], ['a', 'b'], {'a': [1, None]})

    Raises ValueError for any other text, and for an array that was shortened by dots.
    """
    text = text.strip()
    if text[:1] not in ("[", "{"):
        raise ValueError("not a list or object")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError:
        pass  # not JSON
    try:
        lines = io.StringIO(text).readline
        tokens = deque(t for t in tokenize.generate_tokens(lines) if t.type not in _SKIPPED)
        found = _value(tokens)
    except (tokenize.TokenError, SyntaxError, IndexError, RecursionError, MemoryError) as error:
        raise ValueError("not a list or object") from error
    if tokens:
        raise ValueError(f"{tokens[0].string!r} stands after the end")
    return found


def _value(tokens: _Tokens) -> Any:
    token = tokens.popleft()
    if token.string in _CLOSING:
        return _items(tokens, _CLOSING[token.string])
    if token.string == "{":
        return _object(tokens)
    if token.string == "array":
        _expect(tokens, "(")
        found = _value(tokens)
        while tokens.popleft().string != ")":  # , dtype=object
            pass
        return found
    if token.string in _CONSTANTS:
        return _CONSTANTS[token.string]
    sign = token.string if token.string == "-" else ""
    if sign:
        token = tokens.popleft()
    if token.type == tokenize.STRING and token.string[0] in "'\"" and not sign:
        return ast.literal_eval(token.string)
    if token.type == tokenize.NUMBER and not isinstance(ast.literal_eval(token.string), complex):
        return ast.literal_eval(sign + token.string)
    raise ValueError(f"{token.string!r} is not a value")


def _items(tokens: _Tokens, closing: str) -> list[Any]:
    """Return the items of a list, between which numpy prints no comma."""
    found = []
    while tokens[0].string != closing:
        found.append(_value(tokens))
        if tokens[0].string == ",":
            tokens.popleft()
    tokens.popleft()
    return found


def _object(tokens: _Tokens) -> dict[str, Any]:
    found = {}
    while tokens[0].string != "}":
        key = _value(tokens)
        if not isinstance(key, str):
            raise ValueError(f"{key!r} is a key, and not text")
        _expect(tokens, ":")
        found[key] = _value(tokens)
        if tokens[0].string != "}":
            _expect(tokens, ",")
    tokens.popleft()
    return found


def _expect(tokens: _Tokens, sign: str) -> None:
    if (found := tokens.popleft().string) != sign:
        raise ValueError(f"{sign!r} is missing before {found!r}")
