"""A checkpoint counts only once it is complete, and a torn one is passed over for the one before."""

from __future__ import annotations

from pathlib import Path

import pytest

from nomoat.runs.directory import complete_checkpoint, latest_complete


def checkpoint(folder: Path, step: int, *, complete: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    (path / "inner").mkdir(parents=True)
    (path / "optimizer.pt").write_bytes(bytes([step % 256]) * 1000)
    (path / "inner" / "state.json").write_text(f'{{"step": {step}}}')
    if complete:
        complete_checkpoint(path)
    return path


def test_the_newest_complete_checkpoint_is_found_by_its_step(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        checkpoint(tmp_path, step)
    assert latest_complete(tmp_path) == tmp_path / "checkpoint-100"


def test_a_checkpoint_that_was_never_completed_is_passed_over(tmp_path: Path) -> None:
    checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 20, complete=False)
    assert latest_complete(tmp_path) == tmp_path / "checkpoint-10"


@pytest.mark.parametrize("damage", ["truncated", "missing", "changed", "torn mark", "empty mark"])
def test_a_torn_checkpoint_falls_back_to_the_one_before(tmp_path: Path, damage: str) -> None:
    checkpoint(tmp_path, 10)
    torn = checkpoint(tmp_path, 20)
    optimizer, mark = torn / "optimizer.pt", torn / "complete.json"
    match damage:
        case "truncated":
            optimizer.write_bytes(optimizer.read_bytes()[:-1])
        case "missing":
            (torn / "inner" / "state.json").unlink()
        case "changed":
            optimizer.write_bytes(b"y" * 1000)
        case "torn mark":
            mark.write_text('{"files": {"opt')
        case "empty mark":
            mark.write_text('{"files": {}}')
    assert latest_complete(tmp_path) == tmp_path / "checkpoint-10"


def test_without_a_whole_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert latest_complete(tmp_path / "nothing") is None
    checkpoint(tmp_path, 10, complete=False)
    (tmp_path / "checkpoint-final").mkdir()
    assert latest_complete(tmp_path) is None


def test_two_complete_checkpoints_are_kept_and_torn_ones_go(tmp_path: Path) -> None:
    checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 15, complete=False)
    for step in (20, 30):
        checkpoint(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-20", "checkpoint-30"]


def test_a_checkpoint_in_the_making_is_not_removed(tmp_path: Path) -> None:
    checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 30, complete=False)
    checkpoint(tmp_path, 20)
    assert (tmp_path / "checkpoint-30").exists()
