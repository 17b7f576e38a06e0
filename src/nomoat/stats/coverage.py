"""How often the intervals hold what they promise, by simulation over a grid: rows, true rate, likeness of rows in a group, seeds.

Scores are beta-binomial: each group draws its own rate, so that rows of one group correlate. A cell is one point of the grid; its
coverage is the share of trials whose 95 % interval holds the true value, among those that give one ("too few groups" gives none).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from typing import Any

import numpy as np

from nomoat.stats.intervals import Interval, design_of, rate_interval, seeds_estimate, split_families
from nomoat.stats.paired import NORMAL_95, effective_counts, tango

ROWS = (20, 50, 100, 200, 400)
RATES = (0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99)
CORRELATIONS = (0.0, 0.1, 0.2, 0.4)
SEEDS = (1, 3, 5)
GROUP = 3  # rows a group, as most phrasings of the shipped set have
BEFORE = 0.5  # the base's rate as a share of the adapter's, in a paired difference
SEED_SPREAD = 0.02  # standard deviation of an adapter's true rate from seed to seed
LOWEST = 0.93
CellResult = list[Interval | None]


@dataclass(frozen=True)
class Cell:
    """One point of the grid. `coverage` is None where no trial gave an interval."""

    what: str  # "rate" or "difference"
    rows: int
    rate: float
    correlation: float
    seeds: int
    coverage: float | None
    given: float  # share of the trials that gave an interval


def grid(
    trials: int, *, rows: Sequence[int] = ROWS, seeds: Sequence[int] = SEEDS, rates: Sequence[float] = RATES, processes: int = 1
) -> Iterator[Cell]:
    """Every cell in order, each with draws of its own that are always the same, in that many processes at a time."""
    cells: list[tuple[str, int, float, float, int, int]] = []
    for n, rate, correlation in product(rows, rates, CORRELATIONS):
        cells.append(("rate", n, rate, correlation, 1, trials))
        cells += [("difference", n, rate, correlation, count, trials) for count in seeds]
    if processes == 1:
        yield from map(_cell_of, cells)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_cell_of, cells)


def _cell_of(cell: tuple[str, int, float, float, int, int]) -> Cell:
    return _cell(*cell)


def _cell(what: str, n: int, rate: float, correlation: float, seeds: int, trials: int) -> Cell:
    draw = np.random.default_rng([n, round(1000 * rate), round(10 * correlation), seeds, what == "rate"])
    groups = [at // GROUP for at in range(n)]
    truth, intervals = (_rates if what == "rate" else _differences)(draw, groups, rate, correlation, seeds, trials)
    found = [interval for interval in intervals if interval is not None]
    held = sum(low <= truth <= high for low, high in found)
    return Cell(what, n, rate, correlation, seeds, held / len(found) if found else None, len(found) / trials)


def _rates(draw: Any, groups: list[int], rate: float, correlation: float, _seeds: int, trials: int) -> tuple[float, CellResult]:
    answers = ((draw.random(len(groups)) < _own(draw, groups, rate, correlation)).astype(int).tolist() for _ in range(trials))
    return rate, [rate_interval(scores, groups) for scores in answers]


def _differences(draw: Any, groups: list[int], rate: float, correlation: float, seeds: int, trials: int) -> tuple[float, CellResult]:
    """The adapter's rate less the base's. Both arms and all seeds answer the same rows, whose difficulty they share."""
    spread = SEED_SPREAD * min(rate, 1 - rate) / 0.5 if seeds > 1 else 0.0
    runs: list[tuple[list[int], list[int]]] = []
    for _ in range(trials):
        own, luck = _own(draw, groups, rate, correlation), draw.random(len(groups))
        base = (luck < BEFORE * own).astype(int)
        for _ in range(seeds):
            moved = np.clip(own + draw.normal(0, spread), 0, 1) if spread else own
            fresh = np.where(draw.random(len(groups)) < 0.5, luck, draw.random(len(groups)))  # half of the rows fall as for the base
            runs.append(((fresh < moved).astype(int).tolist(), base.tolist()))
    found = paired_intervals(runs, groups)
    if seeds == 1:
        return rate * (1 - BEFORE), found
    means = [float(np.mean(a) - np.mean(b)) for a, b in runs]
    joined = [_joined(means[at : at + seeds], found[at : at + seeds]) for at in range(0, len(runs), seeds)]
    return rate * (1 - BEFORE), joined


def paired_intervals(runs: Sequence[tuple[list[int], list[int]]], groups: list[int]) -> CellResult:
    """The interval that `paired_difference` gives for each pair of arms over one family, all limits found in one search."""
    cases = []
    for a, b in runs:
        parts = split_families([x - y for x, y in zip(a, b, strict=True)], ["f"] * len(groups), groups)
        of = design_of(parts)
        cases.append((*(float(one[0]) for one in effective_counts(parts, of)), of.critical()) if of.enough else None)
    known = [case for case in cases if case is not None]
    limits = iter(np.stack(tango(*np.array(known).T), axis=1).tolist() if known else [])
    return [None if case is None else tuple(next(limits)) for case in cases]


def _joined(differences: Sequence[float], intervals: Sequence[Interval | None]) -> Interval | None:
    """Several seeds' interval, as a report has it."""
    errors = [(one[1] - one[0]) / 2 / NORMAL_95 for one in intervals if one is not None]
    return seeds_estimate(differences, float(np.mean(errors))).interval if len(errors) == len(intervals) else None


def _own(draw: Any, groups: list[int], rate: float, correlation: float) -> Any:
    """Each row's rate: that of its group."""
    count = groups[-1] + 1
    if correlation == 0:
        return np.full(len(groups), rate)
    spread = (1 - correlation) / correlation
    return draw.beta(rate * spread, (1 - rate) * spread, count)[groups]


def table(cells: Sequence[Cell]) -> str:
    """Markdown: for each kind, number of seeds and rows, the lowest coverage at each correlation and the rate at which it is met."""
    lines = [f"| interval of | seeds | rows | {' | '.join(f'correlation {one:g}' for one in CORRELATIONS)} |", "|---|---|---|" + "---|" * 4]
    for what, seeds, n in dict.fromkeys((cell.what, cell.seeds, cell.rows) for cell in cells):
        of = [cell for cell in cells if (cell.what, cell.seeds, cell.rows) == (what, seeds, n)]
        lines.append(f"| {what} | {seeds} | {n} | {' | '.join(_worst(of, correlation) for correlation in CORRELATIONS)} |")
    return "\n".join(lines)


def _worst(cells: Sequence[Cell], correlation: float) -> str:
    here = [cell for cell in cells if cell.correlation == correlation]
    known = [(cell.coverage, cell.rate) for cell in here if cell.coverage is not None]
    if not known:
        return "too few groups"
    coverages = [coverage for coverage, _ in known]
    low, at = min(known)
    return f"{100 * low:.1f} at {at:g}, else to {100 * max(coverages):.1f}"


def failures(cells: Sequence[Cell], trials: int) -> list[Cell]:
    """Cells below 93 %, a simulation's own error (two standard errors at that many trials) allowed for."""

    def error(cell: Cell) -> float:
        return float(np.sqrt(LOWEST * (1 - LOWEST) / max(1.0, cell.given * trials)))

    return [cell for cell in cells if cell.coverage is not None and cell.coverage < LOWEST - 2 * error(cell)]
