"""Rows as batches, and the loss of a batch: what training, its validation, the gate and a plan compute alike.

The loss is the sum of cross-entropy over labelled tokens, whatever the packs; logits are computed only where there is a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from nomoat.data.chat_template import TokenizedExample
from nomoat.kernels.cross_entropy import IGNORED, summed_cross_entropy
from nomoat.kernels.varlen_attention import layout_arguments
from nomoat.training.packing import TOLERANCE, common_prefix, two_layer_copy


@dataclass(frozen=True)
class Collator:
    """Rendered rows and how they are put into batches on this base."""

    train: Sequence[TokenizedExample]
    validation: Sequence[TokenizedExample]
    packed: bool
    pad_id: int
    pack_tokens: int
    shared: bool = False  # what the rows of a pack begin with is computed once (row attention only)
    kernels: str = "auto"  # `hardware.kernels` of the recipe

    def batches(self, packs: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
        """The forward passes of one step."""
        return [self.batch([self.train[number] for number in pack]) for pack in packs]

    def batch(self, rows: Sequence[TokenizedExample]) -> dict[str, Any]:
        """One forward pass over `rows`."""
        return (
            collate_packed(rows, shared=self.shared, rounded=self.kernels == "auto") if self.packed else collate_padded(rows, self.pad_id)
        )


def summed_loss(model: Any, batch: dict[str, Any], *, kernels: str = "auto") -> Any:
    """Cross-entropy summed over the batch's labelled tokens, computed in float32."""
    inputs = {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask") if name in batch}
    logits = model(**inputs, **layout_arguments(model, batch), logits_to_keep=batch["predict_at"], use_cache=False).logits
    targets = batch["targets"].flatten()
    logits = logits.reshape(len(targets), -1)
    if kernels == "plain":
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")
    return summed_cross_entropy(logits, targets)


def count_labels(batches: Sequence[dict[str, Any]]) -> int:
    """Number of labelled tokens."""
    return sum(int((batch["targets"] != IGNORED).sum()) for batch in batches)


def mean_loss(model: Any, rows: Collator, which: Sequence[TokenizedExample]) -> float:
    """Loss per labelled token over `which`, in nats, without gradients."""
    import torch

    from nomoat.training.packing import pack_step

    packs = pack_step(range(len(which)), [row.length for row in which], rows.pack_tokens)
    was_training = model.training
    model.eval()
    total = 0.0
    with torch.no_grad():
        for pack in packs:
            batch = {name: _to(value, model.device) for name, value in rows.batch([which[number] for number in pack]).items()}
            total += float(summed_loss(model, batch, kernels=rows.kernels))
    model.train(was_training)
    return total / sum(len(row.completion_ids) for row in which)


def _to(value: Any, device: Any) -> Any:
    return value.to(device) if hasattr(value, "to") else value


# Every shape that is new costs the matrix library a kernel of its own, and the heap pieces of another size: where each step had its
# own lengths, sixty steps grew by 0.7 GB and lost some of their speed (recipes/LOG.md). Rounded up, a few shapes come again and
# again, for 4 % more tokens.
ROUND_TOKENS, ROUND_ROWS, ROUND_LABELS = 32, 16, 16


def collate_packed(rows: Sequence[TokenizedExample], *, shared: bool = False, rounded: bool = False) -> dict[str, Any]:
    """One sequence (1, tokens): rows end to end, position ids restarting at each, no attention mask.

    `targets` (labelled,) are the tokens to predict and `predict_at` (labelled,) the positions whose logits predict them. With
    `shared`, what all prompts begin with stands there once, which only row attention understands; `tokens_seen` counts the rows'
    tokens either way. `rounded` fills up to round lengths: tokens after the last row, which none of the rows sees, and IGNORED targets.
    """
    import torch

    from nomoat.kernels.varlen_attention import PackedLayout

    begin = common_prefix([row.prompt_ids for row in rows]) if shared and len(rows) > 1 else 0
    ids = list(rows[0].prompt_ids[:begin])
    positions = list(range(begin))
    targets: list[int] = []
    predict_at: list[int] = []
    for row in rows:
        start = len(ids) + len(row.prompt_ids) - begin
        ids += [*row.prompt_ids[begin:], *row.completion_ids]
        positions += range(begin, row.length)
        targets += row.completion_ids
        predict_at += range(start - 1, start - 1 + len(row.completion_ids))
    lengths = [row.length - begin for row in rows]
    if rounded:
        more = -len(ids) % ROUND_TOKENS
        ids += ids[-1:] * more
        positions += positions[-1:] * more  # where positions do not rise, a row of its own begins
        lengths[-1] += more
        more = -len(targets) % ROUND_LABELS
        targets += [IGNORED] * more
        predict_at += predict_at[-1:] * more
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "predict_at": torch.tensor(predict_at),
        "targets": torch.tensor(targets),
        "tokens_seen": sum(row.length for row in rows),
        "row_layout": PackedLayout(lengths, begin, ROUND_ROWS if rounded else 1),
    }


