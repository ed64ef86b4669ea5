"""Safe loading of model folders: weights as safetensors, no pickles, no code from the repository.

Reading numbers, texts and settings executes nothing; a pickle is a program.
"""

from __future__ import annotations

import os
from pathlib import Path

from femtune._util.text import brief, first
from femtune.errors import ModelError

_PICKLED = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})


def check_weights(folder: str | Path) -> None:
    """Check that a folder of a model or an adapter has safetensors, not only pickles. Raises ModelError.

    A name that is no local folder passes, such as an id on the Hub: pickles are never downloaded, and no
    service of the Hub is asked to convert them, as transformers would.
    """
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")  # transformers reads it as it loads
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
            f"{folder} has only pickled weights ({first(pickled)}). They can run code when loaded, so "
            "femtune reads only safetensors. If you trust their author, convert them: python -c "
            f"\"from {package} import {name} as M; M.from_pretrained('{folder}')"
            f".save_pretrained('{folder}')\""
        )


def check_fetched(folder: Path, name: str) -> None:
    """Check that a folder downloaded from the Hub holds weights. Raises ModelError."""
    check_weights(folder)
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"model {name!r} has no safetensors on the Hub. Pickled weights can run code and are not "
            "downloaded. Use a converted copy of the model."
        )


def unreadable(folder: str | Path, what: str, error: Exception) -> ModelError:
    """Build the error for a folder whose `what` transformers can't read.

    One cause is a repository with code of its own. femtune has no trust_remote_code: that code would
    run in each engine, M-step and worker, with all rights of the user.
    """
    if "trust_remote_code" in str(error):
        return ModelError(
            f"{folder} needs code of its own, which femtune does not run (no trust_remote_code). Use a "
            "model whose architecture is part of transformers, or install a package that registers it "
            "there."
        )
    kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
    reason = brief(f"{kind}{' '.join(str(error).split())}", 500)
    return ModelError(f"{folder}: its {what} can't be read: {reason}")
