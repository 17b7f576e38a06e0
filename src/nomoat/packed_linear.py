"""Float32 linear layers for scoring on a CPU, their weights laid out once for oneDNN's kernels.

torch multiplies float32 on x86 with MKL, which holds back on processors that are not Intel's: 170 to 220 GFLOP/s on an AMD EPYC with
2 cores where oneDNN reached 340 to 530 on the same shapes. Compiled models get this layout by themselves; a scoring run is too
short to compile for.
"""

from __future__ import annotations

from typing import Any

import torch


class PackedLinear(torch.nn.Module):
    """x W^T + bias for float32 x (..., inputs); inference only. The plain weight is given up, so the memory is spent once."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    def forward(self, x: Any) -> Any:
        """(..., inputs) -> (..., outputs)."""
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")


def can_pack(dtype: torch.dtype, device: str) -> bool:
    """Whether this build of torch packs weights of `dtype` for `device`."""
    if dtype != torch.float32 or device != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return hasattr(torch.ops.mkldnn, "_reorder_linear_weight") and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def pack_linears(model: Any) -> Any:
    """Replace every plain float32 linear of a frozen model that is only to be asked, never trained; returns the model.

    A weight that something else uses too (tied embeddings) stays where it is and is packed as a copy.
    """
    device = str(model.device.type)
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is torch.nn.Linear and not _needs_weights(parent)
    ]
    for parent, name, child in found:
        if can_pack(child.weight.dtype, device):
            setattr(parent, name, PackedLinear(child))
    return model


def _needs_weights(parent: torch.nn.Module) -> bool:
    """Whether `parent` is peft's dictionary of A or B matrices, or a layer that reads the base's weight in each pass (DoRA)."""
    return isinstance(parent, torch.nn.ModuleDict) or bool(getattr(parent, "lora_variant", None))
