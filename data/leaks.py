"""Does the held-out data stand in the training data? Exit 1 and examples if it does.

    python data/leaks.py desk                        # a shipped set, by name
    python data/leaks.py train.jsonl heldout.jsonl   # your own files (.jsonl, .csv or .parquet)

Three questions: is a held-out prompt equal to a training prompt (case, punctuation and spaces aside); is it equal once
the values in it are masked (shipped sets, whose rows say what was filled in); do the two share 13 words in a row.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nomoat.errors import NomoatError, RunFailed, run_script
from nomoat.leaks import LeakReport, audit
from nomoat.rows import load_set, load_user_rows

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = {"exact": "same prompt", "masked": "same prompt, values masked", "ngram": "13 words in a row"}
SHOWN = 120  # characters of a shared text


def main() -> None:
    """Load, audit, print; a leak is a failure."""
    arguments = parse_arguments()
    if len(arguments.data) == 1:
        rows = load_set(arguments.data[0], ROOT)
        report = audit(rows.train, rows.validation, rows.heldout, user_data=False)
        seen = f"{len(rows.train):,} training and {len(rows.validation):,} validation rows"
        counts = f"{rows.name}: {len(rows.heldout):,} held-out rows against {seen}"
    else:
        train, heldout = (load_user_rows(Path(path)) for path in arguments.data)
        report = audit(train, (), heldout, user_data=True)
        counts = f"{len(heldout):,} held-out rows against {len(train):,} training rows"
    print(counts)
    print_counts(report, own_files=len(arguments.data) == 2)
    if not report.clean:
        raise RunFailed("held-out rows stand in the training data:\n" + "\n".join(examples(report)))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", metavar="SET | TRAIN HELDOUT", help="the name of a shipped set, or two files of rows")
    arguments = parser.parse_args()
    if len(arguments.data) > 2:
        raise NomoatError(f"give one set or two files (training rows first); saw {len(arguments.data)} names")
    if len(arguments.data) == 1 and Path(arguments.data[0]).is_file():
        raise NomoatError(f"{arguments.data[0]} is one file: give the training rows and the held-out rows, in this order")
    return arguments


def print_counts(report: LeakReport, *, own_files: bool) -> None:
    """One line a question; a file of one's own has no masked values to compare."""
    for kind, question in QUESTIONS.items():
        if not (own_files and kind == "masked"):
            print(f"  {question:<28}{getattr(report, kind):>6,}")


def examples(report: LeakReport) -> list[str]:
    """At most ten leaks, each with the two rows and what they share."""
    return [f"  {QUESTIONS[leak.kind]}: {leak.row_id} repeats {leak.seen_id}: {leak.text[:SHOWN]}" for leak in report.examples]


if __name__ == "__main__":
    run_script(main)
