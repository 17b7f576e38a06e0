"""What a run is asked to do and where: everything that is known, and can be refused, before a run directory exists."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nomoat.config.schema import Recipe
from nomoat.data.examples import Splits
from nomoat.data.prepare import RawData, load_raw_data
from nomoat.evaluation.arms import decoding_settings
from nomoat.evaluation.lm_eval import BenchmarkTasks, load_tasks
from nomoat.io import sha256_file
from nomoat.memo.claims import claims_sha256
from nomoat.models.adapter import FULL, warm_start_folder, weights_of
from nomoat.models.base import BaseFiles, fetch_base
from nomoat.models.device import Device, choose_device, scoring_precision, training_precision
from nomoat.runs import costs, meters, provenance
from nomoat.scorers import SCORER_VERSION


@dataclass(frozen=True)
class RunSpec:
    """What is known before a run directory exists."""

    recipe: Recipe
    root: Path
    device: Device
    loaded: RawData
    files: BaseFiles
    precision: str
    fetch_seconds: float
    start: Path | None = None  # the adapter to begin with
    benchmarks: BenchmarkTasks | None = None  # loaded before anything else, since their data may be out of reach

    @property
    def scoring_precision(self) -> str:
        """Precision of the scored arms."""
        return scoring_precision(self.precision, self.device)

    @property
    def rows(self) -> Splits:
        """Training (the recipe's fraction), validation and held-out rows."""
        return self.loaded.rows

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same run: the recipe without what an hour costs, the rows and the base."""
        recipe = self.recipe.as_dict()
        recipe["hardware"] = {"device": self.device.kind}
        return {
            "recipe": recipe,
            "train": self.rows.train_sha256,
            "heldout": self.rows.heldout_sha256,
            "base": self.files.name,
            **self.files.identity,
            **self._begun_with(),
        }

    def _begun_with(self) -> dict[str, str]:
        return {} if self.start is None else {"start_sha256": sha256_file(weights_of(self.start))}

    def environment(self) -> dict[str, Any]:
        """environment.json, as far as it is known before the model is loaded."""
        hardware = self.recipe.hardware
        listed = costs.rate_for(self.device.name, vcpu=meters.usable_cpus()) if hardware.rate == "auto" else None
        rate = listed if isinstance(hardware.rate, str) else hardware.rate
        return {
            **provenance.code_state(self.root),
            "packages": provenance.versions(),
            **provenance.machine(),
            "claims_sha256": claims_sha256(),
            "device": {"kind": self.device.kind, "name": self.device.name, "memory_bytes": self.device.memory_bytes},
            "dtype": self.precision,
            "scoring_dtype": self.scoring_precision,
            "threads": self.device.threads,
            "seed": self.recipe.train.seed,
            "base": {"name": self.files.name, **self.files.identity},
            **self._begun_with(),
            "data": {
                "name": self.rows.name,
                **self.rows.origin,
                "train_sha256": self.rows.train_sha256,
                "heldout_sha256": self.rows.heldout_sha256,
            },
            "decoding": decoding_settings(self.recipe.eval, self.scoring_precision, self.device.kind, hardware.kernels),
            "scorer_version": SCORER_VERSION,
            "rate": None if rate is None else rate.model_dump(mode="json"),
            "as_if_rented": None if hardware.as_if_rented is None else hardware.as_if_rented.model_dump(mode="json"),
        }

    def introduction(self) -> str:
        """What is about to happen, in three lines."""
        chosen = "stated" if self.recipe.hardware.device != "auto" else "auto: cuda, then mps, then cpu"
        lora = self.recipe.lora
        method = "full fine-tuning" if lora.method == FULL else f"{lora.method} rank {lora.rank}"
        unmeasured = "; not measured by us" if self.device.kind == "mps" else ""
        repeated = self.rows.origin.get("leaks_left_out")
        dropped = f" ({repeated} more repeat training rows and are left out)" if repeated else ""
        return (
            f"recipe   {self.recipe.name}: {method} on {self.files.name.partition('@')[0]}\n"
            f"rows     {self.rows.name}: {len(self.rows.train)} train, {len(self.rows.validation)} validation, "
            f"{len(self.rows.heldout)} held out{dropped}\n"
            f"device   {self.device.kind} ({chosen}{unmeasured}): {self.device.name}, {self.device.threads} threads, "
            f"training in {self.precision}, scoring in {self.scoring_precision}"
        )


def make_run_spec(recipe: Recipe, root: Path) -> RunSpec:
    """Everything that can be refused is refused here, before a run directory exists."""
    loaded = load_raw_data(recipe, root)
    device = choose_device(recipe.hardware)
    precision = training_precision(recipe, device)
    began = time.monotonic()
    files = fetch_base(recipe.base)
    took = time.monotonic() - began
    return RunSpec(recipe, root, device, loaded, files, precision, took, warm_start_folder(recipe.lora, files), load_tasks(recipe.eval))
