"""Cross-entropy over a large vocabulary without float32 copies of all its logits.

torch's own keeps the float32 logits, their log-softmax and two gradients of the same size: for 150 labelled tokens and 49,152
words that is 150 MB, got afresh in every step, page by page (what that costs: recipes/LOG.md). Here a few rows at a time become
float32, and what is kept is the gradient in the logits' own precision, as Liger Kernel does on GPUs (Hsu et al. 2024,
arXiv:2410.10989).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

CHUNK_VALUES = 1 << 20  # logits that are float32 at a time, always in the same 4 MB


class _SummedCrossEntropy(torch.autograd.Function):
    """Sum of -log softmax(logits)[target] in float32, for logits (rows, vocabulary) and targets (rows,), but where IGNORED."""

    @staticmethod
    def forward(ctx: Any, logits: Any, targets: Any) -> Any:
        ctx.gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        total = logits.new_zeros((), dtype=torch.float32)
        rows = max(1, min(len(targets), CHUNK_VALUES // logits.shape[1]))
        room = logits.new_empty((rows, logits.shape[1]), dtype=torch.float32)
        for start in range(0, len(targets), rows):
            these = targets[start : start + rows, None]
            left_out, these = these == IGNORED, these.clamp(min=0)
            chunk = room[: len(these)].copy_(logits[start : start + rows])
            chunk -= chunk.amax(1, keepdim=True)
            wanted = chunk.gather(1, these)
            sums = chunk.exp_().sum(1, keepdim=True)
            total += (sums.log() - wanted).masked_fill_(left_out, 0.0).sum()
            if ctx.gradient is not None:
                chunk /= sums
                chunk.scatter_add_(1, these, chunk.new_full(these.shape, -1.0))
                ctx.gradient[start : start + rows] = chunk.masked_fill_(left_out, 0.0) if bool(left_out.any()) else chunk
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Any) -> Any:
        found, ctx.gradient = ctx.gradient, None  # so that the memory is free before the layers below
        return found.mul_(gradient.to(found.dtype)), None


def summed_cross_entropy(logits: Any, targets: Any) -> Any:
    """Cross-entropy in nats, summed over the rows whose target is not IGNORED; logits (rows, vocabulary), targets (rows,)."""
    return _SummedCrossEntropy.apply(logits, targets)


IGNORED = -100  # the label that cross-entropy leaves out
