"""Safe loading of model folders: weights as safetensors, no pickles, no code from the repository.

Reading numbers, texts and settings executes nothing; a pickle is a program.
"""

from __future__ import annotations

import os
from pathlib import Path

from femtune._util.parsing import Unreadable, read_json
from femtune._util.text import brief, first
from femtune.errors import ModelError

_PICKLED = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
_INDEX = ".safetensors.index.json"
_LFS = b"version https://git-lfs.github.com/spec/"  # the first bytes of a pointer
_LFS_BYTES = 1024  # a pointer is smaller
_MODEL_FILES = frozenset({".safetensors", ".json", ".model", ".txt", ".jinja"})


def check_weights(folder: str | Path) -> None:
    """Check that what is read of a folder of a model or an adapter is safetensors within it.

    A name that is no local folder passes, such as an id on the Hub: pickles are never downloaded, and no
    service of the Hub is asked to convert them, as transformers would. Raises ModelError for weights
    that are pickles alone, an index or a config that names other files than safetensors of the folder,
    a link out of it, and a pointer of Git LFS in place of a file.
    """
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")  # transformers reads it as it loads
    folder = Path(folder)
    if not folder.is_dir():
        return
    _check_pointers(folder)
    for index in sorted(folder.glob(f"*{_INDEX}")):
        for name in _indexed(index):
            _check_plain(index, "weight_map", name)
            if not (folder / name).is_file():
                raise ModelError(f"{index} names {name}, which is missing. Download the model again.")
    for file in sorted(folder.glob("*.safetensors")):
        _check_link(folder, file)
    is_adapter = (folder / "adapter_config.json").is_file()
    read = ["adapter_model.safetensors"] if is_adapter else ["model.safetensors", f"model{_INDEX}"]
    if named := _named_weights(folder / "config.json"):  # transformers reads this file, if it is named
        read = [named]
    if any((folder / name).is_file() for name in read):
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


def _check_pointers(folder: Path) -> None:
    """Refuse a pointer of Git LFS in place of weights, tokenizer or config. Raises ModelError."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in _MODEL_FILES and path.is_file() and path.stat().st_size < _LFS_BYTES:
            with path.open("rb") as file:
                is_pointer = file.read(len(_LFS)) == _LFS
            if is_pointer:
                raise ModelError(
                    f"{path} is a pointer of Git LFS, not the file. Run `git lfs pull` in {folder}."
                )


def _indexed(index: Path) -> list[str]:
    """Return the files that an index of weights names. Raises ModelError for one that names none."""
    try:
        files = read_json(index)["weight_map"].values()
    except (Unreadable, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} maps no weights to files. Download the model again.") from error
    return sorted({str(name) for name in files})


def _named_weights(config: Path) -> str | None:
    """Return the file of weights that a config names, if any. Raises ModelError for another file."""
    try:
        found = read_json(config)
    except Unreadable:
        return None  # who reads the config says what is wrong
    name = found.get("transformers_weights") if isinstance(found, dict) else None
    if name is not None:
        _check_plain(config, "transformers_weights", str(name), (".safetensors", _INDEX))
    return None if name is None else str(name)


def _check_plain(
    place: Path, key: str, name: str, endings: str | tuple[str, ...] = ".safetensors"
) -> None:
    r"""Refuse a name that is no safetensors file of the same folder: a/b, ..\b, b.bin."""
    if not name.endswith(endings) or any(sign in name for sign in "/\\\0"):
        raise ModelError(
            f"{place}: {key} names {brief(name, 100)!r} as weights. femtune reads only *.safetensors "
            "files of the folder itself: put one there, and correct the name."
        )


def _check_link(folder: Path, file: Path) -> None:
    """Refuse a link out of a model's folder; the Hub's cache links to blobs of its own."""
    root, target = folder.resolve(), file.resolve()
    blobs = root.parent.parent / "blobs"
    if target.is_relative_to(root) or (root.parent.name == "snapshots" and target.parent == blobs):
        return
    raise ModelError(
        f"{file} is a link out of its folder, to {target}. Copy the file into the folder, or give the "
        "folder in which it lies."
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
