"""What an hour costs: rates with a source and a date, and never a figure without one."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from pydantic import TypeAdapter

from nomoat.recipe import AsIfRented, ElectricityRate, RentalRate
from nomoat.sources import Section

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


def read_rate(record: Mapping[str, Any] | None) -> Rate | None:
    """The rate written into environment.json; a malformed one raises pydantic's ValidationError."""
    if record is None:
        return None
    return RentalRate.model_validate(record) if "usd_per_hour" in record else ElectricityRate.model_validate(record)


def read_as_if(record: Mapping[str, Any] | None) -> AsIfRented | None:
    """The instance written into environment.json, whose price is shown beside."""
    return None if record is None else AsIfRented.model_validate(record)


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

    text = resources.files("nomoat").joinpath("prices.yaml").read_text(encoding="utf-8")
    return TypeAdapter(tuple[ListedPrice, ...]).validate_python(tuple(yaml.safe_load(text)))
