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
from itertools import accumulate
from typing import Any

import torch
from torch.autograd.function import once_differentiable

IMPLEMENTATION = "nomoat_rows"  # in transformers' register of attention implementations
DROPOUTS = ("attention_dropout", "attn_pdrop")  # as configurations call it; at work in training only, so no check in eval mode sees it
UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "position_bias")  # what the stock path knows and this one does not


class PackedLayout:
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

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
        """Attention of each row over itself; (1, all heads, tokens, size) as `query`."""
        out: torch.Tensor = _Attention.apply(query, key, value, self, scaling)
        return out

    def _apart(self, states: torch.Tensor, heads: int) -> torch.Tensor:
        groups = states.shape[1] // self.longest
        apart = states.view(heads, self.rows, groups, self.longest, -1).transpose(1, 2)
        return apart.reshape(heads * groups, self.rows * self.longest, -1)


class SuffixLayout:
    """Rows' own tokens end to end, where the `shared` tokens that all of them begin with have been computed before: for inference only.

    `ends` (rows,) is where each row ends in the sequence. Keys and values are the shared tokens, then the sequence.
    """

    def __init__(self, lengths: Sequence[int], shared: int) -> None:
        self.rows, self.shared, self.longest = len(lengths), shared, max(lengths)
        self.ends = list(accumulate(lengths))
        self.starts = [end - length for end, length in zip(self.ends, lengths, strict=True)]
        spans = list(zip(self.starts, lengths, strict=True))
        self.index = torch.tensor([place for start, n in spans for place in (*range(start, start + n), *[0] * (self.longest - n))])
        self.back = torch.tensor([row * self.longest + place for row, n in enumerate(lengths) for place in range(n)])
        own = self.index.view(self.rows, self.longest) + shared
        self.keys = torch.cat([torch.arange(shared).expand(self.rows, -1), own], dim=1).flatten()
        self._masks: dict[tuple[torch.dtype, int], torch.Tensor] = {}

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
        """softmax(scaling * Q K^T + mask) V of each row over the shared tokens and itself; (1, heads, tokens, size) as `query`."""
        heads, groups, size = key.shape[1], query.shape[1] // key.shape[1], query.shape[-1]
        q = query[0].index_select(1, self.index).view(heads, groups, self.rows, self.longest, size).transpose(1, 2)
        k, v = (states[0].index_select(1, self.keys).view(heads * self.rows, -1, size) for states in (key, value))
        q = q.reshape(heads * self.rows, groups * self.longest, size)
        p = torch.baddbmm(self._mask(q.dtype, groups), q, k.transpose(1, 2), alpha=scaling).softmax(-1)
        apart = (p @ v).view(heads, self.rows, groups, self.longest, size).transpose(1, 2)
        return apart.reshape(heads * groups, self.rows * self.longest, size).index_select(1, self.back)[None]

    def _mask(self, dtype: torch.dtype, groups: int) -> torch.Tensor:
        if (dtype, groups) not in self._masks:
            seen = torch.ones(self.longest, self.shared + self.longest, dtype=torch.bool).tril(self.shared)
            mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, float("-inf"))
            self._masks[dtype, groups] = mask.repeat(groups, 1)[None]
        return self._masks[dtype, groups]

    def side_by_side(self, lengths: Sequence[int], device: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys' places (rows, longest) when each row keeps its first `lengths` tokens, all end together, and the mask of the real ones."""
        longest = self.shared + max(lengths)
        rows = [
            [0] * (longest - self.shared - n) + list(range(self.shared)) + list(range(self.shared + start, self.shared + start + n))
            for start, n in zip(self.starts, lengths, strict=True)
        ]
        real = [[0] * (longest - self.shared - n) + [1] * (self.shared + n) for n in lengths]
        return torch.tensor(rows, device=device), torch.tensor(real, device=device)


class _Attention(torch.autograd.Function):
    """softmax(scaling * Q K^T + mask) V within rows; the backward pass is written out, so that nothing is kept but Q, K, V and P."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, layout: PackedLayout, scaling: float) -> Any:
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


def varlen_attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> tuple[Any, None]:
    """transformers' attention interface: rows apart where the batch brings their layout, else the stock path."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    layout = options.pop("row_layout", None)
    plain = not options.get("dropout") and all(options.get(name) is None for name in UNSUPPORTED)
    if layout is not None and not plain and (layout.shared or isinstance(layout, SuffixLayout)):
        raise ValueError("rows share their first tokens, and this layer's attention (dropout, a window, sinks) cannot tell them apart")
    scaling = query.shape[-1] ** -0.5 if options.get("scaling") is None else options["scaling"]
    if plain and layout is not None:
        with torch.autocast(query.device.type, enabled=False):  # its backward pass is written for one precision, that of the products
            attended = layout.attend(query.to(value.dtype), key.to(value.dtype), value, scaling)
        return attended.transpose(1, 2).contiguous(), None
    if plain and query.shape[2] == 1 and not torch.is_grad_enabled():
        return _decode(query, key, value, attention_mask, scaling), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


def _decode(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float) -> torch.Tensor:
    """Attention of one new token a row, (rows, heads, 1, size) -> (rows, 1, heads, size): the query heads of a key head are one product.

    32 rows of 330 tokens, 9 query and 3 key heads of 64: 1.2 ms a layer where scaled_dot_product_attention took 1.8.
    """
    rows, heads, tokens, size = key.shape
    q = query.reshape(rows * heads, -1, size)
    k, v = (states.reshape(rows * heads, tokens, size) for states in (key, value))
    scores = torch.bmm(q, k.transpose(1, 2)).mul_(scaling)
    if mask is not None:
        by_row = scores.view(rows, -1, tokens)
        seen = mask[:, 0, -1:, :tokens]
        by_row.masked_fill_(~seen, float("-inf")) if seen.dtype == torch.bool else by_row.add_(seen)
    return torch.bmm(scores.softmax(-1), v).view(rows, 1, -1, size)


def enable_varlen_attention(model: Any) -> bool:
    """Switch `model` to row attention if it goes through transformers' attention interface and drops no attention in training."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    takes_more = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(model.forward).parameters.values())
    drops = any(getattr(model.config.get_text_config(), name, 0) for name in DROPOUTS)
    if drops or not takes_more or not model._can_set_attn_implementation() or model.config._attn_implementation != "sdpa":
        return False
    AttentionInterface.register(IMPLEMENTATION, varlen_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
    model.set_attn_implementation(IMPLEMENTATION)
    return uses_varlen_attention(model)


def layout_arguments(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """What to pass to a forward call besides the tokens: the batch's layout, for a model that uses it.

    ValueError for rows that share their beginning and a model that cannot tell them apart.
    """
    layout = batch.get("row_layout")
    if layout is None or not uses_varlen_attention(model):
        if layout is not None and layout.shared:
            raise ValueError("rows share their first tokens, and this model has not been switched to row attention")
        return {}
    return {"row_layout": layout}


def uses_varlen_attention(model: Any) -> bool:
    """Whether `use_row_attention` switched this model over."""
    return bool(model.config._attn_implementation == IMPLEMENTATION)
