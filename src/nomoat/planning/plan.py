"""The cost of a recipe before its base is downloaded: memory by phase, whether it fits, time and money."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nomoat.config.schema import QUANTISED, ElectricityRate, Recipe, default_display_name
from nomoat.errors import NomoatError
from nomoat.io import read_json
from nomoat.models.device import choose_device, release_memory, scoring_precision, training_precision
from nomoat.planning.measure import REST, Measurement
from nomoat.planning.memory import PARTS, Memory, ModelSpec, phase_memory
from nomoat.planning.workload import Workload, fetch_configuration, plan_workload
from nomoat.reports import format as fmt
from nomoat.reports.build import read_report
from nomoat.runs import costs, meters

MEASURE = "MEASURE=1 measures it"
DETAILS = {
    "loading": "reading the weights and checking on two layers whether rows can be packed",
    "training": "an optimiser step from the second on",
    "adapter checks": "a fresh base with the saved adapter, and what training leaves",
    "scoring": "prefill of the largest batch of prompts and references, and their cache",
    "optimiser": "AdamW's two states in float32",
    "gradients": "those that exist at the peak, in float32",
    "logits": "of the labelled tokens, and the loss",
    "cache": "keys and values",
    "heap": "holes between blocks that the C library keeps: a measured share",
    REST: "gradients, activations, logits and heap",
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that `make plan` prints."""

    spec: ModelSpec
    work: Workload
    phases: dict[str, Memory]  # in the order of a run; none where memory is not known
    process_bytes: int  # of Python and its libraries, in the same memory
    published_speed: tuple[float | None, str]  # tokens per second of training, and the source
    notes: tuple[str, ...]
    measured: Measurement | None = None

    def needed(self, phase: str) -> int:
        """Bytes that must fit in a phase."""
        return self.phases[phase].total() + self.process_bytes

    @property
    def peak_phase(self) -> str | None:
        """The phase that needs most memory; None where memory is not known."""
        return max(self.phases, key=self.needed, default=None)


def make_plan(recipe: Recipe, root: Path) -> Plan:
    """Fetches configuration and rows, nothing else. Raises NomoatError for a recipe, rows or a base that cannot be used."""
    import psutil
    from transformers import AutoConfig

    device = choose_device(recipe.hardware)
    precision = training_precision(recipe, device)
    files, notes = fetch_configuration(recipe.base)
    config = AutoConfig.from_pretrained(files.folder, local_files_only=True, trust_remote_code=False)
    scoring = scoring_precision(precision, device)
    spec = ModelSpec(
        recipe=recipe, config=config, device=device, precision=precision, scoring_precision=scoring, files=files, fetch_seconds=0.0
    )
    work = plan_workload(recipe, root, files, spec.config, device.kind)
    phases: dict[str, Memory] = {}
    warnings.filterwarnings("ignore", message=".*data pointer of FakeTensor.*")  # it is 0, which is harmless here
    try:
        phases = phase_memory(spec, work)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        notes.append(f"memory is not known: this architecture cannot be traced without data ({reason}); {MEASURE}")
    release_memory()
    own = 0 if device.kind == "cuda" else int(psutil.Process().memory_info().rss)
    speed = published_speed(spec, root / "recipes" / "reference")
    return Plan(spec=spec, work=work, phases=phases, process_bytes=own, published_speed=speed, notes=(*notes, *work.notes))


def published_speed(spec: ModelSpec, folder: Path) -> tuple[float | None, str]:
    """The speed of a published run of the same base, method and precision on the same device with as many threads."""
    wanted = (spec.recipe.lora.method, spec.files.name, spec.precision, spec.device.threads, spec.device.kind, spec.device.name)
    for path in sorted(folder.glob("*.json")):
        raw = read_json(path)  # checking a whole report takes its time
        seen, place = raw["provenance"], raw["provenance"]["device"]
        if wanted == (raw["recipe"]["lora"]["method"], seen["base"]["name"], seen["dtype"], seen["threads"], place["kind"], place["name"]):
            report = read_report(path)
            if report.cost.tokens_per_second:
                return report.cost.tokens_per_second, f"as the published run {report.run} on this device"
    return None, f"no published run of this base on this device: {MEASURE}"


def check_fit(plan: Plan) -> None:
    """NomoatError that names what to change if a phase needs more memory than the device has."""
    phase, device = plan.peak_phase, plan.spec.device
    if phase is None or plan.needed(phase) <= device.memory_bytes:
        return
    memory = plan.phases[phase]
    part = max(memory, key=lambda name: memory[name])
    raise NomoatError(
        f"this recipe does not fit: {phase} needs about {fmt.size(plan.needed(phase))} of memory and {device.name} has "
        f"{fmt.size(device.memory_bytes)}; most of it is {part} ({fmt.size(memory[part])}): {suggestion(plan, phase, part)}"
    )


