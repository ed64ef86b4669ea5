"""The wheel as a user gets it: built, installed apart from the source tree, run, and type-checked."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling")

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "tests/fixtures/user_script.py"
# what the package imports is of no interest to a user's type checker, and takes it minutes
SKIPPED = (
    *("torch", "transformers", "numpy", "scipy", "sklearn", "pyarrow", "peft", "datasets", "tokenizers"),
    *("huggingface_hub", "jinja2", "ray", "duckdb", "starlette", "uvicorn", "httpx2", "anyio"),
)


def run(*command: str | Path, cwd: Path) -> str:
    """Return what a command prints; fail with what it says where it fails."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=own | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "wheel", ROOT, "--no-deps", "--no-build-isolation", "--wheel-dir", place, cwd=place)
    [made] = place.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", place, cwd=ROOT)
    [made] = place.glob("*.tar.gz")
    return made


@pytest.fixture(scope="module")
def python(wheel: Path) -> Path:
    """Return the Python of an environment with the wheel, and what it depends on from this one."""
    folder = wheel.parent / "env"
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=wheel.parent)
    [packages] = folder.glob("lib/python*/site-packages")
    # a plain path: the files there that point to a source tree are not followed
    (packages / "here.pth").write_text(sysconfig.get_path("purelib"))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "install", "--no-deps", "--target", packages, wheel, cwd=wheel.parent)
    return folder / "bin/python"


def test_it_holds_every_file_of_the_package_and_no_other(wheel: Path) -> None:
    source = ROOT / "src"
    expected = {
        path.relative_to(source).as_posix()
        for path in (source / "femtune").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == expected
    for name in ("py.typed", "assets/seedling/model.safetensors", "assets/cards/model.md.j2"):
        assert f"femtune/{name}" in held
    assert any(name.endswith("style.css") for name in held)


def test_a_wheel_made_from_the_source_archive_is_the_same(sdist: Path, wheel: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(sdist.parent, filter="data")
    source = sdist.parent / sdist.name.removesuffix(".tar.gz")
    for name in ("README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "tests/test_wheel.py"):
        assert (source / name).is_file()
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", sdist.parent, cwd=source)
    [made] = sdist.parent.glob("*.whl")
    with zipfile.ZipFile(made) as again, zipfile.ZipFile(wheel) as first:
        names = {name for name in first.namelist() if ".dist-info/" not in name}
        assert {name for name in again.namelist() if ".dist-info/" not in name} == names
        assert [name for name in names if again.read(name) != first.read(name)] == []


def test_it_is_found_apart_from_the_source(python: Path, wheel: Path) -> None:
    said = run(
        python, "-c", "import femtune; print(femtune.__file__, femtune.__version__)", cwd=wheel.parent
    )
    file, version = said.split()
    assert Path(file).is_relative_to(wheel.parent) and f"-{version}-" in wheel.name
    assert run(python, "-m", "femtune", "--version", cwd=wheel.parent).strip() == version
    assert "--output-dir" in run(python, "-m", "femtune", "demo", "--help", cwd=wheel.parent)


def test_a_users_script_runs(python: Path, wheel: Path) -> None:
    said = run(python, SCRIPT, cwd=wheel.parent)
    assert "best: judge/best (iteration 1, the last" in said
    assert (wheel.parent / "judge/best/femtune.json").exists()


def test_a_users_script_passes_a_strict_type_checker(python: Path, wheel: Path) -> None:
    pytest.importorskip("mypy")
    config = wheel.parent / "mypy.ini"
    skipped = ",".join(f"{name}.*" for name in SKIPPED)
    config.write_text(f"[mypy]\nstrict = True\n[mypy-{skipped}]\nfollow_imports = skip\n")
    mypy = (sys.executable, "-m", "mypy", "--config-file", config, "--python-executable", python)
    cache = ("--cache-dir", wheel.parent / "cache")
    assert run(*mypy, *cache, SCRIPT, cwd=wheel.parent).startswith("Success")
    wrong = wheel.parent / "wrong.py"
    wrong.write_text('from femtune import train\n\ntrain("a.jsonl", "seedling", iterations="two")\n')
    with pytest.raises(AssertionError, match=r'"iterations" .* has incompatible type "str"'):
        run(*mypy, *cache, wrong, cwd=wheel.parent)
