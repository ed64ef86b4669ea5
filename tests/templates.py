"""Chat templates in the form of real families', each over a small tokenizer with their special tokens.

The tokenizer has a token for each byte and one merge, "a" + "b" -> "ab", so that the sampled tokens
"a", "b" are re-encoded as another one. What a real model of the family does, and templates get wrong:

    llama3       turns end with <|eot_id|> while EOS is <|end_of_text|>; BOS by the template, and by
                 the tokenizer itself; no pad token
    qwen2.5      no BOS; a system message of its own
    qwen3        a switch for thinking; the thoughts of earlier turns are left out
    qwen3-2507   the prompt opens the thoughts
    gemma        no system role; the assistant is "model"; turns end with <end_of_turn>, EOS is <eos>
    mistral      BOS once, turns in [INST]; pad is EOS
    base         no template; with, and without a BOS that the tokenizer adds
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n{{ message.content | trim }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
QWEN25 = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe of help.<|im_end|>\n{% endif %}"
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_QWEN3_TURNS = (
    "{% for message in messages %}{% set content = message.content %}"
    "{% if message.role == 'assistant' and not loop.last and '</think>' in content %}"
    "{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "<|im_start|>{{ message.role }}\n{{ content }}<|im_end|>\n"
    "{% endfor %}"
)
QWEN3 = _QWEN3_TURNS + (
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
QWEN3_2507 = _QWEN3_TURNS + ("{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}")
GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}\n"
    "{{ message.content | trim }}<end_of_turn>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}[INST] {{ message.content }} [/INST]"
    "{% else %} {{ message.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)


@dataclass(frozen=True)
class Family:
    """A template, the tokenizer around it, and what they make of the question "Hi"."""

    name: str
    template: str | None
    special: tuple[str, ...]
    eos: str
    end: str  # of a turn
    asked: str  # the prompt of "Hi" as text, BOS included
    bos: str | None = None
    pad: str | None = None
    adds_bos: bool = False  # the tokenizer, by itself
    words: tuple[str, ...] = ()  # added tokens that are not special

    def tokenizer(self) -> Any:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        core = Tokenizer(
            models.BPE({letter: i for i, letter in enumerate([*alphabet, "ab"])}, [("a", "b")])
        )
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        core.decoder = decoders.ByteLevel()
        core.add_special_tokens(list(self.special))
        core.add_tokens(list(self.words))
        if self.adds_bos:
            core.post_processor = processors.TemplateProcessing(
                single=f"{self.bos} $A", special_tokens=[(self.bos, core.token_to_id(self.bos))]
            )
        made = transformers.PreTrainedTokenizerFast(
            tokenizer_object=core, bos_token=self.bos, eos_token=self.eos, pad_token=self.pad
        )
        made.chat_template = self.template
        return made


_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_THINK = ("<think>", "</think>")
FAMILIES = (
    Family(
        "llama3",
        LLAMA3,
        (
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        ),
        eos="<|end_of_text|>",
        end="<|eot_id|>",
        asked="<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        bos="<|begin_of_text|>",
        adds_bos=True,
    ),
    Family(
        "qwen2.5",
        QWEN25,
        _IM,
        eos="<|im_end|>",
        end="<|im_end|>",
        asked="<|im_start|>system\nBe of help.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n",
        pad="<|endoftext|>",
    ),
    Family(
        "qwen3",
        QWEN3,
        _IM,
        eos="<|im_end|>",
        end="<|im_end|>",
        asked="<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        pad="<|endoftext|>",
        words=_THINK,
    ),
    Family(
        "qwen3-2507",
        QWEN3_2507,
        _IM,
        eos="<|im_end|>",
        end="<|im_end|>",
        asked="<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n",
        pad="<|endoftext|>",
        words=_THINK,
    ),
    Family(
        "gemma",
        GEMMA,
        ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        eos="<eos>",
        end="<end_of_turn>",
        asked="<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
        bos="<bos>",
        pad="<pad>",
        adds_bos=True,
    ),
    Family(
        "mistral",
        MISTRAL,
        ("<s>", "</s>", "[INST]", "[/INST]"),
        eos="</s>",
        end="</s>",
        asked="<s>[INST] Hi [/INST]",
        bos="<s>",
        pad="</s>",
        adds_bos=True,
    ),
    Family(
        "base with BOS",
        None,
        ("<s>", "</s>"),
        eos="</s>",
        end="</s>",
        asked="<s>Hi\n",
        bos="<s>",
        adds_bos=True,
    ),
    Family(
        "base without BOS",
        None,
        ("<|endoftext|>",),
        eos="<|endoftext|>",
        end="<|endoftext|>",
        asked="Hi\n",
        pad="<|endoftext|>",
    ),
)
FAMILY = {family.name: family for family in FAMILIES}
