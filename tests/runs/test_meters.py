"""Meters read counters that wrap, files that are missing and drivers that fail, and say None rather than guess."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nomoat.runs.meters import (
    CoreMeter,
    EnergyCounter,
    EnergyMeter,
    MemoryMeter,
    energy_meter,
    hardware,
    nvml_counters,
    rapl_counters,
    usable_cpus,
)


def counter(*readings: float, wraps_at: float | None = None) -> EnergyCounter:
    return EnergyCounter("rapl", iter(readings).__next__, wraps_at)


def zone(powercap: Path, folder: str, name: str, microjoules: int, wraps_at: int = 262_143_328_850) -> Path:
    path = powercap / folder
    path.mkdir(parents=True)
    (path / "name").write_text(name + "\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    (path / "max_energy_range_uj").write_text(f"{wraps_at}\n")
    return path


def test_energy_is_the_difference_of_readings_in_watt_hours() -> None:
    meter = EnergyMeter([counter(1000, 4600), counter(0, 7200)])
    meter.start()
    assert meter.sample() == 3.0


def test_a_counter_that_wraps_goes_on_counting() -> None:
    meter = EnergyMeter([counter(900, 950, 40, 90, wraps_at=1000)])
    meter.start()
    samples = [meter.sample() for _ in range(3)]
    assert samples == [pytest.approx(joules / 3600) for joules in (50, 140, 190)]


def test_a_counter_that_was_reset_is_not_trusted_any_more() -> None:
    meter = EnergyMeter([counter(900, 10, 5000)])
    meter.start()
    assert meter.sample() is None
    assert meter.sample() is None, "later readings cannot bring back what was lost"


def test_a_reading_that_fails_means_not_known_and_a_new_start_tries_again() -> None:
    def flaky() -> Callable[[], float]:
        readings: list[float | Exception] = [0.0, OSError("gone"), 100.0, 3700.0]

        def read() -> float:
            reading = readings.pop(0)
            if isinstance(reading, Exception):
                raise reading
            return reading

        return read

    meter = EnergyMeter([EnergyCounter("nvml", flaky())])
    meter.start()
    assert meter.sample() is None
    meter.start()
    assert meter.sample() == 1.0


def test_without_a_counter_nothing_is_measured() -> None:
    meter = EnergyMeter([])
    meter.start()
    assert (meter.sample(), meter.source) == (None, None)


def test_packages_and_memory_are_read_and_their_parts_are_not_counted_again(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 900_000)
    memory = zone(tmp_path, "intel-rapl:0:1", "dram", 100_000)
    zone(tmp_path, "intel-rapl:1", "psys", 5_000_000)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 1_000_000)
    meter = energy_meter("cpu", powercap=tmp_path)
    assert (len(meter.counters), meter.source) == (2, "rapl")
    meter.start()
    (package / "energy_uj").write_text("3601000000")
    (memory / "energy_uj").write_text("3600100000")
    assert meter.sample() == pytest.approx(2.0)


def test_a_processor_counter_wraps_at_the_range_it_states(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 9_000_000, wraps_at=10_000_000)
    meter = EnergyMeter(rapl_counters(tmp_path))
    meter.start()
    (package / "energy_uj").write_text("500000")
    assert meter.sample() == pytest.approx(1.5 / 3600)


def test_one_package_that_cannot_be_read_makes_the_whole_unknown(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    (zone(tmp_path, "intel-rapl:1", "package-1", 1_000_000) / "energy_uj").unlink()
    assert rapl_counters(tmp_path) == []


def test_a_machine_without_counters_has_none(tmp_path: Path) -> None:
    assert rapl_counters(tmp_path / "nothing") == []
    assert energy_meter("mps", powercap=tmp_path).source is None


@pytest.mark.gpu
def test_the_gpu_counter_rises_while_the_gpu_works() -> None:
    import torch

    meter = EnergyMeter(nvml_counters())
    assert meter.source == "nvml"
    meter.start()
    matrix = torch.ones(8192, 8192, device="cuda")
    for _ in range(200):
        matrix = (matrix @ matrix).clamp_(0, 1)
    torch.cuda.synchronize()
    used = meter.sample()
    assert used is not None and 0.001 < used < 10
    memory = MemoryMeter()
    held = memory.peak_device_bytes()
    assert held is not None and held >= matrix.nbytes
    del matrix
    torch.cuda.empty_cache()
    memory.start()
    after = memory.peak_device_bytes()
    assert after is not None and after < held


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak cannot be set back")
def test_each_stretch_has_its_own_memory_peak() -> None:
    meter = MemoryMeter()
    meter.start()
    before = meter.peak_resident_bytes()
    block = b"x" * 200_000_000
    assert meter.peak_resident_bytes() >= before + 190_000_000
    del block
    meter.start()
    assert meter.peak_resident_bytes() < before + 100_000_000


def test_without_proc_the_peak_is_that_of_the_process(tmp_path: Path) -> None:
    meter = MemoryMeter(proc=tmp_path / "nothing")
    meter.start()
    assert 5e6 < meter.peak_resident_bytes() < 1e12


def test_memory_of_a_device_that_is_not_used_is_unknown() -> None:
    assert MemoryMeter().peak_device_bytes() is None


def test_hardware_names_the_device_the_architecture_and_the_processors() -> None:
    machine = hardware({"kind": "cpu", "name": "some processor", "memory_bytes": 1})
    assert machine["device"]["name"] == "some processor"
    assert machine["architecture"] in ("x86_64", "aarch64")
    assert machine["vcpu"] >= 1


def test_a_containers_quota_limits_its_processors(tmp_path: Path) -> None:
    limit = tmp_path / "cpu.max"
    everything = usable_cpus(tmp_path / "nothing")
    limit.write_text("max 100000\n")
    assert usable_cpus(limit) == everything
    limit.write_text("100000 100000\n")
    assert usable_cpus(limit) == 1
    limit.write_text("10000 100000\n")
    assert usable_cpus(limit) == 1, "never none"


def schedstat(proc: Path, thread: str, content: str) -> None:
    path = proc / "task" / thread
    path.mkdir(parents=True, exist_ok=True)
    (path / "schedstat").write_text(content)


def test_threads_add_up_and_one_that_begins_later_counts_in_full(tmp_path: Path) -> None:
    schedstat(tmp_path, "1", "5000000000 1000000000 7\n")
    meter = CoreMeter(tmp_path)
    meter.start()
    schedstat(tmp_path, "1", "8000000000 1500000000 9\n")
    schedstat(tmp_path, "2", "2000000000 250000000 1\n")
    assert meter.sample() == (5.0, 0.75)


@pytest.mark.parametrize("content", [None, "", "no statistics here\n"])
def test_without_the_schedulers_statistics_nothing_is_said_of_cores(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        schedstat(tmp_path, "1", content)
    meter = CoreMeter(tmp_path)
    meter.start()
    assert meter.sample() == (None, None)


BUSY = """
import os, sys, time
from nomoat.runs.meters import CoreMeter
os.sched_setaffinity(0, {int(sys.argv[1])})
meter = CoreMeter()
meter.start()
end = time.monotonic() + 1.5
while time.monotonic() < end:
    pass
ran, waited = meter.sample()
print(waited / (ran + waited))
"""


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="Linux says how long a thread waited, where its kernel counts that")
def test_two_that_share_a_core_each_wait_for_it() -> None:
    core = str(min(os.sched_getaffinity(0)))
    both = [subprocess.Popen([sys.executable, "-c", BUSY, core], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    shares = [float(process.communicate(timeout=60)[0]) for process in both]
    assert max(shares) > 0.2
