"""Weights are read from safetensors of the model's own folder, and from nothing else."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from femtune._util.model_safety import check_fetched, check_weights
from femtune.cli.main import main
from femtune.engines.hf.engine import TransformersEngine
from femtune.engines.hf.model import read_model
from femtune.engines.model_files import find_model, local_model
from femtune.engines.vllm.setup import check_format
from femtune.errors import ConfigError, ModelError
from femtune.mstep.config import Training
from femtune.mstep.model import load_model

from ..models import tiny_model


class Mark:
    """A pickle that leaves a mark when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("whole"), sharpness=0.5)


@pytest.fixture(scope="module")
def adapter(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    load_model(whole, Training(use_peft=True, lora_r=2)).save_pretrained(folder)
    return folder


def pickled(folder: Path, to: Path) -> Path:
    """A copy whose weights are a pickle as torch writes it."""
    shutil.copytree(folder, to)
    for file, name in (("model", "pytorch_model.bin"), ("adapter_model", "adapter_model.bin")):
        weights = to / f"{file}.safetensors"
        if weights.exists():
            torch.save(load_file(weights), to / name)
            weights.unlink()
    return to


@pytest.mark.parametrize(
    "name",
    [
        *("pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "weights.pt", "weights.pth"),
        *("weights.ckpt", "weights.PKL"),
    ],
)
def test_a_folder_of_pickles_is_refused_at_once_and_none_is_read(
    name: str, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(Mark(tmp_path / "mark"), folder / name)
    for read in (
        lambda: find_model(str(folder)),
        lambda: local_model(str(folder)),
        lambda: read_model(folder, "auto", "cpu", trust=False),
        lambda: read_model(str(folder), "auto", "cpu", trust=False),
        lambda: TransformersEngine(folder, device="cpu"),
        lambda: load_model(folder, Training()),
        lambda: load_model(folder, Training(use_peft=True)),
    ):
        with pytest.raises(
            ModelError, match=f"only pickled weights \\({name}\\).*convert them: python -c"
        ):
            read()
    assert not (tmp_path / "mark").exists()


def test_an_adapter_of_pickles_is_refused_at_once_beside_a_whole_model_too(
    adapter: Path, whole: Path, tmp_path: Path
) -> None:
    folder = pickled(adapter, tmp_path / "adapter")
    shutil.copy(whole / "model.safetensors", folder)  # which is not the adapter's
    torch.save(Mark(tmp_path / "mark"), folder / "adapter_model.bin")
    for read in (
        lambda: find_model(str(folder)),
        lambda: read_model(folder, "auto", "cpu", trust=False),
        lambda: load_model(folder, Training(use_peft=True)),
    ):
        with pytest.raises(ModelError, match=r"only pickled weights \(adapter_model.bin\)"):
            read()
    assert not (tmp_path / "mark").exists()


def test_an_adapter_over_a_base_of_pickles_is_refused(
    adapter: Path, whole: Path, tmp_path: Path
) -> None:
    base = pickled(whole, tmp_path / "base")
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(base)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="only pickled weights"):
        read_model(folder, "auto", "cpu", trust=False)
    with pytest.raises(ModelError, match="only pickled weights"):
        load_model(folder, Training(use_peft=True))


@pytest.mark.slow
def test_what_the_message_says_converts_them(whole: Path, adapter: Path, tmp_path: Path) -> None:
    for kind in (whole, adapter):
        folder = pickled(kind, tmp_path / kind.name)
        with pytest.raises(ModelError) as refused:
            check_weights(folder)
        python, *words = shlex.split(str(refused.value).partition("convert them: ")[2])
        assert python == "python"
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        check_weights(folder)
        name = next(path.name for path in kind.glob("*.safetensors"))
        made, before = load_file(folder / name), load_file(kind / name)
        assert made.keys() == before.keys()
        assert all(made[key].equal(before[key]) for key in made)
        read_model(folder, "auto", "cpu", trust=False)


def test_pickles_beside_safetensors_stay_unread(whole: Path, tmp_path: Path) -> None:
    """As a Trainer leaves its arguments and its optimizer."""
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    for name in ("training_args.bin", "optimizer.pt", "pytorch_model.bin"):
        torch.save(Mark(tmp_path / "mark"), folder / name)
    assert find_model(str(folder)) == folder
    read_model(folder, "auto", "cpu", trust=False)
    load_model(folder, Training())
    assert not (tmp_path / "mark").exists()


def test_the_command_line_refuses_pickles(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pickled(whole, tmp_path / "model")
    rows = [{"prompt": f"{n} + 2?", "answer": f"{n + 2}"} for n in range(40)]
    (tmp_path / "data.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for verb in ("train", "sample", "evaluate", "predict", "check", "estimate"):
        assert main([verb, str(tmp_path / "data.jsonl"), "--model", str(folder)]) == 1
        assert "only pickled weights (pytorch_model.bin)" in capsys.readouterr().err
    (tmp_path / "e.jsonl").write_text('{"prompt": "2+2?", "completion": "4"}\n')
    out = str(tmp_path / "out")
    assert main(["fit", str(tmp_path / "e.jsonl"), "--model", str(folder), "--output-dir", out]) == 1
    assert "only pickled weights (pytorch_model.bin)" in capsys.readouterr().err


def test_a_model_of_the_hub_without_safetensors_is_refused(whole: Path, tmp_path: Path) -> None:
    """Its pickles are not fetched, so that its folder has no weights."""
    check_fetched(whole, "me/model")
    shutil.copy(whole / "config.json", tmp_path)
    with pytest.raises(ModelError, match="'me/model' has no safetensors on the Hub"):
        check_fetched(tmp_path, "me/model")


@pytest.mark.parametrize("told", ["auto", "pt", "npcache"])
def test_vllm_is_not_told_to_read_pickles(told: str) -> None:
    with pytest.raises(ConfigError, match=f"load_format {told} reads pickled weights"):
        check_format({"load_format": told})
    check_format({"load_format": "dummy"})
    check_format({})


# --- what an index names


def indexed(whole: Path, folder: Path, **names: str) -> Path:
    """A model of one shard, whose index names `names` in place of it for the last weight."""
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copy(whole / "model.safetensors", folder / "model-00001-of-00001.safetensors")
    weights = dict.fromkeys(load_file(whole / "model.safetensors"), "model-00001-of-00001.safetensors")
    weights[max(weights)] = names.get("name", weights[max(weights)])
    index = {"metadata": {"total_size": 1}, "weight_map": weights}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def readers(folder: Path) -> list[Any]:
    return [
        lambda: find_model(str(folder)),
        lambda: read_model(folder, "auto", "cpu", trust=False),
        lambda: load_model(folder, Training()),
        lambda: load_model(folder, Training(use_peft=True)),
    ]


def test_a_model_of_shards_is_read(whole: Path, tmp_path: Path) -> None:
    for read in readers(indexed(whole, tmp_path / "model")):
        read()


@pytest.mark.parametrize(
    "name",
    [
        *("part.bin", "../outside.safetensors", "/{outside}", "sub/part.safetensors"),
        *("..\\outside.safetensors", "part.safetensors.bin", "", "part.SAFETENSORS"),
    ],
)
def test_an_index_that_names_something_else_is_refused_and_nothing_is_read(
    name: str, whole: Path, tmp_path: Path
) -> None:
    name = name.format(outside=str(tmp_path / "outside.safetensors").lstrip("/"))
    folder = indexed(whole, tmp_path / "model", name=name)
    (folder / "sub").mkdir()
    for place in (tmp_path / "outside.safetensors", folder / "sub" / "part.safetensors"):
        shutil.copy(whole / "model.safetensors", place)
    shutil.copy(whole / "model.safetensors", folder / "decoy.safetensors")
    torch.save(Mark(tmp_path / "mark"), folder / "part.bin")
    for read in readers(folder):
        with pytest.raises(ModelError, match=r"index\.json: weight_map names .* of the folder itself"):
            read()
    assert not (tmp_path / "mark").exists()


def test_a_decoy_beside_an_index_of_pickles_does_not_pass(whole: Path, tmp_path: Path) -> None:
    folder = pickled(whole, tmp_path / "model")
    shutil.copy(whole / "model.safetensors", folder / "decoy.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "pytorch_model.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for read in readers(folder):
        with pytest.raises(ModelError, match=r"only pickled weights \(pytorch_model.bin\)"):
            read()


def test_an_index_of_pickles_beside_safetensors_stays_unread(whole: Path, tmp_path: Path) -> None:
    """As a clone of an older repository has it."""
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    torch.save(Mark(tmp_path / "mark"), folder / "part.bin")
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "part.bin"}}')
    for read in readers(folder):
        read()
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"weight_map": []}', '{"weight_map": {"a": "b"}'])
def test_an_index_that_maps_nothing_is_refused(text: str, whole: Path, tmp_path: Path) -> None:
    folder = indexed(whole, tmp_path / "model")
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match="maps no weights to files"):
        check_weights(folder)


def test_a_shard_that_is_missing_is_named(whole: Path, tmp_path: Path) -> None:
    folder = indexed(whole, tmp_path / "model", name="model-00002-of-00002.safetensors")
    with pytest.raises(ModelError, match=r"names model-00002-of-00002\.safetensors, which is missing"):
        check_weights(folder)


@pytest.mark.parametrize("named", ["adapter_model.bin", "../model.safetensors", "sub/a.safetensors"])
def test_a_config_that_names_other_weights_is_refused(named: str, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    config = json.loads((folder / "config.json").read_text()) | {"transformers_weights": named}
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(Mark(tmp_path / "mark"), folder / "adapter_model.bin")
    for read in readers(folder):
        with pytest.raises(ModelError, match="transformers_weights names"):
            read()
    assert not (tmp_path / "mark").exists()


def test_an_adapter_over_a_base_with_such_an_index_is_refused(
    adapter: Path, whole: Path, tmp_path: Path
) -> None:
    base = indexed(whole, tmp_path / "base", name="part.bin")
    torch.save(Mark(tmp_path / "mark"), base / "part.bin")
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(base)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    for read in (
        lambda: read_model(folder, "auto", "cpu", trust=False),
        lambda: load_model(folder, Training(use_peft=True)),
    ):
        with pytest.raises(ModelError, match=r"weight_map names 'part\.bin'"):
            read()
    assert not (tmp_path / "mark").exists()


def test_a_link_out_of_the_folder_is_refused(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "model.safetensors").symlink_to(whole / "model.safetensors")
    for read in readers(folder):
        with pytest.raises(ModelError, match="is a link out of its folder"):
            read()


def test_links_within_a_folder_and_in_the_cache_of_the_hub_are_read(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "best").symlink_to(whole)  # as a run's `best` is a link to a folder
    check_weights(tmp_path / "best")
    folder = tmp_path / "models--me--it" / "snapshots" / "0f"
    shutil.copytree(whole, folder)
    (blobs := folder.parent.parent / "blobs").mkdir()
    (folder / "model.safetensors").rename(blobs / "ab12")
    (folder / "model.safetensors").symlink_to("../../blobs/ab12")
    check_weights(folder)
    read_model(folder, "auto", "cpu", trust=False)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_pointer_of_git_lfs_is_named_as_such(name: str, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12\n"
    (folder / name).write_text(pointer)
    for read in readers(folder):
        with pytest.raises(ModelError, match=f"{name} is a pointer of Git LFS.*git lfs pull"):
            read()
