"""Greedy answers and reference likelihoods in batches. Scoring drafts from the reference: the held-out answer itself is the draft.

This is speculative decoding (Leviathan et al. 2023, arXiv:2211.17192) with the reference in the place of a draft model. One forward
pass over prompt and reference measures the reference's likelihood, which is reported anyway, and accepts the longest prefix of the
reference whose every token is the model's own argmax (`prefill`); token by token decoding continues from there. A token is accepted
only where greedy decoding would have chosen it, so no answer changes, and an answer equal to its reference costs one pass. Only
rounding can differ between the two ways, where two logits are equal up to the last digits.

`Generator(..., draft=False)`, or `hardware.kernels: plain` in a recipe, decodes from the first token and never shows the model the
reference while it answers. Requests are sorted by length and cut into batches; finished answers leave their batch. Batches and drafts
are part of the recorded decoding settings, since a floating-point result may depend on the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from nomoat.data.chat_template import ChatTemplate
from nomoat.evaluation.prefill import Ids, Prefill, Request, forward, pad_batch, prefill_packed, prefill_padded
from nomoat.kernels.varlen_attention import uses_varlen_attention


@dataclass(frozen=True)
class Completion:
    """A generated answer: its tokens without the stop token, and whether it ended with one."""

    ids: Ids
    stopped: bool


def batch_plan(requests: Sequence[Request], batch_size: int) -> list[list[int]]:
    """Indices of `requests`, longest prompt first, ties by key, cut into batches.

    Prompts with the same beginning are neighbours, so that few-shot examples are computed once per batch.
    """
    order = sorted(range(len(requests)), key=lambda n: (-len(requests[n].prompt), requests[n].key))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


class Generator:
    """Answers requests with one model, which is in eval mode and on its device.

    `max_new_tokens` counts the stop token too. With `draft` the references are verified as drafts; without it the cache is
    transformers' own and the references are measured one by one, apart from the answers.
    """

    def __init__(self, model: Any, template: ChatTemplate, *, max_new_tokens: int, draft: bool = True) -> None:
        self.model, self.template, self.max_new_tokens, self.draft = model, template, max_new_tokens, draft

    def answer(self, batch: Sequence[Request], on_token: Callable[[int], None] = lambda _: None) -> tuple[list[Completion], list[float]]:
        """Greedy answers and the log-likelihood (nats) of each reference, in the order of `batch`.

        `on_token` receives the token ids of the first request as they are decoded (for streaming).
        """
        with torch.inference_mode():
            start = self._prefill(batch, self.max_new_tokens) if self.draft else self._prefill_plain(batch)
            return self._decode(start, on_token), start.likelihoods

    def log_likelihoods(self, batch: Sequence[Request]) -> list[float]:
        """The log-likelihood (nats) of each reference after its prompt; nothing is generated."""
        with torch.inference_mode():
            return self._prefill(batch, 0).likelihoods if self.draft else [self._log_likelihood(request) for request in batch]

    def _prefill(self, batch: Sequence[Request], limit: int) -> Prefill:
        prefill = prefill_packed if uses_varlen_attention(self.model) else prefill_padded
        return prefill(self.model, batch, pad_id=self.template.pad_id, limit=limit)

    def _prefill_plain(self, batch: Sequence[Request]) -> Prefill:
        """Whole prompts, padded on the left, into transformers' own cache; nothing is accepted."""
        cache = DynamicCache(config=self.model.config)
        ids, mask = pad_batch([request.prompt for request in batch], self.template.pad_id, self.model.device, left=True)
        logits = forward(self.model, ids, mask, cache, logits_to_keep=1)[:, -1]
        return Prefill(cache, mask, logits, [()] * len(batch), [self._log_likelihood(request) for request in batch])

    def _log_likelihood(self, request: Request) -> float:
        """One forward pass over prompt and reference, without batch, padding or cache."""
        ids = torch.tensor([[*request.prompt, *request.reference]], device=self.model.device)
        size = len(request.reference)
        logits = self.model(input_ids=ids, use_cache=False, logits_to_keep=size + 1).logits[0, :-1].float()
        return float(logits.log_softmax(-1).gather(1, ids[0, -size:, None]).sum())

    def _decode(self, start: Prefill, on_token: Callable[[int], None]) -> list[Completion]:
        cache, mask, logits = start.cache, start.mask, start.logits
        outputs = [list(ids) for ids in start.accepted]
        stopped = [False] * len(outputs)
        alive = list(range(len(outputs)))  # the requests still in the batch
        for token in outputs[0]:
            on_token(token)
        while True:
            chosen = logits.argmax(-1).tolist()
            unfinished = []
            for place, token in enumerate(chosen):
                number = alive[place]
                room = self.max_new_tokens - len(outputs[number])  # of which the stop token takes one
                stopped[number] = room > 0 and token in self.template.stop_ids
                if stopped[number] or room <= 0:
                    continue
                outputs[number].append(token)
                if number == 0:
                    on_token(token)
                if room > 1:
                    unfinished.append(place)
            if not unfinished:
                break
            if len(unfinished) < len(alive):
                kept = torch.tensor(unfinished, device=mask.device)
                cache.batch_select_indices(kept)
                mask, alive = mask[kept], [alive[place] for place in unfinished]
            ids = torch.tensor([[chosen[place]] for place in unfinished], device=mask.device)
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
            logits = forward(self.model, ids, mask, cache, logits_to_keep=1)[:, -1]
        return [Completion(tuple(ids), done) for ids, done in zip(outputs, stopped, strict=True)]


def bits_per_byte(model: Any, ids: Sequence[int], byte_count: int, *, window: int = 512) -> float:
    """Bits per byte of a text of `byte_count` bytes, given as token ids: windows of `window` tokens, the first token not counted."""
    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(ids) - 1, window):
            piece = torch.tensor([list(ids[start : start + window + 1])], device=model.device)
            logits = model(input_ids=piece[:, :-1], use_cache=False).logits[0].float()
            total += float(cross_entropy(logits, piece[0, 1:], reduction="sum"))
    return total / math.log(2) / byte_count
