"""Files that are whole or absent."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from nomoat.cli import explain
from nomoat.io import canonical_json, read_jsonl, sha256_of, write_atomically, write_json, write_jsonl


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "a", "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(tmp_path / "a", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "old"
    assert "disk is full" in str(explain(caught.value))


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "l.jsonl").write_text('{"a":1}\n{"a":2}\n{"a":')
    assert list(read_jsonl(tmp_path / "l.jsonl")) == [{"a": 1}, {"a": 2}]
    assert list(read_jsonl(tmp_path / "none.jsonl")) == []


def test_half_characters_survive_a_round_trip(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "l.jsonl", [{"output": "a\ud83d\x00é"}])
    assert list(read_jsonl(tmp_path / "l.jsonl")) == [{"output": "a\ud83d\x00é"}]


def test_equal_values_have_one_form_and_one_hash() -> None:
    assert canonical_json({"b": 1, "a": [1.5, None]}) == '{"a":[1.5,null],"b":1}'
    assert sha256_of({"b": 1, "a": 2}) == sha256_of({"a": 2, "b": 1}) != sha256_of({"a": 2, "b": 2})


def test_what_is_no_number_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", ["PytorchStreamWriter failed writing file data/1", "I/O error: No space left on device (os error 28)"])
def test_a_full_disk_is_known_in_other_libraries_words(words: str) -> None:
    assert "disk is full" in str(explain(RuntimeError(words)))
    assert explain(RuntimeError("something else")) is None
