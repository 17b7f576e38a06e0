"""The ledger counts every stretch of work exactly once, whatever ends it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nomoat.io import write_json
from nomoat.runs.costs import total_cost
from nomoat.runs.ledger import Ledger, read_segments
from nomoat.runs.meters import EnergyCounter, EnergyMeter

HARDWARE = {"device": {"kind": "cpu", "name": "some processor"}, "architecture": "x86_64", "vcpu": 2}
BEAT = 0.2  # seconds


def open_ledger(folder: Path, **changes: Any) -> Ledger:
    settings: dict[str, Any] = {"hardware": HARDWARE, "run_id": "smoke-1", "heartbeat_seconds": BEAT, "energy": EnergyMeter([])}
    return Ledger(folder / "ledger.jsonl", **{**settings, **changes})


def lines(folder: Path) -> list[dict[str, Any]]:
    return read_segments(folder / "ledger.jsonl")


def test_a_finished_segment_is_one_line_with_its_counts(tmp_path: Path) -> None:
    with open_ledger(tmp_path).segment("train") as segment:
        segment.count(tokens_seen=100, tokens_trained=30, compute_seconds=1.5)
        segment.count(tokens_seen=11, compute_seconds=0.25)
        time.sleep(0.05)
    (line,) = lines(tmp_path)
    assert (line["phase"], line["status"], line["attempt"], line["run"]) == ("train", "done", 1, "smoke-1")
    assert (line["tokens_seen"], line["tokens_trained"], line["compute_seconds"]) == (111, 30, 1.75)
    assert 0.05 <= line["elapsed_seconds"] < 2
    assert line["hardware"] == HARDWARE
    assert not (tmp_path / "ledger.heartbeat.json").exists()


def test_a_segment_that_raises_is_counted_as_failed_and_the_error_goes_on(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    with pytest.raises(ZeroDivisionError), ledger.segment("train") as segment:
        segment.count(tokens_seen=7)
        _ = 1 / 0
    with ledger.segment("gate"):
        pass
    assert [(line["phase"], line["status"], line["tokens_seen"]) for line in lines(tmp_path)] == [
        ("train", "failed", 7),
        ("gate", "done", 0),
    ]


def test_ctrl_c_is_counted_too(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_ledger(tmp_path).segment("load"):
        raise KeyboardInterrupt
    assert lines(tmp_path)[0]["status"] == "failed"


def test_a_killed_process_leaves_its_open_segment_to_the_next_start(tmp_path: Path) -> None:
    child = start_child(tmp_path)
    began = float(child.stdout.readline())
    time.sleep(1.5)
    child.send_signal(signal.SIGKILL)
    child.wait()
    lasted = time.monotonic() - began
    assert [line["phase"] for line in lines(tmp_path)] == ["load"]

    ledger = open_ledger(tmp_path)
    loaded, killed = lines(tmp_path)
    assert (loaded["status"], killed["status"], killed["pid"]) == ("done", "killed", child.pid)
    assert lasted - 4 * BEAT < killed["elapsed_seconds"] <= lasted  # one heartbeat, and patience for a busy machine
    assert (killed["tokens_seen"], killed["tokens_trained"]) == (500, 50)
    assert killed["peak_resident_bytes"] > 1e6

    with ledger.segment("train") as segment:
        segment.count(tokens_seen=40)
    spent = total_cost(lines(tmp_path))
    assert (spent.tokens_seen, spent.segments, spent.interrupted) == (540, 3, 1)
    assert {line["attempt"] for line in lines(tmp_path)} == {1, 2}
    assert open_ledger(tmp_path).attempt == 3
    assert len(lines(tmp_path)) == 3, "recovered once, not at every start"


def start_child(folder: Path) -> Any:
    code = f"""
import sys, time
from pathlib import Path
from nomoat.runs.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]), hardware={HARDWARE!r}, run_id="smoke-1", heartbeat_seconds={BEAT})
with ledger.segment("load"):
    pass
with ledger.segment("train") as segment:
    print(time.monotonic(), flush=True)
    segment.count(tokens_seen=500, tokens_trained=50)
    time.sleep(60)
