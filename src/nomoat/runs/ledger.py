"""The ledger of a run: one appended line per segment of work, the failed and the killed ones too.

    ledger = Ledger(run / "ledger.jsonl", hardware=hardware(device), run_id="smoke-1a2b3c4d")
    with ledger.segment("train") as segment:
        segment.count(tokens_seen=2048, tokens_trained=512, compute_seconds=3.1)
    cost = total_cost(read_segments(run / "ledger.jsonl"))

The open segment is written to ledger.heartbeat.json every few seconds; a process that is killed leaves it there, and the
next `Ledger` of the same path appends it as "killed". One process writes at a time: the run's lock sees to that.
"""

from __future__ import annotations

import datetime
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nomoat.cli import repeating
from nomoat.io import canonical_json, read_json, read_jsonl, write_atomically, write_json
from nomoat.runs.costs import total_cost
from nomoat.runs.meters import CoreMeter, EnergyMeter, MemoryMeter, energy_meter

HEARTBEAT_SECONDS = 5.0
SCORING = ("score_base", "score_few_shot", "score_adapter", "score_merged")
PHASES = ("start", "fetch", "load", "prepare", "train", "gate", *SCORING, "harness", "report")
COUNTS: dict[str, Any] = {"compute_seconds": 0.0, "tokens_seen": 0, "tokens_trained": 0}
METERS = ("peak_resident_bytes", "peak_device_bytes", "energy_wh", "energy_source", "ran_seconds", "waited_seconds")
NOTHING = COUNTS | dict.fromkeys(METERS)
SegmentRecord = dict[str, Any]


class Segment:
    """The open segment: counts add up, and `record` gives its line at any moment."""

    def __init__(self, facts: SegmentRecord, energy: EnergyMeter, memory: MemoryMeter) -> None:
        self._facts, self._counts = facts, COUNTS.copy()
        self._energy, self._memory, self._cores = energy, memory, CoreMeter()
        self._lock = threading.Lock()
        self._cores.start()
        memory.start()
        energy.start()
        self._began = time.monotonic()

    def count(self, *, tokens_seen: int = 0, tokens_trained: int = 0, compute_seconds: float = 0.0) -> None:
        """Add to the counts; call it after each optimiser step or batch."""
        with self._lock:
            self._counts["tokens_seen"] += tokens_seen
            self._counts["tokens_trained"] += tokens_trained
            self._counts["compute_seconds"] += compute_seconds

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Add the seconds of a block to `compute_seconds`; what the device has queued must be done by its end."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.count(compute_seconds=time.monotonic() - began)

    def record(self, status: str) -> SegmentRecord:
        """The line as it would be written now."""
        ran, waited = self._cores.sample()
        with self._lock:
            return {
                **self._facts,
                **self._counts,
                "elapsed_seconds": time.monotonic() - self._began,
                "peak_resident_bytes": self._memory.peak_resident_bytes(),
                "peak_device_bytes": self._memory.peak_device_bytes(),
                "energy_wh": self._energy.sample(),
                "energy_source": self._energy.source,
                "ran_seconds": ran,
                "waited_seconds": waited,
                "status": status,
            }


class Ledger:
    """The writer of one run's ledger. Making one recovers the segment a killed process left open, and begins a new attempt."""

    def __init__(
        self,
        path: Path,
        *,
        hardware: Mapping[str, Any],
        run_id: str,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        energy: EnergyMeter | None = None,
        memory: MemoryMeter | None = None,
    ) -> None:
        self.path, self.hardware, self.run_id = path, dict(hardware), run_id
        self._heartbeat = path.with_suffix(".heartbeat.json")
        self._heartbeat_seconds = heartbeat_seconds
        self._energy = energy_meter(self.hardware.get("device", {}).get("kind", "")) if energy is None else energy
        self._memory = memory or MemoryMeter()
        self._is_open, self._number = False, 0
        self._recover()
        self.attempt = 1 + max((record["attempt"] for record in read_segments(path)), default=0)

    @contextmanager
    def segment(self, phase: str) -> Iterator[Segment]:
        """Count one segment of `phase` until the block ends, however it ends. Segments do not overlap."""
        if self._is_open:
            raise RuntimeError("a segment is open already: overlapping work would be counted twice")
        segment = Segment(self._facts(phase), self._energy, self._memory)
        write_json(self._heartbeat, segment.record("open"))

        def beat() -> None:
            with suppress(OSError):  # such as a full disk: the end of the segment fails on it too, with a message
                write_json(self._heartbeat, segment.record("open"))

        self._is_open, status = True, "failed"
        try:
            with repeating(beat, self._heartbeat_seconds):
                yield segment
            status = "done"
        finally:
            self._is_open = False
            self._close(segment.record(status))

    def backdate(self, phase: str, seconds: float) -> None:
        """Add a segment that was over before the ledger could be opened: starting up, fetching the base."""
        self._append({**self._facts(phase), **NOTHING, "elapsed_seconds": seconds, "status": "done"})

    def reuse(self, phase: str, cost_when_made: Mapping[str, Any]) -> None:
        """Add a result reused from an earlier run: it costs nothing now, and records what it cost when it was made."""
        made = {"elapsed_seconds": 0.0, "status": "cached", "cost_when_made": dict(cost_when_made)}
        self._append({**self._facts(phase), **NOTHING, **made})

    def cost_of(self, phase: str) -> SegmentRecord:
        """What `phase` has cost in this run, every attempt counted, in the form that `reuse` of a later run takes."""
        cost = total_cost(record for record in read_segments(self.path) if record["phase"] == phase)
        spent = cost.model_dump(include={"seconds", "compute_seconds", "energy_wh", "energy_note", "peak_device_bytes"})
        return {"run": self.run_id, **spent, "peak_resident_bytes": cost.peak_memory_bytes, "hardware": self.hardware}

    def _facts(self, phase: str) -> SegmentRecord:
        if phase not in PHASES:
            raise ValueError(f"{phase!r} is not a phase: {', '.join(PHASES)}")
        self._number += 1
        return {
            "id": f"{self.attempt}.{self._number}",
            "run": self.run_id,
            "phase": phase,
            "attempt": self.attempt,
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            "hardware": self.hardware,
            "pid": os.getpid(),
        }

    def _close(self, record: SegmentRecord) -> None:
        """Write the heartbeat, append the line, remove the heartbeat: killed anywhere in between, recovery leaves the line exactly once."""
        write_json(self._heartbeat, record)
        self._append(record)
        self._heartbeat.unlink()

    def _append(self, record: SegmentRecord) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(canonical_json(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _recover(self) -> None:
        """Append the segment that a killed process left open, unless its line was written before the kill."""
        data = self.path.read_bytes() if self.path.exists() else b""
        if data and not data.endswith(b"\n"):  # a torn last line, to which the next one would be joined
            write_atomically(self.path, data[: data.rfind(b"\n") + 1])  # the heartbeat still holds the torn line
        if not self._heartbeat.exists():
            return
        left = read_json(self._heartbeat)
        if left["id"] not in {record.get("id") for record in read_segments(self.path)}:
            self._append({**left, "status": "killed" if left["status"] == "open" else left["status"]})
        self._heartbeat.unlink()


def read_segments(path: Path) -> list[SegmentRecord]:
    """All segments of a ledger as they were written; changes nothing, so a live run's ledger can be read too."""
    return list(read_jsonl(path))
