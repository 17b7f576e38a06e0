"""A run directory from its first moment to its report: found or made, locked, resumed, never overwritten.

    with open_run(Path("runs"), "smoke", identity=recipe_and_hashes, environment=environment) as run:
        ...                        # no other process uses run.path until the block ends
        run.record(adapter_initial_sha256=digest)

`runs/<name>-<8 hex digits of the identity's hash>[-n]/`. A run is finished when its report.json is there.
"""

from __future__ import annotations

import datetime
import itertools
import json
import os
import re
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nomoat.errors import NomoatError
from nomoat.io import read_json, sha256_file, sha256_of, write_json

MARK = "complete.json"
MUST_AGREE = ("packages", "python", "device", "threads", "dtype", "kernels")  # where these differ, an adapter's bits may


@dataclass(frozen=True)
class RunLock:
    """One process at a time in a run directory: the kernel's lock on run.lock, which is free as soon as its process is gone.

    The file's content (host, process id, start) names the holder to others, and keeps a second machine out where the folder is shared
    over a network and the kernel's lock may not reach.
    """

    path: Path
    lock: FileLock

    @classmethod
    def take(cls, run_dir: Path) -> RunLock:
        """Lock `run_dir` without waiting. Raises NomoatError naming the holder where there is one."""
        path = run_dir / "run.lock"
        lock = FileLock(path, timeout=0, mode=0o644, fallback_to_soft=False)
        try:
            lock.acquire()
        except Timeout:
            raise NomoatError(f"{_in_use(run_dir, _holder(path))}: wait for it, or stop it") from None
        except (OSError, NotImplementedError) as error:
            raise NomoatError(f"{run_dir} cannot be locked ({error}): put runs on a local disk") from error
        holder = _holder(path)
        if holder.get("host") not in (None, socket.gethostname()):
            lock.release()
            raise NomoatError(f"{_in_use(run_dir, holder)}; if that process is gone, remove {path} and run the same command again")
        since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        path.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since}))
        return cls(path, lock)

    def release(self) -> None:
        """Remove the file, then give up the lock on it: a waiting process finds the file gone and makes its own."""
        self.path.unlink(missing_ok=True)
        self.lock.release()


def _in_use(run_dir: Path, holder: dict[str, Any]) -> str:
    who = f"process {holder['pid']} on {holder['host']}, since {holder['since']}" if holder else "a process that has just started"
    return f"{run_dir} is in use by {who}"


def _holder(path: Path) -> dict[str, Any]:
    try:
        holder = read_json(path)
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) and {"host", "pid", "since"} <= holder.keys() else {}


@dataclass(frozen=True)
class RunDirectory:
    """A run directory that this process holds alone until `close`."""

    path: Path
    resumed: bool
    note: str  # why it is resumed, or why a new one was begun; empty for a plain first run
    lock: RunLock

    @property
    def run_id(self) -> str:
        return self.path.name

    def record(self, **facts: Any) -> None:
        """Add facts to environment.json."""
        write_json(self.path / "environment.json", {**read_json(self.path / "environment.json"), **facts})

    def close(self) -> None:
        """Let others have the directory."""
        self.lock.release()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_run(root: Path, name: str, *, identity: Mapping[str, Any], environment: Mapping[str, Any]) -> RunDirectory:
    """The unfinished run of this identity if its environment agrees, else a new directory.

    `identity` is what makes two runs the same one (recipe, data and base hashes); `environment` becomes environment.json.
    Raises NomoatError where a live process holds the run.
    """
    stem = f"{name}-{sha256_of(dict(identity))[:8]}"
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    notes: list[str] = []
    return next(run for name in names if (run := _take(root / name, environment, notes)) is not None)


def plain_name(text: str) -> str:
    """`text` as part of a directory's name: letters, digits, dots, dashes and underscores, at most 40 of them."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:40]


def resolve_run(stated: Path, runs_dir: Path = Path("runs")) -> Path:
    """The run directory that a command names: `latest` is the finished run whose report is the newest below `runs_dir`.

    Raises NomoatError where there is none.
    """
    if str(stated) != "latest":
        return stated
    reports = sorted(runs_dir.glob("*/report.json"), key=lambda path: path.stat().st_mtime)
    if not reports:
        raise NomoatError(f"latest: there is no finished run below {runs_dir}/; make one with `make train`, or name a run directory")
    return reports[-1].parent


def _take(path: Path, environment: Mapping[str, Any], notes: list[str]) -> RunDirectory | None:
    """Resume or begin the run at `path`; None, with a note why, where the directory must not be changed."""
    report = path / "report.json"
    if report.exists():
        return None
    path.mkdir(parents=True, exist_ok=True)
    lock = RunLock.take(path)
    try:
        run = None if report.exists() else _resume_or_begin(path, environment, notes, lock)  # it may just have finished
    except BaseException:
        lock.release()
        raise
    if run is None:
        lock.release()
    return run


def _resume_or_begin(path: Path, environment: Mapping[str, Any], notes: list[str], lock: RunLock) -> RunDirectory | None:
    facts = path / "environment.json"
    if not facts.exists():
        write_json(facts, {"created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), **environment})
        return RunDirectory(path, resumed=False, note="; ".join(notes), lock=lock)
    differences = _differences({"kernels": "auto", **read_json(facts)}, environment)
    if differences:
        notes.append(f"{path.name} is unfinished and cannot be resumed exactly, so it is left as it is: {'; '.join(differences)}")
        return None
    return RunDirectory(path, resumed=True, note="; ".join([*notes, f"resuming {path.name}"]), lock=lock)


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences between a run's first part and the process that would resume it, in words."""
    before, after = (_flat({key: facts.get(key) for key in MUST_AGREE if key in now}) for facts in (then, now))
    keys = sorted((before.keys() | after.keys()) - {"device.memory_bytes"})  # which may change a little with a restart
    return [f"{key} was {before.get(key)}, is {after.get(key)}" for key in keys if before.get(key) != after.get(key)]


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    """One entry per fact, nested ones too."""
    flat: dict[str, Any] = {}
    for key, value in facts.items():
        flat |= {f"{key}.{inner}": what for inner, what in value.items()} if isinstance(value, Mapping) else {key: value}
    return flat


def complete_checkpoint(path: Path, *, keep: int = 2) -> None:
    """Declare `checkpoints/checkpoint-<step>` complete: its hashes are written last, then all but `keep` complete ones are deleted."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != MARK)
    write_json(path / MARK, {"files": {str(file.relative_to(path)): sha256_file(file) for file in files}})
    older = [other for other in _checkpoints(path.parent) if _step(other) <= _step(path)]
    kept = [other for other in older if (other / MARK).exists()][:keep]
    for other in older:
        if other not in kept:
            (other / MARK).unlink(missing_ok=True)  # first, so that a half-deleted checkpoint never counts as complete
            shutil.rmtree(other)


def latest_complete(checkpoints: Path) -> Path | None:
    """The newest checkpoint whose every file has the hash that was written down; torn ones are skipped."""
    return next((path for path in _checkpoints(checkpoints) if is_intact(path)), None)


def is_intact(checkpoint: Path) -> bool:
    """Whether a checkpoint was completed and its files are still what they were."""
    try:
        files = read_json(checkpoint / MARK)["files"]
        return bool(files) and all(sha256_file(checkpoint / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    return sorted((path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()), key=_step, reverse=True)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))
