"""Greedy answers and likelihoods, many rows at a time, the same way for every arm.

Rows are sorted by length and cut into batches; what the prompts of a batch have in common is computed once; rows that
have ended leave the batch. The forward pass that measures a reference also tells how far the model would have said the same:
greedy decoding starts from there (speculative decoding, Leviathan et al. 2023, arXiv:2211.17192, with the reference as the
draft), so that a right answer costs one pass instead of one a token. The batch plan and the drafting are part of `decoding`:
in floating point, an output may depend on its company.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nomoat.conversation import Conversation
from nomoat.packing import common_prefix

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
            likelihoods, agreed, logits = self._score_references(batch, cache, mask, logits)
            mask = keep_agreed(cache, mask, torch.tensor([len(ids) for ids in agreed], device=mask.device))
            answers = self._decode(cache, mask, logits, agreed, on_token)
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

        from nomoat.caches import roomy_cache

        device = self.model.device
        cache = roomy_cache()
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

    def _score_references(self, batch: Sequence[Question], cache: Any, mask: Any, logits: Any) -> tuple[list[float], list[Ids], Any]:
        """Log-likelihood of each reference, how much of it the model would say itself, and its logits after that.

        The cache holds the longest reference but its last token afterwards; see `keep_agreed`.
        """
        import torch

        lengths = torch.tensor([len(question.reference) for question in batch], device=mask.device)
        longest = int(lengths.max())
        targets = torch.full((len(batch), longest), self.conversation.pad_id)
        for number, question in enumerate(batch):
            targets[number, : len(question.reference)] = torch.tensor(question.reference)
        targets = targets.to(mask.device)
        real = torch.arange(longest, device=mask.device)[None, :] < lengths[:, None]
        later: Any = None  # logits at the references' tokens
        if longest > 1:
            later = self._forward(targets[:, :-1], torch.cat([mask, real[:, :-1].long()], dim=1), cache)
        total = torch.zeros(len(batch), device=mask.device)
        said = torch.zeros_like(real)
        for step in range(longest):  # position by position: a float32 copy of all logits would be gigabytes
            here = logits if step == 0 else later[:, step - 1]
            picked = here.float().log_softmax(-1).gather(1, targets[:, step : step + 1])[:, 0]
            total += torch.where(real[:, step], picked, 0.0)
            said[:, step] = (here.argmax(-1) == targets[:, step]) & (step < lengths - 1)  # the last token, a stop, is never part of it
        count = said.long().cumprod(dim=1).sum(dim=1).clamp(max=self.max_new_tokens)
        agreed = [question.reference[:kept] for question, kept in zip(batch, count.tolist(), strict=True)]
        if later is not None:
            after = later[torch.arange(len(batch), device=mask.device), (count - 1).clamp(min=0)]
            logits = torch.where((count == 0)[:, None], logits, after)
        return total.tolist(), agreed, logits

    def _decode(self, cache: Any, mask: Any, logits: Any, begun: Sequence[Ids], on_token: Callable[[int], None] | None) -> list[Answer]:
        import torch

        outputs = [list(ids) for ids in begun]
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
            logits = self._forward_last(ids, mask, cache)
        return [Answer(tuple(ids), done) for ids, done in zip(outputs, stopped, strict=True)]


def keep_agreed(cache: Any, mask: Any, agreed: Any) -> Any:
    """Drop what follows each row's first `agreed` (rows,) tokens after its prompt; return the attention mask of what is left.

    `mask` (rows, prompt tokens) is that of the prompts. Rows are moved to the right, so that they end together as after a
    left-padded prompt.
    """
    import torch

    rows, prompt = mask.shape
    most = int(agreed.max())
    source = torch.arange(prompt + most, device=mask.device)[None, :] - (most - agreed)[:, None]
    full = torch.cat([mask, torch.ones((rows, most), dtype=mask.dtype, device=mask.device)], dim=1)
    kept = torch.where(source >= 0, full.gather(1, source.clamp(min=0)), 0)
    for layer in cache.layers:
        if layer.is_initialized:
            where = source.clamp(min=0)[:, None, :, None].expand(-1, layer.keys.shape[1], -1, layer.keys.shape[3])
            layer.keys, layer.values = layer.keys.gather(2, where), layer.values.gather(2, where)
    return kept


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
