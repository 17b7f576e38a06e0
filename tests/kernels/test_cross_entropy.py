"""The loss is torch's number, whatever the precision, and without its copies."""

from __future__ import annotations

import pytest
import torch

from nomoat.kernels import cross_entropy
from nomoat.kernels.cross_entropy import IGNORED, summed_cross_entropy


def loss_and_gradient(logits: torch.Tensor, targets: torch.Tensor, kernels: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a quarter of the summed loss, as a step divides it by the number of its labels."""
    leaf = logits.clone().requires_grad_()
    loss = summed_cross_entropy(leaf, targets, kernels=kernels) * 0.25
    loss.backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


@pytest.mark.parametrize("chunk_values", [1, 300, 1 << 20])
def test_loss_and_gradient_are_those_of_torch(monkeypatch: pytest.MonkeyPatch, chunk_values: int) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_VALUES", chunk_values)
    torch.manual_seed(0)
    logits, targets = 5 * torch.randn(7, 101), torch.randint(0, 101, (7,))
    (loss, gradient), (expected, reference) = (loss_and_gradient(logits, targets, kernels) for kernels in ("auto", "plain"))
    assert torch.allclose(loss, expected, rtol=1e-6) and torch.allclose(gradient, reference, atol=1e-7)


def test_plain_is_torchs_own_to_the_bit() -> None:
    logits, targets = torch.randn(7, 101).bfloat16(), torch.tensor([3, 1, IGNORED, 5, 100, 0, 9])
    expected = torch.nn.functional.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")
    assert torch.equal(summed_cross_entropy(logits, targets, kernels="plain"), expected)


def test_in_bfloat16_the_loss_is_still_computed_in_float32() -> None:
    torch.manual_seed(0)
    logits, targets = (5 * torch.randn(40, 3000)).bfloat16(), torch.randint(0, 3000, (40,))
    (loss, gradient), (expected, reference) = (loss_and_gradient(logits, targets, kernels) for kernels in ("auto", "plain"))
    assert loss.dtype == torch.float32 and torch.allclose(loss, expected, rtol=1e-6)
    assert gradient.dtype == torch.bfloat16 and torch.allclose(gradient, reference, rtol=2**-7, atol=1e-6)


def test_ignored_tokens_have_no_part_and_no_gradient() -> None:
    logits, targets = torch.randn(4, 9), torch.tensor([3, IGNORED, 1, IGNORED])
    (loss, gradient), (expected, reference) = (loss_and_gradient(logits, targets, kernels) for kernels in ("auto", "plain"))
    assert torch.allclose(loss, expected) and torch.allclose(gradient, reference)
    assert not gradient[1].any() and not gradient[3].any()


def test_logits_stay_as_they_were_and_large_ones_do_no_harm() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]])
    before = logits.clone()
    assert float(summed_cross_entropy(logits, torch.tensor([0]))) == 0
    assert float(summed_cross_entropy(logits, torch.tensor([1]))) == pytest.approx(2e4)
    assert torch.equal(logits, before)
