"""The arms of one run: loaded once, answered or taken from the cache, counted in the ledger, written to eval/."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from rich.console import Console

from nomoat import adapters, bases, evaluation, gate, harness
from nomoat.conversation import Conversation
from nomoat.files import write_json, write_lines
from nomoat.generation import bits_per_byte
from nomoat.ledger import Ledger
from nomoat.packed_linear import pack_linears
from nomoat.preparing import Prepared
from nomoat.progress import Bar
from nomoat.runs import Run

if TYPE_CHECKING:
    from nomoat.jobs import Job

NEUTRAL_TEXT = "data/desk/neutral.txt"  # the same for every set: what it measures is plain English


class Arms:
    """Base, few_shot and adapter of a run whose adapter is on disk."""

    def __init__(self, job: Job, run: Run, ledger: Ledger, conversation: Conversation, prepared: Prepared, console: Console) -> None:
        self.job, self.run, self.ledger, self.conversation, self.console = job, run, ledger, conversation, console
        self.probe = prepared.train
        self.list = evaluation.make_arms(job.recipe.eval.arms, prepared.heldout, prepared.examples)
        self.decoding = job.environment()["decoding"]

    def load(self) -> None:
        """Base and adapter in the precision of scoring; the base apart if switching the adapter off leaves a trace."""
        import torch

        with self.ledger.segment("load"):
            base = self._load_base()
            before = gate.probe_logits(base, self.probe)
            self.adapted = adapters.load_adapter(base, self.run.path / "adapter")
            same = False
            if adapters.is_adapted(self.adapted):
                with self.adapted.disable_adapter():
                    same = torch.equal(before, gate.probe_logits(self.adapted, self.probe))
            pack_linears(self.adapted)
            self.base = self.adapted if same else pack_linears(self._load_base())
        self.run.record(arms_from_one_load=same)

    def _load_base(self) -> Any:
        model = bases.load_model(self.job.files, precision=self.job.scoring_precision, device=self.job.device.kind)
        evaluation.settle_answers(model, self.list[0], self.conversation)
        return model

    def score(self, arm: evaluation.Arm) -> list[dict[str, Any]]:
        """The arm's records; those of an untouched base are taken over where this machine has made them before."""
        phase = f"score_{arm.name}"
        device = self.job.device
        key = evaluation.arm_key(arm, self.job.files, self.conversation, self.decoding, device.threads, device.name)
        kept = None if arm.adapter else evaluation.cached_arm(key)
        if kept is None:
            records = self._answer(arm, phase)
            if not arm.adapter:
                evaluation.keep_arm(key, records, self.ledger.cost_of(phase))
        else:
            records, made = kept
            self.ledger.reuse(phase, made)
            self.console.print(f"scoring {arm.name}: reused from {made['made']}, {made['seconds']:.0f} s when it was made", highlight=False)
        write_lines(self.run.path / "eval" / f"{arm.name}.jsonl", records)
        return records

    def _answer(self, arm: evaluation.Arm, phase: str) -> list[dict[str, Any]]:
        with self.ledger.segment(phase) as segment, Bar(f"scoring {arm.name}", len(arm.rows), self.console) as bar, segment.computing():
            model = self._merged() if arm.name == "merged" else self.adapted if arm.adapter else self.base
            return evaluation.score_arm(arm, model, self.conversation, self.job.recipe.eval, on_rows=bar.advance)

    def _merged(self) -> Any:
        """The adapter merged into the base in 16 bits, as it would be shipped; a CPU computes with its rounded weights in float32."""
        sixteen = self.job.precision if self.job.precision == "float16" else "bfloat16"
        base = bases.load_model(self.job.files, precision=sixteen, device=self.job.device.kind)
        merged = adapters.load_adapter(base, self.run.path / "adapter")
        if adapters.is_adapted(merged):
            merged = merged.merge_and_unload(safe_merge=True)
        return pack_linears(merged.float() if self.job.device.kind == "cpu" else merged)

    def run_harness(self) -> None:
        """Standard benchmarks on base and adapter, where the recipe names some."""
        tasks = self.job.benchmarks
        if tasks is None:
            return
        settings, tokenizer = self.job.recipe.eval, self.conversation.tokenizer
        with self.ledger.segment("harness") as segment, segment.computing():
            base = harness.ask(tasks, self.base, tokenizer, settings, adapter=False)
            adapter = harness.ask(tasks, self.adapted, tokenizer, settings, adapter=True)
        write_lines(self.run.path / "eval" / "harness.jsonl", list(harness.lines(base, adapter)))
        write_json(
            self.run.path / "eval" / "harness.json", harness.facts(base, settings, chat_template=tokenizer.chat_template is not None)
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
