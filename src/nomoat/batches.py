"""Rows as batches, and the loss of a batch: what training, its validation, the gate and a plan compute alike.

The loss is the sum of cross-entropy over labelled tokens, whatever the packs; logits are computed only where there is a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nomoat.conversation import Rendered
from nomoat.losses import summed_cross_entropy
from nomoat.packing import IGNORED, packed_batch, padded_batch
from nomoat.row_attention import layout_for


@dataclass(frozen=True)
class Rows:
    """Rendered rows and how they are put into batches on this base."""

    train: Sequence[Rendered]
    validation: Sequence[Rendered]
    packed: bool
    pad_id: int
    pack_tokens: int
    shared: bool = False  # what the rows of a pack begin with is computed once (row attention only)

    def batches(self, packs: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
        """The forward passes of one step."""
        return [self.batch([self.train[number] for number in pack]) for pack in packs]

    def batch(self, rows: Sequence[Rendered]) -> dict[str, Any]:
        """One forward pass over `rows`."""
        return packed_batch(rows, shared=self.shared, rounded=True) if self.packed else padded_batch(rows, self.pad_id)


def summed_loss(model: Any, batch: dict[str, Any]) -> Any:
    """Cross-entropy summed over the batch's labelled tokens, computed in float32."""
    inputs = {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask") if name in batch}
    logits = model(**inputs, **layout_for(model, batch), logits_to_keep=batch["predict_at"], use_cache=False).logits
    targets = batch["targets"].flatten()
    return summed_cross_entropy(logits.reshape(len(targets), -1), targets)


def labelled(batches: Sequence[dict[str, Any]]) -> int:
    """Number of labelled tokens."""
    return sum(int((batch["targets"] != IGNORED).sum()) for batch in batches)


def mean_loss(model: Any, rows: Rows, which: Sequence[Rendered]) -> float:
    """Loss per labelled token over `which`, in nats, without gradients."""
    import torch

    from nomoat.packing import pack_step

    packs = pack_step(range(len(which)), [row.length for row in which], rows.pack_tokens)
    was_training = model.training
    model.eval()
    total = 0.0
    with torch.no_grad():
        for pack in packs:
            batch = {name: _to(value, model.device) for name, value in rows.batch([which[number] for number in pack]).items()}
            total += float(summed_loss(model, batch))
    model.train(was_training)
    return total / sum(len(row.completion_ids) for row in which)


def _to(value: Any, device: Any) -> Any:
    return value.to(device) if hasattr(value, "to") else value
