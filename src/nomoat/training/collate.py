"""Examples as batches, and the loss of a batch: computed in the same way by training, validation, the adapter checks and the planner.

The loss is the cross-entropy summed over labelled tokens, however they are packed; logits are computed only where there is a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from nomoat.data.chat_template import TokenizedExample
from nomoat.kernels.cross_entropy import IGNORED, summed_cross_entropy
from nomoat.kernels.varlen_attention import PackedLayout, enable_varlen_attention, layout_arguments, uses_varlen_attention
from nomoat.training.packing import TOLERANCE, common_prefix, pack_step, two_layer_copy

# Each new shape costs the matrix library a kernel and the heap blocks of another size: where each step had its own lengths, sixty steps
# grew by 0.7 GB and lost some of their speed (recipes/LOG.md). Rounded up, a few shapes recur, for 4 % more tokens.
ROUND_TOKENS, ROUND_EXAMPLE, ROUND_LABELS = 32, 16, 16


@dataclass(frozen=True)
class Collator:
    """Tokenised examples and how they are put into batches on this base."""

    train: Sequence[TokenizedExample]
    validation: Sequence[TokenizedExample]
    packed: bool
    pad_id: int
    pack_tokens: int
    shared: bool = False  # the prefix that the examples of a pack share is computed once (varlen attention only)
    kernels: str = "auto"  # `hardware.kernels`: plain computes torch's cross-entropy and does not round lengths up

    def batches(self, packs: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
        """The forward passes of one optimiser step, packs of numbers of training examples."""
        return [self.batch([self.train[number] for number in pack]) for pack in packs]

    def batch(self, examples: Sequence[TokenizedExample]) -> dict[str, Any]:
        """One forward pass over `examples`."""
        if self.packed:
            return collate_packed(examples, shared=self.shared, rounded=self.kernels != "plain")
        return collate_padded(examples, self.pad_id)


def collate_packed(examples: Sequence[TokenizedExample], *, shared: bool = False, rounded: bool = False) -> dict[str, Any]:
    """One sequence (1, tokens): examples end to end, position ids restarting at each, no attention mask.

    `targets` (labelled,) are the tokens to predict, `predict_at` (labelled,) the positions whose logits predict them. With `shared` the
    common prefix of all prompts is there once, which only varlen attention understands; `tokens_seen` counts every example's tokens
    either way. `rounded` fills up to round lengths: tokens after the last example, which no example attends to, and IGNORED targets.
    """
    prefix = common_prefix([example.prompt_ids for example in examples]) if shared and len(examples) > 1 else 0
    ids = list(examples[0].prompt_ids[:prefix])
    positions = list(range(prefix))
    targets: list[int] = []
    predict_at: list[int] = []
    for example in examples:
        start = len(ids) + len(example.prompt_ids) - prefix
        ids += [*example.prompt_ids[prefix:], *example.completion_ids]
        positions += range(prefix, example.length)
        targets += example.completion_ids
        predict_at += range(start - 1, start - 1 + len(example.completion_ids))
    lengths = [example.length - prefix for example in examples]
    if rounded:
        more = -len(ids) % ROUND_TOKENS
        ids += ids[-1:] * more
        positions += positions[-1:] * more  # transformers begins a new example where positions do not rise
        lengths[-1] += more
        more = -len(targets) % ROUND_LABELS
        targets += [IGNORED] * more
        predict_at += predict_at[-1:] * more
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "predict_at": torch.tensor(predict_at),
        "targets": torch.tensor(targets),
        "tokens_seen": sum(example.length for example in examples),
        "layout": PackedLayout(lengths, prefix, ROUND_EXAMPLE if rounded else 1),
    }


def collate_padded(examples: Sequence[TokenizedExample], pad_id: int) -> dict[str, Any]:
    """A batch (examples, longest) padded on the right, with an attention mask.

    `predict_at` (positions,) is the union over examples of labelled positions; `targets` (examples, positions) is IGNORED elsewhere.
    """
    longest = max(example.length for example in examples)
    ids = torch.full((len(examples), longest), pad_id)
    mask = torch.zeros((len(examples), longest), dtype=torch.long)
    labels = torch.full((len(examples), longest), IGNORED)
    for number, example in enumerate(examples):
        ids[number, : example.length] = torch.tensor([*example.prompt_ids, *example.completion_ids])
        mask[number, : example.length] = 1
        labels[number, len(example.prompt_ids) - 1 : example.length - 1] = torch.tensor(example.completion_ids)
    predict_at = (labels != IGNORED).any(dim=0).nonzero().flatten()
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "predict_at": predict_at,
        "targets": labels[:, predict_at],
        "tokens_seen": int(mask.sum()),
    }


def summed_loss(model: Any, batch: dict[str, Any], *, kernels: str = "auto") -> Any:
    """Cross-entropy in nats summed over the batch's labelled tokens, in float32; `kernels="plain"` computes torch's own."""
    inputs = {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask") if name in batch}
    logits = model(**inputs, **layout_arguments(model, batch), logits_to_keep=batch["predict_at"], use_cache=False).logits
    targets = batch["targets"].flatten()
    return summed_cross_entropy(logits.reshape(len(targets), -1), targets, kernels=kernels)


def count_labels(batches: Sequence[dict[str, Any]]) -> int:
    """Number of labelled tokens."""
    return sum(int((batch["targets"] != IGNORED).sum()) for batch in batches)


def mean_loss(model: Any, collator: Collator, examples: Sequence[TokenizedExample]) -> float:
    """Loss per labelled token over `examples`, in nats, without gradients and in eval mode."""
    packs = pack_step(range(len(examples)), [example.length for example in examples], collator.pack_tokens)
    was_training = model.training
    model.eval()
    total = 0.0
    with torch.no_grad():
        for pack in packs:
            batch = collator.batch([examples[number] for number in pack])
            batch = {name: value.to(model.device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
            total += float(summed_loss(model, batch, kernels=collator.kernels))
    model.train(was_training)
    return total / sum(len(example.completion_ids) for example in examples)


def choose_packing(model: Any, rows: Sequence[TokenizedExample], device: str, *, kernels: str = "auto") -> tuple[bool, str]:
    """Whether to pack, and the reason; on a CPU switches `model` to varlen attention where that gives the same logits.

    With `kernels="plain"`, and on other devices, packing is tried with the model's own attention alone.
    """
    if kernels != "plain" and device == "cpu" and enable_varlen_attention(model):
        with suppress(ValueError):  # raised by a layer whose attention cannot keep examples apart
            packed, reason = check_packing(model, rows)
            if packed:
                return packed, f"{reason}; varlen attention"
        model.set_attn_implementation("sdpa")
    return check_packing(model, rows)


def check_packing(model: Any, rows: Sequence[TokenizedExample]) -> tuple[bool, str]:
    """Whether packed examples get the logits that they get alone, with the reason, for the report.

    Checked in float32 on a copy of the first two layers, since some architectures mix packed examples without an error.
    """
    probe = list(rows[:2]) if len(rows) > 1 else [rows[0], rows[0]]
    small = two_layer_copy(model)
    batch = collate_packed(probe, shared=uses_varlen_attention(small))
    with torch.no_grad():
        tokens = {name: batch[name] for name in ("input_ids", "position_ids")}
        packed = small(**tokens, **layout_arguments(small, batch), use_cache=False).logits[0]
        alone = [small(input_ids=collate_packed([example])["input_ids"], use_cache=False).logits[0] for example in probe]
    prefix = batch["layout"].prefix
    expected = torch.cat([alone[0][:prefix], *(logits[prefix:] for logits in alone)])
    error = float((packed - expected).abs().max() / expected.abs().max())
    detail = f"relative difference {error:.1e} in two layers, float32"
    if error <= TOLERANCE:
        return True, f"packed and separate examples get the same logits ({detail})"
    return False, f"this architecture mixes packed examples ({detail}): they are padded instead"
