"""Prompts and references of a batch, before the first token is generated: likelihoods, and how far each answer is known already.

What the prompts have in common is computed once. The pass that measures a reference also tells how far the model would have said
the same: greedy decoding starts from there (speculative decoding, Leviathan et al. 2023, arXiv:2211.17192, with the reference as
the draft). Where the model has been switched to attention row by row, prompts and references are computed end to end, without
padding; else side by side, prompts padded on the left and references on the right.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from nomoat.training.packing import TOLERANCE, common_prefix, two_layer_copy

Ids = tuple[int, ...]
CHUNK = 64  # rows of logits that are float32 at a time: 13 MB for 49,152 words
MOST_LOGITS = 1 << 27  # of references at a time where they are padded: 512 MiB in float32, 8 tokens of 64 rows for 262,144 words


@dataclass(frozen=True)
class Request:
    """A prompt to answer and the reference whose likelihood is measured on the way."""

    key: str
    prompt: Ids
    reference: Ids


@dataclass(frozen=True)
class Prefill:
    """A batch whose rows stand side by side in `cache`, ending together: prompt, then what the model says as the reference does.

    `mask` (rows, tokens) is 0 where a row has not begun; `logits` (rows, vocabulary) are those of the next token; `agreed` are the
    tokens known already, at most `limit` and never the reference's last, which is a stop; `likelihoods` are of whole references, in nats.
    """

    cache: Any
    mask: Any
    logits: Any
    agreed: list[Ids]
    likelihoods: list[float]


def forward(model: Any, ids: Any, mask: Any, cache: Any, **options: Any) -> Any:
    """Logits (rows, new tokens or those kept, vocabulary) of tokens that follow what is in `cache`; `mask` covers both."""
    if _takes_positions(model):
        options["position_ids"] = (mask.cumsum(-1) - 1)[:, -ids.shape[1] :].clamp(min=0)
    return model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **options).logits


def _takes_positions(model: Any) -> bool:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "position_ids" in inspect.signature(inner.forward).parameters


def prefill_padded(model: Any, batch: Sequence[Request], *, pad_id: int, limit: int) -> Prefill:
    """For any model: prompts padded on the left, then references on the right of them, then both moved together.

    A window counts places, not positions: with one, nothing is shared, since padding would stand between what is and the rest.
    """
    import torch

    from nomoat.kernels.kv_cache import preallocated_cache

    shared, cache = (0, preallocated_cache()) if _has_window(model) else _shared_prefix(model, batch)
    mask = torch.ones((len(batch), shared), dtype=torch.long, device=model.device)
    if shared:
        cache.batch_repeat_interleave(len(batch))
    prompts, real = _side_by_side([question.prompt[shared:] for question in batch], pad_id, model.device, left=True)
    mask = torch.cat([mask, real], dim=1)
    first = forward(model, prompts, mask, cache, logits_to_keep=1)[:, -1]
    known = _DraftVerifier(batch, limit)
    known.see(0, first[:, None])
    targets, real = _side_by_side([question.reference for question in batch], pad_id, model.device, left=False)
    step = max(1, MOST_LOGITS // first.numel())
    for start in range(0, targets.shape[1] - 1, step):
        end = min(start + step, targets.shape[1] - 1)
        known.see(start + 1, forward(model, targets[:, start:end], torch.cat([mask, real[:, :end]], dim=1), cache))
    places, mask = _right_aligned(mask, torch.tensor(known.counts, device=mask.device))
    places = _with_spare(places)
    for layer in _layers(cache):
        where = places[:, None, :, None].expand(-1, layer.keys.shape[1], -1, layer.keys.shape[3])
        layer.rearrange(lambda states, where=where: states.gather(2, where))
    return _make_prefill(batch, cache, mask, known)


def _has_window(model: Any) -> bool:
    config = model.config.get_text_config()
    return any("full" not in kind for kind in getattr(config, "layer_types", None) or []) or bool(getattr(config, "sliding_window", None))


def prefill_packed(model: Any, batch: Sequence[Request], *, pad_id: int, limit: int) -> Prefill:
    """For a model with row attention: all prompts and references end to end in one pass; nothing is padded, so `pad_id` is not used."""
    import torch

    from nomoat.kernels.varlen_attention import SuffixLayout

    shared, cache = _shared_prefix(model, batch)
    tails = [(*question.prompt[shared:], *question.reference[:-1]) for question in batch]
    layout = SuffixLayout([len(tail) for tail in tails], shared)
    spans = [len(question.reference) for question in batch]  # logits wanted of each row: its last ones
    device = model.device
    logits = model(
        input_ids=torch.tensor([[token for tail in tails for token in tail]], device=device),
        position_ids=torch.tensor([[shared + place for tail in tails for place in range(len(tail))]], device=device),
        past_key_values=cache,
        use_cache=True,
        row_layout=layout,
        logits_to_keep=torch.cat([torch.arange(end - span, end) for end, span in zip(layout.ends, spans, strict=True)]).to(device),
    ).logits[0]
    known = _DraftVerifier(batch, limit)
    known.see(0, logits.split(spans))
    places, mask = layout.side_by_side([len(q.prompt) - shared + count for q, count in zip(batch, known.counts, strict=True)], device)
    places = _with_spare(places)
    for layer in _layers(cache):
        layer.rearrange(lambda states: _unpacked(states, places))
    return _make_prefill(batch, cache, mask, known)


def use_packed_prefill_if_safe(model: Any, probe: Sequence[Request]) -> bool:
    """Switch a model on a CPU to row attention if that begins the questions of `probe` as padding does; returns whether it did.

    Checked on a float32 copy of the first two layers, as packing is for training.
    """
    from nomoat.kernels.varlen_attention import enable_varlen_attention

    if model.device.type != "cpu" or not enable_varlen_attention(model):
        return False
    with suppress(ValueError):  # a layer whose attention cannot keep rows apart says so
        if _same_prefill(two_layer_copy(model), probe):
            return True
    model.set_attn_implementation("sdpa")
    return False


def _same_prefill(model: Any, probe: Sequence[Request]) -> bool:
    import torch

    with torch.inference_mode():
        packed, padded = (begin(model, probe, pad_id=0, limit=1) for begin in (prefill_packed, prefill_padded))
    if packed.agreed != padded.agreed:
        return False
    error = (packed.logits - padded.logits).abs().max() / padded.logits.abs().max()
    likelihoods = torch.tensor(packed.likelihoods), torch.tensor(padded.likelihoods)
    return float(error) <= TOLERANCE and torch.allclose(*likelihoods, rtol=TOLERANCE, atol=0)


def _make_prefill(batch: Sequence[Request], cache: Any, mask: Any, known: _DraftVerifier) -> Prefill:
    import torch

    agreed = [question.reference[:count] for question, count in zip(batch, known.counts, strict=True)]
    return Prefill(cache, mask, torch.stack(known.logits), agreed, known.likelihoods)


def _shared_prefix(model: Any, batch: Sequence[Request]) -> tuple[int, Any]:
    """How many tokens all prompts begin with, and a cache (one row) that holds them."""
    import torch

    from nomoat.kernels.kv_cache import preallocated_cache

    cache = preallocated_cache()
    shared = common_prefix([question.prompt for question in batch])
    if shared:
        ids = torch.tensor([batch[0].prompt[:shared]], device=model.device)
        forward(model, ids, torch.ones_like(ids), cache, logits_to_keep=1)
    return shared, cache


def _side_by_side(rows: Sequence[Ids], pad_id: int, device: Any, *, left: bool) -> tuple[Any, Any]:
    """Token ids (rows, longest), padded, and the mask that says which are real."""
    import torch

    longest = max(len(row) for row in rows)
    fill = [longest - len(row) for row in rows]
    ids = [[pad_id] * n + list(row) if left else list(row) + [pad_id] * n for n, row in zip(fill, rows, strict=True)]
    real = [[0] * n + [1] * len(row) if left else [1] * len(row) + [0] * n for n, row in zip(fill, rows, strict=True)]
    return torch.tensor(ids, device=device), torch.tensor(real, device=device)


class _DraftVerifier:
    """Of each reference its log-likelihood, how many of its tokens the model would say itself, and its logits after those.

    A reference's last token, a stop, is not counted, and at most `limit` are.
    """

    def __init__(self, batch: Sequence[Request], limit: int) -> None:
        self.references, self.limit = [question.reference for question in batch], limit
        self.likelihoods, self.counts = [0.0] * len(batch), [0] * len(batch)
        self.logits: list[Any] = [None] * len(batch)

    def see(self, start: int, logits: Iterable[Any]) -> None:
        """Each row's `logits` (tokens, vocabulary), of its reference from token `start` on; what follows a reference is not read."""
        import torch

        for row, (reference, predicted) in enumerate(zip(self.references, logits, strict=True)):
            wanted = torch.tensor(reference[start : start + len(predicted)], device=predicted.device)
            if len(wanted):
                predicted = predicted[: len(wanted)]
                for part, tokens in zip(predicted.split(CHUNK), wanted.split(CHUNK), strict=True):
                    self.likelihoods[row] += float(part.float().log_softmax(-1).gather(1, tokens[:, None]).sum())
                self._follow(row, start, predicted, wanted)

    def _follow(self, row: int, start: int, predicted: Any, wanted: Any) -> None:
        """Count on where all tokens before `start` were said."""
        if self.counts[row] < start:
            return
        said = int((predicted.argmax(-1) == wanted).long().cumprod(0).sum())
        count = self.counts[row] = min(start + said, len(self.references[row]) - 1, self.limit)
        if count - start < len(predicted):
            self.logits[row] = predicted[count - start].clone()  # not a view that keeps all of them


