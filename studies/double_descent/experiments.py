"""The panels of the study: curves that theory draws and points to simulate."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from paretrain.theory.asymptotics import coupling, equivalent_single_tasks, ridge_limit
from studies.double_descent.setting import Setting
from studies.figure_style import short

NUMBERS_OF_TASKS = (1, 2, 4, 8, math.inf)
OWN_PENALTIES = (1.0, 0.1, 1e-2, 1e-3, 1e-5)
MOST_FEATURES = 6
"""Features there are, in samples of one task, where the learner sees more and more of them."""

BASE = Setting(num_tasks=1, rows=1, features=1, common=1e-3, own=0.5)
"""What all panels share unless they say otherwise; each point sets rows and features."""

Place = Callable[[Setting, float, int], Setting]
"""Give a setting its place on a panel's x axis; the third argument is the size of the simulation."""

_THEORY_SIZE = 100_000  # so that whole numbers of rows and features are as good as any ratio


@dataclass(frozen=True)
class Scale:
    """Hold the size of the simulation: rows of a task (features in panel "samples"), replicates, points a curve."""

    rows: int
    features: int
    replicates: int
    points: int


QUICK = Scale(rows=50, features=100, replicates=20, points=9)
FULL = Scale(rows=100, features=200, replicates=60, points=15)


@dataclass(frozen=True)
class Series:
    """Hold one colour of a panel: its name, theory's curve, and the settings to simulate, each with its x."""

    name: str
    curve_x: np.ndarray
    curve: np.ndarray
    points: Sequence[tuple[float, Setting]] = ()


def panels(scale: Scale) -> dict[str, list[Series]]:
    """Return the series of each panel."""
    return {
        "features": list(_by_tasks(scale, _features)),
        "samples": list(_by_tasks(replace(scale, rows=scale.features), _samples, low=1 / 12, high=5)),
        "own": list(_by_own_penalty(scale)),
        "tuned": list(_by_tasks(scale, lambda base, x, size: _features(base, x, size).tuned())),
        "height": list(_heights(scale)),
        "labels": list(_labels(scale)),
        "classification": list(_classification(scale)),
        "unseen": list(_unseen(scale)),
        "seen": list(_seen(scale)),
    }


