"""How often the intervals hold what they promise, by simulation over a grid: rows, true rate, likeness of rows in a group, seeds.

Scores are beta-binomial: each group draws its own rate, so that rows of one group correlate. A cell is one point of the grid; its
coverage is the share of trials whose 95 % interval holds the true value, among those that give one ("too few groups" gives none).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from typing import Any

import numpy as np

from nomoat.clusters import Interval
from nomoat.paired import paired_difference
from nomoat.statistics import rate_interval, seeds_estimate

ROWS = (20, 50, 100, 200, 400)
RATES = (0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99)
CORRELATIONS = (0.0, 0.1, 0.2, 0.4)
SEEDS = (1, 3, 5)
GROUP = 3  # rows a group, as most phrasings of the shipped set have
BEFORE = 0.5  # the base's rate as a share of the adapter's, in a paired difference
SEED_SPREAD = 0.02  # standard deviation of an adapter's true rate from seed to seed
LOWEST = 0.93
Trial = Callable[[], Interval | None]


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
        cells += [("difference", n, rate, correlation, count, max(1, trials // count)) for count in seeds]
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
    truth, trial = (_rate if what == "rate" else _difference)(draw, groups, rate, correlation, seeds)
    found = [interval for interval in (trial() for _ in range(trials)) if interval is not None]
    held = sum(low <= truth <= high for low, high in found)
    return Cell(what, n, rate, correlation, seeds, held / len(found) if found else None, len(found) / trials)


def _rate(draw: Any, groups: list[int], rate: float, correlation: float, _seeds: int) -> tuple[float, Trial]:
    return rate, lambda: rate_interval((draw.random(len(groups)) < _own(draw, groups, rate, correlation)).astype(int).tolist(), groups)


def _difference(draw: Any, groups: list[int], rate: float, correlation: float, seeds: int) -> tuple[float, Trial]:
    """The adapter's rate less the base's. Both arms and all seeds answer the same rows, whose difficulty they share."""
    families = ["f"] * len(groups)
    spread = SEED_SPREAD * min(rate, 1 - rate) / 0.5 if seeds > 1 else 0.0

    def trial() -> Interval | None:
        own, luck = _own(draw, groups, rate, correlation), draw.random(len(groups))
        base = (luck < BEFORE * own).astype(int).tolist()
        runs = []
        for _ in range(seeds):
            moved = np.clip(own + draw.normal(0, spread), 0, 1) if spread else own
            fresh = np.where(draw.random(len(groups)) < 0.5, luck, draw.random(len(groups)))  # half of the rows fall as for the base
            runs.append(paired_difference((fresh < moved).astype(int).tolist(), base, families, groups))
        if seeds == 1:
            return runs[0].interval
        errors = [run.standard_error for run in runs if run.standard_error is not None]
        return seeds_estimate([run.difference for run in runs], float(np.mean(errors))).interval if len(errors) == seeds else None

    return rate * (1 - BEFORE), trial


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
        return float(np.sqrt(LOWEST * (1 - LOWEST) / max(1.0, cell.given * trials / cell.seeds)))

    return [cell for cell in cells if cell.coverage is not None and cell.coverage < LOWEST - 2 * error(cell)]
