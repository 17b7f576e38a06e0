"""Rows of a data set of the hub, or of a folder laid out like one. Only plain tables are read; a set's own code is never run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nomoat.columns import Records, mapped
from nomoat.errors import NomoatError
from nomoat.rows import RowSet, checked_rows, split_rows
from nomoat.sources import Data

TABLES = ("json", "csv", "parquet", "arrow")  # the formats whose readers run nothing and unpickle nothing
CARD = "README.md"


def load_published(data: Data) -> RowSet:
    """The set that `data.hub` or `data.path` names, its columns mapped, divided by a stable hash.

    Published sets have rows with an empty question or answer that no user can mend: they are left out, and `origin` tells how
    many. NomoatError where the set cannot be had, is no plain table, or has no such subset, split or column.
    """
    if data.revision == "unpinned":
        raise NomoatError(
            f"data.revision: '{data.hub}' is unpinned; training and scoring need the 40 hex digits of one commit of it: "
            "`make pin RECIPE=...` with the recipe's file looks it up and writes it there"
        )
    place = data.source if data.hub else Path(data.source).name
    table, licence = _read(data)
    whole = _WholeRows(mapped(enumerate(table, start=1), data.columns, data.where))
    rows = checked_rows(place, whole, score=data.score)
    taken = {"revision": data.revision, "subset": data.subset, "split": data.split or "train"}
    origin = {**taken, "license": licence, "left_out": whole.left_out}
    return split_rows(rows, data.validation, data.heldout, name=place, origin=origin)


class _WholeRows:
    """Records that have a prompt and a completion; the others are counted."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self.left_out = 0

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        for line, record in self._records:
            if isinstance(record, str) or {"prompt", "completion"} <= record.keys():
                yield line, record
            else:
                self.left_out += 1


def _read(data: Data) -> tuple[Any, str | None]:
    """The split as a sequence of records, and the licence its card states."""
    from datasets import DownloadConfig, load_dataset_builder
    from huggingface_hub.errors import HfHubHTTPError

    source = data.source if data.hub else str(Path(data.source).expanduser())
    try:
        builder = load_dataset_builder(source, data.subset, revision=data.revision, download_config=DownloadConfig(max_retries=1))
        kind = type(builder).__module__.split(".")
        if kind[:2] != ["datasets", "packaged_modules"] or kind[2] not in TABLES:
            raise NomoatError(f"data: {data.source} is no plain table ({', '.join(TABLES)}); saw {kind[-1]}")
        builder.download_and_prepare()
        return builder.as_dataset(split=data.split or "train"), _licence(data)
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise NomoatError(_reason(data, error)) from None


def _reason(data: Data, error: Exception) -> str:
    said = str(error).strip().splitlines()[0][:300]
    if data.path or isinstance(error, ValueError):
        return f"data.{'hub' if data.hub else 'path'}: {data.source}: {said}"
    return (
        f"data.hub: {data.hub} at {str(data.revision)[:12]} could not be fetched ({said}). Check the name, the revision, the network and, "
        "for a gated set, your login; without a hub, give data.path a folder that holds the set"
    )


def _licence(data: Data) -> str | None:
    from huggingface_hub import DatasetCard, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        if data.hub:
            card = Path(hf_hub_download(data.hub, CARD, repo_type="dataset", revision=data.revision))
        else:
            card = Path(data.source).expanduser() / CARD
        stated = DatasetCard.load(card).data.license if card.is_file() else None
    except (EntryNotFoundError, ValueError):
        return None
    return ", ".join(stated) if isinstance(stated, list) else stated