def _right_aligned(mask: Any, kept: Any) -> tuple[Any, Any]:
    """Where each row's tokens stand now if it keeps `kept` (rows,) of those after its prompt and ends with the others, and its mask.

    `mask` (rows, prompt tokens) is that of the prompts.
    """
    import torch

    rows, prompt = mask.shape
    most = int(kept.max())
    source = torch.arange(prompt + most, device=mask.device)[None, :] - (most - kept)[:, None]
    full = torch.cat([mask, torch.ones((rows, most), dtype=mask.dtype, device=mask.device)], dim=1)
    return source.clamp(min=0), torch.where(source >= 0, full.gather(1, source.clamp(min=0)), 0)


def _with_spare(places: Any) -> Any:
    """(rows, longest) with SPARE columns more, of whichever token."""
    from torch.nn.functional import pad

    from nomoat.kernels.kv_cache import SPARE

    return pad(places, (0, SPARE))


def _unpacked(states: Any, places: Any) -> Any:
    """(1, heads, tokens, size) -> (rows, heads, longest, size), each row's tokens taken from `places` (rows, longest)."""
    rows, longest = places.shape
    return states[0].index_select(1, places.flatten()).unflatten(1, (rows, longest)).transpose(0, 1).contiguous()


def _layers(cache: Any) -> list[Any]:
    return [layer for layer in cache.layers if layer.is_initialized]
