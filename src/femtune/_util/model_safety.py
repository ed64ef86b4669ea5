"""What of a model's folder is read: weights as safetensors, never pickles, and no code of its own.

A folder of numbers, texts and settings does nothing when it is read; a pickle is a program.
"""

from __future__ import annotations

import os
from pathlib import Path

from femtune._util.text import brief, first
from femtune.errors import ModelError

# transformers would ask a service of the Hub to convert what has none: nothing is sent there
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")

_PICKLED = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})


def check_weights(folder: str | Path) -> None:
    """Refuse a folder of a model or an adapter whose weights are pickled alone. Raises ModelError.

    What is no folder here passes, as an id on the Hub is none: of that, pickles are not fetched.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return
    is_adapter = (folder / "adapter_config.json").is_file()
    if any(folder.glob("adapter_model.safetensors" if is_adapter else "*.safetensors")):
        return
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in _PICKLED)
    if pickled:
        reader = "peft.AutoPeftModelForCausalLM" if is_adapter else "transformers.AutoModelForCausalLM"
        package, _, name = reader.partition(".")
        raise ModelError(
            f"{folder} has its weights as pickles alone ({first(pickled)}), which can run code as they "
            "are read: femtune takes safetensors. If you trust who made them, convert them: python -c "
            f"\"from {package} import {name} as M; M.from_pretrained('{folder}')"
            f".save_pretrained('{folder}')\""
        )


def check_fetched(folder: Path, name: str) -> None:
    """Refuse what was fetched from the Hub without weights. Raises ModelError."""
    check_weights(folder)
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"model {name!r} has no safetensors on the Hub, and pickled weights are not fetched, as "
            "they can run code: take a converted copy of it."
        )


def unreadable(folder: str | Path, what: str, error: Exception) -> ModelError:
    """The error to raise where transformers can't read `what` of a folder.

    Where that is as the folder wants code of its own to be run, femtune has no trust_remote_code: it
    would be run in each engine, M-step and worker, with all that the user may do.
    """
    if "trust_remote_code" in str(error):
        return ModelError(
            f"{folder} comes with code of its own, which femtune does not run: there is no "
            "trust_remote_code here. Take a model whose architecture is transformers' own, or install a "
            "package that registers it there."
        )
    kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
    reason = brief(f"{kind}{' '.join(str(error).split())}", 500)
    return ModelError(f"{folder} has no {what} that can be read: {reason}")
