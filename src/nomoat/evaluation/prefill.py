"""Prefill: score each reference and accept the longest prefix of it that greedy decoding would produce.

The prefix that all prompts of a batch share is computed once. The forward pass that measures the likelihood of the references also
verifies them as drafts (speculative decoding, Leviathan et al. 2023, arXiv:2211.17192, with the reference as the draft): `generate`
decodes from the first token that differs. There are two implementations. `prefill_packed` concatenates prompts and references
without padding and needs varlen attention; `prefill_padded` works for any model.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad

from nomoat.kernels.kv_cache import SPARE, preallocated_cache
from nomoat.kernels.varlen_attention import SuffixLayout, enable_varlen_attention
from nomoat.training.packing import TOLERANCE, common_prefix, two_layer_copy

Ids = tuple[int, ...]
CHUNK = 64  # tokens whose logits are converted to float32 at a time: 13 MB for a vocabulary of 49,152
MOST_LOGITS = 1 << 27  # logits of padded references at a time: 512 MiB in float32, 8 tokens of 64 references for 262,144 words


@dataclass(frozen=True)
class Request:
    """A prompt to answer and the reference whose likelihood is measured, both as token ids; `key` breaks ties of order."""

    key: str
    prompt: Ids
    reference: Ids


@dataclass(frozen=True)
class Prefill:
    """The state of a batch before its first new token: prompts and accepted tokens in `cache`, aligned on the right.

    `mask` (batch, tokens) is 0 for padding, `logits` (batch, vocabulary) predict the next token. `accepted` has at most `limit`
    tokens per request and never the last of its reference, a stop token. `likelihoods` are of the whole references, in nats.
    """

    cache: Any
    mask: Any
    logits: Any
    accepted: list[Ids]
    likelihoods: list[float]


def forward(model: Any, ids: Any, mask: Any, cache: Any, **options: Any) -> Any:
    """Logits (batch, tokens, vocabulary) of the new tokens `ids` (batch, tokens), or of those that `logits_to_keep` names.

    `mask` (batch, cached and new tokens) is 0 for padding; `cache` is extended.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "position_ids" in inspect.signature(inner.forward).parameters:
        options["position_ids"] = (mask.cumsum(-1) - 1)[:, -ids.shape[1] :].clamp(min=0)
    return model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **options).logits


