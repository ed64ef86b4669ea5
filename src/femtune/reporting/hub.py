"""Upload of a run's model or rationales to the Hugging Face Hub, with their card.

    pack("runs/judge", "me/judge", "model")     the files to send, and their sizes
    send(upload, private=True)                  sends them; returns the address

A model is sent without its weight check, which holds problems. Of the data, the examples are sent, and
the draws on request. Local paths are removed from the copies that are sent.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from huggingface_hub import DatasetCard, HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from femtune.engines.weight_check import OLD_WEIGHT_CHECK, WEIGHT_CHECK
from femtune.errors import ConfigError, FemtuneError, RunError
from femtune.reporting.cards import hub_model, write_data_card, write_model_card

What = Literal["model", "data"]
Which = Literal["best", "last"]


@dataclass(frozen=True)
class Upload:
    """The files to send to a repository of the Hub."""

    repo: str  # owner/name
    kind: Literal["model", "dataset"]
    files: Mapping[str, Path]  # by their names in the repository
    changed: Mapping[str, str]  # files whose text differs from the local one
    _: KW_ONLY
    message: str
    note: str = ""  # a notice for the owner

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each file, by its name in the repository."""
        here = {name: path.stat().st_size for name, path in self.files.items()}
        return here | {name: len(text.encode()) for name, text in self.changed.items()}


def pack(root: Path, repo: str, what: What, which: Which = "best", *, draws: bool = False) -> Upload:
    """Collect what the run in `root` would send. Writes only a missing card.

    Raises RunError if the run lacks it, ConfigError for an invalid repository name.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"{repo!r} is not a repository's name. Give owner/name. ({error})") from error
    if "/" not in repo:
        raise ConfigError(f"{repo!r} has no owner: give owner/name.")
    if draws and what == "model":
        raise ConfigError("Draws can be pushed with --what data only.")
    iteration = _iteration(root, which, what)
    if what == "model":
        return _model(root, repo, iteration)
    return _data(root, repo, iteration, draws)


def _iteration(root: Path, which: Which, what: What) -> int:
    """Return the iteration that `best` or `last` points to; the only one for a run of `sample`."""
    if not (root / "config.yaml").exists():
        raise RunError(f"{root} is no run: it has no config.yaml.")
    link = root / which
    if link.is_symlink():
        return int(os.readlink(link).split("/")[0].removeprefix("iteration-"))
    if what == "data" and (root / "iteration-001" / "metrics.json").exists():
        return 1
    raise RunError(f"{root} has no model `{which}`: it is not finished, or not a run of `train`.")


def _model(root: Path, repo: str, iteration: int) -> Upload:
    card = write_model_card(root, iteration)
    left = {WEIGHT_CHECK, OLD_WEIGHT_CHECK}
    files = {path.name: path for path in sorted(card.parent.iterdir()) if path.is_file()}
    files = {name: path for name, path in files.items() if name not in left and name[0] != "."}
    changed = {"README.md": _named(card.read_text(encoding="utf-8"), repo)}
    note = ""
    if "adapter_config.json" in files:
        adapter = json.loads(files["adapter_config.json"].read_text())
        model = yaml.safe_load((root / "config.yaml").read_text())["model"]
        # PEFT stores the local path of the base
        adapter["base_model_name_or_path"] = base = hub_model(model) or Path(model).name
        if hub_model(model) is None:
            note = f"The adapter's base, {base}, is no model of the Hub: others can't load it by name."
        changed["adapter_config.json"] = json.dumps(adapter, indent=2) + "\n"
    if "examples.jsonl" in files:
        note = "The examples hold problems of the data, word for word."
    return Upload(
        repo,
        "model",
        files,
        changed,
        message=f"Model after iteration {iteration}, by femtune",
        note=note,
    )


def _data(root: Path, repo: str, iteration: int, draws: bool) -> Upload:
    card = write_data_card(root, iteration)
    folder = card.parent
    files = {"README.md": card, "examples.parquet": folder / "examples.parquet"}
    if draws:
        files |= {f"draws/{path.name}": path for path in sorted((folder / "draws").glob("*.parquet"))}
    made = DatasetCard(card.read_text(encoding="utf-8"))
    if not draws and made.data.get("configs"):  # the Hub's viewer fails on files that are not there
        made.data["configs"] = [c for c in made.data["configs"] if c.get("config_name") != "draws"]
    changed = {"README.md": _named(str(made), repo)}
    note = "Examples hold the problems' prompts" + (
        ", and draws all that was written." if draws else "."
    )
    message = f"Rationales of iteration {iteration}, by femtune"
    return Upload(repo, "dataset", files, changed, message=message, note=note)


def _named(card: str, repo: str) -> str:
    """Return a card whose usage examples load from the repository."""
    return re.sub(r'^name = ".*"  # this folder.*$', lambda _: f'name = "{repo}"', card, flags=re.M)


def check_ready() -> None:
    """Raise ConfigError if an upload is impossible, before any file is read."""
    if constants.HF_HUB_OFFLINE:
        raise ConfigError("HF_HUB_OFFLINE is set: unset it to push.")
    if not get_token():
        raise ConfigError("you are not logged in to the Hub: run `hf auth login`, or set HF_TOKEN.")


def send(upload: Upload, *, private: bool = False, api: Any = None) -> str:
    """Create the repository if needed, send the files in one commit, and return its address.

    `api` is an HfApi. Raises ConfigError if `private` is set and the repository is public,
    FemtuneError if the Hub refuses or cannot be reached.
    """
    check_ready()
    api = api or HfApi(library_name="femtune")
    try:
        # None selects the Hub's default, which may be private for an organisation
        made = api.create_repo(
            upload.repo, repo_type=upload.kind, private=private or None, exist_ok=True
        )
        if private and not api.repo_info(made.repo_id, repo_type=upload.kind).private:
            raise ConfigError(f"{made.repo_id} exists and is public. Make it private first.")
        with tempfile.TemporaryDirectory() as folder:
            _lay_out(upload, Path(folder))
            api.upload_folder(
                repo_id=made.repo_id,
                repo_type=upload.kind,
                folder_path=folder,
                commit_message=upload.message,
            )
    except FemtuneError:
        raise
    except Exception as error:  # the Hub's client raises its own, its transport's, and OSErrors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FemtuneError(f"{upload.repo} could not be pushed: {reason}") from error
    return str(made)


def _lay_out(upload: Upload, folder: Path) -> None:
    for name, path in upload.files.items():
        place = folder / name
        place.parent.mkdir(exist_ok=True)
        if name in upload.changed:
            place.write_text(upload.changed[name], encoding="utf-8")
        else:
            place.symlink_to(path.resolve())  # no copy: weights are large
