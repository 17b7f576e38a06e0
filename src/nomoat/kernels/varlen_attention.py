"""Attention within each example of a pack (variable-length attention), for CPUs; it replaces torch's scaled_dot_product_attention.

A pack is one sequence of tokens in which several examples follow each other. The stock path computes attention over the whole pack
under a block-diagonal mask, throws away what lies outside the blocks, and its backward pass in bfloat16 is the slowest kernel of a
training step on a CPU. Here the pack is padded to a batch for attention alone: for four examples of 60 tokens in bfloat16, forward and
backward took 1.3 ms per layer instead of 5.3 (2 cores with AVX-512 bfloat16).

A prefix that all examples share (system prompt, the template's first tokens) then needs to be in the pack only once: each example
attends to it and to itself, and the prefix gets the sum of their gradients. Logits, loss and gradients are those of the examples alone.
`hardware.kernels: plain` never switches a model over.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

IMPLEMENTATION = "nomoat_varlen"  # in transformers' registry of attention implementations
DROPOUTS = ("attention_dropout", "attn_pdrop")  # names in configurations; active in training only, so that no check in eval mode notices
UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "position_bias")  # arguments that only the stock path implements


def enable_varlen_attention(model: Any) -> bool:
    """Switch `model` over, if it uses transformers' attention interface and has no dropout in its attention; returns whether it did."""
    passes_arguments = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(model.forward).parameters.values())
    has_dropout = any(getattr(model.config.get_text_config(), name, 0) for name in DROPOUTS)
    if has_dropout or not passes_arguments or _implementation(model) != "sdpa":
        return False
    AttentionInterface.register(IMPLEMENTATION, varlen_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
    model.set_attn_implementation(IMPLEMENTATION)  # changes nothing where the architecture implements its own attention
    return uses_varlen_attention(model)


def uses_varlen_attention(model: Any) -> bool:
    """Whether `enable_varlen_attention` switched this model over."""
    return _implementation(model) == IMPLEMENTATION


def _implementation(model: Any) -> str | None:
    name: str | None = model.config._attn_implementation  # transformers has a public setter and no public getter
    return name


def layout_arguments(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a forward call besides the tokens: the batch's layout, for a model with varlen attention.

    ValueError for a batch with a shared prefix and any other model, which would mix its examples.
    """
    layout = batch.get("layout")
    if layout is not None and uses_varlen_attention(model):
        return {"packed_layout": layout}
    if layout is not None and layout.prefix:
        raise ValueError("the examples share a prefix, and this model does not use varlen attention")
    return {}


def varlen_attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> tuple[Any, None]:
    """transformers' attention interface: within examples where the batch brings its layout, otherwise the stock path."""
    layout = options.pop("packed_layout", None)
    supported = not options.get("dropout") and all(options.get(name) is None for name in UNSUPPORTED)
    if layout is not None and not supported and (layout.prefix or isinstance(layout, SuffixLayout)):
        raise ValueError("the examples share a prefix, and this layer's attention (dropout, a window, sinks) cannot keep them apart")
    scaling = query.shape[-1] ** -0.5 if options.get("scaling") is None else options["scaling"]
    if supported and layout is not None:
        with torch.autocast(query.device.type, enabled=False):  # its backward pass is written for one precision, that of the products
            attended = layout.attend(query.to(value.dtype), key.to(value.dtype), value, scaling)
        return attended.transpose(1, 2).contiguous(), None
    if supported and query.shape[2] == 1 and not torch.is_grad_enabled():
        return _decode(query, key, value, attention_mask, scaling), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


def _decode(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float) -> torch.Tensor:
    """Attention of one new token, (batch, heads, 1, size) -> (batch, 1, heads, size): the query heads of a key head are one product.

    For 32 sequences of 330 tokens, 9 query and 3 key heads of 64: 1.2 ms per layer where scaled_dot_product_attention took 1.8.
    """
    batch, heads, tokens, size = key.shape
    q = query.reshape(batch * heads, -1, size)
    k, v = (states.reshape(batch * heads, tokens, size) for states in (key, value))
    scores = torch.bmm(q, k.transpose(1, 2)).mul_(scaling)
    if mask is not None:
        by_sequence = scores.view(batch, -1, tokens)
        seen = mask[:, 0, -1:, :tokens]
        if seen.dtype == torch.bool:
            by_sequence.masked_fill_(~seen, float("-inf"))
        else:
            by_sequence.add_(seen)
    return torch.bmm(scores.softmax(-1), v).view(batch, 1, -1, size)


class _Layout:
    """`examples` sequences of `longest` tokens, for attention; keys and values of `cached` tokens precede each."""

    def __init__(self, examples: int, longest: int, cached: int = 0) -> None:
        self.examples, self.longest, self.cached = examples, longest, cached
        self._masks: dict[tuple[torch.dtype, int], torch.Tensor] = {}

    def mask(self, dtype: torch.dtype, groups: int) -> torch.Tensor:
        """Additive causal mask (1, groups * longest, cached + longest), made once per pack."""
        if (dtype, groups) not in self._masks:
            seen = torch.ones(self.longest, self.cached + self.longest, dtype=torch.bool).tril(self.cached)
            mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, float("-inf"))
            self._masks[dtype, groups] = mask.repeat(groups, 1)[None]
        return self._masks[dtype, groups]

    def _to_batch(self, states: torch.Tensor, heads: int) -> torch.Tensor:
        """(all heads, examples * longest, size) -> (heads * examples, groups * longest, size): query heads of a key head together."""
        count, _, size = states.shape
        groups = count // heads
        grouped = states.view(heads, groups, self.examples, self.longest, size).transpose(1, 2)
        return grouped.reshape(heads * self.examples, groups * self.longest, size)

    def _from_batch(self, states: torch.Tensor, heads: int) -> torch.Tensor:
        """The inverse of `_to_batch`."""
        groups = states.shape[1] // self.longest
        grouped = states.view(heads, self.examples, groups, self.longest, -1).transpose(1, 2)
        return grouped.reshape(heads * groups, self.examples * self.longest, -1)


class PackedLayout(_Layout):
    """A pack of `prefix` tokens that all examples share, followed by `lengths` tokens of each example.

    `pad_index` (examples * longest,) is the token in the pack for each place of the padded batch, the first token where an example has
    ended; `unpad_index` (tokens,) is the place of each token, for the prefix those in the first example. All examples are padded on
    the right to the longest, rounded up to a `multiple`: under a causal mask no token attends to the padding.
    """

    def __init__(self, lengths: Sequence[int], prefix: int = 0, multiple: int = 1) -> None:
        super().__init__(len(lengths), -(-(prefix + max(lengths)) // multiple) * multiple)
        self.prefix = prefix
        pad: list[int] = []
        unpad = list(range(prefix))
        start = prefix
        for example, length in enumerate(lengths):
            pad += [*range(prefix), *range(start, start + length), *[0] * (self.longest - prefix - length)]
            unpad += range(example * self.longest + prefix, example * self.longest + prefix + length)
            start += length
        self.pad_index, self.unpad_index = torch.tensor(pad), torch.tensor(unpad)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
        """Attention of each example over the prefix and itself; (1, all heads, tokens, size) as `query`."""
        attended: torch.Tensor = _PackedAttention.apply(query, key, value, self, scaling)
        return attended

    def pad(self, states: torch.Tensor, heads: int) -> torch.Tensor:
        """(1, all heads, tokens, size) -> (heads * examples, groups * longest, size)."""
        return self._to_batch(states[0].index_select(1, self.pad_index), heads)

    def unpad(self, states: torch.Tensor, heads: int) -> torch.Tensor:
        """The inverse of `pad`; the prefix is taken from the first example."""
        return self._from_batch(states, heads).index_select(1, self.unpad_index)[None]

    def unpad_backward(self, gradient: torch.Tensor, heads: int) -> torch.Tensor:
        """The gradient before `unpad`, of the shape that `pad` returns: zeros for padding."""
        _, count, _, size = gradient.shape
        padded = gradient.new_zeros(count, self.examples * self.longest, size)
        return self._to_batch(padded.index_copy_(1, self.unpad_index, gradient[0]), heads)

    def pad_backward(self, gradient: torch.Tensor, heads: int) -> torch.Tensor:
        """The gradient before `pad`: for the prefix the sum over examples. Padding has no gradient and adds none."""
        if not self.prefix:
            return self.unpad(gradient, heads)
        flat = self._from_batch(gradient, heads)
        return flat.new_zeros(len(flat), len(self.unpad_index), flat.shape[2]).index_add_(1, self.pad_index, flat)[None]


class _PackedAttention(torch.autograd.Function):
    """softmax(scaling * Q K^T + mask) V within examples; only Q, K, V and the probabilities P are kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, layout: PackedLayout, scaling: float) -> Any:
        heads = key.shape[1]
        q, k, v = (layout.pad(states, heads) for states in (query, key, value))
        p = torch.baddbmm(layout.mask(q.dtype, query.shape[1] // heads), q, k.transpose(1, 2), alpha=scaling).softmax(-1)
        ctx.save_for_backward(q, k, v, p)
        ctx.layout, ctx.scaling, ctx.heads = layout, scaling, heads
        return layout.unpad(p @ v, heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Any) -> Any:
        q, k, v, p = ctx.saved_tensors
        layout, scaling, heads = ctx.layout, ctx.scaling, ctx.heads
        d_out = layout.unpad_backward(gradient, heads)
        # Private, but what autograd itself calls for softmax: the public way would keep the scores beside P until here.
        d_scores = torch.ops.aten._softmax_backward_data(d_out @ v.transpose(1, 2), p, -1, p.dtype)
        unused = q.new_zeros(1, 1, 1)  # beta is 0
        d_q = torch.baddbmm(unused, d_scores, k, beta=0, alpha=scaling)
        d_k = torch.baddbmm(unused, d_scores.transpose(1, 2), q, beta=0, alpha=scaling)
        d_v = p.transpose(1, 2) @ d_out
        return *(layout.pad_backward(each, heads) for each in (d_q, d_k, d_v)), None, None


class SuffixLayout(_Layout):
    """A pack of `lengths` tokens of each example whose shared `prefix` is in the key-value cache already: for inference only.

    `ends` (examples,) is where each example ends in the pack. Keys and values are the prefix, then the pack.
    """

    def __init__(self, lengths: Sequence[int], prefix: int) -> None:
        super().__init__(len(lengths), max(lengths), cached=prefix)
        self.prefix = prefix
        self.ends = list(accumulate(lengths))
        self.starts = [end - length for end, length in zip(self.ends, lengths, strict=True)]
        spans = zip(self.starts, lengths, strict=True)
        pad = [place for start, length in spans for place in (*range(start, start + length), *[0] * (self.longest - length))]
        self.pad_index = torch.tensor(pad)
        self.unpad_index = torch.tensor([n * self.longest + place for n, length in enumerate(lengths) for place in range(length)])
        own = self.pad_index.view(self.examples, self.longest) + prefix
        self.key_index = torch.cat([torch.arange(prefix).expand(self.examples, -1), own], dim=1).flatten()

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
        """softmax(scaling * Q K^T + mask) V of each example over the prefix and itself; (1, all heads, tokens, size) as `query`."""
        heads, groups, size = key.shape[1], query.shape[1] // key.shape[1], query.shape[-1]
        q = self._to_batch(query[0].index_select(1, self.pad_index), heads)
        k, v = (states[0].index_select(1, self.key_index).view(heads * self.examples, -1, size) for states in (key, value))
        p = torch.baddbmm(self.mask(q.dtype, groups), q, k.transpose(1, 2), alpha=scaling).softmax(-1)
        return self._from_batch(p @ v, heads).index_select(1, self.unpad_index)[None]

    def align_right(self, lengths: Sequence[int], device: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Index and mask (examples, longest) of a cache in which all examples end together, each keeping its first `lengths` tokens."""
        longest = max(lengths)
        index, mask = [], []
        for start, length in zip(self.starts, lengths, strict=True):
            own = range(self.prefix + start, self.prefix + start + length)
            index.append([*[0] * (longest - length), *range(self.prefix), *own])
            mask.append([*[0] * (longest - length), *[1] * (self.prefix + length)])
        return torch.tensor(index, device=device), torch.tensor(mask, device=device)
