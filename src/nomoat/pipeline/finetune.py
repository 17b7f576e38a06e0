"""One `make train`, verb by verb: each method does one phase, counts it in the ledger and leaves its files in the run directory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from nomoat.config.schema import learning_rate_for, learning_rate_warning
from nomoat.data.chat_template import ChatTemplate
from nomoat.data.prepare import TokenizedData, tokenize_data
from nomoat.evaluation.baselines import baselines
from nomoat.io import write_atomically, write_json, write_jsonl
from nomoat.kernels.varlen_attention import enable_varlen_attention, uses_varlen_attention
from nomoat.models.adapter import (
    FULL,
    adapter_facts,
    adapter_size,
    adapter_tensors,
    add_tokenizer_and_card,
    as_plain_lora,
    attach_adapter,
    fingerprint,
    init_from_adapter,
    load_adapter,
    model_tensors,
    save_adapter,
)
from nomoat.models.base import load_model, load_tokenizer
from nomoat.models.device import machine_gflops, release_memory
from nomoat.pipeline.arm_scoring import ArmScorer
from nomoat.pipeline.run_spec import RunSpec
from nomoat.reports.build import build_report, write_report
from nomoat.reports.compare import agreement_with_published
from nomoat.reports.html import render_html
from nomoat.reports.terminal import print_summary
from nomoat.runs import costs, meters
from nomoat.runs.directory import RunDirectory, open_run
from nomoat.runs.ledger import Ledger
from nomoat.scorers import score
from nomoat.training.adapter_checks import Gate, check_effect, check_outputs, check_tensors, probe, probe_logits
from nomoat.training.collate import Collator, choose_packing
from nomoat.training.loop import TrainSpec, run_training


@contextmanager
def open_finetune(job: RunSpec, runs_dir: Path, console: Console) -> Iterator[FineTuneRun]:
    """The run directory and its ledger, ours alone until the block ends."""
    with open_run(runs_dir, job.recipe.name, identity=job.identity(), environment=job.environment()) as run:
        if run.note:
            console.print(run.note, highlight=False)
        write_atomically(run.path / "recipe.yaml", yaml.safe_dump(job.recipe.as_dict(), sort_keys=False, allow_unicode=True))
        write_jsonl(run.path / "heldout.jsonl", [row.record() for row in job.rows.heldout])
        hardware = meters.hardware(job.environment()["device"])
        ledger = Ledger(run.path / "ledger.jsonl", hardware=hardware, run_id=run.run_id)
        ledger.backdate("fetch", job.fetch_seconds)
        ledger.backdate("start", _process_seconds() - job.fetch_seconds)
        if not run.resumed:
            run.record(matrix_gflops=machine_gflops(job.device.kind))
        yield FineTuneRun(job, run, ledger, console)


def _process_seconds() -> float:
    """Seconds since this process was started: importing the libraries and reading the rows cost time too."""
    import psutil

    return time.time() - psutil.Process().create_time()


class FineTuneRun:
    """The phases of a run, in order."""

    def __init__(self, job: RunSpec, run: RunDirectory, ledger: Ledger, console: Console) -> None:
        self.job, self.run, self.ledger, self.console = job, run, ledger, console
        self.recipe, self.folder = job.recipe, run.path

    def load_base(self) -> Any:
        """The base in the precision of training, and its tokenizer."""
        with self.ledger.segment("load"):
            self.conversation = ChatTemplate(load_tokenizer(self.job.files))
            return self._load(self.job.precision)

    def _load(self, precision: str) -> Any:
        kept = "float32" if self._in_full else precision  # trained weights: whole_model.py says why
        return load_model(self.job.files, precision=kept, device=self.job.device.kind)

    def prepare_rows(self, model: Any) -> Collator:
        """Rows rendered and counted; packed if this architecture is shown to keep packed rows apart."""
        with self.ledger.segment("prepare"):
            self.prepared: TokenizedData = tokenize_data(self.recipe, self.job.loaded, self.conversation)
            packed, reason = choose_packing(model, self.prepared.train, self.job.device.kind)
            write_json(self.folder / "rows.json", {**self.prepared.record, "packing": {"packed": packed, "reason": reason}})
            self.run.record(rendering_sha256=self.conversation.fingerprint)
        if not packed:
            self.console.print(f"packing  off: {reason}", highlight=False)
        pads = self.conversation.pad_id
        shared = packed and uses_varlen_attention(model)
        return Collator(self.prepared.train, self.prepared.validation, packed, pads, self.recipe.train.pack_tokens, shared)

    def attach_adapter(self, model: Any) -> Any:
        """The base with a fresh, seeded adapter; its initial weights are what the gate compares with."""
        adapted = attach_adapter(model, self.recipe.lora, seed=self.recipe.train.seed, files=self.job.files)
        if self.job.start is not None:
            init_from_adapter(adapted, self.job.start)
        initial = adapter_tensors(adapted)
        self.initial = {} if self._in_full else initial  # as large as the base, which is there to be read again
        self.size = adapter_size(adapted)
        self.learning_rate = learning_rate_for(self.recipe, self.size.base_parameters)
        self.run.record(adapter_initial_sha256=fingerprint(initial), learning_rate=self.learning_rate)
        warning = learning_rate_warning(self.recipe, self.size.base_parameters)
        chosen = "auto" if self.recipe.train.learning_rate == "auto" else "stated"
        self.console.print(
            ("all of" if self._in_full else "adapter")
            + f"  {self.size.parameters:,} parameters in {self.size.modules} modules, the base has {self.size.base_parameters:,}; "
            f"learning rate {self.learning_rate:g} ({chosen})" + (f"\nwarning: {warning}" if warning else ""),
            highlight=False,
        )
        return adapted

    @property
    def _edits_the_base(self) -> bool:
        return self.recipe.lora.method == "pissa"

    @property
    def _in_full(self) -> bool:
        return self.recipe.lora.method == FULL

    def train(self, model: Any, rows: Collator) -> None:
        """All steps, or those left; then the adapter on disk."""
        rate = costs.read_rate(self.job.environment()["rate"])
        job = TrainSpec(
            recipe=self.recipe,
            collator=rows,
            files=self.job.files,
            folder=self.folder,
            device=self.job.device.kind,
            learning_rate=self.learning_rate,
            validation_bytes=self.prepared.validation_bytes,
            usd_per_second=None if rate is None else costs.usd_per_second(rate),
            mixed=self._in_full and self.job.precision == "bfloat16",
        )
        with self.ledger.segment("train") as segment:
            run_training(model, job, count=segment.count, console=self.console)
            save_adapter(model, self.folder / "adapter", self.job.files, start=self.initial if self._edits_the_base else None)
            add_tokenizer_and_card(self.folder / "adapter", self.conversation.tokenizer, self.job.files)
        facts = adapter_facts(self.size, self.recipe.lora, self.folder / "adapter", self.job.files)
        write_json(self.folder / "adapter.json", facts)

    def prove_adapter(self, model: Any, rows: Collator) -> Gate:
        """The saved adapter in a fresh base, against what training left in memory."""
        with self.ledger.segment("gate"):
            release_memory()
            base = self._load(self.job.precision)
            checks = check_tensors(self.folder / "adapter", self._start(base))
            if all(check.passed for check in checks):
                if rows.shared:
                    enable_varlen_attention(base)
                trained, untouched = probe_logits(model.eval(), rows.train), probe(base, rows)
                reloaded = probe(load_adapter(base, self.folder / "adapter"), rows)
                checks += check_effect(untouched, reloaded, trained, expect_no_gain=self.recipe.eval.expect_no_gain)
            found = Gate(tuple(checks))
            found.write(self.folder / "gate.json")
        return found

    def _start(self, base: Any) -> dict[str, Any]:
        """The tensors that the saved ones began as."""
        if self._in_full:
            return model_tensors(base)
        return as_plain_lora(self.initial, self.initial) if self._edits_the_base else self.initial

    def score_arms(self, found: Gate) -> Gate:
        """Every arm on the held-out rows, the baselines, and the last check of the gate."""
        release_memory()
        arms = ArmScorer(self.job, self.run, self.ledger, self.conversation, self.prepared, self.console)
        arms.load()
        records = {arm.name: arms.score(arm) for arm in arms.list}
        arms.run_harness()
        arms.read_neutral_text()
        write_jsonl(self.folder / "eval" / "baselines.jsonl", baselines(self.job.rows.train, self.prepared.heldout, score))
        check = check_outputs(records["base"], records["adapter"], expect_no_gain=self.recipe.eval.expect_no_gain)
        complete = Gate((*found.checks, check))
        complete.write(self.folder / "gate.json")
        return complete

    def write_report(self) -> Path:
        """report.html and, last, report.json: with it the run is finished."""
        with self.ledger.segment("report"):
            render_html(build_report(self.folder), self.folder)
        report = build_report(self.folder)  # again, so that the report's own seconds are in the ledger it sums
        write_atomically(self.folder / "report.html", render_html(report, self.folder))
        write_report(report, self.folder / "report.json")
        print_summary(report, self.console, where=str(self.folder / "report.html"))
        published = agreement_with_published(report, self.job.root / "recipes" / "reference")
        if published:
            self.console.print(f"published: this run {published}", highlight=False, soft_wrap=True)
        return self.folder / "report.html"
