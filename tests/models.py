"""Tiny random models with a byte tokenizer, as real Hugging Face folders, for tests without network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

BOS, EOS, TURN, PAD = "<s>", "</s>", "<|turn|>", "<pad>"
TEMPLATE = (
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
FAMILIES = ("qwen3", "llama", "gemma2", "mistral", "gpt2")


def byte_tokenizer(*, bos: bool = False, pad: bool = True, template: bool = True) -> Any:
    """A token for each byte, then the special ones; `bos`: it writes BOS before every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([BOS, EOS, TURN] + [PAD] * pad)
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, core.token_to_id(BOS))]
        )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=BOS, eos_token=EOS, pad_token=PAD if pad else None
    )
    tokenizer.chat_template = ("{{ bos_token }}" if bos else "") + TEMPLATE if template else None
    return tokenizer


def tiny_model(
    folder: Path,
    family: str = "qwen3",
    *,
    seed: int = 0,
    sharpness: float = 4.0,
    num_ends: int = 16,
    tokenizer: Any = None,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> Path:
    """Write a random model of about 30,000 parameters and its tokenizer to `folder`.

    `sharpness` scales the logits, which are all but equal at random. Besides EOS, the first
    `num_ends` bytes end a completion, so that lengths are ragged. The window of gemma2 and mistral
    is 8 tokens, on purpose shorter than most prompts.
    """
    tokenizer = tokenizer or byte_tokenizer()
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 64,
        "max_position_embeddings": 256,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }
    if family == "gpt2":
        del shape["num_key_value_heads"], shape["head_dim"]
    if family in ("gemma2", "mistral"):
        shape["sliding_window"] = 8
    torch.manual_seed(seed)
    made = transformers.AutoConfig.for_model(family, **(shape | config))
    model = transformers.AutoModelForCausalLM.from_config(made).to(dtype)
    with torch.no_grad():  # random weights attend to nothing in particular: make them care
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                weight.mul_(5 if "head" not in name else sharpness * 5)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(num_ends)]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# --- fixtures, for modules that import them


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    """Leave the other cores to other tests."""
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny model."""
    return tiny_model(tmp_path_factory.mktemp("qwen3"))
