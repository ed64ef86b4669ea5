"""The pretrained model that these tests run on: the folder of `make real-model`, or any other."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
import transformers

SCRIPT = Path(__file__).parents[2] / "scripts" / "real_model.py"


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def script() -> ModuleType:
    """scripts/real_model.py, as a module."""
    spec = importlib.util.spec_from_file_location("real_model", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def real_model(script: ModuleType) -> Path:
    """The folder that FEMTUNE_REAL_MODEL names, or the one in the cache; skips where there is none."""
    return _existing(script.model_folder())


@pytest.fixture(scope="session")
def real_base(real_model: Path, script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights without a chat template."""
    base: Path = tmp_path_factory.mktemp("base") / "model"
    script.make_base(real_model, base)
    return base


def _existing(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        pytest.skip(f"no pretrained model in {folder}: run `make real-model`")
    return folder
