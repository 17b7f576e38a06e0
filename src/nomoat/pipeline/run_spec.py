"""The specification of a run: everything that is known, and can be refused, before a run directory exists."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nomoat.config.schema import Recipe
from nomoat.data.examples import Splits
from nomoat.data.prepare import RawData, load_raw_data
from nomoat.evaluation.arms import decoding_settings
from nomoat.evaluation.lm_eval import BenchmarkTasks, load_tasks
from nomoat.io import sha256_file
from nomoat.models.adapter import FULL, warm_start_folder, weights_of
from nomoat.models.base import OpenBase, open_base
from nomoat.runs import costs, meters
from nomoat.runs.provenance import BaseFacts, DataOrigin, Decoding, DeviceFacts, Provenance, claims_sha256, code_state, machine, versions
from nomoat.scorers import SCORER_VERSION
from nomoat.training.loop import check_trackers

# Keys that do not change what is trained.
NOT_IDENTIFYING = {"base": ("display_name",), "train": ("report_to",)}


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What a run is asked to do, and where."""

    recipe: Recipe
    root: Path
    data: RawData
    base: OpenBase
    start: Path | None = None  # the adapter to continue from
    benchmarks: BenchmarkTasks | None = None  # loaded before anything else, since their data may be out of reach

    @property
    def kernels(self) -> str:
        """`auto` or `plain`."""
        return self.recipe.hardware.kernels

    @property
    def plain_kernels(self) -> dict[str, str]:
        """For an identity: only plain kernels are named, so that other runs keep the identity they had before the key existed."""
        return {"kernels": "plain"} if self.kernels == "plain" else {}

    @property
    def rows(self) -> Splits:
        """Training (the recipe's fraction), validation and held-out rows."""
        return self.data.rows

    @property
    def in_full(self) -> bool:
        """Whether every parameter of the base is trained."""
        return self.recipe.lora.method == FULL

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same run: the recipe without its hardware (except device and plain kernels), the rows and the base."""
        recipe = self.recipe.as_dict()
        recipe["hardware"] = {"device": self.base.device.kind, **self.plain_kernels}
        for section, keys in NOT_IDENTIFYING.items():
            recipe[section] = {key: value for key, value in recipe[section].items() if key not in keys}
        identity = {key: value for key, value in self.base.files.identity.items() if key != "display_name"}
        return {
            "recipe": recipe,
            "train": self.rows.train_sha256,
            "heldout": self.rows.heldout_sha256,
            "base": self.base.files.name,
            **identity,
            **({} if self.start is None else {"start_sha256": sha256_file(weights_of(self.start))}),
        }

    @cached_property
    def provenance(self) -> Provenance:
        """environment.json, as far as it is known before the model is loaded."""
        hardware = self.recipe.hardware
        listed = costs.rate_for(self.base.device.name, vcpu=meters.usable_cpus()) if hardware.rate == "auto" else None
        rows = self.rows
        return Provenance(
            **code_state(self.root),
            packages=versions(),
            **machine(),
            claims_sha256=claims_sha256(self.root),
            device=DeviceFacts(kind=self.base.device.kind, name=self.base.device.name, memory_bytes=self.base.device.memory_bytes),
            dtype=self.base.precision,
            scoring_dtype=self.base.scoring_precision,
            threads=self.base.device.threads,
            kernels=hardware.kernels,
            seed=self.recipe.train.seed,
            base=BaseFacts.model_validate({"name": self.base.files.name, **self.base.files.identity}),
            start_sha256=None if self.start is None else sha256_file(weights_of(self.start)),
            data=DataOrigin(name=rows.name, **rows.origin, train_sha256=rows.train_sha256, heldout_sha256=rows.heldout_sha256),
            decoding=Decoding(**decoding_settings(self.recipe.eval, self.base.scoring_precision, self.base.device.kind, self.kernels)),
            scorer_version=SCORER_VERSION,
            rate=listed if isinstance(hardware.rate, str) else hardware.rate,
            as_if_rented=hardware.as_if_rented,
        )

    def introduction(self) -> str:
        """The plan of the run in three lines."""
        chosen = "stated" if self.recipe.hardware.device != "auto" else "auto: cuda, then mps, then cpu"
        lora = self.recipe.lora
        method = "full fine-tuning" if self.in_full else f"{lora.method} rank {lora.rank}"
        unmeasured = "; not measured" if self.base.device.kind == "mps" else ""
        repeated = self.rows.origin.get("leaks_left_out")
        dropped = f" ({repeated} more repeat training rows and are left out)" if repeated else ""
        plain = ", plain kernels" if self.kernels == "plain" else ""
        return (
            f"recipe   {self.recipe.name}: {method} on {self.provenance.base.display_name}\n"
            f"rows     {self.rows.name}: {len(self.rows.train):,} train, {len(self.rows.validation):,} validation, "
            f"{len(self.rows.heldout):,} held out{dropped}\n"
            f"device   {self.base.device.kind} ({chosen}{unmeasured}): {self.base.device.name}, {self.base.device.threads} threads, "
            f"training in {self.base.precision}, scoring in {self.base.scoring_precision}{plain}"
        )


def make_run_spec(recipe: Recipe, root: Path) -> RunSpec:
    """Everything that can be refused is refused here, before a run directory exists."""
    check_trackers(recipe.train.report_to)
    data, base = load_raw_data(recipe, root), open_base(recipe)
    return RunSpec(
        recipe=recipe, root=root, data=data, base=base, start=warm_start_folder(recipe.lora, base.files), benchmarks=load_tasks(recipe.eval)
    )
