"""From a recipe to data ready for the model: loaded, divided, checked for contamination, tokenised and counted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nomoat.config.schema import Data, Recipe, is_data_file
from nomoat.data.chat_template import ChatTemplate, TokenizedExample
from nomoat.data.contamination import ContaminationReport, audit, describe_leaks, find_leaks
from nomoat.data.examples import Example, Splits, build_examples, load_shipped_set, load_user_examples
from nomoat.data.readers import Problem, map_columns, read_hub_table
from nomoat.data.split import choose_heldout, choose_training_examples, draw_examples, split_examples
from nomoat.errors import NomoatError

Tokenized = tuple[TokenizedExample, ...]


@dataclass(frozen=True)
class RawData:
    """The recipe's rows (of the training rows its fraction), the few-shot examples drawn from all of them, and the contamination check."""

    rows: Splits
    examples: dict[str, tuple[Example, ...]]
    leaks: ContaminationReport


@dataclass(frozen=True)
class TokenizedData:
    """A run's data: tokenised rows for training, plain ones for scoring, few-shot examples, and `record` for rows.json."""

    train: Tokenized
    validation: Tokenized
    validation_bytes: int  # UTF-8, of the completions
    heldout: tuple[Example, ...]
    examples: dict[str, tuple[Example, ...]]
    record: dict[str, Any]


def load_raw_data(recipe: Recipe, root: Path) -> RawData:
    """The recipe's rows, checked for contamination; `root` is the repository, which holds the shipped sets.

    Raises NomoatError for malformed or missing rows, and for contamination unless the recipe states a reason to accept it.
    """
    data = recipe.data
    rows, shipped = load_splits(data, root)
    for part in ("train", "validation", "heldout"):
        if not getattr(rows, part):
            raise NomoatError(f"data: {data.source} leaves no {part} rows; it needs more rows, or more groups")
    if data.drop_leaks:
        rows = _without_leaks(rows, data, shipped)
    leaks = audit(rows.train, rows.validation, rows.heldout, user_data=not shipped)
    if not leaks.clean and data.allow_leaks is None:
        raise NomoatError(
            f"data: contamination: {data.source} has held-out rows that repeat training rows {describe_leaks(leaks)}\n"
            "Remove them, give rows that belong together one `group`, leave them out with data.drop_leaks: true, or state why they are "
            'acceptable: data.allow_leaks: "reason"'
        )
    # The examples come from all rows, so that runs on a fraction have the same few-shot arm.
    return RawData(replace(rows, train=choose_training_examples(rows.train, data)), draw_examples(rows.train), leaks)


def load_splits(data: Data, root: Path) -> tuple[Splits, bool]:
    """The rows, divided, and whether they are a shipped set."""
    if data.rows is None:
        return load_hub_set(data), False
    if is_data_file(data.rows):
        path = Path(data.rows)
        return split_examples(load_user_examples(path, data), data.validation, data.heldout, name=path.stem), False
    useless = data.stated("columns", "where", "score")
    if useless:
        raise NomoatError(f"data.{useless[0]}: {data.rows} is a shipped set, whose rows are complete; give the path of a file of yours")
    return load_shipped_set(data.rows, root), True


def load_hub_set(data: Data) -> Splits:
    """The set that `data.hub` or `data.path` names, its columns mapped, divided by a stable hash.

    Rows with an empty prompt or completion are left out, and `origin` counts them. Raises NomoatError if the set cannot be fetched, is
    not a plain table, or has no such subset, split or column.
    """
    if data.revision == "unpinned":
        raise NomoatError(
            f"data.revision: '{data.hub}' is unpinned; training and scoring need the 40 hex digits of one commit of it: "
            "`make pin RECIPE=...` with the recipe's file looks it up and writes it there"
        )
    place = data.hub or Path(str(data.path)).name
    table, licence = read_hub_table(data)
    records = list(map_columns(enumerate(table, start=1), data.columns, data.where))
    whole = [(line, record) for line, record in records if isinstance(record, Problem) or {"prompt", "completion"} <= record.keys()]
    rows = build_examples(place, whole, score=data.score)
    left_out = len(records) - len(whole)
    source = {"revision": data.revision, "subset": data.subset, "split": data.split or "train"}
    origin = {**source, "license": licence, "left_out": left_out}
    return split_examples(rows, data.validation, data.heldout, name=place, origin=origin)


