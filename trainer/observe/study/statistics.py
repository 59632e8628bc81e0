"""What the numbers of a few seeds can tell: pure functions of arrays.

Shapes: M methods, S seeds, N points.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np

LEVEL = 0.95
"""Confidence of every interval."""
RESAMPLES = 10_000
BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class Estimate:
    """A mean of `count` seeds and its standard error, which is NaN for fewer than two."""

    mean: float
    error: float
    count: int


def estimate(values_S: np.ndarray) -> Estimate:
    """Return the mean of the values that are not NaN, and its standard error."""
    known = values_S[~np.isnan(values_S)]
    mean = float(known.mean()) if known.size else float("nan")
    error = float(known.std(ddof=1) / np.sqrt(known.size)) if known.size > 1 else float("nan")
    return Estimate(mean, error, known.size)


def t_interval(values_S: np.ndarray) -> tuple[float, float]:
    """Return Student's interval of the mean; infinite for fewer than two values that are not NaN."""
    found = estimate(values_S)
    if found.count < 2:
        return -np.inf, np.inf
    from scipy.stats import t as student_t

    half = float(student_t.ppf((1 + LEVEL) / 2, found.count - 1)) * found.error
    return found.mean - half, found.mean + half


def bootstrap_interval(values_S: np.ndarray) -> tuple[float, float]:
    """Return the percentile interval of the mean of resampled values (Efron 1979); of paired differences, a paired one.

    Up to five values have at most 3,125 resamples: all of them are counted. More are drawn, from a seed of its own.
    """
    known = values_S[~np.isnan(values_S)]
    if known.size < 2:
        return -np.inf, np.inf
    if known.size**known.size <= RESAMPLES:
        chosen = np.array(list(product(range(known.size), repeat=known.size)))
    else:
        chosen = np.random.default_rng(BOOTSTRAP_SEED).integers(known.size, size=(RESAMPLES, known.size))
    low, high = np.quantile(known[chosen].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def is_noise(differences_S: np.ndarray) -> bool:
    """Return whether the mean of paired differences cannot be told from 0.

    Both intervals must leave 0 out. The bootstrap's alone is too narrow for a few seeds: three have one sign, and so
    leave 0 out, in one of four cases where nothing differs.
    """
    return any(low <= 0 <= high for low, high in (t_interval(differences_S), bootstrap_interval(differences_S)))


def critical_difference(num_methods: int, num_blocks: int) -> float:
    """Return by how much mean ranks over independent blocks must differ: Nemenyi's test (Demsar 2006, 3.2.2)."""
    from scipy.stats import studentized_range

    q = float(studentized_range.ppf(LEVEL, num_methods, np.inf)) / np.sqrt(2)
    return float(q * np.sqrt(num_methods * (num_methods + 1) / (6 * num_blocks)))


def cliques(ranks_M: np.ndarray, difference: float) -> list[tuple[float, float]]:
    """Return the first and last rank of each largest group of several methods within the critical difference."""
    ordered = np.sort(ranks_M)
    groups: list[tuple[float, float]] = []
    reach = 0
    for place, first in enumerate(ordered):
        end = int(np.searchsorted(ordered, first + difference, side="right"))
        if end > max(place + 1, reach):
            groups.append((float(first), float(ordered[end - 1])))
            reach = end
    return groups


def front(points_N2: np.ndarray) -> list[int]:
    """Return the points that no other one dominates, by their first number; more is better of both numbers."""
    best = [
        index
        for index, point in enumerate(points_N2)
        if not ((points_N2 >= point).all(axis=1) & (points_N2 > point).any(axis=1)).any()
    ]
    return sorted(best, key=lambda index: float(points_N2[index, 0]))


@dataclass(frozen=True)
class Ellipse:
    """A centre, the full lengths of both axes, and the angle of the first one in degrees."""

    centre: tuple[float, float]
    width: float
    height: float
    angle: float


def standard_error_ellipse(points_S2: np.ndarray) -> Ellipse:
    """Return the ellipse of the mean's covariance: its shadow on each axis is the mean ± its standard error.

    It is a point for fewer than two points, and a line for two.
    """
    x, y = points_S2.mean(axis=0)
    if len(points_S2) < 2:
        return Ellipse((x, y), 0.0, 0.0, 0.0)
    values_2, vectors_22 = np.linalg.eigh(np.cov(points_S2.T) / len(points_S2))
    height, width = 2 * np.sqrt(np.clip(values_2, 0, None))
    return Ellipse((x, y), float(width), float(height), float(np.degrees(np.arctan2(*vectors_22[::-1, 1]))))


def plus_minus(found: Estimate) -> str:
    """Format a mean with as many digits as its standard error allows: 0.9681 ± 0.0004, 0.9681 ± 0.0012."""
    if found.count == 0:
        return "–"
    if not found.error > 0:
        shown = f"{found.mean:.4g}"
        return shown if found.count < 2 else f"{shown} ± 0"
    first = int(np.floor(np.log10(found.error)))
    certain = first if found.error / 10.0**first >= 3 else first - 1  # A first digit of 1 or 2 alone says too little.
    digits = min(max(-certain, 0), 12)
    return f"{round(found.mean, digits) + 0.0:,.{digits}f} ± {found.error:,.{digits}f}"
