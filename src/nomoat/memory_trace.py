"""What a computation holds in memory at each moment, found by carrying it out on tensors that have a shape and no data.

torch's fake tensors go through the same operators, autograd and attention kernels as real ones, on the device they claim to be on, so
that every architecture is followed without a formula. Each block of memory is counted from its allocation to its release.
"""

from __future__ import annotations

import warnings
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from nomoat.errors import NomoatError

Block = tuple[int, str]  # bytes, and the part that they belong to

_FRESH = {
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_strided.default,
    torch.ops.aten.zeros.default,
    torch.ops.aten.ones.default,
}


class Timeline:
    """Blocks of memory, born and gone in order; each belongs to the part that was named when it was born, or renamed later."""

    def __init__(self) -> None:
        self._blocks: list[Block] = []
        self._alive: dict[int, int] = {}  # key (an address) -> number of the block
        self._events: list[tuple[int, int]] = []  # number of a block, +1 where it is born and -1 where it is gone

    def born(self, key: int, size: int, part: str) -> None:
        """A block of `size` bytes at `key`."""
        self._alive[key] = len(self._blocks)
        self._events.append((len(self._blocks), 1))
        self._blocks.append((size, part))

    def gone(self, key: int) -> None:
        """The block at `key` is released; one from before the timeline is not known and not counted."""
        number = self._alive.pop(key, None)
        if number is not None:
            self._events.append((number, -1))

    def holds(self, key: int) -> bool:
        """Whether a block at `key` is alive."""
        return key in self._alive

    def rename(self, keys: Iterable[int], part: str) -> None:
        """Blocks that are alive now and turn out to belong to another part."""
        for number in (self._alive[key] for key in keys if key in self._alive):
            self._blocks[number] = (self._blocks[number][0], part)

    def at_peak(self) -> list[Block]:
        """The blocks alive at the moment at which all together are largest."""
        held = highest = place = 0
        for index, (number, sign) in enumerate(self._events):
            held += sign * self._blocks[number][0]
            if held > highest:
                highest, place = held, index + 1
        alive: set[int] = set()
        for number, sign in self._events[:place]:
            (alive.add if sign > 0 else alive.discard)(number)
        return [self._blocks[number] for number in sorted(alive)]


def by_part(blocks: Sequence[Block]) -> Counter[str]:
    """Bytes of each part."""
    found: Counter[str] = Counter()
    for size, part in blocks:
        found[part] += size
    return found


class ShapesDependOnData(NomoatError):
    """An architecture that cannot be followed without data, such as one that sends each token to experts of its own."""


class MemoryTrace(TorchDispatchMode):
    """Follows a computation on fake tensors: `with trace.running(), trace.of("activations"): ...`.

    Numbers that are there (token ids, positions, masks) stay real and are computed as usual, since they decide what is computed;
    where a tensor without data is asked for its value, the answer is 0.
    """

    def __init__(self, fake: FakeTensorMode, before: Iterable[torch.Tensor] = ()) -> None:
        """`before`: tensors that are accounted for elsewhere, such as the model's own."""
        super().__init__()
        self.timeline, self.fake, self.part = Timeline(), fake, "other"
        self._before = keys_of(before)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Everything inside is traced."""
        try:
            with warnings.catch_warnings(), self.fake, self:
                warnings.filterwarnings("ignore", message=".*data pointer of FakeTensor.*")  # that it is 0 does no harm here
                yield
        except (DynamicOutputShapeException, DataDependentOutputException) as error:
            raise ShapesDependOnData(str(error).splitlines()[0]) from error

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """What is allocated inside belongs to `part`, unless another is named on the way."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(isinstance(value, FakeTensor) for value in tree_iter((args, kwargs))) and not _makes_numbers(func, kwargs):
            with unset_fake_temporarily():
                out = func(*args, **kwargs)
        elif func is torch.ops.aten._local_scalar_dense.default:
            out = False if args[0].dtype == torch.bool else 0.0 if args[0].is_floating_point() else 0
        else:
            out = func(*args, **kwargs)
        for value in tree_iter(out):
            if isinstance(value, torch.Tensor):
                self._note(value)
        return out

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._before and not self.timeline.holds(key):
            self.timeline.born(key, storage.nbytes(), self.part)
            weakref.finalize(storage, self.timeline.gone, key)


def _makes_numbers(func: Any, kwargs: dict[str, Any]) -> bool:
    """Whether this is a fresh tensor of the kind that weights and activations are: it needs no data either."""
    return func in _FRESH and (kwargs.get("dtype") or torch.get_default_dtype()).is_floating_point


def keys_of(tensors: Iterable[torch.Tensor | None]) -> set[int]:
    """How the timeline of a MemoryTrace knows these tensors."""
    return {int(tensor.untyped_storage()._cdata) for tensor in tensors if tensor is not None}
