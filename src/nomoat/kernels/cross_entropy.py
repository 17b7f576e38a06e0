"""Cross-entropy over a large vocabulary without float32 copies of all its logits; it replaces torch's `cross_entropy`.

torch's own keeps the float32 logits, their log-softmax and two gradients of the same size: for 150 labelled tokens and a vocabulary
of 49,152 that is 150 MB, allocated afresh in every step, page by page (what that costs: recipes/LOG.md). Here a few tokens' logits at
a time become float32, and what is kept is the gradient in the logits' own precision, as in Liger Kernel for GPUs (Hsu et al. 2024,
arXiv:2410.10989). `hardware.kernels: plain` switches back to torch's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy

IGNORED = -100  # the label of a token that has no part in the loss
CHUNK_VALUES = 1 << 20  # logits that are float32 at a time, always in the same 4 MB


def summed_cross_entropy(logits: Any, targets: Any, *, kernels: str = "auto") -> Any:
    """Cross-entropy in nats, computed in float32 and summed over the tokens whose target is not IGNORED.

    `logits` (tokens, vocabulary), `targets` (tokens,); the result is a float32 scalar.
    """
    if kernels == "plain":
        return cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")
    return _SummedCrossEntropy.apply(logits, targets)


class _SummedCrossEntropy(torch.autograd.Function):
    """The gradient is computed in the forward pass, while the softmax of a chunk is at hand, and scaled in the backward pass."""

    @staticmethod
    def forward(ctx: Any, logits: Any, targets: Any) -> Any:
        ctx.gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        total = logits.new_zeros((), dtype=torch.float32)
        size = max(1, min(len(targets), CHUNK_VALUES // logits.shape[1]))
        buffer = logits.new_empty((size, logits.shape[1]), dtype=torch.float32)
        for start in range(0, len(targets), size):
            target = targets[start : start + size, None]
            ignored, target = target == IGNORED, target.clamp(min=0)
            chunk = buffer[: len(target)].copy_(logits[start : start + size])
            chunk -= chunk.amax(1, keepdim=True)
            target_logits = chunk.gather(1, target)
            sums = chunk.exp_().sum(1, keepdim=True)
            total += (sums.log() - target_logits).masked_fill_(ignored, 0.0).sum()
            if ctx.gradient is not None:
                chunk /= sums
                chunk.scatter_add_(1, target, chunk.new_full(target.shape, -1.0))
                ctx.gradient[start : start + size] = chunk.masked_fill_(ignored, 0.0) if bool(ignored.any()) else chunk
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Any) -> Any:
        logits_gradient, ctx.gradient = ctx.gradient, None  # so that the memory is free before the layers below
        return logits_gradient.mul_(gradient.to(logits_gradient.dtype)), None
