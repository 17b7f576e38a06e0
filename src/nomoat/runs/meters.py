"""Meters of a segment of work: memory, energy, CPU time, read from the machine. A value that cannot be read is None, never a guess."""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nomoat.runs.costs import architecture_name

POWERCAP = Path("/sys/class/powercap")
PROC = Path("/proc/self")
JOULES_PER_WH = 3600.0
NS_PER_SECOND = 1e9


@dataclass(frozen=True)
class EnergyCounter:
    """A counter of joules that only rises, but starts again at zero after `wraps_at` (None: it never does)."""

    source: str
    read: Callable[[], float]
    wraps_at: float | None = None


@dataclass
class EnergyMeter:
    """Joules used since `start`, summed over counters.

    Call `sample` more often than a counter can wrap: a processor's counter wraps after about 260 kJ, 40 minutes at 100 W.
    """

    counters: Sequence[EnergyCounter]
    _last: list[float] = field(default_factory=list)
    _joules: float | None = None

    @property
    def source(self) -> str | None:
        return self.counters[0].source if self.counters else None

    def start(self) -> None:
        """Forget what was counted so far and count from now."""
        try:
            self._last = [counter.read() for counter in self.counters]
            self._joules = 0.0 if self.counters else None
        except Exception:  # a driver may fail in any way; a failed reading is no reading
            self._joules = None

    def sample(self) -> float | None:
        """Add the energy used since the last reading; returns watt-hours so far, or None once they cannot be known any more."""
        if self._joules is None:
            return None
        try:
            readings = [counter.read() for counter in self.counters]
            self._joules += sum(map(_used, self.counters, self._last, readings))
            self._last = readings
        except Exception:  # see start
            self._joules = None
            return None
        return self._joules / JOULES_PER_WH


def _used(counter: EnergyCounter, before: float, now: float) -> float:
    if now >= before:
        return now - before
    if counter.wraps_at is None:
        raise ValueError(f"{counter.source} ran backwards: it was reset, and its count is lost")
    return counter.wraps_at - before + now


def energy_meter(kind: str, *, powercap: Path = POWERCAP) -> EnergyMeter:
    """A meter for a device kind: the GPU's own counter for cuda, the processor's for cpu, else one that measures nothing."""
    counters = nvml_counters() if kind == "cuda" else rapl_counters(powercap) if kind == "cpu" else []
    return EnergyMeter(counters)


def nvml_counters() -> list[EnergyCounter]:
    """The total-energy counter of the GPU that torch uses (Volta and later). Empty where there is none, as on a MIG slice."""
    try:
        import pynvml

        torch = sys.modules["torch"]
        pynvml.nvmlInit()
        # By UUID, because CUDA_VISIBLE_DEVICES renumbers torch's devices and not NVML's.
        uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        counter = EnergyCounter("nvml", lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000)  # from mJ
        counter.read()
    except Exception:  # no driver, no library, no permission, no counter: all mean "not measured"
        return []
    return [counter]


def rapl_counters(powercap: Path = POWERCAP) -> list[EnergyCounter]:
    """The counters of all processor packages and their memory (Intel and AMD). Empty unless every one can be read.

    Newer kernels let only root read them (CVE-2020-8694). They count the whole machine, not only this process.
    """
    zones = [zone for zone in sorted(powercap.glob("intel-rapl:*")) if _zone_name(zone).startswith(("package", "dram"))]
    try:
        counters = [_rapl_counter(zone) for zone in zones]
        for counter in counters:
            counter.read()
    except (OSError, ValueError):
        return []
    return counters


def _zone_name(zone: Path) -> str:
    try:
        return (zone / "name").read_text().strip()
    except OSError:
        return ""


def _rapl_counter(zone: Path) -> EnergyCounter:
    wraps_at = int((zone / "max_energy_range_uj").read_text()) / 1e6
    return EnergyCounter("rapl", lambda: int((zone / "energy_uj").read_text()) / 1e6, wraps_at)


@dataclass(frozen=True)
class MemoryMeter:
    """Peak memory of this process since `start`, without its child processes."""

    proc: Path = PROC

    def start(self) -> None:
        """Reset the peaks to what is in use now, where the system allows it (Linux, CUDA)."""
        with suppress(OSError):  # where it cannot be reset, the peak counts from the start of the process: never too low, perhaps too high
            (self.proc / "clear_refs").write_text("5")  # resets VmHWM, see `man 5 proc`
        for device in _cuda_devices():
            sys.modules["torch"].cuda.reset_peak_memory_stats(device)

    def peak_resident_bytes(self) -> int:
        """Peak resident bytes. Outside Linux this is `ru_maxrss`, which is the maximum since the process began."""
        try:
            lines = (self.proc / "status").read_text().splitlines()
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
        except (OSError, StopIteration):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB elsewhere

    def peak_device_bytes(self) -> int | None:
        """Peak bytes that torch held of the GPUs, its cache included (what must fit); None where no GPU is used or its peak is unknown."""
        devices = _cuda_devices()
        if not devices:
            return None
        return sum(sys.modules["torch"].cuda.max_memory_reserved(device) for device in devices)


@dataclass
class CoreMeter:
    """Seconds that the threads of this process ran since `start`, and seconds spent runnable but waiting for a CPU.

    Sums over threads, from Linux' scheduler (sched-stats): elsewhere None. A thread that has ended is not counted.
    """

    proc: Path = PROC
    _before: dict[str, tuple[float, float]] = field(default_factory=dict)

    def start(self) -> None:
        """Count from now."""
        self._before = self._threads()

    def sample(self) -> tuple[float | None, float | None]:
        """Seconds run and seconds waited so far."""
        now = self._threads()
        if not now:
            return None, None
        ran, waited = (sum(times[at] - self._before.get(thread, (0.0, 0.0))[at] for thread, times in now.items()) for at in (0, 1))
        return ran, waited

    def _threads(self) -> dict[str, tuple[float, float]]:
        seconds = {}
        for path in self.proc.glob("task/*/schedstat"):
            with suppress(OSError, ValueError):  # a thread that ends meanwhile; a kernel with another format
                ran, waited, _ = path.read_text().split()
                seconds[path.parent.name] = (int(ran) / NS_PER_SECOND, int(waited) / NS_PER_SECOND)
        return seconds


def _cuda_devices() -> Sequence[int]:
    """The devices of a torch that is loaded and already uses CUDA: a meter must not start either."""
    torch = sys.modules.get("torch")
    return range(torch.cuda.device_count()) if torch is not None and torch.cuda.is_initialized() else range(0)


def hardware(device: Mapping[str, Any]) -> dict[str, Any]:
    """The machine of a ledger segment; `device` is {"kind": "cpu", "name": ..., "memory_bytes": ...}."""
    return {"device": dict(device), "architecture": architecture_name(platform.machine()), "vcpu": usable_cpus()}


def usable_cpus(cgroup: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Processors this process may use: its affinity, and a container's quota rounded to whole ones."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cgroup.read_text().split()
        return count if quota == "max" else max(1, min(count, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return count
