"""The scripts, run as a user runs them: the whole job, a kill, a second run, and every kind of bad input."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from nomoat.io import read_jsonl
from nomoat.reports.build import read_report, verify_files
from tests.private import find_private_strings, private_strings
from tests.stories import adapter_sha, command, environment, make_workplace, only_run, run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A workplace with one finished run, and what the run printed."""
    folder = make_workplace(tmp_path_factory.mktemp("finished"))
    done = run(folder, "train/sft.py", "tiny.yaml")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture
def workplace(finished: tuple[Path, str], tmp_path: Path) -> Path:
    """The same model, rows and recipe, with no run yet."""
    for name in ("model", "rows.jsonl", "tiny.yaml"):
        source = finished[0] / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    return tmp_path


def hashes(folder: Path) -> dict[str, str]:
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_one_command_leaves_a_run_that_says_all_it_should(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    run_dir = only_run(folder)
    report = read_report(run_dir / "report.json")
    assert report.provenance.matrix_gflops > 0.1, "how fast the machine was goes with the times"
    verify_files(report, run_dir)
    assert report.status == "finished" and report.adapter.gate is not None and report.adapter.gate.passed
    assert report.arms["base"].tiers["phrasing"].n == report.arms["adapter"].tiers["phrasing"].n > 0
    for word in ("cannot tell", "Time", "Money", "no rate is known", "Peak memory", "report.html"):
        assert word in printed, word
    assert "<html" in (run_dir / "report.html").read_text()
    expected = {
        "recipe.yaml",
        "environment.json",
        "rows.json",
        "ledger.jsonl",
        "metrics.jsonl",
        "gate.json",
        "adapter.json",
        "heldout.jsonl",
    }
    assert expected <= {path.name for path in run_dir.iterdir()}


def test_no_file_of_a_run_names_this_machine_or_a_secret(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    needles = [*private_strings(environment(folder)), str(folder), "hunter2-hunter2"]
    assert "hunter2-hunter2" in private_strings(environment(folder))  # else the search would look for nothing
    assert find_private_strings(only_run(folder), needles) == []


def test_the_ledger_has_every_phase_once(finished: tuple[Path, str]) -> None:
    segments = list(read_jsonl(only_run(finished[0]) / "ledger.jsonl"))
    phases = {segment["phase"] for segment in segments}
    assert {"load", "prepare", "train", "gate", "score_base", "score_few_shot", "score_adapter", "report"} <= phases
    assert all(segment["status"] == "done" for segment in segments)


def test_the_same_command_again_gives_the_same_adapter_in_a_new_directory_and_touches_nothing(
    finished: tuple[Path, str], workplace: Path
) -> None:
    shutil.copytree(finished[0] / "runs", workplace / "runs")
    first = only_run(workplace)
    before = hashes(first)
    done = run(workplace, "train/sft.py", "tiny.yaml")
    assert done.returncode == 0, done.stderr
    second = first.with_name(f"{first.name}-2")
    assert hashes(first) == before
    assert adapter_sha(second) == adapter_sha(first)
    assert (second / "eval" / "adapter.jsonl").read_bytes() == (first / "eval" / "adapter.jsonl").read_bytes()
    assert [line["loss"] for line in read_jsonl(second / "metrics.jsonl") if "loss" in line] == [
        line["loss"] for line in read_jsonl(first / "metrics.jsonl") if "loss" in line
    ]


def test_another_seed_gives_another_adapter(finished: tuple[Path, str], workplace: Path) -> None:
    done = run(workplace, "train/sft.py", "tiny.yaml", "train.seed=1")
    assert done.returncode == 0, done.stderr
    assert adapter_sha(only_run(workplace)) != adapter_sha(only_run(finished[0]))


def _heed_ctrl_c() -> None:
    """A shell starts background jobs with Ctrl-C ignored, and tests may run in one."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start_until_first_checkpoint(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    words, settings = command("train/sft.py", "tiny.yaml", *overrides), environment(folder)
    process = subprocess.Popen(
        words, cwd=folder, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=_heed_ctrl_c
    )
    deadline = time.monotonic() + 300
    while not list(folder.glob("runs/*/checkpoints/*/complete.json")):
        assert process.poll() is None and time.monotonic() < deadline, "it ended, or never came to a checkpoint"
        time.sleep(0.01)
    return process


def test_a_killed_run_is_resumed_to_the_same_adapter_and_both_stretches_are_paid_for(finished: tuple[Path, str], workplace: Path) -> None:
    process = start_until_first_checkpoint(workplace)
    process.kill()
    process.wait()
    assert not (only_run(workplace) / "report.json").exists()
    done = run(workplace, "train/sft.py", "tiny.yaml")
    assert done.returncode == 0, done.stderr
    assert "resuming" in done.stdout
    assert adapter_sha(only_run(workplace)) == adapter_sha(only_run(finished[0]))
    training = [segment for segment in read_jsonl(only_run(workplace) / "ledger.jsonl") if segment["phase"] == "train"]
    assert [segment["status"] for segment in training] == ["killed", "done"]
    report = read_report(only_run(workplace) / "report.json")
    assert report.cost.interrupted == 1
    assert report.cost.seconds_by_phase["train"] == pytest.approx(sum(segment["elapsed_seconds"] for segment in training))


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_second_process_is_told_who_has_the_run_and_the_first_ends_cleanly_when_stopped(workplace: Path, sent: signal.Signals) -> None:
    long = ("train.epochs=100", "train.batch_tokens=128", "train.pack_tokens=128", "train.checkpoints=100")  # minutes, if left alone
    process = start_until_first_checkpoint(workplace, *long)
    second = run(workplace, "train/sft.py", "tiny.yaml", *long)
    assert second.returncode == 2 and str(process.pid) in second.stderr and "Traceback" not in second.stderr
    process.send_signal(sent)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in said and "same command" in said


BAD = [
    ("lora: {rnak: 4}", "lora.rnak: no such key; did you mean lora.rank?"),
    ("base: {path: ./nowhere}", "base.path"),
    ("base: {hub: some/model, revision: " + "a" * 40 + "}", "base.hub: some/model"),
    ("base: {hub: some/model, revision: unpinned}", "unpinned"),
    ("data: {rows: none.jsonl}", "none.jsonl"),
    ("data: {rows: broken.jsonl}", "broken.jsonl:2"),
    ("data: {rows: empty.jsonl}", "empty.jsonl"),
    ("data: {rows: dask}", "desk"),
    ("train: {max_row_tokens: 8}", "too long"),
    ("lora: {targets: [q_porj]}", "q_proj"),
    ("hardware: {device: cuda}", "hardware.device"),
]


@pytest.mark.parametrize(("change", "said"), BAD, ids=[change for change, _ in BAD])
def test_bad_input_is_one_message_and_exit_code_2(workplace: Path, change: str, said: str) -> None:
    (workplace / "broken.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    (workplace / "empty.jsonl").write_text("")
    (workplace / "bad.yaml").write_text(f"extends: tiny.yaml\n{change}\n")
    done = run(workplace, "train/sft.py", "bad.yaml")
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr and done.stderr.count("error:") == 1 and "Traceback" not in done.stderr
    assert not list(workplace.glob("runs/*/report.json"))


def test_leaked_rows_stop_the_run_unless_a_reason_is_given(workplace: Path) -> None:
    rows = [json.dumps({"prompt": f"the very same question number {n // 20}", "completion": str(n), "group": str(n)}) for n in range(60)]
    (workplace / "rows.jsonl").write_text("\n".join(rows) + "\n")
    refused = run(workplace, "train/sft.py", "tiny.yaml")
    assert refused.returncode == 2 and "repeat training rows" in refused.stderr and "allow_leaks" in refused.stderr
    allowed = run(workplace, "train/sft.py", "tiny.yaml", "data.allow_leaks=a test", "train.max_steps=3")
    assert allowed.returncode in (0, 1), allowed.stderr
    report = read_report(only_run(workplace) / "report.json")
    assert report.leaks is not None and report.leaks.exact > 0 and report.recipe.data.allow_leaks == "a test"


def test_a_run_that_learns_nothing_fails_its_gate_and_says_so(workplace: Path) -> None:
    done = run(workplace, "train/sft.py", "tiny.yaml", "train.learning_rate=1e-12", "train.max_steps=2")
    assert done.returncode == 1 and "every tensor moved: 14 of 28" in done.stderr and "Traceback" not in done.stderr
    assert read_report(only_run(workplace) / "report.json").status == "failed"


def test_try_answers_with_base_and_adapter_through_the_same_rendering(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    run_dir = only_run(folder)
    line = next(read_jsonl(run_dir / "eval" / "adapter.jsonl"))
    done = run(folder, "eval/try.py", str(run_dir), "--prompt", line["prompt"])
    assert done.returncode == 0, done.stderr
    base, adapter = done.stdout.split("\nadapter:\n")
    assert adapter.strip("\n") == line["output"].strip("\n") and base.startswith("\nbase:\n")


def test_a_finished_run_can_be_checked_and_answered_again(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    run_dir = only_run(folder)
    before = hashes(run_dir)
    done = run(folder, "eval/score.py", str(run_dir))
    assert done.returncode == 0, done.stderr
    rows = len(list(read_jsonl(run_dir / "eval" / "adapter.jsonl")))
    assert f"{rows} of {rows} answers and {rows} of {rows} scores are the same" in " ".join(done.stdout.split())
    assert hashes(run_dir) == before


def test_scoring_gives_the_answers_of_generate(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    run_dir = only_run(folder)
    done = run(folder, "eval/speed.py", str(run_dir), "--out", str(folder / "bench"))
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "bench" / "scoring.json").read_text())
    rows = len(list(read_jsonl(run_dir / "eval" / "adapter.jsonl")))
    assert set(found["arms"]) == {"base", "few_shot", "adapter"} and found["arms"]["adapter"]["rows"] == rows
    assert found["identical"] == 1 - sum(len(arm["differences"]) for arm in found["arms"].values()) / found["rows"]
    assert found["identical"] > 0.9  # random weights: many calls are close
    assert found["ratio"] == pytest.approx(
        sum(arm["generate_seconds"] for arm in found["arms"].values()) / sum(arm["seconds"] for arm in found["arms"].values())
    )


def test_runs_compare_with_themselves_and_an_edited_score_is_refused(finished: tuple[Path, str], workplace: Path) -> None:
    shutil.copytree(finished[0] / "runs", workplace / "runs")
    first = only_run(workplace)
    second = first.with_name(f"{first.name}-2")
    shutil.copytree(first, second)
    assert run(workplace, "eval/compare.py", str(first), str(second)).returncode == 0
    report = json.loads((second / "report.json").read_text())
    report["arms"]["adapter"]["tiers"]["phrasing"]["score"] = 0.987
    (second / "report.json").write_text(json.dumps(report))
    refused = run(workplace, "eval/compare.py", str(first), str(second))
    assert refused.returncode == 2 and "score" in refused.stderr


def test_a_full_disk_is_one_message_and_loses_nothing(workplace: Path) -> None:
    small = workplace / "runs"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        done = run(workplace, "train/sft.py", "tiny.yaml")
        assert done.returncode == 2 and "disk is full" in done.stderr and "Traceback" not in done.stderr
        assert not list(small.glob("*/report.json"))
    finally:
        subprocess.run(["umount", str(small)], check=True)
