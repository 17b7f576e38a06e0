"""Linear layers for CPUs: LoRA in the precision of the base, and float32 weights laid out once for oneDNN.

`FusedLoraLinear` replaces peft's LoRA layer in training and scoring, `PrepackedLinear` replaces torch's Linear in scoring.
`hardware.kernels: plain` uses neither.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear


def with_fused_lora(config: LoraConfig, model: Any, kernels: str = "auto") -> LoraConfig:
    """Have peft build FusedLoraLinear where the base's linears are plain torch ones; quantised bases keep peft's layers."""
    linears = {type(module) for module in model.modules() if isinstance(module, torch.nn.Linear)}
    if kernels != "plain" and linears == {torch.nn.Linear}:
        config._register_custom_module({torch.nn.Linear: FusedLoraLinear})  # peft's documented way to bring a layer, in spite of its name
    return config


class FusedLoraLinear(Linear):
    """peft's LoRA layer, with the plain case (one LoRA, not merged, no dropout, no variant) computed in the precision of the base.

    peft casts the activation of every adapted layer to the adapter's float32 and its product back; where the base is in bfloat16, that
    is a quarter of a training step on a CPU (195 against 257 tokens/s, interleaved). Here the two small matrices are cast instead, as
    automatic mixed precision does, and their product is added by the matrix multiplication itself. The float32 weights still receive
    float32 gradients.
    """

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """(..., inputs) -> (..., outputs), as peft's."""
        if args or kwargs or not self._is_plain(x):
            return super().forward(x, *args, **kwargs)
        name = self.active_adapters[0]
        base, a, b, scaling = self.get_base_layer(), self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
        if torch.is_grad_enabled():
            return _FusedLora.apply(x, base.weight, base.bias, a, b, scaling)
        out = base(x)
        low = x.reshape(-1, x.shape[-1]) @ a.to(x.dtype).T
        out.view(-1, out.shape[-1]).addmm_(low, (b * scaling).to(x.dtype).T)
        return out

    def _is_plain(self, x: Any) -> bool:
        names = self.active_adapters
        if self.disable_adapters or self.merged or len(names) != 1 or names[0] not in self.lora_A or self.lora_variant:
            return False
        no_dropout = isinstance(self.lora_dropout[names[0]], torch.nn.Identity) or not self.training
        base = self.get_base_layer()
        same_dtype = x.dtype == (torch.float32 if isinstance(base, PrepackedLinear) else base.weight.dtype)
        return no_dropout and self.lora_B[names[0]].bias is None and same_dtype and x.is_floating_point()


class _FusedLora(torch.autograd.Function):
    """x W^T + bias + scaling * x A^T B^T for x (..., inputs), W (outputs, inputs), A (rank, inputs), B (outputs, rank)."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, a: Any, b: Any, scaling: float) -> Any:
        tokens = x.reshape(-1, x.shape[-1])
        a, b = a.to(x.dtype), (b * scaling).to(x.dtype)
        low = tokens @ a.T
        out = linear(tokens, weight, bias).addmm_(low, b.T)
        ctx.save_for_backward(tokens, weight, a, b, low)
        ctx.scaling = scaling
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Any) -> Any:
        tokens, weight, a, b, low = ctx.saved_tensors
        g = gradient.reshape(-1, gradient.shape[-1])
        g_low = g @ b
        d_x = (g @ weight).addmm_(g_low, a).view(*gradient.shape[:-1], -1) if ctx.needs_input_grad[0] else None
        return d_x, None, None, (g_low.T @ tokens).float(), (g.T @ low).float() * ctx.scaling, None


class PrepackedLinear(torch.nn.Module):
    """x W^T + bias for float32 x (..., inputs), inference only; the plain weight is given up, so that the memory is spent once.

    torch multiplies float32 on x86 with MKL, which holds back on processors that are not Intel's: 170 to 220 GFLOP/s on an AMD EPYC
    with 2 cores where oneDNN reached 340 to 530 on the same shapes. torch.compile prepacks weights with the same two operations, which
    have no public name; a scoring run is too short to compile for.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    def forward(self, x: Any) -> Any:
        """(..., inputs) -> (..., outputs)."""
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")


def can_prepack(dtype: torch.dtype, device: str) -> bool:
    """Whether this build of torch prepacks weights of `dtype` for `device`."""
    if dtype != torch.float32 or device != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return hasattr(torch.ops.mkldnn, "_reorder_linear_weight") and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def prepack_linears(model: Any, kernels: str = "auto") -> Any:
    """Replace every plain float32 Linear of a model that is never trained again, unless `kernels` is "plain"; returns the model.

    A weight that another module uses too (tied embeddings) stays there and is prepacked as a copy.
    """
    if kernels == "plain":
        return model
    linears = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is torch.nn.Linear and not _needs_weights(parent)
    ]
    for parent, name, child in linears:
        if can_prepack(child.weight.dtype, model.device.type):
            setattr(parent, name, PrepackedLinear(child))
    return model


def _needs_weights(parent: torch.nn.Module) -> bool:
    """Whether `parent` is peft's dictionary of A or B matrices, or a layer that reads the base's weight in each pass (DoRA)."""
    return isinstance(parent, torch.nn.ModuleDict) or bool(getattr(parent, "lora_variant", None))
