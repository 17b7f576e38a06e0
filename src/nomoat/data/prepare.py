"""From a recipe to rows ready for the model: loaded, divided, audited for leaks, rendered, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nomoat.config.schema import Data, Recipe, is_data_file
from nomoat.data.chat_template import ChatTemplate, TokenizedExample
from nomoat.data.contamination import ContaminationReport, audit, describe_leaks, find_leaks
from nomoat.data.examples import Example, Splits, build_examples, load_shipped_set, load_user_examples
from nomoat.data.readers import Records, map_columns, read_hub_table
from nomoat.data.split import choose_heldout, choose_training_examples, draw_examples, split_examples
from nomoat.errors import NomoatError

# MERGED published:
# Rows of a data set of the hub, or of a folder laid out like one. Only plain tables are read; a set's own code is never run.


def load_hub_set(data: Data) -> Splits:
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
    table, licence = read_hub_table(data)
    whole = _CompleteRecords(map_columns(enumerate(table, start=1), data.columns, data.where))
    rows = build_examples(place, whole, score=data.score)
    taken = {"revision": data.revision, "subset": data.subset, "split": data.split or "train"}
    origin = {**taken, "license": licence, "left_out": whole.left_out}
    return split_examples(rows, data.validation, data.heldout, name=place, origin=origin)


class _CompleteRecords:
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


@dataclass(frozen=True)
class TokenizedData:
    """The rows of a run: rendered ones for training, plain ones for scoring, and what rows.json says of them."""

    train: tuple[TokenizedExample, ...]
    validation: tuple[TokenizedExample, ...]
    validation_bytes: int
    heldout: tuple[Example, ...]
    examples: dict[str, tuple[Example, ...]]
    record: dict[str, Any]


@dataclass(frozen=True)
class RawData:
    """The recipe's rows (its fraction of the training rows), the worked examples drawn from all of them, and the audit."""

    rows: Splits
    examples: dict[str, tuple[Example, ...]]
    leaks: ContaminationReport


def load_raw_data(recipe: Recipe, root: Path) -> RawData:
    """The recipe's rows, audited. Raises NomoatError when a held-out row leaked and the recipe gives no reason to go on."""
    rows, shipped = load_splits(recipe.data, root)
    for part, found in (("train", rows.train), ("validation", rows.validation), ("heldout", rows.heldout)):
        if not found:
            raise NomoatError(f"data: {recipe.data.source} leaves no {part} rows; it needs more rows, or more groups")
    if recipe.data.drop_leaks:
        rows = _without_leaks(rows, recipe.data, shipped)
    leaks = audit(rows.train, rows.validation, rows.heldout, user_data=not shipped)
    if not leaks.clean and recipe.data.allow_leaks is None:
        raise NomoatError(_leak_message(recipe, leaks))
    # The examples come from all rows, so that runs on a fraction have the same few-shot arm.
    return RawData(replace(rows, train=choose_training_examples(rows.train, recipe.data)), draw_examples(rows.train), leaks)


def load_splits(data: Data, root: Path) -> tuple[Splits, bool]:
    """The rows, divided, and whether they are a shipped set."""
    if data.rows is None:
        return load_hub_set(data), False
    if not is_data_file(data.rows):
        idle = [name for name in ("columns", "where", "score") if getattr(data, name) is not None]
        if idle:
            raise NomoatError(f"data.{idle[0]}: {data.rows} is a shipped set, whose rows are as they are; name a file of yours by its path")
        return load_shipped_set(data.rows, root), True
    path = Path(data.rows).expanduser()
    return split_examples(load_user_examples(path, data), data.validation, data.heldout, name=path.stem), False


