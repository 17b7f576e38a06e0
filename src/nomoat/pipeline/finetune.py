"""One `make train`: each method of FineTuneRun is one phase, counted in the ledger, with its files in the run directory.

train/sft.py calls them in order. What a phase makes for a later one is returned and passed on, never kept in the object.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from rich.console import Console

from nomoat.cli import still_working
from nomoat.config.schema import learning_rate_for, learning_rate_warning
from nomoat.data.chat_template import ChatTemplate
from nomoat.data.prepare import TokenizedData, tokenize_data
from nomoat.evaluation.baselines import baselines
from nomoat.io import write_atomically, write_json, write_jsonl
from nomoat.kernels.varlen_attention import enable_varlen_attention, uses_varlen_attention
from nomoat.models.adapter import (
    AdapterSize,
    adapter_facts,
    adapter_size,
    adapter_tensors,
    add_tokenizer_and_card,
    as_plain_lora,
    attach_adapter,
    fingerprint,
    load_adapter,
    model_tensors,
    restore_adapter,
    save_adapter,
)
from nomoat.models.base import load_model, load_tokenizer
from nomoat.models.device import machine_gflops, release_memory
from nomoat.pipeline.arm_scoring import ArmScorer
from nomoat.pipeline.run_spec import RunSpec
from nomoat.reports.build import build_report, run_cost, write_report
from nomoat.reports.compare import agreement_with_published
from nomoat.reports.html import render_html
from nomoat.reports.schema import Gate, Packing, Report
from nomoat.reports.summary import print_summary
from nomoat.runs import costs, meters
from nomoat.runs.directory import RunDirectory, open_run
from nomoat.runs.ledger import Ledger, Segment
from nomoat.training.adapter_checks import check_effect, check_outputs, check_tensors, probe, probe_logits
from nomoat.training.collate import Collator, choose_packing
from nomoat.training.loop import TrainSpec, run_training


@contextmanager
def open_finetune(spec: RunSpec, runs_dir: Path, console: Console) -> Iterator[FineTuneRun]:
    """The run directory and its ledger, held by this process alone until the block ends."""
    with open_run(runs_dir, spec.recipe.name, identity=spec.identity(), environment=spec.provenance.record()) as directory:
        ledger = begin_files(spec, directory, console)
        ledger.backdate("fetch", spec.base.fetch_seconds)
        process_seconds = time.time() - psutil.Process().create_time()  # importing the libraries and reading the rows cost time too
        ledger.backdate("start", process_seconds - spec.base.fetch_seconds)
        if not directory.resumed:
            directory.record(matrix_gflops=machine_gflops(spec.base.device.kind))
        yield FineTuneRun(spec, directory, ledger, console, ChatTemplate(load_tokenizer(spec.base.files)))


def begin_files(spec: RunSpec, directory: RunDirectory, console: Console) -> Ledger:
    """recipe.yaml, heldout.jsonl and the ledger of a run directory; prints the directory's note."""
    if directory.note:
        console.print(directory.note, highlight=False, soft_wrap=True)
    write_atomically(directory.path / "recipe.yaml", yaml.safe_dump(spec.recipe.as_dict(), sort_keys=False, allow_unicode=True))
    write_jsonl(directory.path / "heldout.jsonl", [row.record() for row in spec.rows.heldout])
    hardware = meters.hardware(spec.provenance.device.model_dump())
    return Ledger(directory.path / "ledger.jsonl", hardware=hardware, run_id=directory.run_id)


@dataclass(frozen=True)
class RunData:
    """The rows of a run as tokens, and the collator that puts them into batches on this base."""

    tokenized: TokenizedData
    collator: Collator


@dataclass(frozen=True)
class Trainee:
    """A model that is ready to be trained, and what was true of it before the first step."""

    model: Any
    initial: dict[str, Any]  # the adapter's tensors by name; empty for full fine-tuning, whose start is the base itself
    size: AdapterSize
    learning_rate: float