def _without_leaks(rows: Splits, data: Data, shipped: bool) -> Splits:
    """The splits without held-out and validation rows that repeat earlier ones; `origin` counts them."""
    if shipped:
        raise NomoatError(f"data.drop_leaks: {data.rows} is a shipped set, which is used as it is")
    leaking = {leak.row_id for leak in find_leaks(rows.train, rows.validation, rows.heldout, user_data=True)}
    heldout, validation = (tuple(row for row in part if row.id not in leaking) for part in (rows.heldout, rows.validation))
    for name, kept, before in (("held-out", heldout, rows.heldout), ("validation", validation, rows.validation)):
        if not kept:
            raise NomoatError(f"data.drop_leaks: all {len(before)} {name} rows of {data.source} repeat training rows")
    dropped = {"leaks_left_out": len(rows.heldout) - len(heldout), "validation_leaks_left_out": len(rows.validation) - len(validation)}
    return replace(rows, heldout=heldout, validation=validation, origin={**rows.origin, **dropped})


def tokenize_data(recipe: Recipe, loaded: RawData, conversation: ChatTemplate) -> TokenizedData:
    """Tokenise training and validation rows, drop those that are too long, choose the held-out rows.

    Raises NomoatError if a split has no row that fits, or if no held-out row has the primary tier.
    """
    rows = loaded.rows
    limit = recipe.train.max_row_tokens
    train, train_record = _tokenize_split(rows.train, conversation, limit, "training")
    validation, validation_record = _tokenize_split(rows.validation, conversation, limit, "validation")
    heldout = choose_heldout(rows.heldout, recipe.eval)
    families: dict[str, Counter[str]] = defaultdict(Counter)  # by tier
    for row in heldout:
        families[row.tier][row.family] += 1
    if recipe.eval.primary not in families:
        raise NomoatError(f"eval.primary: no held-out row has tier '{recipe.eval.primary}'; tiers here: {', '.join(sorted(families))}")
    kept = {row.row_id for row in validation}
    decode = conversation.tokenizer.decode
    record = {
        "train": train_record,
        "validation": validation_record,
        "heldout": {"available": len(rows.heldout), "scored": len(heldout), "families": families},
        "leaks": asdict(loaded.leaks),
        # One row as the model sees it, special tokens included, so that a reader notices a wrong mask or template.
        "decoded_sample": {"prompt": decode(list(train[0].prompt_ids)), "trained": decode(list(train[0].completion_ids))},
    }
    validation_bytes = sum(len(row.completion.encode()) for row in rows.validation if row.id in kept)
    return TokenizedData(train, validation, validation_bytes=validation_bytes, heldout=heldout, examples=loaded.examples, record=record)


def _tokenize_split(rows: Sequence[Example], conversation: ChatTemplate, limit: int, what: str) -> tuple[Tokenized, dict[str, Any]]:
    """The rows of at most `limit` tokens, and what rows.json says of the split."""
    tokenized = [conversation.render(row) for row in rows]
    kept = tuple(row for row in tokenized if row.length <= limit)
    if not kept:
        shortest = min(row.length for row in tokenized)
        raise NomoatError(f"all {len(rows)} {what} rows are too long: the shortest has {shortest} tokens, train.max_row_tokens is {limit}")
    reason = f"tokens, more than train.max_row_tokens {limit}"
    record = {
        "rows": len(kept),
        "tokens": sum(row.length for row in kept),
        "trained_tokens": sum(len(row.completion_ids) for row in kept),
        "dropped": [{"id": row.row_id, "reason": f"{row.length} {reason}"} for row in tokenized if row.length > limit],
        "families": dict(Counter(row.family for row, own in zip(rows, tokenized, strict=True) if own.length <= limit)),
    }
    return kept, record
