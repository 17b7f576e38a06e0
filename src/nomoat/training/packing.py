"""The same model with fewer layers, from its configuration: what takes long on all of them can be learnt from a few."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# MERGED packing:
# Which rows share a forward pass, decided before training starts and the same for every run of a recipe.
#
# Rows are shuffled by the seed, cut into optimiser steps of about `batch_tokens`, and inside a step packed into sequences
# of at most `pack_tokens` (first fit, longest first). A step is a list of packs; a pack is a list of row numbers.
TOLERANCE = 1e-4  # packed and alone must agree to this, relative to the largest logit, in float32

Pack = tuple[int, ...]


@dataclass(frozen=True)
class StepSchedule:
    """All optimiser steps of a training, in order; `epoch_ends` are step counts at which an epoch is complete."""

    steps: tuple[tuple[Pack, ...], ...]
    epoch_ends: tuple[int, ...]


def schedule_steps(
    lengths: Sequence[int], *, epochs: float, batch_tokens: int, pack_tokens: int, seed: int, max_steps: int | None = None
) -> StepSchedule:
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
    return StepSchedule(tuple(steps), tuple(end for end in ends if end <= len(steps)))


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


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all prompts share, leaving each at least one of its own."""
    shortest = min(len(prompt) for prompt in prompts) - 1
    first = prompts[0]
    for place in range(shortest):
        if any(prompt[place] != first[place] for prompt in prompts):
            return place
    return max(shortest, 0)


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


def with_layers(config: Any, layers: int) -> Any:
    """The configuration of the same model with only its first `layers` layers."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return config
