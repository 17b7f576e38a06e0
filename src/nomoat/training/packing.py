"""The schedule of a training: the examples of each optimiser step and how they are packed, the same for every run of a recipe.

Examples are shuffled by the seed and cut into optimiser steps of about `batch_tokens`; within a step they are packed into sequences of
at most `pack_tokens` (first fit, longest first). A step is a tuple of packs, a pack a tuple of example numbers.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

TOLERANCE = 1e-4  # logits computed in two ways must agree to this, relative to the largest, in float32

Pack = tuple[int, ...]


@dataclass(frozen=True)
class StepSchedule:
    """All optimiser steps of a training, in order; `epoch_ends` are step counts at which an epoch is complete."""

    steps: tuple[tuple[Pack, ...], ...]
    epoch_ends: tuple[int, ...]


def schedule_steps(
    lengths: Sequence[int], *, epochs: float, batch_tokens: int, pack_tokens: int, seed: int, max_steps: int | None = None
) -> StepSchedule:
    """Steps for `epochs` passes over examples of these lengths (tokens); a fraction ends within an epoch."""
    steps: list[tuple[Pack, ...]] = []
    ends: list[int] = []
    for epoch in range(math.ceil(epochs)):
        share = min(1.0, epochs - epoch)
        order = list(range(len(lengths)))
        random.Random(f"nomoat-order-{seed}-{epoch}").shuffle(order)
        kept = order[: round(share * len(order))]
        steps += [pack_step(chunk, lengths, pack_tokens) for chunk in _chunks(kept, lengths, batch_tokens)]
        ends.append(len(steps))
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


def pack_step(numbers: Sequence[int], lengths: Sequence[int], pack_tokens: int) -> tuple[Pack, ...]:
    """First-fit decreasing; equal lengths keep their order, so that the result is the same everywhere."""
    packs: list[list[int]] = []
    room: list[int] = []
    for number in sorted(numbers, key=lambda n: -lengths[n]):
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
    """The number of leading tokens that all prompts share, at most all but one of the shortest prompt's."""
    shortest = min(len(prompt) for prompt in prompts) - 1
    for place in range(shortest):
        if any(prompt[place] != prompts[0][place] for prompt in prompts):
            return place
    return max(shortest, 0)


def two_layer_copy(model: Any) -> Any:
    """A float32 CPU model of the same class and attention with the weights of the first two layers; random ones where quantised."""
    config = with_layers(model.config, 2)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    weights, expected = model.state_dict(), small.state_dict()
    shared = weights.keys() & expected.keys()
    kept = [name for name in shared if weights[name].shape == expected[name].shape and weights[name].is_floating_point()]
    small.load_state_dict({name: weights[name].to("cpu", torch.float32) for name in kept}, strict=False)
    return small.eval()


def with_layers(config: Any, layers: int) -> Any:
    """The configuration of the same model with only its first `layers` layers."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return config
