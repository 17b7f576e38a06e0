"""Score the arms of a run: each is answered or taken from the cache, counted in the ledger and written to eval/."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from nomoat.cli import ProgressBar
from nomoat.data.chat_template import ChatTemplate
from nomoat.data.prepare import TokenizedData
from nomoat.evaluation.arms import Arm, arm_key, decoding_settings, load_cached_arm, make_arms, make_request, score_arm, store_cached_arm
from nomoat.evaluation.generate import bits_per_byte
from nomoat.evaluation.lm_eval import describe_tasks, paired_lines, run_tasks
from nomoat.evaluation.models import LoadedModels, load_merged_model, load_models
from nomoat.io import write_json, write_jsonl
from nomoat.pipeline.run_spec import RunSpec
from nomoat.runs.directory import RunDirectory
from nomoat.runs.ledger import Ledger

NEUTRAL_TEXT = "data/desk/neutral.txt"  # the same for every data set: it measures plain English


@dataclass(frozen=True, kw_only=True)
class ArmScorer:
    """Scores a run whose adapter is on disk."""

    spec: RunSpec
    run: RunDirectory
    ledger: Ledger
    console: Console
    arms: list[Arm]
    models: LoadedModels

    @classmethod
    def load(
        cls, spec: RunSpec, run: RunDirectory, *, ledger: Ledger, console: Console, template: ChatTemplate, prepared: TokenizedData
    ) -> ArmScorer:
        """Load base and adapter in the precision of scoring and prepare the recipe's arms."""
        arms = make_arms(spec.recipe.eval.arms, prepared.heldout, prepared.examples)
        with ledger.segment("load"):
            models = load_models(
                spec.base.files,
                run.path / "adapter",
                precision=spec.base.scoring_precision,
                device=spec.base.device.kind,
                template=template,
                probe=[make_request(row, arms[0], template) for row in arms[0].rows[:2]],
                kernels=spec.recipe.hardware.kernels,
            )
        run.record(arms_from_one_load=models.shared)
        return cls(spec=spec, run=run, ledger=ledger, console=console, arms=arms, models=models)

    def score(self, arm: Arm) -> list[dict[str, Any]]:
        """The arm's records; those of an untouched base are reused where this machine has made them before."""
        phase = f"score_{arm.name}"
        spec, template = self.spec, self.models.template
        decoding = decoding_settings(spec.recipe.eval, spec.base.scoring_precision, spec.base.device.kind, spec.recipe.hardware.kernels)
        key = arm_key(arm, spec.base.files, template, decoding, spec.base.device.threads, spec.base.device.name)
        cached = None if arm.adapter else load_cached_arm(key)
        if cached is None:
            records = self._answer(arm, phase)
            if not arm.adapter:
                store_cached_arm(key, records, self.ledger.cost_of(phase))
        else:
            records, cost = cached
            self.ledger.reuse(phase, cost)
            self.console.print(f"scoring {arm.name}: reused from {cost['made']}, {cost['seconds']:.0f} s when it was made", highlight=False)
        write_jsonl(self.run.path / "eval" / f"{arm.name}.jsonl", records)
        return records

    def _answer(self, arm: Arm, phase: str) -> list[dict[str, Any]]:
        models = self.models
        with (
            self.ledger.segment(phase) as segment,
            ProgressBar(f"scoring {arm.name}", len(arm.rows), self.console) as bar,
            segment.computing(),
            self._model_of(arm) as model,
        ):
            return score_arm(arm, model, models.template, self.spec.recipe.eval, draft=models.draft, on_rows=bar.advance)

    @contextmanager
    def _model_of(self, arm: Arm) -> Iterator[Any]:
        if arm.name == "merged":
            precision = "float16" if self.spec.base.precision == "float16" else "bfloat16"
            folder, device, kernels = self.run.path / "adapter", self.spec.base.device.kind, self.models.kernels
            yield load_merged_model(self.spec.base.files, folder, precision=precision, device=device, kernels=kernels)
        else:
            with self.models.using("adapter" if arm.adapter else "base") as model:
                yield model

    def run_benchmarks(self) -> None:
        """Standard benchmarks on base and adapter, where the recipe names some."""
        tasks, settings, tokenizer = self.spec.benchmarks, self.spec.recipe.eval, self.models.template.tokenizer
        if tasks is None:
            return
        results = {}
        with self.ledger.segment("harness") as segment, segment.computing():
            for name in ("base", "adapter"):
                with self.models.using(name) as model:
                    results[name] = run_tasks(tasks, model, tokenizer, settings)
        folder = self.run.path / "eval"
        write_jsonl(folder / "harness.jsonl", list(paired_lines(results["base"], results["adapter"])))
        write_json(folder / "harness.json", describe_tasks(results["base"], settings, chat_template=tokenizer.chat_template is not None))

    def score_neutral_text(self) -> None:
        """Bits per byte of a fixed text unrelated to the task: a measure of forgetting."""
        text = (self.spec.root / NEUTRAL_TEXT).read_text(encoding="utf-8")
        ids, size = self.models.template.completion_ids(text), len(text.encode())
        bits = {}
        with self.ledger.segment("score_adapter") as segment, segment.computing():
            for name in ("base", "adapter"):
                with self.models.using(name) as model:
                    bits[name] = bits_per_byte(model, ids, size)
        write_json(self.run.path / "eval" / "neutral.json", {"bytes": size, "bits_per_byte": bits})
