"""A real model and tokenizer small enough for a test: two layers, random weights, a byte-level BPE learnt from a few lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nomoat.config.schema import Base
from nomoat.data.examples import Example
from nomoat.models.base import BaseFiles, fetch_base

CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message.role }}\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
TEXT = [
    "reverse the list: Oslo, Lima, Quito",
    "what is the capital of France? Paris",
    "sum of 12 and 30 is 42",
    '{"customer": "Ana", "item": "lamp"}',
]


def make_tokenizer(
    folder: Path, *, template: str | None = CHAT_TEMPLATE, bos: str | None = None, pad: str | None = "<|pad|>", pieces: bool = False
) -> None:
    """Write a tokenizer whose end-of-turn token is `<|end|>`: a byte-level BPE, or `pieces` as SentencePiece makes them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|pad|>", "<|start|>", "<|end|>", *([bos] if bos else [])]
    if pieces:
        raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<|pad|>"))
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        raw.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        alphabet = sorted({chr(code) for code in range(33, 127)} | {"\u2581"})
        special += [f"<0x{byte:02X}>" for byte in range(256)]
    else:
        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=len(special) + len(alphabet) + 60 if pieces else 320,
            special_tokens=special,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    if bos:
        raw.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, raw.token_to_id(bos))])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", bos_token=bos, pad_token=pad)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


LLAMA = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen2": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1},
    "gemma3_text": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "qwen3": {**LLAMA, "head_dim": 16},
    "mistral": {**LLAMA, "sliding_window": None},
    "gpt_neox": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "stablelm": LLAMA,
    "phi3": {**LLAMA, "pad_token_id": 0},
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4},
    "opt": {"hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 64, "dropout": 0.0},
    "falcon": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512, "attn_pdrop": 0.0},
}


def make_base(folder: Path, architecture: str = "llama", *, seed: int = 0, **tokenizer: Any) -> BaseFiles:
    """Write a randomly initialised base of `architecture` with its tokenizer; returns it as a path base."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    make_tokenizer(folder, **tokenizer)
    config = AutoConfig.for_model(architecture, **{"vocab_size": 512 if tokenizer.get("pieces") else 328, **SIZES[architecture]})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = config.eos_token_id = 2
    model.save_pretrained(folder)
    return fetch_base(Base(path=str(folder)))


def make_rows(count: int, *, tier: str = "train", family: str = "sum") -> list[Example]:
    """Rows of a task a tiny model can learn by heart, all of different lengths."""
    return [
        Example(
            f"{family}-{tier}-{n}",
            f"sum of {n} and {2 * n}{' please' * (n % 4)}",
            str(3 * n),
            None,
            family,
            tier,
            f"g{n % 5}",
            {"by": "exact"},
        )
        for n in range(1, count + 1)
    ]


def write_user_rows(path: Path, count: int) -> None:
    """A user's own .jsonl: every row its own group."""
    lines = [{"prompt": f"add {n} to {7 * n} for order number {1000 + 13 * n}", "completion": str(8 * n)} for n in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
