"""Base and adapter from one model where that is exact, from two where it is not; and the plain path without our kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nomoat.config.schema import Lora
from nomoat.data.chat_template import ChatTemplate
from nomoat.evaluation.arms import Arm, make_request, score_arm
from nomoat.evaluation.models import LoadedModels, load_merged_model, load_models
from nomoat.kernels.linear import FusedLoraLinear, PrepackedLinear, can_prepack
from nomoat.kernels.varlen_attention import uses_varlen_attention
from nomoat.models.adapter import attach_adapter, load_adapter, save_adapter
from nomoat.models.base import BaseFiles, load_model, load_tokenizer
from tests.evaluation.test_arms import SETTINGS, choice_rows
from tests.tiny import make_base, make_rows

IDS = torch.tensor([[5, 9, 12, 40, 7]])
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # float32 products in another order


def make_adapter(folder: Path, files: BaseFiles, method: str = "lora") -> Path:
    """An adapter (or for `full` a whole model) that differs from what it began as."""
    model = attach_adapter(load_model(files, precision="float32", device="cpu"), Lora(method=method, rank=4), seed=0, files=files)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    save_adapter(model, folder, files)
    return folder


def load(files: BaseFiles, adapter: Path, kernels: str = "auto") -> LoadedModels:
    template = ChatTemplate(load_tokenizer(files))
    probe = [make_request(row, Arm("base", (), {}, False), template) for row in make_rows(2)]
    return load_models(files, adapter, precision="float32", device="cpu", template=template, probe=probe, kernels=kernels)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "falcon"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_using_gives_the_untouched_base_and_the_adapter_and_leaves_the_adapter_on(tmp_path: Path, architecture: str, method: str) -> None:
    files = make_base(tmp_path / "base", architecture)
    adapter = make_adapter(tmp_path / "adapter", files, method)
    untouched = logits(load_model(files, precision="float32", device="cpu"))
    tuned = logits(load_adapter(load_model(files, precision="float32", device="cpu"), adapter))
    models = load(files, adapter)
    assert models.shared == (method == "lora")
    for _ in range(2):
        with models.using("base") as model:
            assert torch.allclose(logits(model), untouched, **CLOSE)
        with models.using("adapter") as model:
            assert torch.allclose(logits(model), tuned, **CLOSE)
    assert not torch.allclose(untouched, tuned, **CLOSE)


def test_an_adapter_that_leaves_a_trace_when_it_is_off_gets_a_base_apart(tmp_path: Path) -> None:
    """peft can train the base's biases too; disabling such an adapter does not restore them."""
    from peft import LoraConfig, get_peft_model

    files = make_base(tmp_path / "base", "qwen2")
    untouched = logits(load_model(files, precision="float32", device="cpu"))
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "k_proj"], bias="lora_only")
    adapted = get_peft_model(load_model(files, precision="float32", device="cpu"), config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if name.endswith("bias") and parameter.requires_grad:
                parameter += 1.0
    adapted.save_pretrained(tmp_path / "adapter")
    models = load(files, tmp_path / "adapter")
    assert not models.shared
    with models.using("base") as model:
        assert torch.allclose(logits(model), untouched, **CLOSE)
    with models.using("adapter") as model:
        assert not torch.allclose(logits(model), untouched, **CLOSE)


def test_plain_kernels_are_those_of_transformers_and_peft_and_compute_the_same(tmp_path: Path) -> None:
    files = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", files)
    fast, plain = load(files, adapter), load(files, adapter, "plain")
    ours = (FusedLoraLinear, PrepackedLinear)
    assert not any(isinstance(module, ours) for module in plain.adapted.modules()) and not uses_varlen_attention(plain.adapted)
    assert any(isinstance(module, FusedLoraLinear) for module in fast.adapted.modules()) and uses_varlen_attention(fast.adapted)
    assert any(isinstance(module, PrepackedLinear) for module in fast.adapted.modules()) == can_prepack(torch.float32, "cpu")
    for name in ("base", "adapter"):
        with fast.using(name) as one, plain.using(name) as other:
            assert torch.allclose(logits(one), logits(other), **CLOSE)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "gemma3_text"])
def test_every_arm_scores_the_same_on_the_plain_path(tmp_path: Path, architecture: str) -> None:
    files = make_base(tmp_path / "base", architecture)
    adapter = make_adapter(tmp_path / "adapter", files)
    rows = (*make_rows(6, tier="phrasing"), *choice_rows(3))
    records = []
    for kernels in ("auto", "plain"):
        models = load(files, adapter, kernels)
        for name, examples in (("base", {}), ("base", {"sum": tuple(make_rows(4))}), ("adapter", {})):
            with models.using(name) as model:
                arm = Arm(name, rows, examples, name == "adapter")
                records.append(score_arm(arm, model, models.template, SETTINGS, draft=models.draft))
    for fast, plain in zip(records[:3], records[3:], strict=True):
        for one, other in zip(fast, plain, strict=True):
            assert one.pop("bits_per_byte") == pytest.approx(other.pop("bits_per_byte"), rel=1e-4)
            assert one == other
    assert [record["output"] for record in records[0]] != [record["output"] for record in records[2]], "the adapter changes nothing"


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_merged_model_is_the_adapters_in_sixteen_bits(tmp_path: Path, method: str) -> None:
    files = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", files, method)
    merged = load_merged_model(files, adapter, precision="bfloat16", device="cpu")
    assert not hasattr(merged, "disable_adapter") and merged.dtype == torch.float32
    tuned = logits(load_adapter(load_model(files, precision="float32", device="cpu"), adapter))
    untouched = logits(load_model(files, precision="float32", device="cpu"))
    error, change = ((logits(merged) - other).abs().max() for other in (tuned, untouched))
    assert 0 < error < 0.1 * change