@dataclass(frozen=True)
class FineTuneRun:
    """The phases of a run, in order."""

    spec: RunSpec
    directory: RunDirectory
    ledger: Ledger
    console: Console
    template: ChatTemplate

    @property
    def folder(self) -> Path:
        """The run directory."""
        return self.directory.path

    @contextmanager
    def _phase(self, name: str, words: str) -> Iterator[Segment]:
        """A segment of the ledger that is never silent for more than a minute."""
        with self.ledger.segment(name) as segment, still_working(words, self.console):
            yield segment

    def load_base(self) -> Any:
        """The base in the precision of training."""
        with self._phase("load", "loading the base"):
            return self._load_base()

    def _load_base(self) -> Any:
        """Weights that are trained stay in float32 (models/adapter.py says why)."""
        kept = "float32" if self.spec.in_full else self.spec.base.precision
        return load_model(self.spec.base.files, precision=kept, device=self.spec.base.device.kind)

    def prepare_data(self, base: Any) -> RunData:
        """Rows tokenised and counted; packed if this architecture is shown to keep packed rows apart."""
        spec = self.spec
        with self._phase("prepare", "preparing the rows"):
            tokenized = tokenize_data(spec.recipe, spec.data, self.template)
            packed, reason = choose_packing(base, tokenized.train, spec.base.device.kind, kernels=spec.kernels)
            self.write_rows_file(tokenized, Packing(packed=packed, reason=reason))
        if not packed:
            self.console.print(f"packing  off: {reason}", highlight=False, soft_wrap=True)
        collator = Collator(
            train=tokenized.train,
            validation=tokenized.validation,
            packed=packed,
            pad_id=self.template.pad_id,
            pack_tokens=spec.recipe.train.pack_tokens,
            shared=packed and uses_varlen_attention(base),
            kernels=spec.kernels,
        )
        return RunData(tokenized, collator)

    def write_rows_file(self, tokenized: TokenizedData, packing: Packing | None) -> None:
        """rows.json, and the rendering's hash in environment.json."""
        write_json(self.folder / "rows.json", {**tokenized.record, "packing": packing and packing.model_dump()})
        self.directory.record(rendering_sha256=self.template.fingerprint)

    def attach_adapter(self, base: Any) -> Trainee:
        """The base with a fresh, seeded adapter; its initial tensors are what the checks compare with."""
        spec = self.spec
        model = attach_adapter(base, spec.recipe.lora, seed=spec.recipe.train.seed, files=spec.base.files, kernels=spec.kernels)
        if spec.start is not None:
            restore_adapter(model, spec.start)
        initial = adapter_tensors(model)
        size = adapter_size(model)
        rate = learning_rate_for(spec.recipe, size.base_parameters)
        self.directory.record(adapter_initial_sha256=fingerprint(initial), learning_rate=rate)
        chosen = "auto" if spec.recipe.train.learning_rate == "auto" else "stated"
        what = f"trained  all {size.parameters:,} parameters" if spec.in_full else f"adapter  {size.parameters:,} parameters"
        base_size = "" if spec.in_full else f"; the base has {size.base_parameters:,}"
        line = f"{what} in {size.modules} modules{base_size}; learning rate {rate:g} ({chosen})"
        warning = learning_rate_warning(spec.recipe, size.base_parameters)
        self.console.print(line + (f"\nwarning: {warning}" if warning else ""), highlight=False, soft_wrap=True)
        return Trainee(model, {} if spec.in_full else initial, size, rate)

    def train(self, trainee: Trainee, data: RunData) -> None:
        """All steps, or those left; then the adapter on disk."""
        spec = self.spec
        rate = spec.provenance.rate
        job = TrainSpec(
            recipe=spec.recipe,
            collator=data.collator,
            files=spec.base.files,
            folder=self.folder,
            device=spec.base.device.kind,
            learning_rate=trainee.learning_rate,
            validation_bytes=data.tokenized.validation_bytes,
            usd_per_second=None if rate is None else costs.usd_for(1, rate),
            mixed=spec.in_full and spec.base.precision == "bfloat16",
        )
        adapter = self.folder / "adapter"
        with self.ledger.segment("train") as segment:
            run_training(trainee.model, job, count=segment.count, console=self.console)
            save_adapter(trainee.model, adapter, spec.base.files, start=trainee.initial if spec.recipe.lora.method == "pissa" else None)
            add_tokenizer_and_card(adapter, self.template.tokenizer, spec.base.files)
        facts = adapter_facts(trainee.size, spec.recipe.lora, adapter, spec.base.files)
        write_json(self.folder / "adapter.json", facts.model_dump(mode="json", exclude={"gate"}))

    def check_adapter(self, trainee: Trainee, data: RunData) -> Gate:
        """The saved adapter in a fresh base, compared with what training left in memory."""
        adapter = self.folder / "adapter"
        with self._phase("gate", "checking the adapter"):
            release_memory()
            base = self._load_base()
            checks = check_tensors(adapter, self._initial_tensors(trainee, base))
            if all(check.passed for check in checks):
                if data.collator.shared:
                    enable_varlen_attention(base)
                trained, untouched = probe_logits(trainee.model.eval(), data.collator.train), probe(base, data.collator)
                reloaded = probe(load_adapter(base, adapter, kernels=self.spec.kernels), data.collator)
                checks += check_effect(untouched, reloaded, trained, expect_no_gain=self.spec.recipe.eval.expect_no_gain)
            gate = Gate.of(checks)
            write_json(self.folder / "gate.json", gate.model_dump(mode="json"))
        return gate

    def _initial_tensors(self, trainee: Trainee, base: Any) -> dict[str, Any]:
        """The initial values of the saved tensors."""
        if self.spec.in_full:
            return model_tensors(base)
        return as_plain_lora(trainee.initial, trainee.initial) if self.spec.recipe.lora.method == "pissa" else trainee.initial

    def score(self, gate: Gate, tokenized: TokenizedData) -> Gate:
        """Every arm on the held-out rows, the baselines, and the last check of the gate."""
        release_memory()
        scorer = ArmScorer.load(
            self.spec, self.directory, ledger=self.ledger, console=self.console, template=self.template, prepared=tokenized
        )
        records = {arm.name: scorer.score(arm) for arm in scorer.arms}
        scorer.run_benchmarks()
        scorer.score_neutral_text()
        write_jsonl(self.folder / "eval" / "baselines.jsonl", baselines(self.spec.rows.train, tokenized.heldout))
        check = check_outputs(records["base"], records["adapter"], expect_no_gain=self.spec.recipe.eval.expect_no_gain)
        complete = Gate.of([*gate.checks, check])
        write_json(self.folder / "gate.json", complete.model_dump(mode="json"))
        return complete

    def write_report(self) -> Report:
        """report.html and, last, report.json: with it the run is finished. The ledger does not count drawing the page."""
        with self.ledger.segment("report"):
            draft = build_report(self.folder)
        report = draft.model_copy(update={"cost": run_cost(self.folder, draft.provenance)})
        page = self.folder / "report.html"
        write_atomically(page, render_html(report, self.folder))
        write_report(report, self.folder / "report.json")
        print_summary(report, self.console, where=str(page))
        agreement = agreement_with_published(report, self.spec.root / "recipes" / "reference")
        if agreement:
            self.console.print(f"published: {agreement}", highlight=False, soft_wrap=True)
        if report.status == "finished":
            self.console.print(f"\nnext: make try RUN={self.folder}\n      make compare", highlight=False, soft_wrap=True)
        return report