def settings_of_equivalence(scale: Scale) -> list[tuple[str, Setting]]:
    """Return settings at which coupled tasks, their equivalent single task and theory are compared."""
    p = scale.features
    base = replace(BASE, features=p, common=1e-2)
    return [
        ("T = 2, n = p", replace(base, num_tasks=2, rows=p)),
        ("T = 4, n = p/2", replace(base, num_tasks=4, rows=p // 2)),
        ("T = 4, n = p", replace(base, num_tasks=4, rows=p)),
        ("T = 8, n = p/4", replace(base, num_tasks=8, rows=p // 4)),
        ("T = 2, n = p/2 (peak)", replace(base, num_tasks=2, rows=p // 2)),
    ]


def strengths(ratio: float, numbers: Sequence[int], *, common: float = 1e-4, own: float = 0.5) -> np.ndarray:
    """Return the ridge penalty α_T of the equivalent single task, for each number of tasks."""
    found = []
    for num_tasks in numbers:
        penalty_TT, ratio_T = coupling(num_tasks, common, own), np.full(num_tasks, ratio)
        limit = ridge_limit(penalty_TT, replace(BASE, num_tasks=num_tasks).population(), ratio_T)
        found.append(equivalent_single_tasks(penalty_TT, limit)[0].strength)
    return np.array(found)


def near_a_peak(setting: Setting) -> bool:
    """Return whether p/n is within 15 % of 1 or T, where small simulations are biased and noisy."""
    return any(abs(math.log(setting.ratio / peak)) < 0.15 for peak in (1, setting.num_tasks) if math.isfinite(peak))


def _features(base: Setting, x: float, size: int) -> Setting:
    return replace(base, rows=size, features=round(x * size))


def _samples(base: Setting, x: float, size: int) -> Setting:
    return replace(base, features=size, rows=max(round(x * size), 1))


def _features_of_few(base: Setting, x: float, size: int) -> Setting:
    """Let the learner see more and more of MOST_FEATURES x rows features that matter alike."""
    return replace(_features(base, x, size), seen=x / MOST_FEATURES)


def _peak_height(base: Setting, x: float, size: int) -> Setting:
    return replace(base, rows=size, features=int(base.num_tasks) * size, common=x)


def _series(name: str, base: Setting, place: Place, curve_x: np.ndarray, point_x: np.ndarray, size: int) -> Series:
    curve = np.array([place(base, x, _THEORY_SIZE).theory() for x in curve_x])
    points = [(x, place(base, x, size)) for x in point_x] if math.isfinite(base.num_tasks) else []
    return Series(name, curve_x, curve, points)


def _grid(low: float, high: float, count: int, through: Sequence[float] = ()) -> np.ndarray:
    """Return a geometric grid with the points nearest to `through` moved there."""
    points = np.geomspace(low, high, count)
    for x in through:
        points[np.argmin(np.abs(np.log(points / x)))] = x
    return np.unique(points)


def _by_tasks(scale: Scale, place: Place, *, low: float = 0.2, high: float = 12) -> Iterator[Series]:
    for num_tasks in NUMBERS_OF_TASKS:
        peak = [] if math.isinf(num_tasks) else [1 / num_tasks if place is _samples else num_tasks]
        name = "T = ∞" if math.isinf(num_tasks) else f"T = {num_tasks}"
        fine, coarse = _grid(low, high, 200, peak), _grid(low, high, scale.points, peak)
        yield _series(name, replace(BASE, num_tasks=num_tasks), place, fine, coarse, scale.rows)


def _by_own_penalty(scale: Scale) -> Iterator[Series]:
    for own in OWN_PENALTIES:
        base = replace(BASE, num_tasks=4, own=own, common=1e-4)
        fine, coarse = _grid(0.2, 12, 200, [1, 4]), _grid(0.2, 12, scale.points, [1, 4])
        yield _series(f"μ = {short(own)}", base, _features, fine, coarse, scale.rows)


def _heights(scale: Scale) -> Iterator[Series]:
    for num_tasks in (1, 2, 4):
        base = replace(BASE, num_tasks=num_tasks)
        yield _series(f"T = {num_tasks}", base, _peak_height, _grid(1e-5, 1, 60), np.geomspace(1e-3, 1, 4), scale.rows)


def _labels(scale: Scale) -> Iterator[Series]:
    for labels in ("linear", "sign", "relu"):
        for num_tasks in (1, 4):
            base = replace(BASE, num_tasks=num_tasks, labels=labels, common=1e-2, noise=0.1)
            fine, coarse = _grid(0.2, 8, 120, [num_tasks]), _grid(0.2, 8, scale.points - 3, [num_tasks])
            yield _series(f"{labels}, T = {num_tasks}", base, _features, fine, coarse, scale.rows)


def _classification(scale: Scale) -> Iterator[Series]:
    for loss in ("squared", "logistic"):
        for num_tasks in (1, 4):
            base = replace(
                BASE, num_tasks=num_tasks, labels="sign", noise=0, loss=loss, measure="sign", common=1e-2, own=0.2
            )
            fine, coarse = _grid(0.25, 8, 24), _grid(0.25, 8, scale.points - 3)
            yield _series(f"{loss}, T = {num_tasks}", base, _features, fine, coarse, scale.rows)


def _unseen(scale: Scale) -> Iterator[Series]:
    for seen in (1.0, 0.7, 0.4):
        base = replace(BASE, num_tasks=4, seen=seen)
        fine, coarse = _grid(0.2, 12, 120, [4]), _grid(0.2, 12, scale.points - 2, [4])
        yield _series(f"{seen:.0%} seen", base, _features, fine, coarse, scale.rows)


def _seen(scale: Scale) -> Iterator[Series]:
    for name, num_tasks, tuned in (
        ("T = 1", 1, False),
        ("T = 2", 2, False),
        ("T = 4", 4, False),
        ("T = 4, tuned", 4, True),
    ):

        def place(base: Setting, x: float, size: int, tuned: bool = tuned) -> Setting:
            placed = _features_of_few(base, x, size)
            return placed.tuned() if tuned else placed

        base = replace(BASE, num_tasks=num_tasks)
        high = 0.999 * MOST_FEATURES
        fine, coarse = _grid(0.2, high, 160, [num_tasks]), _grid(0.2, high, scale.points - 2, [num_tasks])
        yield _series(name, base, place, fine, coarse, scale.rows)
