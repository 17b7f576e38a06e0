"""Sums and money: every attempt counts, and no figure is made up."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest

from nomoat.config.schema import AsIfRented, ElectricityRate, RentalRate
from nomoat.runs.costs import HOW_TO_STATE, rate_for, total_cost
from nomoat.runs.provenance import Provenance

CPU = {"device": {"kind": "cpu", "name": "some processor"}, "architecture": "aarch64", "vcpu": 2}
GPU = {"device": {"kind": "cuda", "name": "NVIDIA L4"}, "architecture": "x86_64", "vcpu": 8}
RENTAL = RentalRate(usd_per_hour=0.5, source="a price list", date=datetime.date(2026, 3, 10))
ELECTRICITY = ElectricityRate(watts=65, usd_per_kwh=0.2)
GRAVITON = AsIfRented(
    instance="m7g.large", usd_per_hour=0.0816, architecture="arm64", vcpu=2, source="a price list", date=datetime.date(2026, 6, 1)
)


def line(phase: str = "train", seconds: float = 3600, **changes: Any) -> dict[str, Any]:
    spent = {"elapsed_seconds": seconds, "compute_seconds": seconds / 2, "tokens_seen": 0, "tokens_trained": 0}
    read = {"peak_resident_bytes": 100, "peak_device_bytes": None, "energy_wh": None, "energy_source": None}
    return {"phase": phase, "attempt": 1, "status": "done", "hardware": CPU, **spent, **read, **changes}


def test_totals_count_failed_and_killed_attempts() -> None:
    spent = total_cost(
        [
            line("load", 10),
            line("train", 100, status="killed", tokens_seen=500, peak_resident_bytes=900),
            line("load", 11, attempt=2),
            line("train", 300, attempt=2, tokens_seen=1500, tokens_trained=40),
            line("gate", 5, attempt=2, status="failed"),
        ]
    )
    assert spent.seconds == 426
    assert spent.seconds_by_phase == {"load": 21, "train": 400, "gate": 5}
    assert (spent.tokens_seen, spent.tokens_trained) == (2000, 40)
    assert spent.tokens_per_second == 2000 / 200, "over the seconds of optimiser steps, in training alone"
    assert (spent.segments, spent.interrupted) == (5, 2)
    assert (spent.peak_memory_bytes, spent.peak_device_bytes) == (900, None)


def test_the_same_line_is_not_counted_twice_but_another_runs_line_is() -> None:
    twice = line(seconds=10, id="1.1", run="a")
    assert total_cost([twice, twice]).seconds == 10
    assert total_cost([twice, {**twice, "run": "b"}]).seconds == 20
    assert total_cost([line(seconds=10), line(seconds=10)]).seconds == 20


def test_waiting_for_a_core_is_a_share_of_running_and_waiting_in_segments_that_know_it() -> None:
    known = [line(ran_seconds=30.0, waited_seconds=10.0), line(ran_seconds=50.0, waited_seconds=10.0)]
    assert total_cost([*known, line(), line(ran_seconds=None, waited_seconds=None)]).waited_share == 0.2
    assert total_cost([line()]).waited_share is None, "an older ledger says nothing of it"


def test_an_empty_ledger_has_totals_too() -> None:
    spent = total_cost([])
    assert (spent.seconds, spent.tokens_per_second, spent.energy_wh) == (0, None, None)
    assert spent.usd is None


def test_energy_is_a_sum_only_when_every_segment_has_it() -> None:
    measured = {"energy_wh": 2.0, "energy_source": "nvml"}
    whole = total_cost([line("load", **measured), line("train", **measured)])
    assert whole.energy_wh == 4.0
    assert "GPU only" in whole.energy_note
    part = total_cost([line("load"), line("train", **measured), line("load")])
    assert part.energy_wh is None
    assert part.energy_note.startswith("not measured in load; 2 Wh in the rest")
    assert total_cost([line()]).energy_note == "no energy counter could be read"


def test_rent_is_all_seconds_times_the_rate_with_its_source() -> None:
    money = total_cost([line("load", 1800, status="killed"), line("train", 3600)], RENTAL)
    assert money.usd == pytest.approx(0.75)
    assert money.usd_reason == "0.5 USD/h: a price list, 2026-03-10"
    assert money.usd_electricity is None


def test_without_a_rate_there_is_no_figure_but_a_way_to_state_one() -> None:
    money = total_cost([line()], None)
    assert (money.usd, money.usd_electricity, money.usd_as_if) == (None, None, None)
    assert money.usd_reason == "no rate is known for some processor" and money.rate_unknown and "hardware.rate" in HOW_TO_STATE


def test_electricity_stays_apart_from_rent_and_is_called_an_estimate() -> None:
    money = total_cost([line(seconds=7200)], ELECTRICITY)
    assert money.usd is None
    assert money.usd_electricity == pytest.approx(65 * 2 / 1000 * 0.2)
    assert "estimate" in money.usd_electricity_reason
    assert money.energy_wh == pytest.approx(130)
    assert money.energy_note.startswith("an estimate: 65 W")


def test_a_measurement_is_never_replaced_by_an_estimate() -> None:
    money = total_cost([line(energy_wh=9.0, energy_source="rapl")], ELECTRICITY)
    assert money.energy_wh == 9.0 and "measured" in money.energy_note


@pytest.mark.parametrize("rate", [RENTAL, ELECTRICITY])
def test_one_rate_does_not_price_two_machines(rate: Any) -> None:
    money = total_cost([line(), line(hardware=GPU)], rate)
    assert (money.usd, money.usd_electricity, money.energy_wh) == (None, None, None)
    assert "different machines" in money.usd_reason + money.usd_electricity_reason


def test_as_if_rented_is_a_field_of_its_own() -> None:
    money = total_cost([line(seconds=7200)], None, GRAVITON)
    assert money.usd is None
    assert money.usd_as_if == pytest.approx(2 * 0.0816)
    assert money.usd_as_if_label is not None and money.usd_as_if_label.startswith("m7g.large at 0.0816 USD/h")


def test_a_run_that_had_part_of_an_instance_is_priced_as_all_of_it() -> None:
    money = total_cost([line(seconds=7200, hardware={**CPU, "vcpu": 1})], None, GRAVITON)
    assert money.usd_as_if == pytest.approx(2 * 0.0816)
    assert money.usd_as_if_label is not None and "0.0816 USD/h (of its 2 vCPU the run had 1)" in money.usd_as_if_label


@pytest.mark.parametrize("machine", [{**CPU, "architecture": "x86_64"}, {**CPU, "vcpu": 4}, {**GPU, "architecture": "aarch64", "vcpu": 2}])
def test_as_if_rented_holds_only_on_a_cpu_of_that_kind(machine: dict[str, Any]) -> None:
    money = total_cost([line(), line(hardware=machine)], None, GRAVITON)
    assert money.usd_as_if is None
    assert money.usd_as_if_label is not None and "not priced" in money.usd_as_if_label


def test_a_listed_rate_needs_the_whole_name_of_the_device() -> None:
    listed = rate_for("NVIDIA L4")
    assert listed is not None and listed.usd_per_hour == 0.78
    assert rate_for("NVIDIA L40") is None
    assert rate_for("NVIDIA GeForce RTX 4090 Laptop GPU") is None
    assert rate_for("some processor") is None


def test_the_price_of_one_size_of_instance_holds_for_that_size_only() -> None:
    assert rate_for("NVIDIA A10G") is None
    assert rate_for("NVIDIA A10G", vcpu=16) is None
    listed = rate_for("NVIDIA A10G", vcpu=4)
    assert listed is not None and listed.usd_per_hour == 1.006


def test_rates_come_back_from_a_run_as_they_were_written() -> None:
    for rate in (RENTAL, ELECTRICITY):
        written = Provenance(rate=rate, as_if_rented=GRAVITON).record()
        assert Provenance.model_validate_json(json.dumps(written)) == Provenance(rate=rate, as_if_rented=GRAVITON)
    assert Provenance().rate is None
