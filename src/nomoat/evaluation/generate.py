"""Greedy answers and likelihoods, many rows at a time, the same way for every arm.

Rows are sorted by length and cut into batches; rows that have ended leave the batch. Decoding starts where an answer parts from
its reference (beginnings.py), so that a right answer costs one pass instead of one a token. The batch plan and the drafting are
part of `decoding`: in floating point, an output may depend on its company.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nomoat.data.chat_template import ChatTemplate
from nomoat.evaluation.prefill import Ids, Prefill, Request, forward, prefill_packed, prefill_padded


@dataclass(frozen=True)
class Completion:
    """A generated answer: its tokens without the stop token, and whether it stopped by itself."""

    ids: Ids
    stopped: bool


def batch_plan(questions: Sequence[Request], batch_rows: int) -> list[list[int]]:
    """Question numbers, sorted by prompt (long ones first, ties by key), cut into batches.

    Prompts that begin alike sit together, so that few-shot examples are computed once for a batch.
    """
    order = sorted(range(len(questions)), key=lambda n: (-len(questions[n].prompt), questions[n].key))
    return [order[start : start + batch_rows] for start in range(0, len(order), batch_rows)]


class Generator:
    """Answers questions with one model; `model` is in eval mode and on its device."""

    def __init__(self, model: Any, conversation: ChatTemplate, *, max_new_tokens: int) -> None:
        from nomoat.kernels.varlen_attention import uses_varlen_attention

        self.model, self.conversation, self.max_new_tokens = model, conversation, max_new_tokens
        self.packed = uses_varlen_attention(model)

    def answer(self, batch: Sequence[Request], on_token: Callable[[int], None] | None = None) -> tuple[list[Completion], list[float]]:
        """Greedy answers and the log-likelihood (nats) of each reference, in the order of `batch`.

        `on_token` receives the ids of the first question as they come (for streaming).
        """
        import torch

        begin = prefill_packed if self.packed else prefill_padded
        with torch.inference_mode():
            begun = begin(self.model, batch, pad_id=self.conversation.pad_id, limit=self.max_new_tokens)
            answers = self._decode(begun, on_token)
        return answers, begun.likelihoods

    def _decode(self, begun: Prefill, on_token: Callable[[int], None] | None) -> list[Completion]:
        import torch

        cache, mask, logits = begun.cache, begun.mask, begun.logits
        outputs = [list(ids) for ids in begun.agreed]
        stopped = [False] * len(outputs)
        alive = list(range(len(outputs)))
        if on_token is not None:
            for token in outputs[0]:
                on_token(token)
        while True:
            chosen = logits.argmax(-1).tolist()
            going = []
            for place, token in enumerate(chosen):
                row = alive[place]
                room = self.max_new_tokens - len(outputs[row])  # of which the stop token takes one
                stopped[row] = room > 0 and token in self.conversation.stop_ids
                if stopped[row] or room <= 0:
                    continue
                outputs[row].append(token)
                if row == 0 and on_token is not None:
                    on_token(token)
                if room > 1:
                    going.append(place)
            if not going:
                break
            if len(going) < len(alive):
                kept = torch.tensor(going, device=mask.device)
                cache.batch_select_indices(kept)
                mask, alive = mask[kept], [alive[place] for place in going]
            ids = torch.tensor([[chosen[place]] for place in going], device=mask.device)
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
            logits = forward(self.model, ids, mask, cache, logits_to_keep=1)[:, -1]
        return [Completion(tuple(ids), done) for ids, done in zip(outputs, stopped, strict=True)]


def bits_per_byte(model: Any, ids: Sequence[int], byte_count: int, *, window: int = 512) -> float:
    """Bits per byte of a text of `byte_count` bytes given as token ids: windows of `window` tokens, the first token free."""
    import math

    import torch
    from torch.nn.functional import cross_entropy

    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(ids) - 1, window):
            piece = torch.tensor([list(ids[start : start + window + 1])], device=model.device)
            logits = model(input_ids=piece[:, :-1], use_cache=False).logits[0].float()
            total += float(cross_entropy(logits, piece[0, 1:], reduction="sum"))
    return total / math.log(2) / byte_count
