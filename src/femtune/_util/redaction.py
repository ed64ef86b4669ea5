"""Redaction of secrets: keys stay in the environment, out of stored settings and servers' messages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from femtune.errors import ConfigError

_PART = 8  # this many characters of a key are redacted like the whole key; fewer occur in any text
# hf_token, api-key, aws_secret_access_key; not max_num_batched_tokens or tokenizer
_NAME = re.compile(
    r"(^|[-_.])(token|pwd)$|api[-_]?key|access[-_]?key|auth[-_]?key|passw|passphrase|secret|credential",
    re.IGNORECASE,
)
_INNER = re.compile(r'"([^"]*)"\s*:')  # names within a value that is JSON
_HOW = "Settings are stored with a run: leave it out and set it in the environment"


def check_no_keys(settings: Any) -> None:
    """Check that settings hold no key or password. Raises ConfigError, whose text omits the key."""
    for url in (settings.base_url or "").split(","):
        host = url.partition("://")[2].partition("/")[0]
        if "@" in host or "?" in url:
            raise ConfigError(
                f"base_url holds a user name, a password or a query. {_HOW}. http://host:8000/v1 is "
                "enough; the key goes into OPENAI_API_KEY."
            )
    for field in ("engine_args", "template_args"):
        for pair in getattr(settings, field):
            name, _, value = pair.partition("=")
            if found := _secret([name, *_INNER.findall(value)]):
                raise ConfigError(f"{field} {found} is a secret. {_HOW} ({_variable(found)}).")
    words = re.split(r"[\s,;'\"]+", getattr(settings, "launch", None) or "")
    if found := _secret([word.partition("=")[0] for word in words if "=" in word]):
        raise ConfigError(f"launch holds {found}, a secret. {_HOW}, which the processes inherit.")


def _secret(names: Sequence[str]) -> str:
    return next((name for name in names if _NAME.search(name)), "")


def _variable(name: str) -> str:
    return "HF_TOKEN" if re.search(r"(^|hf[-_])token$", name, re.IGNORECASE) else "by vLLM's name"


class Redactor:
    """Replaces a key, or most of one, in a text by ***.

    >>> hide = Redactor("sk-abcdefgh-1234")
    >>> hide("no key sk-abcdefgh-1234, nor sk-abcdefgh...")
    'no key ***, nor ***...'
    """

    def __init__(self, key: str) -> None:
        size = min(len(key), _PART)
        parts = "|".join(re.escape(key[at : at + size]) for at in range(len(key) - size + 1))
        # matches all overlapping parts of the key in a row, to the end of the last one
        self._pattern = re.compile(rf"(?s:(?:(?={parts}).)+.{{{size - 1}}})") if key else None

    def __call__(self, words: str) -> str:
        return self._pattern.sub("***", words) if self._pattern else words
