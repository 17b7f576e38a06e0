"""What a run spent and what that comes to in money: rates with a source and a date, and sums over every attempt of a ledger.

The last attempt alone is how a cheap-looking figure comes about. Without a sourced rate there is no figure in dollars.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from pydantic import TypeAdapter

from nomoat.config.schema import AsIfRented, ElectricityRate, RentalRate
from nomoat.io import Record, canonical_json

Rate = RentalRate | ElectricityRate
SegmentRecord = Mapping[str, Any]
UNMETERED = ("start", "fetch")  # over before a counter could be read
WAITING = 0.05  # share of waiting from which a run did not have its cores to itself; measured shares: recipes/LOG.md
ENERGY_SCOPE = {
    "nvml": "the GPU only, by its own counter (NVML)",
    "rapl": "the machine's processors and their memory, by their own counters (RAPL)",
}
HOW_TO_STATE = (
    "state one in the recipe, as in hardware.rate: {usd_per_hour: 0.60, source: where it is from, date: 2026-03-10} "
    "or hardware.rate: {watts: 65, usd_per_kwh: 0.17}"
)


class ListedPrice(RentalRate):
    """One entry of prices.yaml."""

    device: str
    vcpu: int | None = None


def rate_for(device_name: str, *, vcpu: int | None = None) -> RentalRate | None:
    """The listed rate of a device, by the driver's whole name for it (NVML and torch.cuda agree on it), or None.

    A part of a name is not enough: "NVIDIA GeForce RTX 4090 Laptop GPU" is another device.
    """
    for entry in _price_list():
        if entry.device == device_name and entry.vcpu in (None, vcpu):
            return RentalRate(usd_per_hour=entry.usd_per_hour, source=entry.source, date=entry.date)
    return None


def usd_for(seconds: float, rate: Rate | AsIfRented) -> float:
    """Rent, or the stated watts times the price of electricity, in USD."""
    if isinstance(rate, ElectricityRate):
        return seconds / 3600 * rate.watts / 1000 * rate.usd_per_kwh
    return seconds / 3600 * rate.usd_per_hour


def as_if_applies(instance: AsIfRented, hardware: Mapping[str, Any]) -> bool:
    """Whether `hardware` (see `meters.hardware`) is a CPU like the instance's: same architecture, and no more vCPUs.

    A run that had fewer processors is priced as all of the instance.
    """
    device = hardware.get("device", {})
    same_architecture = architecture_name(instance.architecture) == architecture_name(str(hardware.get("architecture", "")))
    return device.get("kind") == "cpu" and same_architecture and 0 < (hardware.get("vcpu") or 0) <= instance.vcpu


def architecture_name(name: str) -> str:
    """One name for what systems and vendors call differently: arm64 and aarch64, amd64 and x86_64."""
    lowered = name.lower().replace("-", "_")
    return {"arm64": "aarch64", "arm": "aarch64", "amd64": "x86_64", "x64": "x86_64", "x86": "x86_64"}.get(lowered, lowered)


@cache
def _price_list() -> tuple[ListedPrice, ...]:
    import yaml

    text = resources.files("nomoat.runs").joinpath("prices.yaml").read_text(encoding="utf-8")
    return TypeAdapter(tuple[ListedPrice, ...]).validate_python(tuple(yaml.safe_load(text)))


class Cost(Record):
    """Time, tokens, memory, energy and money of a run, summed over every segment, the failed and the killed ones included.

    Null means not known; the text beside it says why, or where the figure comes from.
    """

    seconds: float
    seconds_by_phase: dict[str, float]
    compute_seconds: float
    usd: float | None  # rental: seconds times the stated rate
    usd_reason: str
    rate_unknown: bool = False  # no rate is listed for this machine, and the recipe states none
    usd_electricity: float | None
    usd_electricity_reason: str
    usd_as_if: float | None  # the price of renting a machine of this kind; nobody paid it
    usd_as_if_label: str | None
    energy_wh: float | None  # measured in every metered segment, or estimated from stated watts
    energy_note: str
    peak_memory_bytes: int | None  # resident memory of the process, the most of any segment
    peak_device_bytes: int | None
    waited_share: float | None = None  # of the runnable time of its threads, what they waited for a CPU, from 0 to 1
    tokens_seen: int
    tokens_trained: int
    tokens_per_second: float | None  # tokens seen in training over the seconds of its optimiser steps
    segments: int
    interrupted: int  # segments that failed or were killed; they are counted above
    reused_seconds: dict[str, float]  # by phase, what reused results took when they were made; not counted above


def total_cost(segments: Iterable[SegmentRecord], rate: Rate | None = None, as_if_rented: AsIfRented | None = None) -> Cost:
    """Sum a ledger's lines and price their elapsed seconds, rental and electricity apart. Without a rate there is a reason, no figure.

    A line whose run and id were seen before is not counted again, and cached results cost nothing.
    """
    lines = list({(line.get("run"), line["id"]) if "id" in line else number: line for number, line in enumerate(segments)}.values())
    spent = [line for line in lines if line["status"] != "cached"]
    phases = {phase: [line for line in spent if line["phase"] == phase] for phase in dict.fromkeys(line["phase"] for line in spent)}
    machines = list({canonical_json(line["hardware"]): line["hardware"] for line in spent}.values())
    seconds = _sum(spent, "elapsed_seconds")
    usd, usd_reason = _rental(seconds, machines, rate)
    electricity, electricity_reason = _electricity(seconds, machines, rate)
    as_if, as_if_label = _as_if(seconds, machines, as_if_rented)
    energy_wh, energy_note = _energy(spent, rate if len(machines) < 2 else None)
    training_seconds = _sum(phases.get("train", ()), "compute_seconds")
    metered = [line for line in spent if line.get("ran_seconds")]  # ledgers of older versions have no such key
    ran, waited = _sum(metered, "ran_seconds"), _sum(metered, "waited_seconds")
    return Cost(
        seconds=seconds,
        seconds_by_phase={phase: _sum(part, "elapsed_seconds") for phase, part in phases.items()},
        compute_seconds=_sum(spent, "compute_seconds"),
        usd=usd,
        usd_reason=usd_reason,
        rate_unknown=rate is None and len(machines) < 2,
        usd_electricity=electricity,
        usd_electricity_reason=electricity_reason,
        usd_as_if=as_if,
        usd_as_if_label=as_if_label,
        energy_wh=energy_wh,
        energy_note=energy_note,
        peak_memory_bytes=max((line["peak_resident_bytes"] or 0 for line in spent), default=0) or None,
        peak_device_bytes=max((line["peak_device_bytes"] or 0 for line in spent), default=0) or None,
        waited_share=waited / (ran + waited) if metered else None,
        tokens_seen=int(_sum(spent, "tokens_seen")),
        tokens_trained=int(_sum(spent, "tokens_trained")),
        tokens_per_second=_sum(phases["train"], "tokens_seen") / training_seconds if training_seconds else None,
        segments=len(spent),
        interrupted=sum(line["status"] in ("failed", "killed") for line in spent),
        reused_seconds={line["phase"]: line["cost_when_made"]["seconds"] for line in lines if line["status"] == "cached"},
    )


def _rental(seconds: float, machines: Sequence[SegmentRecord], rate: Rate | None) -> tuple[float | None, str]:
    if len(machines) > 1:
        return None, f"the run used different machines ({', '.join(_names(machines))}): one rate cannot price them"
    if isinstance(rate, ElectricityRate):
        return None, "electricity is stated, not a rental rate"
    if rate is None:
        return None, f"no rate is known for {''.join(_names(machines)) or 'this machine'}"
    return usd_for(seconds, rate), f"{rate.usd_per_hour:g} USD/h: {rate.source}, {rate.date}"


def _electricity(seconds: float, machines: Sequence[SegmentRecord], rate: Rate | None) -> tuple[float | None, str]:
    if not isinstance(rate, ElectricityRate):
        return None, "no price of electricity is stated"
    if len(machines) > 1:
        return None, f"the run used different machines ({', '.join(_names(machines))}): one wattage cannot describe them"
    reason = f"an estimate: {rate.watts:g} W at {rate.usd_per_kwh:g} USD/kWh, both as stated in the recipe"
    return usd_for(seconds, rate), reason


def _as_if(seconds: float, machines: Sequence[SegmentRecord], instance: AsIfRented | None) -> tuple[float | None, str | None]:
    if instance is None or not machines:
        return None, None
    if not all(as_if_applies(instance, machine) for machine in machines):
        return None, f"not priced as {instance.instance}: that is {instance.vcpu} vCPU of {instance.architecture}, and this machine is not"
    used = min(machine["vcpu"] for machine in machines)
    part = f" (of its {instance.vcpu} vCPU the run had {used})" if used < instance.vcpu else ""
    label = f"{instance.instance} at {instance.usd_per_hour:g} USD/h{part}: {instance.source}, {instance.date}"
    return usd_for(seconds, instance), label


def _names(machines: Sequence[SegmentRecord]) -> list[str]:
    return list(dict.fromkeys(str(machine.get("device", {}).get("name", "unknown device")) for machine in machines))


def _energy(spent: Sequence[SegmentRecord], rate: Rate | None) -> tuple[float | None, str]:
    """Watt-hours by the counters if every metered segment has them, else by the stated watts; `rate` is that of the only machine."""
    metered = [line for line in spent if line["phase"] not in UNMETERED]
    lacking = [line["phase"] for line in metered if line["energy_wh"] is None]
    scope = "; ".join(
        ENERGY_SCOPE.get(str(source), str(source)) for source in dict.fromkeys(line["energy_source"] for line in metered) if source
    )
    if metered and not lacking:
        return _sum(metered, "energy_wh"), f"measured from the first load on: {scope}"
    note = "no energy counter could be read"
    if len(lacking) < len(metered):
        note = f"not measured in {', '.join(dict.fromkeys(lacking))}; {_sum(metered, 'energy_wh'):.3g} Wh in the rest: {scope}"
    if not isinstance(rate, ElectricityRate):
        return None, note
    seconds = _sum(spent, "elapsed_seconds")
    return seconds / 3600 * rate.watts, f"an estimate: {rate.watts:g} W as stated, times the seconds; {note}"


def _sum(lines: Iterable[SegmentRecord], key: str) -> float:
    return sum(line[key] or 0 for line in lines)
