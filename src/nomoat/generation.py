"""Greedy answers and likelihoods, many rows at a time, the same way for every arm.

Rows are sorted by length and cut into batches; what the prompts of a batch have in common is computed once; rows that
have ended leave the batch. The batch plan is part of `decoding`: in floating point, an output may depend on its company.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nomoat.conversation import Conversation

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """A generated answer: its tokens without the stop token, and whether it stopped by itself."""

    ids: Ids
    stopped: bool


@dataclass(frozen=True)
class Question:
    """A prompt to answer and the reference whose likelihood is measured on the way."""

    key: str
    prompt: Ids
    reference: Ids


def batch_plan(questions: Sequence[Question], batch_rows: int) -> list[list[int]]:
    """Question numbers, sorted by prompt (long ones first, ties by key), cut into batches.

    Prompts that begin alike sit together, so that few-shot examples are computed once for a batch.
    """
    order = sorted(range(len(questions)), key=lambda n: (-len(questions[n].prompt), questions[n].key))
    return [order[start : start + batch_rows] for start in range(0, len(order), batch_rows)]


class Generator:
    """Answers questions with one model; `model` is in eval mode and on its device."""

    def __init__(self, model: Any, conversation: Conversation, *, max_new_tokens: int) -> None:
        self.model, self.conversation, self.max_new_tokens = model, conversation, max_new_tokens
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._takes_positions = "position_ids" in inspect.signature(inner.forward).parameters

    def answer(self, batch: Sequence[Question], on_token: Callable[[int], None] | None = None) -> tuple[list[Answer], list[float]]:
        """Greedy answers and the log-likelihood (nats) of each reference, in the order of `batch`.

        `on_token` receives the ids of the first question as they come (for streaming).
        """
        import torch

        with torch.inference_mode():
            cache, mask, logits = self._prefill([question.prompt for question in batch])
            likelihoods = self._score_references(batch, cache, mask, logits)
            answers = self._decode(cache, mask, logits, on_token)
        return answers, likelihoods

    def _forward(self, ids: Any, mask: Any, cache: Any) -> Any:
        """Logits (rows, new tokens, vocabulary) of tokens that follow what is in `cache`."""
        extra = {}
        if self._takes_positions:
            positions = mask.cumsum(-1) - 1
            extra["position_ids"] = positions[:, -ids.shape[1] :].clamp(min=0)
        return self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **extra).logits

    def _prefill(self, prompts: Sequence[Ids]) -> tuple[Any, Any, Any]:
        """Cache, attention mask (rows, tokens) and logits (rows, vocabulary) after the prompts, left-padded."""
        import torch
        from transformers import DynamicCache

        device = self.model.device
        cache = DynamicCache()  # no config: plain layers for every architecture, so that crop and select work; masks do the sliding
        shared = common_prefix(prompts)
        mask = torch.ones((len(prompts), shared), dtype=torch.long, device=device)
        if shared:
            self._forward_last(torch.tensor([prompts[0][:shared]], device=device), mask[:1], cache)
            cache.batch_repeat_interleave(len(prompts))
        longest = max(len(prompt) for prompt in prompts) - shared
        ids = torch.full((len(prompts), longest), self.conversation.pad_id)
        rest = torch.zeros((len(prompts), longest), dtype=torch.long)
        for number, prompt in enumerate(prompts):
            tail = prompt[shared:]
            ids[number, longest - len(tail) :] = torch.tensor(tail)
            rest[number, longest - len(tail) :] = 1
        mask = torch.cat([mask, rest.to(device)], dim=1)
        return cache, mask, self._forward_last(ids.to(device), mask, cache)

    def _forward_last(self, ids: Any, mask: Any, cache: Any) -> Any:
        """Like `_forward`, with logits of the last position only: a vocabulary is the largest matrix here."""
        extra = {"position_ids": (mask.cumsum(-1) - 1)[:, -ids.shape[1] :].clamp(min=0)} if self._takes_positions else {}
        out = self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1, **extra)
        return out.logits[:, -1]

    def _score_references(self, batch: Sequence[Question], cache: Any, mask: Any, logits: Any) -> list[float]:
        """Log-likelihood of each reference after its prompt; the cache is left as it was."""
        import torch

        lengths = torch.tensor([len(question.reference) for question in batch], device=mask.device)
        longest = int(lengths.max())
        targets = torch.full((len(batch), longest), self.conversation.pad_id)
        for number, question in enumerate(batch):
            targets[number, : len(question.reference)] = torch.tensor(question.reference)
        targets = targets.to(mask.device)
        real = torch.arange(longest, device=mask.device)[None, :] < lengths[:, None]
        first = logits[:, None]
        if longest > 1:
            later = self._forward(targets[:, :-1], torch.cat([mask, real[:, :-1].long()], dim=1), cache)
            cache.crop(1 - longest)  # negative: that many tokens off the end
            first = torch.cat([first, later], dim=1)
        total = torch.zeros(len(batch), device=mask.device)
        for step in range(longest):  # position by position: a float32 copy of all logits would be gigabytes
            picked = first[:, step].float().log_softmax(-1).gather(1, targets[:, step : step + 1])[:, 0]
            total += torch.where(real[:, step], picked, 0.0)
        return total.tolist()

    def _decode(self, cache: Any, mask: Any, logits: Any, on_token: Callable[[int], None] | None) -> list[Answer]:
        import torch

        count = len(mask)
        outputs: list[list[int]] = [[] for _ in range(count)]
        stopped = [False] * count
        alive = list(range(count))
        for _ in range(self.max_new_tokens):
            chosen = logits.argmax(-1).tolist()
            going = []
            for place, token in enumerate(chosen):
                if token in self.conversation.stop_ids:
                    stopped[alive[place]] = True
                    continue
                outputs[alive[place]].append(token)
                going.append(place)
            if on_token is not None and going and alive[going[0]] == 0:
                on_token(chosen[going[0]])
            if not going or len(outputs[alive[going[0]]]) >= self.max_new_tokens:
                break
            if len(going) < len(alive):
                kept = torch.tensor(going, device=mask.device)
                cache.batch_select_indices(kept)
                mask, alive = mask[kept], [alive[place] for place in going]
            ids = torch.tensor([[chosen[place]] for place in going], device=mask.device)
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
            logits = self._forward_last(ids, mask, cache)
        return [Answer(tuple(ids), done) for ids, done in zip(outputs, stopped, strict=True)]


def common_prefix(prompts: Sequence[Ids]) -> int:
    """How many leading tokens all prompts share, leaving each at least one of its own."""
    shortest = min(len(prompt) for prompt in prompts) - 1
    first = prompts[0]
    for place in range(shortest):
        if any(prompt[place] != first[place] for prompt in prompts):
            return place
    return max(shortest, 0)


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
