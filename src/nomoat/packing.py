"""Which rows share a forward pass, decided before training starts and the same for every run of a recipe.

Rows are shuffled by the seed, cut into optimiser steps of about `batch_tokens`, and inside a step packed into sequences
of at most `pack_tokens` (first fit, longest first). A step is a list of packs; a pack is a list of row numbers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from nomoat.conversation import Rendered

IGNORED = -100  # the label that cross-entropy leaves out
# Every shape that is new costs the matrix library a kernel of its own, and the heap pieces of another size: where each step had its
# own lengths, sixty steps grew by 0.7 GB and lost some of their speed (recipes/LOG.md). Rounded up, a few shapes come again and
# again, for 4 % more tokens.
ROUND_TOKENS, ROUND_ROWS, ROUND_LABELS = 32, 16, 16
TOLERANCE = 1e-4  # packed and alone must agree to this, relative to the largest logit, in float32

Pack = tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """All optimiser steps of a training, in order; `epoch_ends` are step counts at which an epoch is complete."""

    steps: tuple[tuple[Pack, ...], ...]
    epoch_ends: tuple[int, ...]


def plan_steps(
    lengths: Sequence[int], *, epochs: float, batch_tokens: int, pack_tokens: int, seed: int, max_steps: int | None = None
) -> Plan:
    """Steps for `epochs` passes over rows of these lengths (tokens); a fraction ends inside an epoch."""
    steps: list[tuple[Pack, ...]] = []
    ends: list[int] = []
    epoch = 0
    while epoch < epochs:
        share = min(1.0, epochs - epoch)
        order = list(range(len(lengths)))
        random.Random(f"nomoat-order-{seed}-{epoch}").shuffle(order)
        kept = order[: round(share * len(order))]
        steps += [pack_step(chunk, lengths, pack_tokens) for chunk in _chunks(kept, lengths, batch_tokens)]
        ends.append(len(steps))
        epoch += 1
    if max_steps is not None:
        steps = steps[:max_steps]
    return Plan(tuple(steps), tuple(end for end in ends if end <= len(steps)))


def _chunks(order: list[int], lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    chunk: list[int] = []
    tokens = 0
    for number in order:
        if chunk and tokens + lengths[number] > batch_tokens:
            yield chunk
            chunk, tokens = [], 0
        chunk.append(number)
        tokens += lengths[number]
    if chunk:
        yield chunk


def pack_step(rows: Sequence[int], lengths: Sequence[int], pack_tokens: int) -> tuple[Pack, ...]:
    """First-fit decreasing; equal lengths keep their order, so the result is the same everywhere."""
    packs: list[list[int]] = []
    room: list[int] = []
    for number in sorted(rows, key=lambda n: -lengths[n]):
        for index, free in enumerate(room):
            if lengths[number] <= free:
                packs[index].append(number)
                room[index] -= lengths[number]
                break
        else:
            packs.append([number])
            room.append(pack_tokens - lengths[number])
    return tuple(tuple(pack) for pack in packs)


def packed_batch(rows: Sequence[Rendered], *, shared: bool = False, rounded: bool = False) -> dict[str, Any]:
    """One sequence (1, tokens): rows end to end, position ids restarting at each, no attention mask.

    `targets` (labelled,) are the tokens to predict and `predict_at` (labelled,) the positions whose logits predict them. With
    `shared`, what all prompts begin with stands there once, which only row attention understands; `tokens_seen` counts the rows'
    tokens either way. `rounded` fills up to round lengths: tokens after the last row, which none of the rows sees, and IGNORED targets.
    """
    import torch

    from nomoat.row_attention import RowLayout

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
        "row_layout": RowLayout(lengths, begin, ROUND_ROWS if rounded else 1),
    }


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all prompts share, leaving each at least one of its own."""
    shortest = min(len(prompt) for prompt in prompts) - 1
    first = prompts[0]
    for place in range(shortest):
        if any(prompt[place] != first[place] for prompt in prompts):
            return place
    return max(shortest, 0)


def padded_batch(rows: Sequence[Rendered], pad_id: int) -> dict[str, Any]:
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


def settle_packing(model: Any, rows: Sequence[Rendered], device: str) -> tuple[bool, str]:
    """Whether to pack, and why; on a CPU with attention row by row where that gives the same logits."""
    from nomoat.row_attention import use_row_attention

    if device == "cpu" and use_row_attention(model):
        with suppress(ValueError):  # a layer whose attention cannot keep rows apart says so
            packed, reason = packing_is_safe(model, rows)
            if packed:
                return packed, f"{reason}; attention runs row by row"
        model.set_attn_implementation("sdpa")
    return packing_is_safe(model, rows)


def packing_is_safe(model: Any, rows: Sequence[Rendered]) -> tuple[bool, str]:
    """Whether rows packed into one sequence give the logits they give alone; with the reason, for the report.

    Checked on a float32 copy of the first two layers, since some architectures mix packed rows without a word.
    """
    import torch

    from nomoat.row_attention import layout_for, uses_row_attention

    probe = list(rows[:2]) if len(rows) > 1 else [rows[0], rows[0]]
    small = two_layer_copy(model)
    packed = packed_batch(probe, shared=uses_row_attention(small))
    with torch.no_grad():
        tokens = {name: packed[name] for name in ("input_ids", "position_ids")}
        together = small(**tokens, **layout_for(small, packed), use_cache=False).logits[0]
        alone = [small(input_ids=packed_batch([row])["input_ids"], use_cache=False).logits[0] for row in probe]
    begin = packed["row_layout"].shared
    expected = torch.cat([alone[0][:begin], *(logits[begin:] for logits in alone)])
    error = float((together - expected).abs().max() / expected.abs().max())
    if error <= TOLERANCE:
        return True, f"packed and alone give the same logits (relative difference {error:.1e}, two layers, float32)"
    return False, f"this architecture mixes packed rows (relative difference {error:.1e} in two layers): rows are padded instead"


def two_layer_copy(model: Any) -> Any:
    """A float32 CPU model of the same class with the first two layers' weights; random ones where quantised."""
    import copy

    import torch
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(model.config)
    config.get_text_config().num_hidden_layers = 2
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:2]
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    theirs = model.state_dict()
    same = {name: value for name, value in small.state_dict().items() if name in theirs and theirs[name].shape == value.shape}
    if model.config._attn_implementation != small.config._attn_implementation:
        small.set_attn_implementation(model.config._attn_implementation)
    small.load_state_dict({name: theirs[name].to("cpu", torch.float32) for name in same if theirs[name].is_floating_point()}, strict=False)
    return small.eval()
