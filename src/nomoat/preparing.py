"""From a recipe to rows ready for the model: loaded, divided, audited for leaks, rendered, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nomoat.conversation import Conversation, Rendered
from nomoat.errors import NomoatError
from nomoat.evaluation import choose_heldout, draw_examples
from nomoat.leaks import LeakReport, audit, find_leaks, told
from nomoat.published import load_published
from nomoat.recipe import Recipe
from nomoat.recipe_file import is_file_of_rows
from nomoat.rows import Row, RowSet, load_set, load_user_rows, split_rows
from nomoat.sources import Data
from nomoat.training_rows import choose_training_rows


@dataclass(frozen=True)
class Prepared:
    """The rows of a run: rendered ones for training, plain ones for scoring, and what rows.json says of them."""

    train: tuple[Rendered, ...]
    validation: tuple[Rendered, ...]
    validation_bytes: int
    heldout: tuple[Row, ...]
    examples: dict[str, tuple[Row, ...]]
    record: dict[str, Any]


@dataclass(frozen=True)
class Loaded:
    """The recipe's rows (its fraction of the training rows), the worked examples drawn from all of them, and the audit."""

    rows: RowSet
    examples: dict[str, tuple[Row, ...]]
    leaks: LeakReport


def load_rows(recipe: Recipe, root: Path) -> Loaded:
    """The recipe's rows, audited. Raises NomoatError when a held-out row leaked and the recipe gives no reason to go on."""
    rows, shipped = load_data(recipe.data, root)
    for part, found in (("train", rows.train), ("validation", rows.validation), ("heldout", rows.heldout)):
        if not found:
            raise NomoatError(f"data: {recipe.data.source} leaves no {part} rows; it needs more rows, or more groups")
    if recipe.data.drop_leaks:
        rows = _without_leaks(rows, recipe.data, shipped)
    leaks = audit(rows.train, rows.validation, rows.heldout, user_data=not shipped)
    if not leaks.clean and recipe.data.allow_leaks is None:
        raise NomoatError(_leak_message(recipe, leaks))
    # The examples come from all rows, so that runs on a fraction have the same few-shot arm.
    return Loaded(replace(rows, train=choose_training_rows(rows.train, recipe.data)), draw_examples(rows.train), leaks)


def load_data(data: Data, root: Path) -> tuple[RowSet, bool]:
    """The rows, divided, and whether they are a shipped set."""
    if data.rows is None:
        return load_published(data), False
    if not is_file_of_rows(data.rows):
        idle = [name for name in ("columns", "where", "score") if getattr(data, name) is not None]
        if idle:
            raise NomoatError(f"data.{idle[0]}: {data.rows} is a shipped set, whose rows are as they are; name a file of yours by its path")
        return load_set(data.rows, root), True
    path = Path(data.rows).expanduser()
    return split_rows(load_user_rows(path, data), data.validation, data.heldout, name=path.stem), False


def _without_leaks(rows: RowSet, data: Data, shipped: bool) -> RowSet:
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


def _leak_message(recipe: Recipe, leaks: LeakReport) -> str:
    return (
        f"data: {recipe.data.source} has held-out rows that repeat training rows {told(leaks)}\n"
        "Remove them, give rows that belong together one `group`, have them left out (data.drop_leaks: true), or state why it is "
        'acceptable: data.allow_leaks: "reason"'
    )


def prepare(recipe: Recipe, loaded: Loaded, conversation: Conversation) -> Prepared:
    """Render training and validation rows, drop what does not fit, choose the held-out rows."""
    rows = loaded.rows
    limit = recipe.train.max_row_tokens
    train, train_record = _render(rows.train, conversation, limit, "training")
    validation, validation_record = _render(rows.validation, conversation, limit, "validation")
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
    return Prepared(
        train,
        validation,
        sum(len(row.completion.encode()) for row in rows.validation if row.id in kept),
        heldout,
        loaded.examples,
        record,
    )


def _render(rows: Sequence[Row], conversation: Conversation, limit: int, what: str) -> tuple[tuple[Rendered, ...], dict[str, Any]]:
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


def _too_long(rows: Sequence[Rendered], limit: int) -> list[dict[str, str]]:
    """Rows that do not fit, with the reason, for rows.json."""
    return [
        {"id": row.row_id, "reason": f"{row.length} tokens, more than train.max_row_tokens {limit}"} for row in rows if row.length > limit
    ]


def _by_tier(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    tiers = dict.fromkeys(row.tier for row in rows)
    return {tier: dict(Counter(row.family for row in rows if row.tier == tier)) for tier in tiers}


def _decoded(row: Rendered, conversation: Conversation) -> dict[str, str]:
    """One row as the model sees it, special tokens shown, so that a wrong mask or template is seen by a reader."""
    decode = conversation.tokenizer.decode
    return {"prompt": decode(list(row.prompt_ids)), "trained": decode(list(row.completion_ids))}
