"""What a run spent and what that comes to in money: rates with a source and a date, and sums over every attempt of a ledger.

The last attempt alone is how a cheap-looking figure comes about. Without a sourced rate there is no figure in dollars.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from pydantic import TypeAdapter

from nomoat.config.schema import AsIfRented, ElectricityRate, RentalRate, Section
from nomoat.io import Record

Rate = RentalRate | ElectricityRate
HOW_TO_STATE = (
    "state one in the recipe, as in hardware.rate: {usd_per_hour: 0.60, source: where it is from, date: 2026-03-10} "
    "or hardware.rate: {watts: 65, usd_per_kwh: 0.17}"
)


class ListedPrice(Section):
    """One entry of prices.yaml."""

    device: str
    vcpu: int | None = None
    usd_per_hour: float
    source: str
    date: datetime.date


def rate_for(device_name: str, *, vcpu: int | None = None) -> RentalRate | None:
    """The listed rate of a device, by the driver's whole name for it (NVML and torch.cuda agree on it), or None.

    A part of a name is not enough: "NVIDIA GeForce RTX 4090 Laptop GPU" is another device.
    """
    for entry in _price_list():
        if entry.device == device_name and entry.vcpu in (None, vcpu):
            return RentalRate(usd_per_hour=entry.usd_per_hour, source=entry.source, date=entry.date)
    return None


def rental_usd(rate: RentalRate | AsIfRented, seconds: float) -> float:
    """Seconds times the rate, in USD."""
    return seconds / 3600 * rate.usd_per_hour


def electricity_usd(rate: ElectricityRate, seconds: float) -> float:
    """Seconds times stated watts times the price of electricity, in USD."""
    return estimated_wh(rate, seconds) / 1000 * rate.usd_per_kwh


def usd_per_second(rate: Rate) -> float:
    """What a second costs at either kind of rate, in USD: for the money beside a progress bar."""
    return electricity_usd(rate, 1) if isinstance(rate, ElectricityRate) else rental_usd(rate, 1)


def estimated_wh(rate: ElectricityRate, seconds: float) -> float:
    """Watt-hours at the stated watts: an estimate, never a measurement."""
    return seconds / 3600 * rate.watts


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


SegmentRecord = Mapping[str, Any]
UNMETERED = ("start", "fetch")  # over before a counter could be read
WAITING = 0.05  # share of waiting from which a run did not have its cores to itself; measured shares: recipes/LOG.md
ENERGY_SCOPE = {
    "nvml": "the GPU only, by its own counter (NVML)",
    "rapl": "the machine's processors and their memory, by their own counters (RAPL)",
}


@dataclass(frozen=True)
class Totals:
    """Sums over all segments of a ledger, failed and killed ones included; peaks are maxima. Cached results are not counted."""

    seconds: float
    seconds_by_phase: dict[str, float]
    compute_seconds: float
    tokens_seen: int
    tokens_trained: int
    tokens_per_second: float | None  # tokens seen in training over the seconds of its optimiser steps
    peak_resident_bytes: int | None
    peak_device_bytes: int | None
    energy_wh: float | None  # None as soon as one counted segment lacks it
    energy_note: str
    waited_share: float | None  # see Cost
    segments: int
    interrupted: int
    attempts: int
    reused_seconds: dict[str, float]
    hardware: tuple[dict[str, Any], ...]  # the different machines, in order of appearance


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
    energy_wh: float | None
    energy_note: str
    peak_memory_bytes: int | None  # resident memory of the process
    peak_device_bytes: int | None
    waited_share: float | None = None  # of the runnable time of its threads, what they waited for a CPU, from 0 to 1
    tokens_seen: int
    tokens_trained: int
    tokens_per_second: float | None
    segments: int
    interrupted: int  # segments that failed or were killed; they are counted above
    reused_seconds: dict[str, float]  # by phase, what reused results took when they were made; not counted above


def totals(segments: Iterable[SegmentRecord]) -> Totals:
    """Sum a ledger's lines; a line whose run and id were seen before is not counted again."""
    lines = list({(line.get("run"), line["id"]) if "id" in line else number: line for number, line in enumerate(segments)}.values())
    spent = [line for line in lines if line["status"] != "cached"]
    energy_wh, energy_note = _energy([line for line in spent if line["phase"] not in UNMETERED])
    training = [line for line in spent if line["phase"] == "train"]
    training_seconds = _sum(training, "compute_seconds")
    metered = [line for line in spent if line.get("ran_seconds")]  # ledgers of older versions have no such key
    ran, waited = _sum(metered, "ran_seconds"), _sum(metered, "waited_seconds")
    hardware: list[dict[str, Any]] = []
    for line in spent:
        if line["hardware"] not in hardware:
            hardware.append(line["hardware"])
    return Totals(
        seconds=_sum(spent, "elapsed_seconds"),
        seconds_by_phase={
            phase: _sum([line for line in spent if line["phase"] == phase], "elapsed_seconds")
            for phase in dict.fromkeys(line["phase"] for line in spent)
        },
        compute_seconds=_sum(spent, "compute_seconds"),
        tokens_seen=int(_sum(spent, "tokens_seen")),
        tokens_trained=int(_sum(spent, "tokens_trained")),
        tokens_per_second=_sum(training, "tokens_seen") / training_seconds if training_seconds else None,
        peak_resident_bytes=max((line["peak_resident_bytes"] or 0 for line in spent), default=0) or None,
        peak_device_bytes=max((line["peak_device_bytes"] or 0 for line in spent), default=0) or None,
        energy_wh=energy_wh,
        energy_note=energy_note,
        waited_share=waited / (ran + waited) if metered else None,
        segments=len(spent),
        interrupted=sum(line["status"] in ("failed", "killed") for line in spent),
        attempts=len({line["attempt"] for line in spent}),
        reused_seconds={line["phase"]: line["cost_when_made"]["seconds"] for line in lines if line["status"] == "cached"},
        hardware=tuple(hardware),
    )


