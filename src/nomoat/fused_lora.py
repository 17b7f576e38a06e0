"""A LoRA linear layer whose arithmetic stays in the precision of the base.

peft casts the activation of every adapted layer to the adapter's float32 and its product back; where the base is in
bfloat16, that is a quarter of a training step on a CPU (195 against 257 tokens/s, interleaved). Here the two small matrices are
cast instead, as automatic mixed precision does, their product is added by the matrix multiplication itself, and the float32
weights still receive float32 gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from nomoat.packed_linear import PackedLinear


class _FusedLora(torch.autograd.Function):
    """x W^T + bias + scaling * x A^T B^T for x (..., inputs), W (outputs, inputs), A (rank, inputs), B (outputs, rank)."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, a: Any, b: Any, scaling: float) -> Any:
        rows = x.reshape(-1, x.shape[-1])
        a, b = a.to(x.dtype), (b * scaling).to(x.dtype)
        low = rows @ a.T
        out = linear(rows, weight, bias).addmm_(low, b.T)
        ctx.save_for_backward(rows, weight, a, b, low)
        ctx.scaling = scaling
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Any) -> Any:
        rows, weight, a, b, low = ctx.saved_tensors
        g = gradient.reshape(-1, gradient.shape[-1])
        g_low = g @ b
        d_x = (g @ weight).addmm_(g_low, a).view(*gradient.shape[:-1], -1) if ctx.needs_input_grad[0] else None
        return d_x, None, None, (g_low.T @ rows).float(), (g.T @ low).float() * ctx.scaling, None


class FusedLinear(Linear):
    """peft's own layer, with the plain case (one LoRA, not merged, no dropout, no variant) computed as above."""

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As peft's; (..., inputs) -> (..., outputs)."""
        if args or kwargs or not self._plain(x):
            return super().forward(x, *args, **kwargs)
        name = self.active_adapters[0]
        base, a, b, scaling = self.get_base_layer(), self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
        if torch.is_grad_enabled():
            return _FusedLora.apply(x, base.weight, base.bias, a, b, scaling)
        out = base(x)
        low = x.reshape(-1, x.shape[-1]) @ a.to(x.dtype).T
        out.view(-1, out.shape[-1]).addmm_(low, (b * scaling).to(x.dtype).T)
        return out

    def _plain(self, x: Any) -> bool:
        names = self.active_adapters
        if self.disable_adapters or self.merged or len(names) != 1 or names[0] not in self.lora_A or self.lora_variant:
            return False
        dropout, b = self.lora_dropout[names[0]], self.lora_B[names[0]]
        quiet = isinstance(dropout, torch.nn.Identity) or not self.training
        base = self.get_base_layer()
        same = x.dtype == (torch.float32 if isinstance(base, PackedLinear) else base.weight.dtype)
        return quiet and b.bias is None and same and x.is_floating_point()


def use_fused_lora(config: LoraConfig, model: Any) -> LoraConfig:
    """Have peft build fused layers where the base's are plain torch linears; quantised ones keep peft's."""
    linears = {type(module) for module in model.modules() if isinstance(module, torch.nn.Linear)}
    if linears == {torch.nn.Linear}:
        config._register_custom_module({torch.nn.Linear: FusedLinear})  # peft's documented way to bring a layer
    return config