def collate_padded(rows: Sequence[TokenizedExample], pad_id: int) -> dict[str, Any]:
    """Rows side by side (rows, longest), padded on the right, with an attention mask.

    `predict_at` (positions,) is the union over rows of labelled positions; `targets` (rows, positions) is IGNORED elsewhere.
    """
    import torch

    longest = max(row.length for row in rows)
    ids = torch.full((len(rows), longest), pad_id)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    labels = torch.full((len(rows), longest), IGNORED)
    for number, row in enumerate(rows):
        ids[number, : row.length] = torch.tensor([*row.prompt_ids, *row.completion_ids])
        mask[number, : row.length] = 1
        labels[number, len(row.prompt_ids) - 1 : row.length - 1] = torch.tensor(row.completion_ids)
    predict_at = (labels != IGNORED).any(dim=0).nonzero().flatten()
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "predict_at": predict_at,
        "targets": labels[:, predict_at],
        "tokens_seen": int(mask.sum()),
    }


def choose_packing(model: Any, rows: Sequence[TokenizedExample], device: str, *, kernels: str = "auto") -> tuple[bool, str]:
    """Whether to pack, and why; on a CPU with attention row by row where that gives the same logits."""
    from nomoat.kernels.varlen_attention import enable_varlen_attention

    if kernels == "auto" and device == "cpu" and enable_varlen_attention(model):
        with suppress(ValueError):  # a layer whose attention cannot keep rows apart says so
            packed, reason = check_packing(model, rows)
            if packed:
                return packed, f"{reason}; attention runs row by row"
        model.set_attn_implementation("sdpa")
    return check_packing(model, rows)


def check_packing(model: Any, rows: Sequence[TokenizedExample]) -> tuple[bool, str]:
    """Whether rows packed into one sequence give the logits they give alone; with the reason, for the report.

    Checked on a float32 copy of the first two layers, since some architectures mix packed rows without a word.
    """
    import torch

    from nomoat.kernels.varlen_attention import layout_arguments, uses_varlen_attention

    probe = list(rows[:2]) if len(rows) > 1 else [rows[0], rows[0]]
    small = two_layer_copy(model)
    packed = collate_packed(probe, shared=uses_varlen_attention(small))
    with torch.no_grad():
        tokens = {name: packed[name] for name in ("input_ids", "position_ids")}
        together = small(**tokens, **layout_arguments(small, packed), use_cache=False).logits[0]
        alone = [small(input_ids=collate_packed([row])["input_ids"], use_cache=False).logits[0] for row in probe]
    begin = packed["row_layout"].shared
    expected = torch.cat([alone[0][:begin], *(logits[begin:] for logits in alone)])
    error = float((together - expected).abs().max() / expected.abs().max())
    if error <= TOLERANCE:
        return True, f"packed and alone give the same logits (relative difference {error:.1e}, two layers, float32)"
    return False, f"this architecture mixes packed rows (relative difference {error:.1e} in two layers): rows are padded instead"
