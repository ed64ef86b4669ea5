"""The algorithm in one file, without the library, comes to what the library comes to."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from pathlib import Path

import pytest

from femtune import train
from femtune.demo import write_world
from femtune.worlds import SEEDLING

FILE = Path(__file__).parent.parent / "examples" / "fem_in_one_file.py"
NUM = 200  # problems on each side


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    train_data, test_data = write_world("rubric", tmp_path_factory.mktemp("world"), NUM, NUM)
    return str(train_data), str(test_data)


@pytest.mark.parametrize(("scheme", "ours"), [("pps", "pps"), ("rejection-1", "rejection:1")])
def test_one_file_and_the_library_agree(
    scheme: str,
    ours: str,
    data: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec = importlib.util.spec_from_file_location("fem_in_one_file", FILE)
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    argv = ["fem", *data, str(SEEDLING), "--scheme", scheme, "--iterations", "1"]
    monkeypatch.setattr("sys.argv", argv)
    module.main()
    base, first = capsys.readouterr().out.splitlines()

    history = train(
        data[0],
        "seedling",
        eval_data=data[1],
        scheme=ours,
        iterations=1,
        max_new_tokens=64,
        learning_rate=1e-3,
        per_device_train_batch_size=32,
        num_train_epochs=2,
        output_dir=tmp_path / "run",
    ).history
    assert base == f"base         accuracy {history[0]['evaluation']['accuracy']:.3f}"  # both greedy
    found = re.fullmatch(rf"iteration 1  kept (\d+)/{NUM}  accuracy (\S+)", first)
    assert found is not None
    # Two shares of 200 with the same expectation differ by sqrt(2 p (1 - p) / 200) <= 0.05 in sigma:
    # of kept draws strictly; of accuracies, as their models were trained on different draws, about.
    tolerance = 4 * math.sqrt(2 * 0.25 / NUM)
    assert abs(int(found[1]) / NUM - history[1]["e_step"]["kept_share"]) < tolerance
    assert abs(float(found[2]) - history[1]["evaluation"]["accuracy"]) < tolerance


def test_its_wording_is_the_librarys() -> None:
    from femtune.prompts import HINT, INSTRUCTION

    text = FILE.read_text()
    assert f"INSTRUCTION = '\\n\\n{INSTRUCTION}'" in text
    assert json.dumps(HINT)[1:60] in text
