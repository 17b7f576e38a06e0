"""LoRA and prepacked linear layers give the numbers of the layers they replace, and leave alone what they do not implement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nomoat.config.schema import Lora
from nomoat.kernels.linear import FusedLoraLinear, PrepackedLinear, can_prepack, prepack_linears
from nomoat.models.adapter import attach_adapter
from nomoat.models.base import load_model
from tests.gradients import distance
from tests.tiny import make_base

needs_onednn = pytest.mark.skipif(not can_prepack(torch.float32, "cpu"), reason="this build of torch has no oneDNN")
IDS = torch.arange(4, 28)[None]


def make_adapted(folder: Path, architecture: str = "llama", *, precision: str = "float32", kernels: str = "auto", **lora: Any) -> Any:
    """A tiny base with an adapter whose B is not zero: zero would hide every mistake in A."""
    files = make_base(folder, architecture)
    base = load_model(files, precision=precision, device="cpu")
    model = attach_adapter(base, Lora(rank=4, alpha=8, **lora), seed=0, files=files, kernels=kernels)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


def is_fused(model: Any) -> bool:
    return any(isinstance(module, FusedLoraLinear) for module in model.modules())


def work(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Float32 logits, and gradients of their mean square."""
    logits = model.train()(input_ids=IDS).logits.float()
    logits.square().mean().backward()
    return logits.detach(), {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_in_float32_logits_and_gradients_are_those_of_peft(tmp_path: Path) -> None:
    fused, plain = (make_adapted(tmp_path / kernels, kernels=kernels) for kernels in ("auto", "plain"))
    assert is_fused(fused) and not is_fused(plain)
    (logits, gradients), (expected, reference) = work(fused), work(plain)
    assert torch.allclose(logits, expected, atol=1e-6) and distance(gradients, reference) < 1e-5
    assert all("lora_" in name for name in gradients)


def test_in_bfloat16_it_is_as_close_to_float32_as_peft_is(tmp_path: Path) -> None:
    exact, truth = work(make_adapted(tmp_path / "exact", kernels="plain"))
    logits, gradients = work(make_adapted(tmp_path / "fused", precision="bfloat16"))
    peft_logits, peft_gradients = work(make_adapted(tmp_path / "peft", precision="bfloat16", kernels="plain"))
    assert all(gradient.dtype == torch.float32 for gradient in gradients.values())
    assert (logits - exact).norm() < 2 * (peft_logits - exact).norm()  # both contain the rounding of the base
    assert distance(gradients, truth) < 2 * distance(peft_gradients, truth)


@pytest.mark.parametrize("lora", [{"method": "dora"}, {"dropout": 0.5}])
def test_variants_and_dropout_are_left_to_peft(tmp_path: Path, lora: Any) -> None:
    logits = []
    for kernels in ("auto", "plain"):
        model = make_adapted(tmp_path / kernels, kernels=kernels, **lora)
        torch.manual_seed(1)
        logits.append(work(model)[0])
    assert torch.equal(*logits)


def test_switched_off_it_is_the_base_bit_for_bit(tmp_path: Path) -> None:
    model = make_adapted(tmp_path).eval()
    with torch.no_grad():
        with model.disable_adapter():
            off = model(input_ids=IDS).logits
        assert not torch.equal(off, model(input_ids=IDS).logits)
        base = load_model(make_base(tmp_path), precision="float32", device="cpu")
        assert torch.equal(off, base(input_ids=IDS).logits)


def test_layers_that_are_not_plain_linears_keep_those_of_peft(tmp_path: Path) -> None:
    for model in (make_adapted(tmp_path / "int8", precision="int8"), make_adapted(tmp_path / "gpt2", "gpt2")):
        assert not is_fused(model)
        assert model(input_ids=IDS).logits.isfinite().all()


def logits_with_and_without(model: Any) -> tuple[Any, Any]:
    with torch.inference_mode():
        adapted = model(input_ids=IDS).logits
        with model.disable_adapter():
            return adapted, model(input_ids=IDS).logits


@needs_onednn
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3_text", "falcon"])
def test_prepacked_logits_are_the_plain_ones_to_rounding(tmp_path: Path, architecture: str) -> None:
    model = make_adapted(tmp_path, architecture).eval()
    before = logits_with_and_without(model)
    assert not torch.allclose(*before)
    prepack_linears(model)
    assert any(isinstance(module, PrepackedLinear) for module in model.modules())
    for plain, prepacked in zip(before, logits_with_and_without(model), strict=True):
        torch.testing.assert_close(prepacked, plain, rtol=1e-5, atol=1e-5)


@needs_onednn
def test_the_adapter_stays_in_parameters_and_the_prepacked_weights_are_given_up(tmp_path: Path) -> None:
    model = make_adapted(tmp_path).eval()
    adapter = {name for name, _ in model.named_parameters() if "lora_" in name}
    prepack_linears(model)
    left = {name for name, _ in model.named_parameters()}
    assert adapter <= left and not [name for name in left if "base_layer" in name]


@needs_onednn
@pytest.mark.parametrize("options", [{"precision": "bfloat16"}, {"method": "dora"}])
def test_bfloat16_and_dora_keep_their_weights(tmp_path: Path, options: Any) -> None:
    model = make_adapted(tmp_path, **options).eval()
    before = logits_with_and_without(model)
    prepack_linears(model)
    assert not [name for name, module in model.named_modules() if isinstance(module, PrepackedLinear) and "base_layer" in name]
    for plain, after in zip(before, logits_with_and_without(model), strict=True):
        torch.testing.assert_close(after, plain, rtol=1e-5, atol=1e-5)


def test_only_float32_on_a_cpu_is_prepacked() -> None:
    assert not can_prepack(torch.bfloat16, "cpu") and not can_prepack(torch.float32, "cuda")
