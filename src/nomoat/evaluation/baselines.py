"""Baselines that need no model: the majority answer, and the answer of the nearest training example (1-nearest neighbour, TF-IDF)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, diags

from nomoat.data.examples import Example, normalise
from nomoat.scorers import score


def baselines(train: Sequence[Example], heldout: Sequence[Example]) -> list[dict[str, Any]]:
    """One record per held-out row: how the majority answer and the nearest training row's answer score on it.

    Both use only training rows of the row's family; a family without any gets nulls. Retention rows are left out: training has
    nothing to say about them.
    """
    records: list[dict[str, Any]] = []
    scored = [row for row in heldout if row.tier != "retention"]
    for family in dict.fromkeys(row.family for row in scored):
        known = sorted((row for row in train if row.family == family), key=lambda row: row.id)
        rows = [row for row in scored if row.family == family]
        majority = majority_answer(known)
        records += [_record(row, majority, nearest) for row, nearest in zip(rows, nearest_rows(known, rows), strict=True)]
    return records


def majority_answer(train: Sequence[Example]) -> str | None:
    """The most frequent completion, and of equally frequent ones the first in alphabetical order; None without rows."""
    counts = Counter(row.completion for row in train)
    return min(counts, key=lambda answer: (-counts[answer], answer), default=None)


def nearest_rows(train: Sequence[Example], rows: Sequence[Example]) -> list[Example | None]:
    """For each row the training row with the most similar prompt, by cosine of TF-IDF vectors; a tie goes to the first.

    A word's weight is 1 + log(count), times log((1 + n) / (1 + rows with the word)) + 1 (Salton and Buckley 1988, smoothed).
    """
    if not train or not rows:
        return [None] * len(rows)
    columns: dict[str, int] = {}
    known, queries = _word_counts(train, columns), _word_counts(rows, columns)
    known.resize(len(train), len(columns))
    weight = np.log((1 + len(train)) / (1 + known.getnnz(axis=0))) + 1
    similarity = _unit_vectors(queries, weight) @ _unit_vectors(known, weight).T
    best = [int(np.argmax(np.round(similarity[place].toarray()[0], 12))) for place in range(len(rows))]
    return [train[place] for place in best]


def _word_counts(rows: Sequence[Example], columns: dict[str, int]) -> Any:
    """Sparse matrix (rows, words) of word counts; new words are added to `columns`, the column of each word."""
    counters = [Counter(normalise(row.prompt).split()) for row in rows]
    cells = [(line, columns.setdefault(word, len(columns)), count) for line, words in enumerate(counters) for word, count in words.items()]
    lines, places, counts = zip(*cells, strict=True)
    return csr_matrix((counts, (lines, places)), shape=(len(rows), len(columns)), dtype=float)


def _unit_vectors(counts: Any, weight: Any) -> Any:
    """Word counts as TF-IDF vectors of length one."""
    vectors = counts.copy()
    vectors.data = 1 + np.log(vectors.data)
    vectors = vectors @ diags(weight)
    lengths = np.sqrt(np.asarray(vectors.multiply(vectors).sum(axis=1)).ravel())
    return diags(1 / lengths) @ vectors


def _record(row: Example, majority: str | None, nearest: Example | None) -> dict[str, Any]:
    return {
        "id": row.id,
        "tier": row.tier,
        "family": row.family,
        "group": row.group,
        "majority": None if majority is None else score(majority, row).value,
        "nearest_row": None if nearest is None else score(nearest.completion, row).value,
        "nearest_id": None if nearest is None else nearest.id,
        "majority_answer": majority,
    }