"""
    return subprocess.Popen([sys.executable, "-c", code, str(folder / "ledger.jsonl")], stdout=subprocess.PIPE, text=True)


def leave_heartbeat(folder: Path, **changes: Any) -> dict[str, Any]:
    """What a process leaves that was killed while it held this segment."""
    with open_ledger(folder).segment("train") as segment:
        segment.count(tokens_seen=9)
    (line,) = lines(folder)
    write_json(folder / "ledger.heartbeat.json", {**line, **changes})
    return line


def test_a_kill_between_the_line_and_the_end_of_the_heartbeat_does_not_count_twice(tmp_path: Path) -> None:
    leave_heartbeat(tmp_path)
    open_ledger(tmp_path)
    assert [line["status"] for line in lines(tmp_path)] == ["done"]


def test_a_line_torn_by_a_kill_is_written_again_from_the_heartbeat(tmp_path: Path) -> None:
    line = leave_heartbeat(tmp_path)
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(path.read_bytes()[:40])
    with open_ledger(tmp_path).segment("gate"):
        pass
    first, second = lines(tmp_path)
    assert first == line
    assert (second["phase"], second["attempt"]) == ("gate", 2)


def test_a_line_that_cannot_be_written_is_written_at_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with pytest.raises(OSError), open_ledger(tmp_path, heartbeat_seconds=60).segment("train") as segment:
        segment.count(tokens_seen=5)
        path.mkdir()
    path.rmdir()
    open_ledger(tmp_path)
    assert [(line["status"], line["tokens_seen"]) for line in lines(tmp_path)] == [("done", 5)]


def test_a_torn_line_without_a_heartbeat_is_dropped_and_the_next_line_stays_readable(tmp_path: Path) -> None:
    with open_ledger(tmp_path).segment("load"):
        pass
    with (tmp_path / "ledger.jsonl").open("a") as file:
        file.write('{"phase":"tra')
    with open_ledger(tmp_path).segment("train"):
        pass
    assert [line["phase"] for line in lines(tmp_path)] == ["load", "train"]


def test_a_heartbeat_that_cannot_be_written_is_tried_again(tmp_path: Path) -> None:
    heartbeat = tmp_path / "ledger.heartbeat.json"
    with open_ledger(tmp_path, heartbeat_seconds=0.05).segment("train"):
        heartbeat.unlink()
        heartbeat.mkdir()  # nothing can be renamed onto a folder
        time.sleep(0.3)
        heartbeat.rmdir()
        assert wait_for(heartbeat.is_file)
    assert len(lines(tmp_path)) == 1


def wait_for(condition: Any, seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.02)
    return bool(condition())


def test_reading_a_live_ledger_leaves_it_alone(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    with ledger.segment("train") as segment:
        segment.count(tokens_seen=3)
        assert lines(tmp_path) == []
        assert (tmp_path / "ledger.heartbeat.json").exists()
    assert total_cost(read_segments(ledger.path)).tokens_seen == 3


def test_segments_may_not_overlap(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    with ledger.segment("load"), pytest.raises(RuntimeError, match="counted twice"), ledger.segment("train"):
        pass
    assert [line["phase"] for line in lines(tmp_path)] == ["load"]


def test_a_phase_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'trane' is not a phase"), open_ledger(tmp_path).segment("trane"):
        pass


def test_computing_adds_the_seconds_of_its_block(tmp_path: Path) -> None:
    with open_ledger(tmp_path).segment("train") as segment:
        for _ in range(2):
            with segment.computing():
                time.sleep(0.05)
        time.sleep(0.2)
    (line,) = lines(tmp_path)
    assert 0.1 <= line["compute_seconds"] < line["elapsed_seconds"] - 0.15


def test_energy_is_read_anew_for_each_segment(tmp_path: Path) -> None:
    joules = iter([100.0, 100.0, 3_700.0, 10_000.0, 10_000.0, 17_200.0])  # at the start, in the first heartbeat, at the end
    meter = EnergyMeter([EnergyCounter("rapl", joules.__next__)])
    ledger = open_ledger(tmp_path, energy=meter, heartbeat_seconds=60)
    for phase in ("load", "train"):
        with ledger.segment(phase):
            pass
    assert [(line["energy_wh"], line["energy_source"]) for line in lines(tmp_path)] == [(1.0, "rapl"), (2.0, "rapl")]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak cannot be set back")
def test_memory_peaks_are_those_of_each_segment(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    with ledger.segment("load"):
        block = b"x" * 200_000_000
    del block
    with ledger.segment("train"):
        pass
    peaks = [line["peak_resident_bytes"] for line in lines(tmp_path)]
    assert peaks[1] < peaks[0] - 100_000_000
    assert total_cost(lines(tmp_path)).peak_memory_bytes == peaks[0]


def test_a_reused_result_costs_nothing_and_shows_what_it_cost(tmp_path: Path) -> None:
    first = open_ledger(tmp_path / "first")
    with first.segment("score_base") as segment:
        segment.count(compute_seconds=0.5)
        time.sleep(0.1)
    second = open_ledger(tmp_path / "second", run_id="smoke-2")
    second.reuse("score_base", first.cost_of("score_base"))
    (line,) = lines(tmp_path / "second")
    assert (line["status"], line["elapsed_seconds"]) == ("cached", 0.0)
    assert line["cost_when_made"]["run"] == "smoke-1"
    assert line["cost_when_made"]["compute_seconds"] == 0.5
    spent = total_cost([line])
    assert spent.seconds == 0 and spent.segments == 0
    assert spent.reused_seconds["score_base"] >= 0.1


def test_the_ledger_is_plain_json_lines(tmp_path: Path) -> None:
    with open_ledger(tmp_path).segment("load"):
        pass
    text = (tmp_path / "ledger.jsonl").read_text()
    assert text.endswith("\n") and json.loads(text)["phase"] == "load"
