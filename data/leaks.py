"""Does the held-out data stand in the training data? Exit 1 and examples if it does.

    python data/leaks.py desk                        # a shipped set, by name
    python data/leaks.py recipes/mine.yaml           # a recipe's rows, from the hub or not
    python data/leaks.py train.jsonl heldout.jsonl   # your own files (.jsonl, .csv or .parquet)
    python data/leaks.py recipes/mine.yaml desk      # any training rows against any held-out ones

Three questions: is a held-out prompt equal to a training prompt (case, punctuation and spaces aside); is it equal once
the values in it are masked (shipped sets, whose rows say what was filled in); do the two share 13 words in a row.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from nomoat.cli import run_script
from nomoat.config.load import load_recipe
from nomoat.data.contamination import ContaminationReport, audit
from nomoat.data.examples import Example, load_shipped_set, load_user_examples
from nomoat.data.prepare import load_splits
from nomoat.errors import NomoatError, RunFailed

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = {"exact": "same prompt", "masked": "same prompt, values masked", "ngram": "13 words in a row"}
FILES = (".jsonl", ".csv", ".parquet")
SHOWN = 120  # characters of a shared text


@dataclass(frozen=True)
class Source:
    """The rows that an argument names. A file's rows are all of them training rows and all of them held-out ones."""

    name: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    heldout: tuple[Example, ...]
    shipped: bool  # its rows say what was filled into their phrasing


def main() -> None:
    """Load, audit, print; a leak is a failure."""
    sources = [load_source(name) for name in parse_arguments().data]
    train, heldout = sources[0], sources[-1]
    masked = train.shipped and heldout.shipped
    report = audit(train.train, train.validation, heldout.heldout, user_data=not masked)
    seen = f"{len(train.train):,} training and {len(train.validation):,} validation rows"
    print(f"{len(heldout.heldout):,} held-out rows of {heldout.name} against {seen} of {train.name}")
    print_counts(report, masked=masked)
    if not report.clean:
        raise RunFailed("held-out rows stand in the training data:\n" + "\n".join(examples(report)))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "data", nargs="+", metavar="TRAIN [HELDOUT]", help="a shipped set, a recipe or a file of rows; one for both, or two"
    )
    arguments = parser.parse_args()
    if len(arguments.data) > 2:
        raise NomoatError(f"give one set or two (training rows first); saw {len(arguments.data)} names")
    if len(arguments.data) == 1 and Path(arguments.data[0]).suffix in FILES:
        raise NomoatError(f"{arguments.data[0]} is one file: give the training rows and the held-out rows, in this order")
    return arguments


def load_source(name: str) -> Source:
    """A recipe's rows as it divides them, a file's, or a shipped set's."""
    if Path(name).suffix in (".yaml", ".yml"):
        rows, shipped = load_splits(load_recipe(Path(name)).data, ROOT)
        return Source(rows.name, rows.train, rows.validation, rows.heldout, shipped)
    if Path(name).suffix in FILES:
        own = tuple(load_user_examples(Path(name)))
        return Source(name, own, (), own, shipped=False)
    rows = load_shipped_set(name, ROOT)
    return Source(rows.name, rows.train, rows.validation, rows.heldout, shipped=True)


def print_counts(report: ContaminationReport, *, masked: bool) -> None:
    """One line a question; rows of one's own have no masked values to compare."""
    for kind, question in QUESTIONS.items():
        if masked or kind != "masked":
            print(f"  {question:<28}{getattr(report, kind):>6,}")


def examples(report: ContaminationReport) -> list[str]:
    """At most ten leaks, each with the two rows and what they share."""
    return [f"  {QUESTIONS[leak.kind]}: {leak.row_id} repeats {leak.seen_id}: {leak.text[:SHOWN]}" for leak in report.examples]


if __name__ == "__main__":
    run_script(main)