def price(spent: Totals, rate: Rate | None, as_if_rented: AsIfRented | None = None) -> Cost:
    """Price the elapsed seconds, rental and electricity apart. Without a rate there is no figure, and a reason."""
    usd, usd_reason = _rental(spent, rate)
    electricity, electricity_reason = _electricity(spent, rate)
    as_if, label = _as_if(spent, as_if_rented)
    energy_wh, energy_note = spent.energy_wh, spent.energy_note
    if energy_wh is None and isinstance(rate, ElectricityRate) and len(spent.hardware) < 2:
        energy_wh = estimated_wh(rate, spent.seconds)
        energy_note = f"an estimate: {rate.watts:g} W as stated, times the seconds; {energy_note}"
    sums = {name: value for name, value in vars(spent).items() if name in Cost.model_fields}
    priced = {
        "usd": usd,
        "usd_reason": usd_reason,
        "rate_unknown": rate is None and len(spent.hardware) < 2,
        "usd_electricity": electricity,
        "usd_electricity_reason": electricity_reason,
        "usd_as_if": as_if,
        "usd_as_if_label": label,
        "energy_wh": energy_wh,
        "energy_note": energy_note,
        "peak_memory_bytes": spent.peak_resident_bytes,
    }
    return Cost.model_validate(sums | priced)


def _rental(spent: Totals, rate: Rate | None) -> tuple[float | None, str]:
    names = device_names(spent)
    if len(spent.hardware) > 1:
        return None, f"the run used different machines ({', '.join(names)}): one rate cannot price them"
    if isinstance(rate, ElectricityRate):
        return None, "electricity is stated, not a rental rate"
    if rate is None:
        return None, f"no rate is known for {' or '.join(names) or 'this machine'}"
    return rental_usd(rate, spent.seconds), f"{rate.usd_per_hour:g} USD/h: {rate.source}, {rate.date}"


def _electricity(spent: Totals, rate: Rate | None) -> tuple[float | None, str]:
    if not isinstance(rate, ElectricityRate):
        return None, "no price of electricity is stated"
    if len(spent.hardware) > 1:
        return None, f"the run used different machines ({', '.join(device_names(spent))}): one wattage cannot describe them"
    reason = f"an estimate: {rate.watts:g} W at {rate.usd_per_kwh:g} USD/kWh, both as stated in the recipe"
    return electricity_usd(rate, spent.seconds), reason


def _as_if(spent: Totals, instance: AsIfRented | None) -> tuple[float | None, str | None]:
    if instance is None or not spent.hardware:
        return None, None
    if not all(as_if_applies(instance, machine) for machine in spent.hardware):
        return None, f"not priced as {instance.instance}: that is {instance.vcpu} vCPU of {instance.architecture}, and this machine is not"
    used = min(machine["vcpu"] for machine in spent.hardware)
    part = f" (of its {instance.vcpu} vCPU the run had {used})" if used < instance.vcpu else ""
    label = f"{instance.instance} at {instance.usd_per_hour:g} USD/h{part}: {instance.source}, {instance.date}"
    return rental_usd(instance, spent.seconds), label


def device_names(spent: Totals) -> list[str]:
    """The names of the devices a run used, each once."""
    return list(dict.fromkeys(str(machine.get("device", {}).get("name", "unknown device")) for machine in spent.hardware))


def _energy(spent: list[SegmentRecord]) -> tuple[float | None, str]:
    lacking = [line["phase"] for line in spent if line["energy_wh"] is None]
    if not spent or len(lacking) == len(spent):
        return None, "no energy counter could be read"
    sources = dict.fromkeys(str(line["energy_source"]) for line in spent if line["energy_source"])
    scope = "; ".join(ENERGY_SCOPE.get(source, source) for source in sources)
    if lacking:
        measured = _sum(spent, "energy_wh")
        return None, f"not measured in {', '.join(dict.fromkeys(lacking))}; {measured:.3g} Wh in the rest: {scope}"
    return _sum(spent, "energy_wh"), f"measured from the first load on: {scope}"


def _sum(lines: list[SegmentRecord], key: str) -> float:
    return sum(line[key] or 0 for line in lines)
