"""Libraries that only a part of femtune needs: each is in an extra of pyproject.toml."""

from __future__ import annotations

from importlib.util import find_spec

from femtune.errors import ConfigError

# module: its package, and the extra that has it
OPTIONAL = {
    "bm25s": ("bm25s", "similar"),
    "datasets": ("datasets", "datasets"),
    "dspy": ("dspy", "compare-prompts"),
    "gepa": ("gepa", "compare-prompts"),
    "math_verify": ("math-verify", "math"),
    "scipy": ("scipy", "stats"),
    "sklearn": ("scikit-learn", "stats"),
    "vl_convert": ("vl-convert-python", "report"),
}


def check_extra(part: str, *modules: str) -> None:
    """Raise ConfigError where a library that a part of femtune needs is not installed.

    >>> check_extra("femtune report", "vl_convert")
    """
    for module in modules:
        if find_spec(module) is None:
            package, extra = OPTIONAL[module]
            raise ConfigError(f"{part} needs {package}: pip install 'femtune[{extra}]'.")
