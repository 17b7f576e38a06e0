"""The fused LoRA layer gives peft's numbers, and stands aside where peft does more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear

from nomoat.config.schema import Lora
from nomoat.kernels.linear import FusedLoraLinear
from nomoat.models.adapter import attach_adapter
from nomoat.models.base import load_model
from tests.tiny import make_base


def adapted(folder: Path, *, precision: str = "float32", architecture: str = "llama", **options: Any) -> Any:
    files = make_base(folder, architecture)
    lora = Lora(rank=4, alpha=8, **options)
    model = attach_adapter(load_model(files, precision=precision, device="cpu"), lora, seed=0, files=files)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)  # zero would hide every mistake in the other half
    return model


def work(model: Any, *, stock: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    with monkeypatch.context() as patch:
        if stock:
            patch.setattr(FusedLoraLinear, "forward", Linear.forward)
        model.zero_grad()
        logits = model(input_ids=torch.arange(4, 28)[None]).logits.float()
        logits.square().mean().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def distance(some: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Of all tensors as one vector, relative to `other`."""
    assert set(some) == set(other)
    apart = torch.cat([(tensor - other[name]).flatten() for name, tensor in some.items()])
    return float(apart.norm() / torch.cat([tensor.flatten() for tensor in other.values()]).norm())


def test_in_float32_logits_and_gradients_are_those_of_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(tmp_path).train()
    assert any(isinstance(module, FusedLoraLinear) for module in model.modules())
    logits, grads = work(model, stock=False, monkeypatch=monkeypatch)
    expected, reference = work(model, stock=True, monkeypatch=monkeypatch)
    assert torch.allclose(logits, expected, atol=1e-6) and distance(grads, reference) < 1e-5
    assert all("lora_" in name for name in grads)


def test_in_bfloat16_it_is_as_close_to_float32_as_peft_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact, truth = work(adapted(tmp_path / "32").train(), stock=True, monkeypatch=monkeypatch)
    model = adapted(tmp_path / "16", precision="bfloat16").train()
    logits, grads = work(model, stock=False, monkeypatch=monkeypatch)
    peft_logits, peft_grads = work(model, stock=True, monkeypatch=monkeypatch)
    assert all(grad.dtype == torch.float32 for grad in grads.values())
    assert (logits - exact).norm() < 2 * (peft_logits - exact).norm()  # the base's own rounding is in both
    assert distance(grads, truth) < 2 * distance(peft_grads, truth)


@pytest.mark.parametrize("options", [{"method": "dora"}, {"dropout": 0.5}])
def test_what_peft_does_beyond_the_plain_case_is_left_to_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any) -> None:
    model = adapted(tmp_path, **options).train()
    torch.manual_seed(1)
    ours, _ = work(model, stock=False, monkeypatch=monkeypatch)
    torch.manual_seed(1)
    theirs, _ = work(model, stock=True, monkeypatch=monkeypatch)
    assert torch.equal(ours, theirs)


def test_switched_off_it_is_the_base_bit_for_bit(tmp_path: Path) -> None:
    model = adapted(tmp_path).eval()
    ids = torch.arange(4, 20)[None]
    with torch.no_grad(), model.disable_adapter():
        off = model(input_ids=ids).logits
        base = model.get_base_model()(input_ids=ids).logits
    assert torch.equal(off, base) and torch.equal(off, load_model_logits(tmp_path, ids))
    with torch.no_grad():
        assert not torch.equal(off, model(input_ids=ids).logits)


def load_model_logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(input_ids=ids).logits


def test_layers_that_are_not_plain_linears_keep_those_of_peft(tmp_path: Path) -> None:
    quantised = adapted(tmp_path / "int8", precision="int8")
    conv = adapted(tmp_path / "gpt2", architecture="gpt2")
    for model in (quantised, conv):
        assert not any(isinstance(module, FusedLoraLinear) for module in model.modules())
        assert model(input_ids=torch.arange(4, 12)[None]).logits.isfinite().all()
