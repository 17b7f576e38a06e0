"""Load a base and an adapter for scoring: the one way that arms, replay, chat and benchmarks share.

Base and adapter normally share one model, since peft can switch the adapter off. Whether that restores the base bit for bit is
checked each time; where it does not (a model trained in full has replaced the weights), the base is loaded again as a second model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nomoat.data.chat_template import ChatTemplate, TokenizedExample
from nomoat.data.examples import Example
from nomoat.evaluation.arms import Arm, make_request
from nomoat.evaluation.prefill import Request, enable_packed_prefill
from nomoat.kernels.linear import prepack_linears
from nomoat.models.adapter import has_adapter, load_adapter
from nomoat.models.base import BaseFiles, OpenBase, load_model, load_tokenizer
from nomoat.training.adapter_checks import probe_logits


@dataclass(frozen=True, kw_only=True)
class LoadedModels:
    """`base` and `adapted` are the same object where switching the adapter off leaves the base; see `using`."""

    base: Any
    adapted: Any
    template: ChatTemplate
    kernels: str

    @property
    def shared(self) -> bool:
        """Whether one model serves as both."""
        return self.base is self.adapted

    @property
    def draft(self) -> bool:
        """Whether answers are drafted from their references (see `generate`)."""
        return self.kernels != "plain"

    @contextmanager
    def using(self, name: str) -> Iterator[Any]:
        """The model that answers as `name`, "base" or "adapter"; a shared model has its adapter switched off until the block ends."""
        model = {"base": self.base, "adapter": self.adapted}[name]
        with self.adapted.disable_adapter() if self.shared and name == "base" else nullcontext():
            yield model


def load_models(
    files: BaseFiles, adapter: Path, *, precision: str, device: str, template: ChatTemplate, probe: Sequence[Request], kernels: str = "auto"
) -> LoadedModels:
    """Base and adapter in `precision` on `device`, ready to answer.

    The first two requests of `probe` decide whether packed prefill and the disabled adapter give the right logits.
    `kernels="plain"` loads transformers' and peft's own layers. Raises NomoatError where `adapter` holds no adapter.
    """
    examples = [TokenizedExample(request.key, request.prompt, request.reference) for request in probe[:2]]

    def load_base() -> Any:
        model = load_model(files, precision=precision, device=device)
        if kernels != "plain":
            enable_packed_prefill(model, probe[:2])
        return model

    base = load_base()
    base_logits = probe_logits(base, examples)
    adapted = load_adapter(base, adapter, kernels=kernels)
    shared = False
    if has_adapter(adapted):
        with adapted.disable_adapter():
            shared = bool(base_logits.equal(probe_logits(adapted, examples)))
    prepack_linears(adapted, kernels)  # before a second base is loaded: the plain weights are freed here
    return LoadedModels(
        base=adapted if shared else prepack_linears(load_base(), kernels), adapted=adapted, template=template, kernels=kernels
    )


def load_run_models(run_dir: Path, rows: Sequence[Example], opened: OpenBase, *, precision: str, kernels: str) -> LoadedModels:
    """A finished run's base and adapter, loaded as its scoring loaded them; `rows` are the held-out rows that it answered."""
    template = ChatTemplate(load_tokenizer(opened.files))
    arm = Arm("adapter", tuple(rows[:2]), {}, True)
    return load_models(
        opened.files,
        run_dir / "adapter",
        precision=precision,
        device=opened.device.kind,
        template=template,
        probe=[make_request(row, arm, template) for row in arm.rows],
        kernels=kernels,
    )


def load_merged_model(files: BaseFiles, adapter: Path, *, precision: str, device: str, kernels: str = "auto") -> Any:
    """The adapter merged into the base in 16 bits (`precision`), as it would be shipped.

    A CPU computes with the rounded weights in float32, since its bfloat16 answers depend on the batch.
    """
    merged = load_adapter(load_model(files, precision=precision, device=device), adapter, kernels=kernels)
    if has_adapter(merged):
        merged = merged.merge_and_unload(safe_merge=True)
    return prepack_linears(merged.float() if device == "cpu" else merged, kernels)
