"""Load a base and an adapter for scoring: the one way that arms, replay, chat and benchmarks share.

Base and adapter normally share one model, since peft can switch the adapter off. Whether that restores the base bit for bit is
checked each time; where it does not (a model trained in full has replaced the weights), the base is loaded again as a second model.
"""

from __future__ import annotations

import inspect
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

PROBE = (("Name one town in France.", "Lyon"), ("What is 12 plus 30? Answer with a number.", "42"))


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

    @contextmanager
    def using(self, name: str) -> Iterator[Any]:
        """The model that answers as `name`, "base" or "adapter"; a shared model has its adapter switched off until the block ends."""
        model = {"base": self.base, "adapter": self.adapted}[name]
        with self.adapted.disable_adapter() if self.shared and name == "base" else nullcontext():
            yield model


def load_models(
    files: BaseFiles,
    adapter: Path,
    *,
    precision: str,
    device: str,
    template: ChatTemplate,
    probe: Sequence[Request] = (),
    kernels: str = "auto",
) -> LoadedModels:
    """Base and adapter in `precision` on `device`, ready to answer.

    The first two requests of `probe` (by default two built-in questions) decide whether packed prefill and the disabled adapter
    give the right logits. `kernels="plain"` loads transformers' and peft's own layers and no prepacked weights.
    Raises NomoatError where `adapter` holds no adapter, or not one of this base.
    """
    probe = tuple(probe[:2]) or _default_probe(template)
    examples = [TokenizedExample(request.key, request.prompt, request.reference) for request in probe]

    def load_base() -> Any:
        model = load_model(files, precision=precision, device=device)
        if kernels != "plain":
            enable_packed_prefill(model, probe)
        return model

    base = load_base()
    base_logits = probe_logits(base, examples)
    adapted = _load_adapter(base, adapter, kernels)
    shared = False
    if has_adapter(adapted):
        with adapted.disable_adapter():
            shared = bool(base_logits.equal(probe_logits(adapted, examples)))
    _prepack(adapted, kernels)  # before a second base is loaded: the plain weights are freed here
    return LoadedModels(base=adapted if shared else _prepack(load_base(), kernels), adapted=adapted, template=template, kernels=kernels)


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
    merged = _load_adapter(load_model(files, precision=precision, device=device), adapter, kernels)
    if has_adapter(merged):
        merged = merged.merge_and_unload(safe_merge=True)
    return _prepack(merged.float() if device == "cpu" else merged, kernels)


def _load_adapter(model: Any, folder: Path, kernels: str) -> Any:
    options = {"kernels": kernels} if "kernels" in inspect.signature(load_adapter).parameters else {}
    return load_adapter(model, folder, **options)


def _prepack(model: Any, kernels: str) -> Any:
    return model if kernels == "plain" else prepack_linears(model)


def _default_probe(template: ChatTemplate) -> tuple[Request, ...]:
    return tuple(
        Request(question, template.prompt_ids([{"role": "user", "content": question}]), template.completion_ids(answer))
        for question, answer in PROBE
    )