def prefill_padded(model: Any, batch: Sequence[Request], *, pad_id: int, limit: int) -> Prefill:
    """Prefill for any model: prompts padded on the left, references on the right of them, then both aligned on the right.

    A sliding window counts cache slots and not positions. With one, no prefix is shared: padding would lie between it and the rest.
    """
    prefix, cache = (0, preallocated_cache()) if _has_sliding_window(model) else _shared_prefix(model, batch)
    if prefix:
        cache.batch_repeat_interleave(len(batch))
    prompts, prompt_mask = pad_batch([request.prompt[prefix:] for request in batch], pad_id, model.device, left=True)
    mask = torch.cat([torch.ones((len(batch), prefix), dtype=torch.long, device=model.device), prompt_mask], dim=1)
    first = forward(model, prompts, mask, cache, logits_to_keep=1)[:, -1]
    drafts = DraftVerifier(batch, limit)
    drafts.update(0, first[:, None])
    references, reference_mask = pad_batch([request.reference for request in batch], pad_id, model.device, left=False)
    step = max(1, MOST_LOGITS // first.numel())
    for start in range(0, references.shape[1] - 1, step):
        end = min(start + step, references.shape[1] - 1)
        seen = torch.cat([mask, reference_mask[:, :end]], dim=1)
        drafts.update(start + 1, forward(model, references[:, start:end], seen, cache))
    places, mask = _align_right(mask, torch.tensor(drafts.counts, device=mask.device))
    places = pad(places, (0, SPARE))
    for layer in _layers(cache):
        index = places[:, None, :, None].expand(-1, layer.keys.shape[1], -1, layer.keys.shape[3])
        layer.reindex(lambda states, index=index: states.gather(2, index))
    return drafts.prefill(cache, mask)


def prefill_packed(model: Any, batch: Sequence[Request], *, pad_id: int, limit: int) -> Prefill:
    """Prefill for a model with varlen attention: all prompts and references concatenated in one pass; `pad_id` is not used."""
    prefix, cache = _shared_prefix(model, batch)
    suffixes = [(*request.prompt[prefix:], *request.reference[:-1]) for request in batch]
    layout = SuffixLayout([len(suffix) for suffix in suffixes], prefix)
    spans = [len(request.reference) for request in batch]  # the last logits of each suffix predict its reference
    device = model.device
    logits = model(
        input_ids=torch.tensor([[token for suffix in suffixes for token in suffix]], device=device),
        position_ids=torch.tensor([[prefix + place for suffix in suffixes for place in range(len(suffix))]], device=device),
        past_key_values=cache,
        use_cache=True,
        packed_layout=layout,
        logits_to_keep=torch.cat([torch.arange(end - span, end) for end, span in zip(layout.ends, spans, strict=True)]).to(device),
    ).logits[0]
    drafts = DraftVerifier(batch, limit)
    drafts.update(0, logits.split(spans))
    kept = [len(request.prompt) - prefix + count for request, count in zip(batch, drafts.counts, strict=True)]
    places, mask = layout.align_right(kept, device)
    places = pad(places, (0, SPARE))
    for layer in _layers(cache):  # (1, heads, tokens, size) -> (batch, heads, longest, size)
        layer.reindex(lambda states: states[0].index_select(1, places.flatten()).unflatten(1, places.shape).transpose(0, 1).contiguous())
    return drafts.prefill(cache, mask)


def enable_packed_prefill(model: Any, probe: Sequence[Request]) -> bool:
    """Switch a model on a CPU to varlen attention if its packed and padded prefill of `probe` agree; returns whether they do.

    Checked in float32 on a copy of the first two layers, as packing is for training.
    """
    if model.device.type != "cpu" or not enable_varlen_attention(model):
        return False
    with suppress(ValueError):  # raised by a layer whose attention cannot keep packed sequences apart
        if _same_prefill(two_layer_copy(model), probe):
            return True
    model.set_attn_implementation("sdpa")
    return False


def _same_prefill(model: Any, probe: Sequence[Request]) -> bool:
    with torch.inference_mode():
        packed, padded = (prefill(model, probe, pad_id=0, limit=1) for prefill in (prefill_packed, prefill_padded))
    if packed.accepted != padded.accepted:
        return False
    error = (packed.logits - padded.logits).abs().max() / padded.logits.abs().max()
    likelihoods = torch.tensor(packed.likelihoods), torch.tensor(padded.likelihoods)
    return float(error) <= TOLERANCE and torch.allclose(*likelihoods, rtol=TOLERANCE, atol=0)


class DraftVerifier:
    """Verifies each reference against the model's logits, which arrive in pieces.

    `likelihoods` (nats) are summed over whole references, `counts` are the accepted tokens: those equal to the argmax from the
    first one on, at most `limit` and without the last, a stop token. `logits` (vocabulary,) are those after the accepted tokens.
    """

    def __init__(self, batch: Sequence[Request], limit: int) -> None:
        self.references, self.limit = [request.reference for request in batch], limit
        self.likelihoods, self.counts = [0.0] * len(batch), [0] * len(batch)
        self.logits: list[Any] = [None] * len(batch)

    def update(self, start: int, logits: Iterable[Any]) -> None:
        """Take for each reference the `logits` (tokens, vocabulary) that predict it from token `start` on; surplus is ignored."""
        for number, (reference, predicted) in enumerate(zip(self.references, logits, strict=True)):
            target = torch.tensor(reference[start : start + len(predicted)], device=predicted.device)
            if not len(target):
                continue
            predicted = predicted[: len(target)]
            for part, tokens in zip(predicted.split(CHUNK), target.split(CHUNK), strict=True):
                self.likelihoods[number] += float(part.float().log_softmax(-1).gather(1, tokens[:, None]).sum())
            if self.counts[number] == start:
                self._accept(number, start, predicted, target)

    def _accept(self, number: int, start: int, predicted: Any, target: Any) -> None:
        agreed = int((predicted.argmax(-1) == target).long().cumprod(0).sum())
        count = self.counts[number] = min(start + agreed, len(self.references[number]) - 1, self.limit)
        if count - start < len(predicted):
            self.logits[number] = predicted[count - start].clone()  # a view would keep all of them in memory

    def prefill(self, cache: Any, mask: Any) -> Prefill:
        """The result, once every logit was seen and `cache` holds prompts and accepted tokens."""
        accepted = [reference[:count] for reference, count in zip(self.references, self.counts, strict=True)]
        return Prefill(cache, mask, torch.stack(self.logits), accepted, self.likelihoods)


def _has_sliding_window(model: Any) -> bool:
    config = model.config.get_text_config()
    return any("full" not in kind for kind in getattr(config, "layer_types", None) or []) or bool(getattr(config, "sliding_window", None))


def _shared_prefix(model: Any, batch: Sequence[Request]) -> tuple[int, Any]:
    """The number of tokens that all prompts begin with, and a cache of batch size 1 that holds them."""
    cache = preallocated_cache()
    prefix = common_prefix([request.prompt for request in batch])
    if prefix:
        ids = torch.tensor([batch[0].prompt[:prefix]], device=model.device)
        forward(model, ids, torch.ones_like(ids), cache, logits_to_keep=1)
    return prefix, cache


def pad_batch(sequences: Sequence[Ids], pad_id: int, device: Any, *, left: bool) -> tuple[Any, Any]:
    """Token ids and mask (batch, longest), padded on the left or on the right; the mask is 0 for padding."""
    longest = max(len(ids) for ids in sequences)
    fills = [longest - len(ids) for ids in sequences]
    padded = [[pad_id] * fill + list(ids) if left else list(ids) + [pad_id] * fill for fill, ids in zip(fills, sequences, strict=True)]
    mask = [[0] * fill + [1] * len(ids) if left else [1] * len(ids) + [0] * fill for fill, ids in zip(fills, sequences, strict=True)]
    return torch.tensor(padded, device=device), torch.tensor(mask, device=device)


def _align_right(mask: Any, kept: Any) -> tuple[Any, Any]:
    """Cache slots (batch, longest) in their new order, and the new mask, if each sequence keeps `kept` (batch,) reference tokens.

    `mask` (batch, prompt tokens) is that of the prompts; afterwards all sequences end in the last slot.
    """
    batch, prompt = mask.shape
    most = int(kept.max())
    source = torch.arange(prompt + most, device=mask.device)[None, :] - (most - kept)[:, None]
    full = torch.cat([mask, torch.ones((batch, most), dtype=mask.dtype, device=mask.device)], dim=1)
    return source.clamp(min=0), torch.where(source >= 0, full.gather(1, source.clamp(min=0)), 0)


def _layers(cache: Any) -> list[Any]:
    return [layer for layer in cache.layers if layer.is_initialized]
