"""Packed linears: the same numbers to rounding, with the adapter on and off, and nothing packed that must not be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nomoat.config.schema import Lora
from nomoat.kernels.linear import PrepackedLinear, can_prepack, prepack_linears
from nomoat.models.adapter import attach_adapter
from nomoat.models.base import load_model
from tests.tiny import make_base

pytestmark = pytest.mark.skipif(not can_prepack(torch.float32, "cpu"), reason="this build of torch has no oneDNN")


def make_adapted(folder: Path, *, architecture: str = "llama", precision: str = "float32", **lora: Any) -> Any:
    files = make_base(folder, architecture)
    model = attach_adapter(load_model(files, precision=precision, device="cpu"), Lora(rank=4, alpha=8, **lora), seed=0, files=files)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model.eval()


def answers(model: Any) -> tuple[Any, Any]:
    """Logits with the adapter and without."""
    ids = torch.arange(3, 40)[None].repeat(2, 1)
    with torch.inference_mode():
        with_it = model(input_ids=ids).logits
        with model.disable_adapter():
            return with_it, model(input_ids=ids).logits


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3_text", "falcon"])
def test_packed_answers_are_the_plain_ones_to_rounding(tmp_path: Path, architecture: str) -> None:
    model = make_adapted(tmp_path, architecture=architecture)
    before = answers(model)
    assert not torch.allclose(*before)
    prepack_linears(model)
    assert any(isinstance(module, PrepackedLinear) for module in model.modules())
    for plain, packed in zip(before, answers(model), strict=True):
        torch.testing.assert_close(packed, plain, rtol=1e-5, atol=1e-5)


def test_adapter_matrices_stay_parameters_and_packed_weights_are_given_up(tmp_path: Path) -> None:
    model = make_adapted(tmp_path)
    adapter = {name for name, _ in model.named_parameters() if "lora_" in name}
    prepack_linears(model)
    left = {name for name, _ in model.named_parameters()}
    assert adapter <= left and not [name for name in left if "base_layer" in name]


def test_bfloat16_and_dora_are_left_alone(tmp_path: Path) -> None:
    for number, settings in enumerate(({"precision": "bfloat16"}, {"method": "dora"})):
        model = make_adapted(tmp_path / str(number), **settings)
        before = answers(model)
        prepack_linears(model)
        packed = [name for name, module in model.named_modules() if isinstance(module, PrepackedLinear)]
        assert not [name for name in packed if "base_layer" in name]
        for plain, after in zip(before, answers(model), strict=True):
            torch.testing.assert_close(after, plain, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_packed_is_told() -> None:
    assert not can_prepack(torch.bfloat16, "cpu") and not can_prepack(torch.float32, "cuda")
