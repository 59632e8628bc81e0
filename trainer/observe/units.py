"""Errors in the units of their tasks. Only errors of one unit can be compared or averaged.

One unit belongs to a score instead of an error: for the mean intersection over union, higher is better.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import zip_longest

PERCENT = "%"
MIOU = "% mIoU"
"""Equal to models.tasks.MIOU, which a test checks. Not imported from there: a report must not wait for torch."""

Choice = Callable[[Iterable[float]], float]
"""Picks the best or the worst of some values of one unit."""


def best_in(unit: str) -> Choice:
    """Return the function that picks the best of some values in the unit."""
    return max if unit == MIOU else min


def worst_in(unit: str) -> Choice:
    """Return the function that picks the worst of some values in the unit."""
    return min if unit == MIOU else max


def worst_task(errors: Mapping[str, float], unit: str) -> str:
    """Return the task whose value is the worst in the unit."""
    return max(errors, key=lambda task: shortfall(errors[task], unit))


def shortfall(value: float, unit: str) -> float:
    """Return the distance from perfect: an error itself, or what a score lacks to 100."""
    return 100 - value if unit == MIOU else value


def titled(unit: str) -> str:
    """Return a title of what the unit measures: error (px), mIoU (%)."""
    return "mIoU (%)" if unit == MIOU else f"error ({unit})"


def with_unit(value: float, unit: str) -> str:
    """Format an error or score: 4.17%, 0.0312 m, 12,345 EUR, 66.63% mIoU."""
    return f"{number_in(unit, value)}{'' if unit in (PERCENT, MIOU) else ' '}{unit}"


def number_in(unit: str, value: float) -> str:
    """Format an error or score without its unit, with digits that suit the unit."""
    if unit in (PERCENT, MIOU):
        return f"{value:.2f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def worst_first(tasks: Iterable[str], errors: Mapping[str, float], units: Mapping[str, str]) -> list[str]:
    """Sort tasks, the worst first. With several units: the worst task of each, then the second of each, and so on."""

    def how_bad(task: str, unit: str) -> float:
        return shortfall(errors[task], unit) if task in errors else 0.0

    ranked = [sorted(group, key=lambda task: -how_bad(task, unit)) for unit, group in by_unit(tasks, units).items()]
    return [task for rank in zip_longest(*ranked) for task in rank if task is not None]


def cache_words(use: Mapping[str, int]) -> str:
    """Format the counts of `TrainLoader.cache_use`: 99.2% hits, 1.3 GiB fetched."""
    hits, misses = use.get("hits", 0), use.get("misses", 0)
    return f"{100 * hits / max(hits + misses, 1):.1f}% hits, {use.get('fetched_bytes', 0) / 2**30:.3g} GiB fetched"


def by_unit(tasks: Iterable[str], units: Mapping[str, str]) -> dict[str, list[str]]:
    """Group tasks by unit, in order. A task without a recorded unit has a percentage."""
    groups: dict[str, list[str]] = {}
    for task in tasks:
        groups.setdefault(units.get(task, PERCENT), []).append(task)
    return groups
