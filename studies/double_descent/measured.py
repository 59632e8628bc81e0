"""Run the simulations of the panels, and set them beside theory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from studies.double_descent.experiments import Scale, Series, near_a_peak, settings_of_equivalence
from studies.double_descent.setting import Setting
from studies.double_descent.simulate import simulate, simulate_equivalent
from studies.replicates import replicate

SEED = 5060


@dataclass(frozen=True)
class Measured:
    """Hold one simulated point: theory's value, the mean over n replicates and its standard error."""

    x: float
    setting: Setting
    theory: float
    mean: float
    error: float
    n: int


@dataclass(frozen=True)
class Equivalence:
    """Hold one setting of claim (i): coupled tasks, the equivalent single task, and theory of both and of one task."""

    name: str
    coupled: Measured
    equivalent: Measured
    alone: float


@dataclass(frozen=True)
class Agreement:
    """Hold the gaps |simulation / theory - 1| over `num_points` points that are not near a peak.

    `num_sure` of them have a standard error below 1 % of the theory; `largest_sure` is the largest gap of these.
    """

    num_points: int
    median: float
    largest: float
    within_two_errors: float
    num_sure: int
    largest_sure: float


@dataclass(frozen=True)
class Results:
    """Hold all that the figures show: for each panel and series its points; claim (i); the agreement."""

    points: Mapping[str, Sequence[Sequence[Measured]]]
    equivalences: Sequence[Equivalence]
    agreement: Agreement


def measure(panels: Mapping[str, Sequence[Series]], scale: Scale, processes: int) -> Results:
    """Simulate every point of the panels and the settings of claim (i) over the processes."""
    flat = [point for series in panels.values() for one in series for point in one.points]
    names = settings_of_equivalence(scale)
    settings = [setting for _, setting in flat] + [setting for _, setting in names] * 2
    jobs = [
        (_Job(setting, number >= len(flat) + len(names)), scale.replicates) for number, setting in enumerate(settings)
    ]
    draws = replicate(_run, jobs, seed=SEED, processes=processes, label="simulating")
    xs = [x for x, _ in flat] + [float("nan")] * 2 * len(names)
    measured = [_summarise(x, setting, found) for x, setting, found in zip(xs, settings, draws, strict=True)]
    on_panels = iter(measured[: len(flat)])
    points = {panel: [[next(on_panels) for _ in one.points] for one in series] for panel, series in panels.items()}
    coupled, single = measured[len(flat) : len(flat) + len(names)], measured[len(flat) + len(names) :]
    equivalences = [
        Equivalence(name, pair[0], pair[1], setting.one().theory())
        for (name, setting), pair in zip(names, zip(coupled, single, strict=True), strict=True)
    ]
    return Results(points, equivalences, agreement([*measured]))


def agreement(points: Sequence[Measured]) -> Agreement:
    """Summarise how far simulation and theory are apart, away from the peaks."""
    kept = [point for point in points if not near_a_peak(point.setting)]
    gaps = np.array([abs(point.mean / point.theory - 1) for point in kept])
    errors = np.array([abs(point.mean - point.theory) / point.error for point in kept])
    sure = gaps[[point.error < 0.01 * point.theory for point in kept]]
    return Agreement(
        num_points=len(kept),
        median=float(np.median(gaps)),
        largest=float(gaps.max()),
        within_two_errors=float(np.mean(errors < 2)),
        num_sure=len(sure),
        largest_sure=float(sure.max(initial=0)),
    )


@dataclass(frozen=True)
class _Job:
    setting: Setting
    equivalent: bool


def _run(job: _Job, generator: np.random.Generator) -> float:
    return (simulate_equivalent if job.equivalent else simulate)(job.setting, generator)


def _summarise(x: float, setting: Setting, draws: np.ndarray) -> Measured:
    error = draws.std(ddof=1) / np.sqrt(len(draws))
    return Measured(x, setting, setting.theory(), float(draws.mean()), float(error), len(draws))
