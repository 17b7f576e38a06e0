"""A run directory from its first moment to its report: found or made, locked, resumed, never overwritten.

    with open_run(Path("runs"), "smoke", identity=recipe_and_hashes, environment=environment) as run:
        ...                        # run.path is ours alone until the block ends
        run.record(adapter_initial_sha256=digest)

`runs/<name>-<8 hex digits of the identity's hash>[-n]/`. A run is finished when its report.json is there.
"""

from __future__ import annotations

import datetime
import errno
import fcntl
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from nomoat.errors import NomoatError
from nomoat.io import read_json, sha256_file, sha256_of, write_json

# MERGED locks:
# One process at a time in a run directory.


@dataclass(frozen=True)
class Lock:
    """A lock file that the kernel guards: it is free as soon as its process is gone, killed or not, and no id is ever mistaken.

    Its content (host, process id, start) is there to be named to others, and to keep a second machine out where the folder is
    shared over a network and the kernel's lock may not reach.
    """

    path: Path
    handle: int

    @classmethod
    def take(cls, run_dir: Path) -> Lock:
        """Lock `run_dir` without waiting. Raises NomoatError naming the holder where there is one."""
        path = run_dir / "run.lock"
        while True:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                _lock_or_refuse(handle, path)
                if _is_still(path, handle):
                    _write_holder(handle)
                    return cls(path, handle)
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)  # its last holder removed the file between our opening and our locking it: a new one is needed

    def release(self) -> None:
        """Remove the file, then give up the lock on it: a waiting process sees that the file is gone and makes its own."""
        if _is_still(self.path, self.handle):
            self.path.unlink()
        os.close(self.handle)


def _lock_or_refuse(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise NomoatError(_in_use(path.parent, _holder(handle))) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        raise NomoatError(f"{path.parent} is on a file system without locks: put runs on a local disk") from error
    holder = _holder(handle)
    if holder.get("host") not in (None, socket.gethostname()):
        advice = f"if that process is gone, remove {path} and run the same command again"
        raise NomoatError(f"{_in_use(path.parent, holder)}; {advice}")


def _in_use(run_dir: Path, holder: dict[str, Any]) -> str:
    who = f"process {holder['pid']} on {holder['host']}, since {holder['since']}" if holder else "a process that has just started"
    return f"{run_dir} is in use by {who}: wait for it, or stop it"


def _is_still(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _write_holder(handle: int) -> None:
    since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since}).encode(), 0)


def _holder(handle: int) -> dict[str, Any]:
    try:
        holder = json.loads(os.pread(handle, 4096, 0))
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) and {"host", "pid", "since"} <= holder.keys() else {}


MARK = "complete.json"
MUST_AGREE = ("packages", "python", "device", "threads", "dtype")  # where these differ, an adapter's bits may
SECRET_NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|API_?KEY|CREDENTIAL", re.IGNORECASE)


@dataclass(frozen=True)
class RunDirectory:
    """A run directory that this process holds alone until `close`."""

    path: Path
    resumed: bool
    note: str  # why it is resumed, or why a new one was begun; empty for a plain first run
    lock: Lock

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

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_run(root: Path, name: str, *, identity: Mapping[str, Any], environment: Mapping[str, Any]) -> RunDirectory:
    """The unfinished run of this identity if its environment agrees, else a new directory beside the others.

    `identity` is what makes two runs the same one (recipe, data and base hashes); `environment` becomes environment.json.
    Raises NomoatError where a live process holds the run.
    """
    digest = sha256_of(dict(identity))[:8]
    notes: list[str] = []
    number = 1
    while True:
        path = root / (f"{name}-{digest}" if number == 1 else f"{name}-{digest}-{number}")
        run = _take(path, environment, notes)
        if run is not None:
            return run
        number += 1