def _without_leaks(rows: Splits, data: Data, shipped: bool) -> Splits:
    """Held-out and validation rows that repeat earlier ones left out, and counted: what published sets need, which nobody can mend."""
    if shipped:
        raise NomoatError(f"data.drop_leaks: {data.rows} is a shipped set, whose rows are as they are")
    leaking = {leak.row_id for leak in find_leaks(rows.train, rows.validation, rows.heldout, user_data=True)}
    heldout, validation = (tuple(row for row in part if row.id not in leaking) for part in (rows.heldout, rows.validation))
    for name, left, all_of in (("held-out", heldout, rows.heldout), ("validation", validation, rows.validation)):
        if not left:
            raise NomoatError(f"data.drop_leaks: all {len(all_of)} {name} rows of {data.source} repeat training rows")
    dropped = {"leaks_left_out": len(rows.heldout) - len(heldout), "validation_leaks_left_out": len(rows.validation) - len(validation)}
    return replace(rows, heldout=heldout, validation=validation, origin={**rows.origin, **dropped})


def _leak_message(recipe: Recipe, leaks: ContaminationReport) -> str:
    return (
        f"data: {recipe.data.source} has held-out rows that repeat training rows {describe_leaks(leaks)}\n"
        "Remove them, give rows that belong together one `group`, have them left out (data.drop_leaks: true), or state why it is "
        'acceptable: data.allow_leaks: "reason"'
    )


def tokenize_data(recipe: Recipe, loaded: RawData, conversation: ChatTemplate) -> TokenizedData:
    """Render training and validation rows, drop what does not fit, choose the held-out rows."""
    rows = loaded.rows
    limit = recipe.train.max_row_tokens
    train, train_record = _tokenize_split(rows.train, conversation, limit, "training")
    validation, validation_record = _tokenize_split(rows.validation, conversation, limit, "validation")
    heldout = choose_heldout(rows.heldout, recipe.eval)
    if not any(row.tier == recipe.eval.primary for row in heldout):
        raise NomoatError(
            f"eval.primary: no held-out row has tier '{recipe.eval.primary}'; tiers here: {', '.join(sorted({r.tier for r in heldout}))}"
        )
    kept = {row.row_id for row in validation}
    record = {
        "train": train_record,
        "validation": validation_record,
        "heldout": {"available": len(rows.heldout), "scored": len(heldout), "families": _by_tier(heldout)},
        "leaks": loaded.leaks.record(),
        "decoded_sample": _decoded(train[0], conversation),
    }
    return TokenizedData(
        train,
        validation,
        sum(len(row.completion.encode()) for row in rows.validation if row.id in kept),
        heldout,
        loaded.examples,
        record,
    )


def _tokenize_split(
    rows: Sequence[Example], conversation: ChatTemplate, limit: int, what: str
) -> tuple[tuple[TokenizedExample, ...], dict[str, Any]]:
    every = [conversation.render(row) for row in rows]
    dropped = _too_long(every, limit)
    kept = tuple(row for row in every if row.length <= limit)
    if not kept:
        shortest = min(row.length for row in every)
        raise NomoatError(f"all {len(every)} {what} rows are too long: the shortest has {shortest} tokens, train.max_row_tokens is {limit}")
    ids = {row.row_id for row in kept}
    record = {
        "rows": len(kept),
        "tokens": sum(row.length for row in kept),
        "trained_tokens": sum(len(row.completion_ids) for row in kept),
        "dropped": dropped,
        "families": dict(Counter(row.family for row in rows if row.id in ids)),
    }
    return kept, record


def _too_long(rows: Sequence[TokenizedExample], limit: int) -> list[dict[str, str]]:
    """Rows that do not fit, with the reason, for rows.json."""
    return [
        {"id": row.row_id, "reason": f"{row.length} tokens, more than train.max_row_tokens {limit}"} for row in rows if row.length > limit
    ]


def _by_tier(rows: Sequence[Example]) -> dict[str, dict[str, int]]:
    tiers = dict.fromkeys(row.tier for row in rows)
    return {tier: dict(Counter(row.family for row in rows if row.tier == tier)) for tier in tiers}


def _decoded(row: TokenizedExample, conversation: ChatTemplate) -> dict[str, str]:
    """One row as the model sees it, special tokens shown, so that a wrong mask or template is seen by a reader."""
    decode = conversation.tokenizer.decode
    return {"prompt": decode(list(row.prompt_ids)), "trained": decode(list(row.completion_ids))}
