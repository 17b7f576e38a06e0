"""Attention inside each row of a packed sequence, for CPUs.

The stock path computes a whole packed sequence under a mask, then throws away what lies between rows, and its backward pass in
bfloat16 is the slowest kernel of a training step on a CPU. Here the rows stand side by side again for attention alone: for four
rows of 60 tokens in bfloat16, forward and backward took 1.3 ms a layer instead of 5.3 (2 cores with AVX-512 bfloat16).

What all rows of a sequence begin with (system prompt, the template's first words) then needs to stand in it once: each row attends
to it and to itself, and its gradients add up. Logits, loss and gradients are those of the rows alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

NAME = "nomoat_rows"  # in transformers' register of attention implementations
DROPOUTS = ("attention_dropout", "attn_pdrop")  # as configurations call it; at work in training only, so no check in eval mode sees it
NOT_OURS = ("sliding_window", "softcap", "s_aux", "position_bias")  # what the stock path knows and this one does not


class RowLayout:
    """Where the tokens of a packed sequence stand when its rows are put side by side.

    The sequence is `shared` tokens that every row begins with, then the rows' own, `lengths` of them. `index` (rows * longest,)
    is the token at each place, the first one where a row has ended; `back` (tokens,) is the place of each token, for shared ones that
    in the first row. All rows get the length of the longest, rounded up to a `multiple`; they end on the right, so that under a
    causal mask no token looks at what fills them up.
    """

    def __init__(self, lengths: Sequence[int], shared: int = 0, multiple: int = 1) -> None:
        self.rows, self.shared = len(lengths), shared
        self.longest = -(-(shared + max(lengths)) // multiple) * multiple
        index: list[int] = []
        back = list(range(shared))
        start = shared
        for row, length in enumerate(lengths):
            index += [*range(shared), *range(start, start + length), *[0] * (self.longest - shared - length)]
            back += range(row * self.longest + shared, row * self.longest + shared + length)
            start += length
        self.index, self.back = torch.tensor(index), torch.tensor(back)
        self._masks: dict[tuple[torch.dtype, int], torch.Tensor] = {}

    def mask(self, dtype: torch.dtype, groups: int) -> torch.Tensor:
        """Additive causal mask (1, groups * longest, longest), made once a sequence."""
        if (dtype, groups) not in self._masks:
            seen = torch.ones(self.longest, self.longest, dtype=torch.bool).tril()
            mask = torch.zeros(self.longest, self.longest, dtype=dtype).masked_fill(~seen, float("-inf"))
            self._masks[dtype, groups] = mask.repeat(groups, 1)[None]
        return self._masks[dtype, groups]

    def spread(self, states: torch.Tensor, heads: int) -> torch.Tensor:
        """(1, all heads, tokens, size) -> (heads * rows, groups * longest, size); the query heads of a key head sit together."""
        return self._side_by_side(states[0].index_select(1, self.index), heads)

    def spread_gradient(self, gradient: torch.Tensor, heads: int) -> torch.Tensor:
        """As `spread`, with zeros where rows have ended."""
        _, count, _, size = gradient.shape
        filled = gradient.new_zeros(count, self.rows * self.longest, size)
        return self._side_by_side(filled.index_copy_(1, self.back, gradient[0]), heads)

    def _side_by_side(self, states: torch.Tensor, heads: int) -> torch.Tensor:
        count, _, size = states.shape
        groups = count // heads
        apart = states.view(heads, groups, self.rows, self.longest, size).transpose(1, 2)
        return apart.reshape(heads * self.rows, groups * self.longest, size)

    def gather(self, states: torch.Tensor, heads: int) -> torch.Tensor:
        """The way back: (heads * rows, groups * longest, size) -> (1, all heads, tokens, size)."""
        return self._apart(states, heads).index_select(1, self.back)[None]

    def gather_gradient(self, gradient: torch.Tensor, heads: int) -> torch.Tensor:
        """As `gather`; a shared token gets the sum over rows. What fills a row up has no gradient and adds none."""
        if not self.shared:
            return self.gather(gradient, heads)
        apart = self._apart(gradient, heads)
        return apart.new_zeros(len(apart), len(self.back), apart.shape[2]).index_add_(1, self.index, apart)[None]

    def _apart(self, states: torch.Tensor, heads: int) -> torch.Tensor:
        groups = states.shape[1] // self.longest
        apart = states.view(heads, self.rows, groups, self.longest, -1).transpose(1, 2)
        return apart.reshape(heads * groups, self.rows * self.longest, -1)


class _Attention(torch.autograd.Function):
    """softmax(scaling * Q K^T + mask) V within rows; the backward pass is written out, so that nothing is kept but Q, K, V and P."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, layout: RowLayout, scaling: float) -> Any:
        heads = key.shape[1]
        q, k, v = (layout.spread(states, heads) for states in (query, key, value))
        p = torch.baddbmm(layout.mask(q.dtype, query.shape[1] // heads), q, k.transpose(1, 2), alpha=scaling).softmax(-1)
        ctx.save_for_backward(q, k, v, p)
        ctx.layout, ctx.scaling, ctx.heads = layout, scaling, heads
        return layout.gather(p @ v, heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Any) -> Any:
        q, k, v, p = ctx.saved_tensors
        layout, scaling, heads = ctx.layout, ctx.scaling, ctx.heads
        d_out = layout.spread_gradient(gradient, heads)
        d_scores = torch.ops.aten._softmax_backward_data(d_out @ v.transpose(1, 2), p, -1, p.dtype)
        nothing = q.new_zeros(1, 1, 1)
        d_q = torch.baddbmm(nothing, d_scores, k, beta=0, alpha=scaling)
        d_k = torch.baddbmm(nothing, d_scores.transpose(1, 2), q, beta=0, alpha=scaling)
        d_v = p.transpose(1, 2) @ d_out
        return *(layout.gather_gradient(each, heads) for each in (d_q, d_k, d_v)), None, None


def row_attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> tuple[Any, None]:
    """transformers' attention interface: rows apart where the batch brings their layout, else the stock path."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    layout = options.pop("row_layout", None)
    plain = not options.get("dropout") and all(options.get(name) is None for name in NOT_OURS)
    if layout is not None and layout.shared and not plain:
        raise ValueError("rows share their first tokens, and this layer's attention (dropout, a window, sinks) cannot tell them apart")
    if layout is None or not plain:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    scaling = options.get("scaling")
    out = _Attention.apply(query, key, value, layout, query.shape[-1] ** -0.5 if scaling is None else scaling)
    return out.transpose(1, 2).contiguous(), None


def use_row_attention(model: Any) -> bool:
    """Switch `model` to row attention if it goes through transformers' attention interface and drops no attention in training."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    takes_more = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(model.forward).parameters.values())
    drops = any(getattr(model.config.get_text_config(), name, 0) for name in DROPOUTS)
    if drops or not takes_more or not model._can_set_attn_implementation() or model.config._attn_implementation != "sdpa":
        return False
    AttentionInterface.register(NAME, row_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return uses_row_attention(model)


def layout_for(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """What to pass to a forward call besides the tokens: the batch's layout, for a model that uses it.

    ValueError for rows that share their beginning and a model that cannot tell them apart.
    """
    layout = batch.get("row_layout")
    if layout is None or not uses_row_attention(model):
        if layout is not None and layout.shared:
            raise ValueError("rows share their first tokens, and this model has not been switched to row attention")
        return {}
    return {"row_layout": layout}


def uses_row_attention(model: Any) -> bool:
    """Whether `use_row_attention` switched this model over."""
    return bool(model.config._attn_implementation == NAME)