def plain_name(text: str) -> str:
    """`text` as part of a directory's name: letters, digits, dots, dashes and underscores, at most 40 of them."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:40]


def lock_run(path: Path) -> RunDirectory:
    """Hold an existing run directory, to score it again, say. Raises NomoatError where there is none or it is in use."""
    if not (path / "environment.json").exists():
        raise NomoatError(
            f"{path} is not a run directory (it has no environment.json): name one of those that `make train` made, under runs/"
        )
    return RunDirectory(path, resumed=True, note="", lock=Lock.take(path))


def is_finished(path: Path) -> bool:
    """Whether the run has its report."""
    return (path / "report.json").exists()


def _take(path: Path, environment: Mapping[str, Any], notes: list[str]) -> RunDirectory | None:
    """Resume or begin the run at `path`, or None, with a note why, where it has to stay as it is."""
    if is_finished(path):
        return None
    path.mkdir(parents=True, exist_ok=True)
    lock = Lock.take(path)
    try:
        run = None if is_finished(path) else _resume_or_begin(path, environment, notes, lock)  # it may just have finished
    except BaseException:
        lock.release()
        raise
    if run is None:
        lock.release()
    return run


def _resume_or_begin(path: Path, environment: Mapping[str, Any], notes: list[str], lock: Lock) -> RunDirectory | None:
    facts = path / "environment.json"
    if not facts.exists():
        write_json(facts, {"created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), **environment})
        return RunDirectory(path, resumed=False, note="; ".join(notes), lock=lock)
    differences = _differences(read_json(facts), environment)
    if differences:
        notes.append(f"{path.name} is unfinished and cannot be resumed exactly, so it is left as it is: {'; '.join(differences)}")
        return None
    return RunDirectory(path, resumed=True, note="; ".join([*notes, f"resuming {path.name}"]), lock=lock)


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What a resumed run would not share with its first part, in words."""
    stated = [key for key in MUST_AGREE if key in now]
    before, after = _flat(then, stated), _flat(now, stated)
    keys = sorted(before.keys() | after.keys())
    return [f"{key} was {before.get(key)}, is {after.get(key)}" for key in keys if before.get(key) != after.get(key)]


def _flat(environment: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """One entry for each fact, nested ones too. A machine's exact memory size may change with a restart, so it is left out."""
    flat: dict[str, Any] = {}
    for key in keys:
        value = environment.get(key)
        flat |= {f"{key}.{inner}": what for inner, what in value.items()} if isinstance(value, Mapping) else {key: value}
    flat.pop("device.memory_bytes", None)
    return flat


def complete_checkpoint(path: Path, *, keep: int = 2) -> None:
    """Declare `checkpoints/checkpoint-<step>` whole: its hashes are written last, then all but `keep` complete ones go."""
    write_json(path / MARK, {"files": {str(file.relative_to(path)): sha256_file(file) for file in _files(path) if file.name != MARK}})
    older = [other for other in _checkpoints(path.parent) if _step(other) <= _step(path)]
    kept = [other for other in older if (other / MARK).exists()][:keep]
    for other in older:
        if other not in kept:
            (other / MARK).unlink(missing_ok=True)  # first, so that what a kill leaves of it is not taken for whole
            shutil.rmtree(other)


def latest_complete(checkpoints: Path) -> Path | None:
    """The newest checkpoint whose every file has the hash that was written down; torn ones are passed over."""
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


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def forbidden_traces(run_dir: Path, needles: Iterable[str] | None = None) -> list[str]:
    """Every file of a run that holds a private string, or bears it in its name, as "file: string"; see `private_strings`."""
    wanted = list(needles) if needles is not None else private_strings()
    found = []
    for file in _files(run_dir):
        content = file.read_bytes()
        name = str(file.relative_to(run_dir))
        found += [f"{name}: {needle}" for needle in wanted if needle.encode() in content or needle in name]
    return found


def private_strings(environment: Mapping[str, str] = os.environ) -> list[str]:
    """What no file of a run may hold: the paths of home, caches, this folder and the temporary one, and secrets of the environment."""
    paths = [str(Path.home()), str(Path.cwd()), tempfile.gettempdir()]
    paths += [value for key, value in environment.items() if key.endswith(("_HOME", "_CACHE")) and value.startswith("/")]
    secrets = [value for key, value in environment.items() if SECRET_NAMES.search(key) and len(value) >= 8]
    return sorted({text for text in paths + secrets if len(text) > 3})
