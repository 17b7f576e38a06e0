"""A plan as tables for the terminal: what is trained, memory part by part, time and money."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nomoat import wording
from nomoat.plan_memory import PARTS, Memory
from nomoat.planning import MEASURE, CostPlan

if TYPE_CHECKING:
    from nomoat.plan_measuring import Measured

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


def print_plan(plan: CostPlan, console: Console, measured: Measured | None = None) -> None:
    """Everything the plan says; beside what was measured, if it was."""
    console.print(_facts(plan))
    for phase, memory in plan.phases.items():
        console.print()
        console.print(_phase_table(plan, phase, memory, measured.phases.get(phase) if measured else None))
    console.print()
    console.print(_cost(plan))
    for note in plan.notes:
        console.print(Text(f"note: {wording.visible(note)}", style="dim"))


def _facts(plan: CostPlan) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    recipe, setting, work, counts = plan.recipe, plan.setting, plan.work, plan.setting.counts
    share = counts.trainable / counts.base_parameters
    method = "every parameter" if setting.in_full else f"{recipe.lora.method} rank {recipe.lora.rank}"
    packs = [pack for step in work.plan.steps for pack in step]
    attention = ", attention row by row" if work.row_attention else ""
    lines = [
        ("base", f"{counts.base_parameters:,} parameters", setting.files.name.partition("@")[0]),
        ("trained", f"{counts.trainable:,} parameters ({share:.2%})", f"{method}; {wording.size(counts.saved_bytes)} on disk"),
        ("device", plan.device.name, f"{plan.device.kind}, {wording.size(plan.device.memory_bytes)}, {plan.device.threads} threads"),
        ("precision", setting.precision, f"scoring in {setting.scoring_precision}"),
        ("rows", f"{len(work.train):,} to train on", f"{work.too_long:,} too long" if work.too_long else ""),
        ("work", f"{len(work.plan.steps):,} steps, {work.tokens:,} tokens", f"{len(packs):,} forward passes{attention}"),
    ]
    for name, value, more in lines:
        table.add_row(name, Text(wording.visible(value), style="bold"), Text(wording.visible(more), style="dim"))
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
        return [wording.size(estimate)]
    return [
        wording.size(estimate),
        wording.size(seen) if seen >= 0 else f"-{wording.size(-seen)}",
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
        own = f", {wording.size(plan.process_bytes)} of it Python and its libraries" if plan.process_bytes else ""
        more = f"in {phase}{own}; the device has {wording.size(plan.device.memory_bytes)}"
        table.add_row("needs", Text(wording.size(plan.needed(phase)), style="bold"), Text(more, style="dim"))
    if plan.speed is None:
        table.add_row(
            "time", Text("not known", style="bold"), Text(f"no published run of this base on this device: {MEASURE} it", style="dim")
        )
    else:
        more = f"{wording.counted(plan.speed.tokens_per_second)} tokens a second, {plan.speed.source}; scoring comes on top"
        table.add_row("time", Text(f"{wording.duration(plan.train_seconds)} of training", style="bold"), Text(more, style="dim"))
    figure, _, reason = plan.money().partition(": ")
    table.add_row("money", Text(figure, style="bold"), Text(wording.visible(reason), style="dim"))
    return table
