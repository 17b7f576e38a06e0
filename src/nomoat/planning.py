"""What a recipe will cost before its base is downloaded: memory phase by phase, whether it fits, time and money."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nomoat import devices, meters, outlines, plan_memory, prices, wording
from nomoat.errors import NomoatError
from nomoat.files import read_json
from nomoat.memory_trace import ShapesDependOnData
from nomoat.plan_memory import Memory, Setting
from nomoat.planned_work import Work, fetch_configuration, plan_work
from nomoat.recipe import ElectricityRate, Recipe
from nomoat.report import read_report

MEASURE = "MEASURE=1 measures"


@dataclass(frozen=True)
class Speed:
    """Tokens a second in training, and where that is from."""

    tokens_per_second: float
    source: str


@dataclass(frozen=True)
class CostPlan:
    """Everything that `make plan` says. `phases` are in the order of a run, each with its memory at its peak in bytes by part."""

    setting: Setting
    device: devices.Device
    work: Work
    phases: dict[str, Memory]
    process_bytes: int  # what Python and its libraries take on the same memory
    speed: Speed | None
    notes: tuple[str, ...]

    @property
    def recipe(self) -> Recipe:
        """The recipe that is planned."""
        return self.setting.recipe

    def needed(self, phase: str) -> int:
        """Bytes that must fit in a phase; pages of a file are not among them, the system takes them back when it needs to."""
        memory = self.phases[phase]
        return sum(memory.values()) - memory["file pages"] + self.process_bytes

    @property
    def hungriest(self) -> str | None:
        """The phase that needs most; None where no phase could be followed."""
        return max(self.phases, key=self.needed, default=None)

    @property
    def train_seconds(self) -> float | None:
        """Of the optimiser steps; None as long as the speed is not known."""
        return None if self.speed is None else self.work.tokens / self.speed.tokens_per_second

    def money(self) -> str:
        """What training costs, or why there is no figure."""
        seconds = self.train_seconds
        if seconds is None:
            return f"{wording.money(None)}: the time is not known"
        rate = _rate(self.recipe, self.device)
        if rate is None:
            return f"{wording.money(None)}: no rate is known for {self.device.name}: {prices.HOW_TO_STATE}"
        usd = seconds * prices.usd_per_second(rate)
        if isinstance(rate, ElectricityRate):
            return f"{wording.money(usd)} of electricity: {rate.watts:g} W at {rate.usd_per_kwh:g} USD/kWh, both as stated in the recipe"
        return f"{wording.money(usd)}: {rate.usd_per_hour:g} USD/h, {rate.source}, {rate.date}"


def make_plan(recipe: Recipe, root: Path) -> CostPlan:
    """Configuration and rows are fetched, nothing else; NomoatError for a recipe or a base that cannot be used."""
    from transformers import AutoConfig

    device = devices.choose_device(recipe.hardware)
    precision = devices.training_precision(recipe, device)
    files, notes = fetch_configuration(recipe.base)
    config = AutoConfig.from_pretrained(files.folder, local_files_only=True)
    counts = outlines.counts(config, recipe.lora, files)
    work = plan_work(recipe, root, files, config, device.kind)
    setting = Setting(config, counts, recipe, files, device.kind, precision, devices.scoring_precision(precision, device))
    phases = _phases(setting, work, notes)
    own = _resident_bytes() if device.kind != "cuda" else 0
    speed = published_speed(setting, device, root / "recipes" / "reference")
    return CostPlan(setting, device, work, phases, own, speed, (*notes, *work.notes))


def _phases(setting: Setting, work: Work, notes: list[str]) -> dict[str, Memory]:
    try:
        found = {"loading": plan_memory.loading(setting, work), "training": plan_memory.training(setting, work)}
        return {**found, "gate": plan_memory.gate(setting, found["training"]), "scoring": plan_memory.scoring(setting, work)}
    except ShapesDependOnData as error:
        notes.append(f"memory is not known: what this architecture computes depends on its data ({error}); {MEASURE} it")
        return {}


def _resident_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def published_speed(setting: Setting, device: devices.Device, folder: Path) -> Speed | None:
    """The speed of a published run of the same base, method and precision on the same device with as many threads."""
    ours = (setting.recipe.lora.method, setting.files.name, setting.precision, device.threads, device.kind, device.name)
    for path in sorted(folder.glob("*.json")):
        if _run_as(read_json(path)) == ours:
            report = read_report(path)  # which checks it, and takes its time
            if report.cost.tokens_per_second:
                source = f"as in the published run {report.run} on {device.name} with {wording.plural(device.threads, 'thread')}"
                return Speed(report.cost.tokens_per_second, source)
    return None


def _run_as(report: dict[str, Any]) -> tuple[Any, ...]:
    """What a report's speed belongs to: method, base, precision, threads, kind and name of the device."""
    seen = report["provenance"]
    place = seen["device"]
    return report["recipe"]["lora"]["method"], seen["base"]["name"], seen["dtype"], seen["threads"], place["kind"], place["name"]


def with_speed(plan: CostPlan, tokens_per_second: float) -> CostPlan:
    """The plan with a measured speed."""
    return replace(plan, speed=Speed(tokens_per_second, "as measured here, on the fullest step"))


def _rate(recipe: Recipe, device: devices.Device) -> prices.Rate | None:
    stated = recipe.hardware.rate
    return prices.rate_for(device.name, vcpu=meters.usable_cpus()) if isinstance(stated, str) else stated


# does it fit?


def check_fit(plan: CostPlan) -> None:
    """NomoatError naming what to change if a phase needs more memory than the device has."""
    phase = plan.hungriest
    if phase is None or plan.needed(phase) <= plan.device.memory_bytes:
        return
    memory = plan.phases[phase]
    part = max((name for name in memory if name != "file pages"), key=lambda name: memory[name])
    raise NomoatError(
        f"this recipe does not fit: {phase} needs about {wording.size(plan.needed(phase))} of memory and {plan.device.name} has "
        f"{wording.size(plan.device.memory_bytes)}; most of it is {part} ({wording.size(memory[part])}): {_knob(plan, phase, part)}"
    )


def _knob(plan: CostPlan, phase: str, part: str) -> str:
    recipe, setting = plan.recipe, plan.setting
    if setting.in_full and part in ("weights", "optimiser"):
        return "lora.method=lora trains an adapter in place of the whole model"
    if part in ("adapter", "optimiser"):
        return f"lower lora.rank ({recipe.lora.rank})"
    if phase == "scoring" and part != "weights":
        return f"lower eval.batch_rows ({recipe.eval.batch_rows})"
    if phase in ("training", "gate") and part != "weights":
        longest = max(row.length for row in plan.work.train)
        return (
            f"lower train.pack_tokens ({recipe.train.pack_tokens}) and train.max_row_tokens ({recipe.train.max_row_tokens}); "
            f"the longest row has {longest} tokens"
        )
    if setting.precision in devices.QUANTISED or setting.device == "mps" or recipe.lora.method == "pissa":
        return f"precision is {setting.precision}, and no smaller one goes with the rest: take a smaller base"
    return "precision=nf4 holds the base in 4 bits, or take a smaller base"
