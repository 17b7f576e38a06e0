"""A plan as tables for the terminal: what is trained, memory part by part, time and money."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nomoat.config.schema import QUANTISED, ElectricityRate, Recipe
from nomoat.errors import NomoatError
from nomoat.io import read_json
from nomoat.models.device import Device, choose_device, scoring_precision, training_precision
from nomoat.planning.measure import Measurement
from nomoat.planning.memory import (
    PARTS,
    Memory,
    MemorySetting,
    ShapesDependOnData,
    count_parameters,
    gate_memory,
    loading_memory,
    scoring_memory,
    training_memory,
)
from nomoat.planning.workload import Workload, fetch_configuration, plan_workload
from nomoat.reports import format as fmt
from nomoat.reports.build import read_report
from nomoat.runs import costs, meters

if TYPE_CHECKING:
    from nomoat.planning.measure import Measurement


# MERGED planning:
# What a recipe will cost before its base is downloaded: memory phase by phase, whether it fits, time and money.

MEASURE = "MEASURE=1 measures"


@dataclass(frozen=True)
class Speed:
    """Tokens a second in training, and where that is from."""

    tokens_per_second: float
    source: str


@dataclass(frozen=True)
class CostPlan:
    """Everything that `make plan` says. `phases` are in the order of a run, each with its memory at its peak in bytes by part."""

    setting: MemorySetting
    device: Device
    work: Workload
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
            return f"{fmt.money(None)}: the time is not known"
        rate = _rate(self.recipe, self.device)
        if rate is None:
            return f"{fmt.money(None)}: no rate is known for {self.device.name}: {costs.HOW_TO_STATE}"
        usd = seconds * costs.usd_per_second(rate)
        if isinstance(rate, ElectricityRate):
            return f"{fmt.money(usd)} of electricity: {rate.watts:g} W at {rate.usd_per_kwh:g} USD/kWh, both as stated in the recipe"
        return f"{fmt.money(usd)}: {rate.usd_per_hour:g} USD/h, {rate.source}, {rate.date}"


def make_plan(recipe: Recipe, root: Path) -> CostPlan:
    """Configuration and rows are fetched, nothing else; NomoatError for a recipe or a base that cannot be used."""
    from transformers import AutoConfig

    device = choose_device(recipe.hardware)
    precision = training_precision(recipe, device)
    files, notes = fetch_configuration(recipe.base)
    config = AutoConfig.from_pretrained(files.folder, local_files_only=True)
    counts = count_parameters(config, recipe.lora, files)
    work = plan_workload(recipe, root, files, config, device.kind)
    setting = MemorySetting(config, counts, recipe, files, device.kind, precision, scoring_precision(precision, device))
    phases = _phases(setting, work, notes)
    own = _resident_bytes() if device.kind != "cuda" else 0
    speed = published_speed(setting, device, root / "recipes" / "reference")
    return CostPlan(setting, device, work, phases, own, speed, (*notes, *work.notes))


def _phases(setting: MemorySetting, work: Workload, notes: list[str]) -> dict[str, Memory]:
    try:
        found = {"loading": loading_memory(setting, work), "training": training_memory(setting, work)}
        return {**found, "gate": gate_memory(setting, found["training"]), "scoring": scoring_memory(setting, work)}
    except ShapesDependOnData as error:
        notes.append(f"memory is not known: what this architecture computes depends on its data ({error}); {MEASURE} it")
        return {}


def _resident_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def published_speed(setting: MemorySetting, device: Device, folder: Path) -> Speed | None:
    """The speed of a published run of the same base, method and precision on the same device with as many threads."""
    ours = (setting.recipe.lora.method, setting.files.name, setting.precision, device.threads, device.kind, device.name)
    for path in sorted(folder.glob("*.json")):
        if _run_as(read_json(path)) == ours:
            report = read_report(path)  # which checks it, and takes its time
            if report.cost.tokens_per_second:
                source = f"as in the published run {report.run} on {device.name} with {fmt.plural(device.threads, 'thread')}"
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


def _rate(recipe: Recipe, device: Device) -> costs.Rate | None:
    stated = recipe.hardware.rate
    return costs.rate_for(device.name, vcpu=meters.usable_cpus()) if isinstance(stated, str) else stated


# does it fit?


def check_fit(plan: CostPlan) -> None:
    """NomoatError naming what to change if a phase needs more memory than the device has."""
    phase = plan.hungriest
    if phase is None or plan.needed(phase) <= plan.device.memory_bytes:
        return
    memory = plan.phases[phase]
    part = max((name for name in memory if name != "file pages"), key=lambda name: memory[name])
    raise NomoatError(
        f"this recipe does not fit: {phase} needs about {fmt.size(plan.needed(phase))} of memory and {plan.device.name} has "
        f"{fmt.size(plan.device.memory_bytes)}; most of it is {part} ({fmt.size(memory[part])}): {_suggestion(plan, phase, part)}"
    )


def _suggestion(plan: CostPlan, phase: str, part: str) -> str:
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
    if setting.precision in QUANTISED or setting.device == "mps" or recipe.lora.method == "pissa":
        return f"precision is {setting.precision}, and no smaller one goes with the rest: take a smaller base"
    return "precision=nf4 holds the base in 4 bits, or take a smaller base"


WORDS = {
    "loading": "reading the weights, and trying on two layers whether rows can be packed",
    "training": "a step from the second on, at its peak",
    "gate": "a fresh base with the saved adapter beside what training leaves",
    "scoring": "prompts and references of the largest batch of questions, and what is kept of them",
}
PART_WORDS = {
    "optimiser": "AdamW's two states, and the gradients there at the peak, in float32",
    "logits": "at labelled positions, and the loss",
    "cache": "keys and values",
    "heap": "holes between blocks that the C library keeps: a measured share",
    "file pages": "of the base's file; the system takes them back when it needs to",
}


def print_plan(plan: CostPlan, console: Console, measured: Measurement | None = None) -> None:
    """Everything the plan says; beside what was measured, if it was."""
    console.print(_facts(plan))
    for phase, memory in plan.phases.items():
        console.print()
        console.print(_phase_table(plan, phase, memory, measured.phases.get(phase) if measured else None))
    console.print()
    console.print(_cost(plan))
    for note in plan.notes:
        console.print(Text(f"note: {fmt.visible(note)}", style="dim"))


def _facts(plan: CostPlan) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    recipe, setting, work, counts = plan.recipe, plan.setting, plan.work, plan.setting.counts
    share = counts.trainable / counts.base_parameters
    method = "every parameter" if setting.in_full else f"{recipe.lora.method} rank {recipe.lora.rank}"
    packs = [pack for step in work.plan.steps for pack in step]
    attention = ", attention row by row" if work.row_attention else ""
    lines = [
        ("base", f"{counts.base_parameters:,} parameters", setting.files.name.partition("@")[0]),
        ("trained", f"{counts.trainable:,} parameters ({share:.2%})", f"{method}; {fmt.size(counts.saved_bytes)} on disk"),
        ("device", plan.device.name, f"{plan.device.kind}, {fmt.size(plan.device.memory_bytes)}, {plan.device.threads} threads"),
        ("precision", setting.precision, f"scoring in {setting.scoring_precision}"),
        ("rows", f"{len(work.train):,} to train on", f"{work.too_long:,} too long" if work.too_long else ""),
        ("work", f"{len(work.plan.steps):,} steps, {work.tokens:,} tokens", f"{len(packs):,} forward passes{attention}"),
    ]
    for name, value, more in lines:
        table.add_row(name, Text(fmt.visible(value), style="bold"), Text(fmt.visible(more), style="dim"))
    return table


def _phase_table(plan: CostPlan, phase: str, memory: Memory, seen: Memory | None) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(Text(phase, style="bold"))
    for column in ("estimated", *(("measured", "ratio") if seen else ())):
        table.add_column(column, justify="right")
    table.add_column(WORDS[phase])
    for part in PARTS:
        if memory[part] or (seen and seen[part]):
            table.add_row(part, *_cells(memory[part], seen[part] if seen else None), Text(_words(plan, phase, part), style="dim"))
    table.add_row("sum", *_cells(sum(memory.values()), sum(seen.values()) if seen else None), style="bold")
    return table


def _cells(estimate: int, seen: int | None) -> list[str]:
    if seen is None:
        return [fmt.size(estimate)]
    return [
        fmt.size(estimate),
        fmt.size(seen) if seen >= 0 else f"-{fmt.size(-seen)}",
        f"{estimate / seen:.2f}" if seen > 0 else "-",
    ]


def _words(plan: CostPlan, phase: str, part: str) -> str:
    if part == "weights":
        kept = plan.setting.scoring_precision if phase == "scoring" else plan.setting.kept_precision
        return f"in {kept}"
    if part == "activations" and phase == "training":
        return f"of the fullest forward pass, {'rows packed' if plan.work.packed else 'rows padded'}"
    if part == "activations" and phase == "scoring":
        return f"{len(plan.work.batches[0])} questions, {'end to end' if plan.work.answers_packed else 'padded'}"
    return PART_WORDS.get(part, "")


def _cost(plan: CostPlan) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    phase = plan.hungriest
    if phase is not None:
        own = f", {fmt.size(plan.process_bytes)} of it Python and its libraries" if plan.process_bytes else ""
        more = f"in {phase}{own}; the device has {fmt.size(plan.device.memory_bytes)}"
        table.add_row("needs", Text(fmt.size(plan.needed(phase)), style="bold"), Text(more, style="dim"))
    if plan.speed is None:
        table.add_row(
            "time", Text("not known", style="bold"), Text(f"no published run of this base on this device: {MEASURE} it", style="dim")
        )
    else:
        more = f"{fmt.counted(plan.speed.tokens_per_second)} tokens a second, {plan.speed.source}; scoring comes on top"
        table.add_row("time", Text(f"{fmt.duration(plan.train_seconds)} of training", style="bold"), Text(more, style="dim"))
    figure, _, reason = plan.money().partition(": ")
    table.add_row("money", Text(figure, style="bold"), Text(fmt.visible(reason), style="dim"))
    return table
