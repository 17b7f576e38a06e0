"""The loss gives torch's numbers, whatever the precision, and without its copies."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from nomoat.kernels import cross_entropy
from nomoat.kernels.cross_entropy import IGNORED, summed_cross_entropy


def both(logits: torch.Tensor, targets: torch.Tensor, weight: float = 0.25) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(loss, gradient of the logits) of ours and of torch's own, each scaled as a step scales it."""
    found = []
    for ours in (True, False):
        leaf = logits.clone().requires_grad_()
        stock = functional.cross_entropy(leaf.float(), targets, ignore_index=IGNORED, reduction="sum")
        loss = (summed_cross_entropy(leaf, targets) if ours else stock) * weight
        loss.backward()
        assert leaf.grad is not None
        found.append((loss.detach(), leaf.grad))
    return found


@pytest.mark.parametrize("chunk_values", [1, 300, 1 << 20])
def test_loss_and_gradient_are_those_of_torch(monkeypatch: pytest.MonkeyPatch, chunk_values: int) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_VALUES", chunk_values)
    torch.manual_seed(0)
    (loss, gradient), (expected, reference) = both(5 * torch.randn(7, 101), torch.randint(0, 101, (7,)))
    assert torch.allclose(loss, expected, rtol=1e-6) and torch.allclose(gradient, reference, atol=1e-7)


def test_in_bfloat16_the_loss_is_still_computed_in_float32() -> None:
    torch.manual_seed(0)
    (loss, gradient), (expected, reference) = both((5 * torch.randn(40, 3000)).bfloat16(), torch.randint(0, 3000, (40,)))
    assert loss.dtype == torch.float32 and torch.allclose(loss, expected, rtol=1e-6)
    assert gradient.dtype == torch.bfloat16 and torch.allclose(gradient, reference, rtol=2**-7, atol=1e-6)


def test_ignored_rows_have_no_part_and_no_gradient() -> None:
    targets = torch.tensor([3, IGNORED, 1, IGNORED])
    (loss, gradient), (expected, reference) = both(torch.randn(4, 9), targets)
    assert torch.allclose(loss, expected) and torch.allclose(gradient, reference)
    assert not gradient[1].any() and not gradient[3].any()


def test_logits_stay_as_they_were_and_large_ones_do_no_harm() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]])
    kept = logits.clone()
    assert float(summed_cross_entropy(logits, torch.tensor([0]))) == 0
    assert float(summed_cross_entropy(logits, torch.tensor([1]))) == pytest.approx(2e4)
    assert torch.equal(logits, kept)
