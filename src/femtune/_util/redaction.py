"""Secrets stay in the environment, out of stored settings and of servers' messages.

A setting that looks like a secret is refused, by a message that leaves it out: settings are stored with
a run. What a server says is redacted.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from femtune.errors import ConfigError

_PART = 8  # this many characters of a key are redacted like the whole key; fewer occur in any text
# hf_token, api-key, aws_secret_access_key; not max_num_batched_tokens, tokenizer or eos_token
_NAME = re.compile(
    r"(^|[-_.])(?<!bos_)(?<!eos_)(?<!pad_)(token|pwd|pw|key|auth|jwt|cookie)$"
    r"|(api|access|auth|private)[-_]?key|passw|passphrase|secret|credential|authorization|bearer",
    re.IGNORECASE,
)
# 8 characters with letters and digits; no placeholder such as <|im_end|>
_VALUE = r"(?=[^\s\"'&;,<]{0,200}\d)(?=[^\s\"'&;,<]{0,200}[A-Za-z])[^\s\"'&;,<]{8}"
# 8 letters and digits in a row, by turns, as no word has them: not policy2024 or 7-words-or-more
_RANDOM = (
    r"[\w.+/-]{0,40}?(?=[A-Za-z0-9]{8})"
    r"[A-Za-z0-9]{0,200}?(?:[A-Za-z]\d{1,200}[A-Za-z]|\d[A-Za-z]{1,200}\d)"
)
_NAMED = (
    r"(?:api|access|auth|private|secret|account)[-_ ]?key|pwd|passw(?:or)?d|passphrase|secret"
    r"|credentials?|authorization"
)
_LOOKS = {
    # 20 characters without a sign within, as folders hardly have: not hf_smollm2_135m or sk-judge-v2
    "a key of a known form": re.compile(
        r"(?<![A-Za-z0-9])(?:(?:sk|pk|rk)[-_](?:[\w-]{0,40}[-_])?(?=[A-Za-z]{0,19}\d)[A-Za-z0-9]{20}"
        r"|(?:hf|api_org|gh[a-z]|github_pat|r8|gsk|tgp_v1)_[A-Za-z0-9]{20}|AKIA[0-9A-Z]{16}"
        r"|(?:sk-proj|sk-ant|sk-or|sk-svcacct|xox[a-z]|glpat|nvapi|pypi)-(?=[\w-]{0,200}\d)[\w-]{16}"
        r"|AIza[\w-]{30}|eyJ[\w-]{8,400}\.[\w-]{8})|-----BEGIN [A-Z ]{0,40}PRIVATE KEY"
    ),
    # without a scheme only before a port or a path: not pass@1, From:ann@example.org or ssh://git@host
    "a password in a URL": re.compile(
        r"://(?![<{$])[^\s/@:]{0,200}:(?![<{$])[^\s/@]{1,200}@"
        r"|https?://(?![<{$])(?=[^\s/@]{0,200}\d)(?=[^\s/@]{0,200}[A-Za-z])[^\s/@]{8,200}@"
        r"|[\w.~%+-]:(?=[^\s/@]{0,200}\d)(?=[^\s/@]{0,200}[A-Za-z])[^\s/@,;\"'\\]{8,200}"
        r"@(?:[A-Za-z][\w.-]{0,200}|\d+\.[\d.]{1,20}|\[[^\s@]{1,50}\])(?::\d|/)"
    ),
    "a key in a URL": re.compile(rf"[;#?&](?:[a-z]{{1,40}}[-_])?(?:key|token|sig|auth)={_VALUE}", re.I),
    "a secret": re.compile(
        rf"(?:(?:{_NAMED}|(?<![a-z])token|bearer|cookie)[\"'\]\s]{{0,4}}[=:]|bearer\s)[\"'\s]{{0,4}}"
        rf"(?:(?:bearer|basic|token)\s+)?{_RANDOM}"
        rf"|(?:{_NAMED})[\"'\]\s]{{0,4}}=[\"'\s]{{0,4}}{_VALUE}",
        re.IGNORECASE,
    ),
}
_HOW = "Settings are stored with a run: leave it out and set it in the environment"
# a host or [::1], a port, and a path without separators of values
_URL = re.compile(r"https?://([\w.-]+|\[[0-9a-f:.]+\])(:\d{1,5})?(/[\w.~@+/-]*)?", re.IGNORECASE)
_ADDRESS = re.compile(r"(auto|local|([a-z]+://)?([\w.-]+|\[[0-9a-f:.]+\])(:\d{1,5})?)", re.IGNORECASE)


def check_no_keys(settings: Any) -> None:
    """Check that settings hold no key or password. Raises ConfigError, whose text omits the key."""
    if settings.base_url:
        check_urls("base_url", settings.base_url)
    if settings.ray_address and not _ADDRESS.fullmatch(settings.ray_address):
        raise ConfigError(
            f"ray_address has another form than auto, host:6379 or ray://host:10001. {_HOW}, if it "
            "holds a secret."
        )
    for field in ("engine_args", "template_args"):
        for pair in getattr(settings, field):
            name, _, value = pair.partition("=")
            if found := _secret([name, *_inner(field, value)]):
                raise ConfigError(f"{field} {found} is a secret. {_HOW} ({_variable(found)}).")
    words = re.split(r"[\s,;'\"]+", getattr(settings, "launch", None) or "")
    named = [word.partition("=")[0] for word in words if "=" in word or word.startswith("-")]
    if found := _secret(named):
        raise ConfigError(f"launch holds {found}, a secret. {_HOW}, which the processes inherit.")
    check_values({field.name: getattr(settings, field.name) for field in fields(settings)})


def check_urls(name: str, urls: str) -> None:
    """Check the form of URLs of servers, separated by commas. Raises ConfigError, which omits them.

    What is malformed is refused, as no redaction knows where its password begins.
    """
    for url in urls.split(","):
        if not _URL.fullmatch(url.strip()):
            raise ConfigError(
                f"{name} holds a user name, a password, a query, or another form than "
                f"http://host:8000/v1. {_HOW}: the key goes into OPENAI_API_KEY."
            )


def check_values(values: Mapping[str, Any]) -> None:
    """Check that no text among values, at any depth, looks like a secret.

    Raises ConfigError that names the value and omits it.
    """
    known = _of_environment()
    for name, value in values.items():
        for text in _texts(value):
            looks = next((what for what, form in _LOOKS.items() if form.search(text)), "")
            if owner := next((each for each, secret in known if secret in text), ""):
                looks = f"the value of {owner}"
            if looks:
                raise ConfigError(f"{name} holds {looks}. {_HOW}. In an example, write <secret>.")


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts of a value: of lists, mappings and settings, too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield f"{name}={each}" if isinstance(each, str) else str(name)
            yield from _texts(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _texts(each)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _texts(getattr(value, field.name))
    elif isinstance(value, os.PathLike):
        yield os.fspath(value)


def _of_environment() -> list[tuple[str, str]]:
    """Return the secrets in the environment, by name."""
    return [
        (name, value)
        for name, value in os.environ.items()
        if _NAME.search(name) and name != "PWD" and len(value) >= 12 and not os.path.exists(value)
    ]


def _inner(field: str, value: str) -> list[str]:
    """Return the names within a value that is JSON. Raises ConfigError for what only begins like it."""
    try:
        found = json.loads(value)
    except (ValueError, RecursionError) as error:
        if value.lstrip()[:1] in ("{", "["):
            raise ConfigError(
                f"{field} has a value that begins like JSON and is not. Quote it for the shell, with "
                "double quotes within: name='{\"a\": 1}'."
            ) from error
        return []
    return list(_names(found))


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
    if isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _names(each)


def is_secret_name(name: str) -> bool:
    """Return True for the name of a setting that would hold a secret: api_key, --hf-token."""
    return bool(_NAME.search(name))


def _secret(names: Iterable[str]) -> str:
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
