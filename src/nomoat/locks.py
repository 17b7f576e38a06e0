"""One process at a time in a run directory."""

from __future__ import annotations

import datetime
import errno
import fcntl
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nomoat.errors import NomoatError


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