def suggestion(plan: Plan, phase: str, part: str) -> str:
    """What to change so that a phase needs less of a part."""
    recipe, spec = plan.spec.recipe, plan.spec
    if spec.in_full and part in ("weights", "optimiser", "gradients"):
        return "lora.method=lora trains an adapter instead of the whole model"
    if part in ("adapter", "optimiser", "gradients"):
        return f"lower lora.rank ({recipe.lora.rank})"
    if phase == "scoring" and part != "weights":
        return f"lower eval.batch_rows ({recipe.eval.batch_rows})"
    if phase in ("training", "adapter checks") and part != "weights":
        longest = max(example.length for example in plan.work.collator.train)
        limits = f"train.pack_tokens ({recipe.train.pack_tokens}) and train.max_row_tokens ({recipe.train.max_row_tokens})"
        return f"lower {limits}; the longest row has {longest} tokens"
    if spec.precision in QUANTISED or spec.device.kind == "mps" or recipe.lora.method == "pissa":
        return f"no precision smaller than {spec.precision} is possible here: choose a smaller base"
    return "precision=nf4 keeps the base in 4 bits; or choose a smaller base"


def time_and_money(plan: Plan) -> list[tuple[str, str, str]]:
    """What training takes, with the sources of the figures, or the reasons why they are not known."""
    measured = plan.measured and (plan.measured.tokens_per_second, "measured here, on the largest step")
    speed, source = measured or plan.published_speed
    if speed is None:
        return [("time", "not known", source), ("money", fmt.money(None), "the time is not known")]
    seconds, device, stated = plan.work.tokens / speed, plan.spec.device, plan.spec.recipe.hardware.rate
    time = ("time", f"{fmt.duration(seconds)} of training", f"{fmt.counted(speed)} tokens per second, {source}; scoring is not included")
    rate = costs.rate_for(device.name, vcpu=meters.usable_cpus()) if isinstance(stated, str) else stated
    if rate is None:
        return [time, ("money", fmt.money(None), f"no rate is known for {device.name}: {costs.HOW_TO_STATE}")]
    usd = fmt.money(costs.usd_for(seconds, rate))
    if isinstance(rate, ElectricityRate):
        return [time, ("money", f"{usd} of electricity", f"{rate.watts:g} W at {rate.usd_per_kwh:g} USD/kWh, both stated in the recipe")]
    return [time, ("money", usd, f"{rate.usd_per_hour:g} USD/h, {rate.source}, {rate.date}")]


def print_plan(plan: Plan, console: Console) -> None:
    """Everything the plan says, with what was measured next to it."""
    recipe, spec, work, counts = plan.spec.recipe, plan.spec, plan.work, plan.spec.counts
    method = "every parameter" if spec.in_full else f"{recipe.lora.method} rank {recipe.lora.rank}"
    share = counts.trainable / counts.base_parameters
    passes = f"{sum(len(step) for step in work.schedule.steps):,} forward passes, rows {'packed' if work.collator.packed else 'padded'}"
    largest = f"largest batch {len(work.largest_requests)} prompts, {'packed' if work.packed_prefill else 'padded'}"
    memory = fmt.size(spec.device.memory_bytes)
    lines = [
        ("base", f"{counts.base_parameters:,} parameters", default_display_name(recipe.base)),
        ("trained", f"{counts.trainable:,} parameters ({share:.2%})", f"{method}; {fmt.size(counts.saved_bytes)} on disk"),
        ("device", spec.device.name, f"{spec.device.kind}, {memory}, {spec.device.threads} threads"),
        ("precision", spec.precision, f"scoring in {spec.scoring_precision}, {largest}"),
        ("rows", f"{len(work.collator.train):,} to train on", f"{work.too_long:,} too long" if work.too_long else ""),
        ("work", f"{len(work.schedule.steps):,} steps, {work.tokens:,} tokens", passes + ", varlen attention" * work.collator.shared),
    ]
    _print_lines(lines, console)
    for phase in plan.phases:
        console.print("", _phase_table(plan, phase))
    console.print()
    lines = time_and_money(plan)
    if plan.peak_phase:
        own = f", {fmt.size(plan.process_bytes)} of it for Python and its libraries" if plan.process_bytes else ""
        lines.insert(0, ("needs", fmt.size(plan.needed(plan.peak_phase)), f"in {plan.peak_phase}{own}; the device has {memory}"))
    _print_lines(lines, console)
    for note in plan.notes:
        console.print(Text(f"note: {fmt.visible(note)}", style="dim"))


def _print_lines(lines: list[tuple[str, str, str]], console: Console) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for name, value, more in lines:
        table.add_row(name, Text(fmt.visible(value), style="bold"), Text(fmt.visible(more), style="dim"))
    console.print(table)


def _phase_table(plan: Plan, phase: str) -> Table:
    memory, measured = plan.phases[phase], plan.measured.phases.get(phase) if plan.measured else None
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(Text(phase, style="bold"))
    for column in ("estimated", *(("measured", "ratio") if measured else ())):
        table.add_column(column, justify="right")
    table.add_column(DETAILS[phase])
    rows = [(part, memory[part], measured.get(part) if measured else None) for part in PARTS if memory[part]]
    if measured:
        rows.append((REST, memory.total() - sum(memory[part] for part in measured), measured[REST]))
    rows.append(("sum", memory.total(), measured.total() if measured else None))
    for part, estimate, seen in rows:
        cells = [fmt.size(estimate)]
        if measured:
            cells += ["", ""] if not seen or seen < 0 else [fmt.size(seen), f"{estimate / seen:.2f}"]
        table.add_row(part, *cells, Text(DETAILS.get(part, ""), style="dim"), style="bold" if part == "sum" else "")
    return table
