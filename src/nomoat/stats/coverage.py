"""Coverage of the 95 % intervals, by simulation over a grid of rows, true rate, intra-group correlation and seeds.

Scores are beta-binomial: each group draws its own rate, so that its rows correlate. A cell is one point of the grid; its coverage is
the share of trials whose interval contains the true value, among those that give one ("too few groups" gives none).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from typing import Any

import numpy as np

from nomoat.stats.intervals import Interval, design_of, score_interval, seeds_estimate, split_families, standard_error_of
from nomoat.stats.paired import effective_counts, tango

ROWS = (20, 50, 100, 200, 400)
RATES = (0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99)
CORRELATIONS = (0.0, 0.1, 0.2, 0.4)
SEEDS = (1, 3, 5)
GROUP = 3  # rows per group, as most phrasings of the shipped set have
BEFORE = 0.5  # the base's rate as a share of the adapter's, in a paired difference
SEED_SPREAD = 0.02  # standard deviation of an adapter's true rate from seed to seed
LOWEST = 0.93  # coverage
Intervals = list[Interval | None]


@dataclass(frozen=True)
class Cell:
    """One point of the grid. `coverage` is None where no trial gave an interval."""

    kind: str  # "rate" or "difference"
    rows: int
    rate: float
    correlation: float
    seeds: int
    coverage: float | None
    given: float  # share of the trials that gave an interval


def grid(
    trials: int, *, rows: Sequence[int] = ROWS, seeds: Sequence[int] = SEEDS, rates: Sequence[float] = RATES, processes: int = 1
) -> Iterator[Cell]:
    """Every cell in order. Each has its own fixed draws, so the number of parallel `processes` changes nothing."""
    points: list[tuple[str, int, float, float, int]] = []
    for n, rate, correlation in product(rows, rates, CORRELATIONS):
        points += [("rate", n, rate, correlation, 1), *(("difference", n, rate, correlation, count) for count in seeds)]
    columns = [*zip(*points, strict=True), (trials,) * len(points)]
    if processes == 1:
        yield from map(_simulate, *columns)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_simulate, *columns)


def _simulate(kind: str, n: int, rate: float, correlation: float, seeds: int, trials: int) -> Cell:
    draw = np.random.default_rng([n, round(1000 * rate), round(10 * correlation), seeds, kind == "rate"])
    groups = [at // GROUP for at in range(n)]
    if kind == "rate":
        truth, intervals = rate, _rate_intervals(draw, groups, rate, correlation, trials)
    else:
        truth, intervals = rate * (1 - BEFORE), _difference_intervals(draw, groups, rate, correlation, seeds, trials)
    known = [interval for interval in intervals if interval is not None]
    covered = sum(low <= truth <= high for low, high in known)
    return Cell(kind, n, rate, correlation, seeds, covered / len(known) if known else None, len(known) / trials)


def _rate_intervals(draw: Any, groups: list[int], rate: float, correlation: float, trials: int) -> Intervals:
    """The interval that a report gives for each simulated list of 0/1 scores of one family."""
    scores = ((draw.random(len(groups)) < _row_rates(draw, groups, rate, correlation)).astype(int).tolist() for _ in range(trials))
    return [score_interval(trial, groups) for trial in scores]


def _difference_intervals(draw: Any, groups: list[int], rate: float, correlation: float, seeds: int, trials: int) -> Intervals:
    """Intervals of the adapter's rate minus the base's. Both arms and all seeds answer the same rows and share their difficulty."""
    spread = SEED_SPREAD * min(rate, 1 - rate) / 0.5 if seeds > 1 else 0.0
    runs: list[tuple[list[int], list[int]]] = []
    for _ in range(trials):
        rates, luck = _row_rates(draw, groups, rate, correlation), draw.random(len(groups))
        base = (luck < BEFORE * rates).astype(int)
        for _ in range(seeds):
            moved = np.clip(rates + draw.normal(0, spread), 0, 1) if spread else rates
            fresh = np.where(draw.random(len(groups)) < 0.5, luck, draw.random(len(groups)))  # half of the rows share the base's luck
            runs.append(((fresh < moved).astype(int).tolist(), base.tolist()))
    intervals = paired_intervals(runs, groups)
    if seeds == 1:
        return intervals
    means = [float(np.mean(a) - np.mean(b)) for a, b in runs]
    pooled: Intervals = []
    for at in range(0, len(runs), seeds):
        errors = [standard_error_of(interval) for interval in intervals[at : at + seeds] if interval is not None]
        pooled.append(seeds_estimate(means[at : at + seeds], float(np.mean(errors))).interval if len(errors) == seeds else None)
    return pooled


def paired_intervals(runs: Sequence[tuple[list[int], list[int]]], groups: list[int]) -> Intervals:
    """The interval that `paired_difference` gives for each pair of arms over one family, with one root search for all."""
    cases = []
    for a, b in runs:
        parts = split_families([x - y for x, y in zip(a, b, strict=True)], ["f"] * len(groups), groups)
        design = design_of(parts)
        cases.append((*(float(count[0]) for count in effective_counts(parts, design)), design.critical()) if design.enough else None)
    known = [case for case in cases if case is not None]
    limits = iter(np.stack(tango(*np.array(known).T), axis=1).tolist() if known else [])
    return [None if case is None else tuple(next(limits)) for case in cases]


def _row_rates(draw: Any, groups: list[int], rate: float, correlation: float) -> Any:
    """Each row's true rate, which is that of its group."""
    if correlation == 0:
        return np.full(len(groups), rate)
    spread = (1 - correlation) / correlation
    return draw.beta(rate * spread, (1 - rate) * spread, groups[-1] + 1)[groups]


def table(cells: Sequence[Cell]) -> str:
    """Markdown: for each kind, number of seeds and rows, the lowest coverage at each correlation with its rate, and the highest."""
    lines = [
        f"| interval of | seeds | rows | {' | '.join(f'correlation {value:g}' for value in CORRELATIONS)} |",
        "|---|---|---|" + "---|" * 4,
    ]
    for kind, seeds, n in dict.fromkeys((cell.kind, cell.seeds, cell.rows) for cell in cells):
        line = [cell for cell in cells if (cell.kind, cell.seeds, cell.rows) == (kind, seeds, n)]
        lines.append(f"| {kind} | {seeds} | {n} | {' | '.join(_range_at(line, correlation) for correlation in CORRELATIONS)} |")
    return "\n".join(lines)


def _range_at(cells: Sequence[Cell], correlation: float) -> str:
    known = [(cell.coverage, cell.rate) for cell in cells if cell.correlation == correlation and cell.coverage is not None]
    if not known:
        return "too few groups"
    lowest, rate = min(known)
    return f"{100 * lowest:.1f} (rate {rate:g}) to {100 * max(coverage for coverage, _ in known):.1f}"


def failures(cells: Sequence[Cell], trials: int) -> list[Cell]:
    """Cells with less than 93 % coverage, allowing two standard errors of the simulation at that many trials."""
    known = [(cell, cell.coverage, max(1.0, cell.given * trials)) for cell in cells if cell.coverage is not None]
    return [cell for cell, coverage, n in known if coverage < LOWEST - 2 * float(np.sqrt(LOWEST * (1 - LOWEST) / n))]
