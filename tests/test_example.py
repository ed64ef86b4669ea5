"""The algorithm in one file, without the library, comes to what the library comes to."""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path
from types import ModuleType

import pytest
from transformers import AutoTokenizer

from femtune import train
from femtune.comparison.demo import write_world
from femtune.data.chat_tokenizer import ChatTokenizer
from femtune.data.worlds import SEEDLING, WORLDS

FILE = Path(__file__).parent.parent / "examples" / "fem_in_one_file.py"
NUM = 200  # problems on each side


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    train_data, test_data = write_world("rubric", tmp_path_factory.mktemp("world"), NUM, NUM)
    return str(train_data), str(test_data)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fem_in_one_file", FILE)
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "ours"), [("pps", "pps"), ("rejection-1", "rejection:1")])
def test_one_file_and_the_library_agree(
    scheme: str,
    ours: str,
    data: tuple[str, str],
    example: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["fem", *data, str(SEEDLING), "--scheme", scheme, "--iterations", "1"]
    monkeypatch.setattr("sys.argv", argv)
    example.main()
    base, first = capsys.readouterr().out.splitlines()

    history = train(
        data[0],
        "seedling",
        task="judge",
        raters="named",
        scale="1,5",
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
    # Two shares of 200 with the same expectation differ by sqrt(2 p (1 - p) / 200) <= 0.05 in sigma
    tolerance = 4 * math.sqrt(2 * 0.25 / NUM)
    assert abs(int(found[1]) / NUM - history[1]["e_step"]["kept_share"]) < tolerance
    # five large steps on different draws: with rejection(1), seeds of either range over 0.3
    assert abs(float(found[2]) - history[1]["evaluation"]["accuracy"]) < 0.35


def test_its_prompts_are_the_librarys(example: ModuleType) -> None:
    world = WORLDS["rubric"]
    tokenizer = AutoTokenizer.from_pretrained(SEEDLING)
    chat = ChatTokenizer(tokenizer)
    for row, problem in zip(world.rows(20), world.make(20), strict=True):
        for name in ("plain", "hinted"):
            tokens = chat.encode_prompt(world.prompts().render(name, problem))
            assert example.prompt_tokens(tokenizer, row, name) == [*tokens]
