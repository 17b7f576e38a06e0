"""Every block of memory that torch's own allocator hands out and takes back during real training steps, by what it is for."""

from __future__ import annotations

import bisect
import time
from collections.abc import Iterator, Sequence
from typing import Any

from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from nomoat.memory_trace import Timeline


class AllocationRecord:
    """From `start` to `stop`, as torch's profiler sees it; the parts are those of a MemoryTrace.

    The forward pass up to the head makes activations, from there to where the backward pass begins logits.
    """

    def __init__(self, model: Any, device: str) -> None:
        self.model, self.device = model, device
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._marks: list[tuple[int, str]] = []  # since when (ns) what is allocated belongs to which part
        self._gradients: tuple[int, Sequence[int]] = (0, ())  # when they were seen (ns), and their addresses
        self._hooks: list[Any] = []

    def start(self) -> None:
        """From here on."""
        head = self.model.get_output_embeddings()
        self._hooks = [
            self.model.register_forward_pre_hook(lambda *_: self._mark("activations")),
            head.register_forward_pre_hook(lambda *_: self._mark("logits")),
            head.register_forward_hook(lambda _, __, logits: logits.register_hook(lambda _: self._mark("backward")) and None),
        ]
        self._mark("activations")
        self._profiler.start()

    def note_gradients(self) -> None:
        """To be called when all gradients are there."""
        found = [parameter.grad.untyped_storage().data_ptr() for parameter in self.trained if parameter.grad is not None]
        self._gradients = time.time_ns(), found

    def stop(self) -> None:
        """Up to here."""
        self._profiler.stop()
        for hook in self._hooks:
            hook.remove()

    def _mark(self, part: str) -> None:
        self._marks.append((time.time_ns(), part))

    def timeline(self) -> Timeline:
        """The blocks on the device."""
        found = Timeline()
        times = [when for when, _ in self._marks]
        seen, gradients = self._gradients
        for when, address, size in sorted(self._events(), key=lambda event: event[0]):
            if gradients and when > seen:
                found.rename(gradients, "gradients")
                gradients = ()
            if size > 0:
                found.born(address, size, self._marks[max(0, bisect.bisect(times, when) - 1)][1])
            else:
                found.gone(address)
        found.rename(gradients, "gradients")
        return found

    def _events(self) -> Iterator[tuple[int, int, int]]:
        """(ns, address, bytes, below zero where they are taken back)."""
        nodes = list(self._profiler.profiler.kineto_results.experimental_event_tree())  # type: ignore[union-attr]
        while nodes:
            node = nodes.pop()
            if node.typed[0] == _EventType.Allocation and node.typed[1].device.type == self.device:
                yield node.start_time_ns, node.typed[1].ptr, node.typed[1].alloc_size
            nodes += node.children
