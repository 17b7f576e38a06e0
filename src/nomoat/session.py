"""One `make train`, verb by verb: each method does one phase, counts it in the ledger and leaves its files in the run directory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from nomoat import adapters, bases, free_memory, gate, matrix_rate, meters, prices, reference, runs, starting, whole_model
from nomoat.arms import Arms
from nomoat.baselines import baselines
from nomoat.batches import Rows
from nomoat.conversation import Conversation
from nomoat.files import write_atomically, write_json, write_lines
from nomoat.fitting import Fit, fit
from nomoat.jobs import Job
from nomoat.ledger import Ledger
from nomoat.packing import settle_packing
from nomoat.preparing import Prepared, prepare
from nomoat.recipe import learning_rate_for, learning_rate_warning
from nomoat.report import build_report, write_report
from nomoat.report_view import print_summary, render_html
from nomoat.row_attention import use_row_attention, uses_row_attention
from nomoat.scoring import score


@contextmanager
def open_job(job: Job, runs_dir: Path, console: Console) -> Iterator[Work]:
    """The run directory and its ledger, ours alone until the block ends."""
    with runs.open_run(runs_dir, job.recipe.name, identity=job.identity(), environment=job.environment()) as run:
        if run.note:
            console.print(run.note, highlight=False)
        write_atomically(run.path / "recipe.yaml", yaml.safe_dump(job.recipe.as_dict(), sort_keys=False, allow_unicode=True))
        write_lines(run.path / "heldout.jsonl", [row.record() for row in job.rows.heldout])
        hardware = meters.hardware(job.environment()["device"])
        ledger = Ledger(run.path / "ledger.jsonl", hardware=hardware, run_id=run.run_id)
        ledger.backdate("fetch", job.fetch_seconds)
        ledger.backdate("start", _process_seconds() - job.fetch_seconds)
        if not run.resumed:
            run.record(matrix_gflops=matrix_rate.machine_gflops(job.device.kind))
        yield Work(job, run, ledger, console)


def _process_seconds() -> float:
    """Seconds since this process was started: importing the libraries and reading the rows cost time too."""
    import psutil

    return time.time() - psutil.Process().create_time()


class Work:
    """The phases of a run, in order."""

    def __init__(self, job: Job, run: runs.Run, ledger: Ledger, console: Console) -> None:
        self.job, self.run, self.ledger, self.console = job, run, ledger, console
        self.recipe, self.folder = job.recipe, run.path

    def load_base(self) -> Any:
        """The base in the precision of training, and its tokenizer."""
        with self.ledger.segment("load"):
            self.conversation = Conversation(bases.load_tokenizer(self.job.files))
            return self._load(self.job.precision)

    def _load(self, precision: str) -> Any:
        kept = "float32" if self._in_full else precision  # trained weights: whole_model.py says why
        return bases.load_model(self.job.files, precision=kept, device=self.job.device.kind)

    def prepare_rows(self, model: Any) -> Rows:
        """Rows rendered and counted; packed if this architecture is shown to keep packed rows apart."""
        with self.ledger.segment("prepare"):
            self.prepared: Prepared = prepare(self.recipe, self.job.loaded, self.conversation)
            packed, reason = settle_packing(model, self.prepared.train, self.job.device.kind)
            write_json(self.folder / "rows.json", {**self.prepared.record, "packing": {"packed": packed, "reason": reason}})
            self.run.record(rendering_sha256=self.conversation.fingerprint)
        if not packed:
            self.console.print(f"packing  off: {reason}", highlight=False)
        pads = self.conversation.pad_id
        shared = packed and uses_row_attention(model)
        return Rows(self.prepared.train, self.prepared.validation, packed, pads, self.recipe.train.pack_tokens, shared)

    def attach_adapter(self, model: Any) -> Any:
        """The base with a fresh, seeded adapter; its initial weights are what the gate compares with."""
        adapted = adapters.attach_adapter(model, self.recipe.lora, seed=self.recipe.train.seed, files=self.job.files)
        if self.job.start is not None:
            starting.begin_from(adapted, self.job.start)
        initial = adapters.adapter_tensors(adapted)
        self.initial = {} if self._in_full else initial  # as large as the base, which is there to be read again
        self.size = adapters.adapter_size(adapted)
        self.learning_rate = learning_rate_for(self.recipe, self.size.base_parameters)
        self.run.record(adapter_initial_sha256=adapters.fingerprint(initial), learning_rate=self.learning_rate)
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
        return self.recipe.lora.method == whole_model.METHOD

    def train(self, model: Any, rows: Rows) -> None:
        """All steps, or those left; then the adapter on disk."""
        rate = prices.read_rate(self.job.environment()["rate"])
        job = Fit(
            self.recipe,
            rows,
            self.job.files,
            self.folder,
            self.job.device.kind,
            self.learning_rate,
            self.prepared.validation_bytes,
            None if rate is None else prices.usd_per_second(rate),
            mixed=self._in_full and self.job.precision == "bfloat16",
        )
        with self.ledger.segment("train") as segment:
            fit(model, job, count=segment.count, console=self.console)
            adapters.save_adapter(model, self.folder / "adapter", self.job.files, start=self.initial if self._edits_the_base else None)
            adapters.add_tokenizer_and_card(self.folder / "adapter", self.conversation.tokenizer, self.job.files)
        facts = adapters.adapter_facts(self.size, self.recipe.lora, self.folder / "adapter", self.job.files)
        write_json(self.folder / "adapter.json", facts)

    def prove_adapter(self, model: Any, rows: Rows) -> gate.Gate:
        """The saved adapter in a fresh base, against what training left in memory."""
        with self.ledger.segment("gate"):
            free_memory.give_back()
            base = self._load(self.job.precision)
            checks = gate.check_tensors(self.folder / "adapter", self._start(base))
            if all(check.passed for check in checks):
                if rows.shared:
                    use_row_attention(base)
                trained, untouched = gate.probe_logits(model.eval(), rows.train), gate.read(base, rows)
                reloaded = gate.read(adapters.load_adapter(base, self.folder / "adapter"), rows)
                checks += gate.check_effect(untouched, reloaded, trained, expect_no_gain=self.recipe.eval.expect_no_gain)
            found = gate.Gate(tuple(checks))
            found.write(self.folder / "gate.json")
        return found

    def _start(self, base: Any) -> dict[str, Any]:
        """The tensors that the saved ones began as."""
        if self._in_full:
            return whole_model.tensors(base)
        return adapters.as_plain_lora(self.initial, self.initial) if self._edits_the_base else self.initial

    def score_arms(self, found: gate.Gate) -> gate.Gate:
        """Every arm on the held-out rows, the baselines, and the last check of the gate."""
        free_memory.give_back()
        arms = Arms(self.job, self.run, self.ledger, self.conversation, self.prepared, self.console)
        arms.load()
        records = {arm.name: arms.score(arm) for arm in arms.list}
        arms.run_harness()
        arms.read_neutral_text()
        write_lines(self.folder / "eval" / "baselines.jsonl", baselines(self.job.rows.train, self.prepared.heldout, score))
        check = gate.check_outputs(records["base"], records["adapter"], expect_no_gain=self.recipe.eval.expect_no_gain)
        complete = gate.Gate((*found.checks, check))
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
        published = reference.against_published(report, self.job.root / "recipes" / "reference")
        if published:
            self.console.print(f"published: this run {published}", highlight=False, soft_wrap=True)
        return self.folder / "report.html"
