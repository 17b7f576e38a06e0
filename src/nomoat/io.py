"""Files that are whole or absent: atomic writes, hashes, one canonical form of JSON, the cache folder, and files of a hub repository."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from nomoat.errors import NomoatError, first_line

Model = TypeVar("Model", bound=BaseModel)
SURROGATE = re.compile("[\ud800-\udfff]")


class Record(BaseModel):
    """A frozen part of a file that a run writes: an unknown key, NaN or infinity is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def validated(model: type[Model], value: Any, where: str) -> Model:
    """`value`, or the JSON in bytes, as `model`. Raises NomoatError, which names the file and the field, for a wrong shape."""
    try:
        return model.model_validate_json(value) if isinstance(value, bytes) else model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        seen = f"{first['msg']}; saw {repr(first['input'])[:60]}"
        raise NomoatError(f"{where}: {place}: {seen}; it was edited, or written by another version of nomoat") from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside `path`, fsync, rename: a reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8") if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private to the owner
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinity are refused."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, records: Iterable[Any]) -> None:
    """Write one canonical JSON record a line, atomically."""
    write_atomically(path, "".join(escape_surrogates(canonical_json(record)) + "\n" for record in records))


def read_json(path: Path) -> Any:
    """Read one JSON value."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_jsonl(path: Path) -> Iterator[Any]:
    """Yield the JSON value of each line; a torn last line (a killed writer) is left out."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n") and line.strip():
                yield json.loads(line)


def escape_surrogates(text: str) -> str:
    """JSON text with lone surrogates escaped: UTF-8 cannot encode them."""
    return SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def canonical_json(value: Any) -> str:
    """One line, sorted keys, no spaces: the same value always gives the same bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_of(value: Any) -> str:
    """Hex digest of a JSON value's canonical form."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """Where downloads and conversions are kept: $NOMOAT_CACHE, else the user's cache folder."""
    stated = os.environ.get("NOMOAT_CACHE")
    if stated:
        return Path(stated).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "nomoat"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nomoat"


def fetch_from_hub(what: str, repository: str, revision: str, patterns: Sequence[str], *, otherwise: str = "") -> Path:
    """The folder with the repository's files of these names; NomoatError, which begins with `what`, where it cannot be fetched."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise NomoatError(
            f"{what} at {revision[:12]} could not be fetched ({first_line(error)}). Check the name, the revision, the network and, for a "
            f"gated model, your login{'; ' if otherwise else ''}{otherwise}"
        ) from None
