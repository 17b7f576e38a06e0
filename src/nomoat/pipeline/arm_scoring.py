"""The arms of one run: loaded once, answered or taken from the cache, counted in the ledger, written to eval/."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from rich.console import Console

from nomoat.console import ProgressBar
from nomoat.data.chat_template import ChatTemplate
from nomoat.data.prepare import TokenizedData
from nomoat.evaluation.arms import Arm, arm_key, enable_packed_prefill, load_cached_arm, make_arms, score_arm, store_cached_arm
from nomoat.evaluation.generate import bits_per_byte
from nomoat.evaluation.lm_eval import describe_tasks, paired_lines, run_tasks
from nomoat.io import write_json, write_jsonl
from nomoat.kernels.linear import prepack_linears
from nomoat.models.adapter import has_adapter, load_adapter
from nomoat.models.base import load_model
from nomoat.pipeline.run_spec import RunSpec
from nomoat.runs.directory import RunDirectory
from nomoat.runs.ledger import Ledger
from nomoat.training.adapter_checks import probe_logits

NEUTRAL_TEXT = "data/desk/neutral.txt"  # the same for every set: what it measures is plain English


class ArmScorer:
    """Base, few_shot and adapter of a run whose adapter is on disk."""

    def __init__(
        self, job: RunSpec, run: RunDirectory, ledger: Ledger, conversation: ChatTemplate, prepared: TokenizedData, console: Console
    ) -> None:
        self.job, self.run, self.ledger, self.conversation, self.console = job, run, ledger, conversation, console
        self.probe = prepared.train
        self.list = make_arms(job.recipe.eval.arms, prepared.heldout, prepared.examples)
        self.decoding = job.provenance.decoding.model_dump() if job.provenance.decoding else {}

    def load(self) -> None:
        """Base and adapter in the precision of scoring; the base apart if switching the adapter off leaves a trace."""
        import torch

        with self.ledger.segment("load"):
            base = self._load_base()
            before = probe_logits(base, self.probe)
            self.adapted = load_adapter(base, self.run.path / "adapter")
            same = False
            if has_adapter(self.adapted):
                with self.adapted.disable_adapter():
                    same = torch.equal(before, probe_logits(self.adapted, self.probe))
            prepack_linears(self.adapted)
            self.base = self.adapted if same else prepack_linears(self._load_base())
        self.run.record(arms_from_one_load=same)

    def _load_base(self) -> Any:
        model = load_model(self.job.files, precision=self.job.scoring_precision, device=self.job.device.kind)
        enable_packed_prefill(model, self.list[0], self.conversation)
        return model

    def score(self, arm: Arm) -> list[dict[str, Any]]:
        """The arm's records; those of an untouched base are taken over where this machine has made them before."""
        phase = f"score_{arm.name}"
        device = self.job.device
        key = arm_key(arm, self.job.files, self.conversation, self.decoding, device.threads, device.name)
        kept = None if arm.adapter else load_cached_arm(key)
        if kept is None:
            records = self._answer(arm, phase)
            if not arm.adapter:
                store_cached_arm(key, records, self.ledger.cost_of(phase))
        else:
            records, made = kept
            self.ledger.reuse(phase, made)
            self.console.print(f"scoring {arm.name}: reused from {made['made']}, {made['seconds']:.0f} s when it was made", highlight=False)
        write_jsonl(self.run.path / "eval" / f"{arm.name}.jsonl", records)
        return records

    def _answer(self, arm: Arm, phase: str) -> list[dict[str, Any]]:
        with (
            self.ledger.segment(phase) as segment,
            ProgressBar(f"scoring {arm.name}", len(arm.rows), self.console) as bar,
            segment.computing(),
        ):
            model = self._merged() if arm.name == "merged" else self.adapted if arm.adapter else self.base
            return score_arm(arm, model, self.conversation, self.job.recipe.eval, on_rows=bar.advance)

    def _merged(self) -> Any:
        """The adapter merged into the base in 16 bits, as it would be shipped; a CPU computes with its rounded weights in float32."""
        sixteen = self.job.precision if self.job.precision == "float16" else "bfloat16"
        base = load_model(self.job.files, precision=sixteen, device=self.job.device.kind)
        merged = load_adapter(base, self.run.path / "adapter")
        if has_adapter(merged):
            merged = merged.merge_and_unload(safe_merge=True)
        return prepack_linears(merged.float() if self.job.device.kind == "cpu" else merged)

    def run_harness(self) -> None:
        """Standard benchmarks on base and adapter, where the recipe names some."""
        tasks = self.job.benchmarks
        if tasks is None:
            return
        settings, tokenizer = self.job.recipe.eval, self.conversation.tokenizer
        with self.ledger.segment("harness") as segment, segment.computing():
            base = run_tasks(tasks, self.base, tokenizer, settings, adapter=False)
            adapter = run_tasks(tasks, self.adapted, tokenizer, settings, adapter=True)
        write_jsonl(self.run.path / "eval" / "harness.jsonl", list(paired_lines(base, adapter)))
        write_json(
            self.run.path / "eval" / "harness.json", describe_tasks(base, settings, chat_template=tokenizer.chat_template is not None)
        )

    def read_neutral_text(self) -> None:
        """Bits per byte on a fixed text that has nothing to do with the task, for what was forgotten."""
        text = (self.job.root / NEUTRAL_TEXT).read_text(encoding="utf-8")
        ids, size = self.conversation.completion_ids(text), len(text.encode())
        with self.ledger.segment("score_adapter") as segment, segment.computing():
            adapter = bits_per_byte(self.adapted, ids, size)
            with self.adapted.disable_adapter() if self.base is self.adapted else nullcontext():
                base = bits_per_byte(self.base, ids, size)
        write_json(self.run.path / "eval" / "neutral.json", {"bytes": size, "bits_per_byte": {"base": base, "adapter": adapter}})
