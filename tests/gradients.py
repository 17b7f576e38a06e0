"""The loss and the gradients of an optimiser step on tiny models, and their comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nomoat.data.chat_template import ChatTemplate, TokenizedExample
from nomoat.models.base import load_model, load_tokenizer
from nomoat.training.collate import count_labels, summed_loss
from tests.tiny import make_base, make_rows

Work = tuple[float, dict[str, torch.Tensor]]  # loss per labelled token, gradient by parameter


def load(folder: Path, architecture: str = "llama") -> tuple[Any, list[TokenizedExample]]:
    """A tiny float32 base and nine examples."""
    files = make_base(folder, architecture)
    template = ChatTemplate(load_tokenizer(files))
    return load_model(files, precision="float32", device="cpu"), [template.render(row) for row in make_rows(9)]


def work_of(model: Any, batches: list[dict[str, Any]], *, kernels: str = "auto") -> Work:
    """Loss and gradients of all trained parameters; of all parameters where none is trained."""
    model.zero_grad()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        model.requires_grad_(True)
    labels = count_labels(batches)
    total = 0.0
    for batch in batches:
        loss = summed_loss(model, batch, kernels=kernels) / labels
        loss.backward()
        total += loss.item()
    return total, {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_work(some: Work, other: Work) -> None:
    """Loss within 1e-5 relative, gradients within 1e-4 of the largest."""
    (loss, gradients), (expected, reference) = some, other
    assert loss == pytest.approx(expected, rel=1e-5)
    assert gradients.keys() == reference.keys()
    largest = max(float(gradient.abs().max()) for gradient in reference.values())
    for name, gradient in gradients.items():
        assert float((gradient - reference[name]).abs().max()) <= 1e-4 * largest, name


def distance(some: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Norm of the difference of all gradients as one vector, relative to `other`."""
    assert some.keys() == other.keys()
    difference = torch.cat([(tensor - other[name]).flatten() for name, tensor in some.items()])
    return float(difference.norm() / torch.cat([tensor.flatten() for tensor in other.values()]).norm())
