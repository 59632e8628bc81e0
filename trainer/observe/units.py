"""Errors in their tasks' units. Only errors of one unit can be compared, or averaged.

One unit is no error's but a score's: of the mean intersection over union more is better.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import zip_longest

PERCENT = "%"
MIOU = "% mIoU"

Choice = Callable[[Iterable[float]], float]
"""The best, or the worst, of some values of one unit."""


def best_in(unit: str) -> Choice:
    """Picks the best of values in the unit."""
    return max if unit == MIOU else min


def worst_in(unit: str) -> Choice:
    """Picks the worst of values in the unit."""
    return min if unit == MIOU else max


def worst_task(errors: Mapping[str, float], unit: str) -> str:
    """The name of the task with the worst of values in the unit."""
    return max(errors, key=lambda task: shortfall(errors[task], unit))


def shortfall(value: float, unit: str) -> float:
    """How far from perfect: an error as it is, of a score what it lacks."""
    return 100 - value if unit == MIOU else value


def titled(unit: str) -> str:
    """What is measured in the unit, as a title: error (px), mIoU (%)."""
    return "mIoU (%)" if unit == MIOU else f"error ({unit})"


def with_unit(value: float, unit: str) -> str:
    """An error or score as people read it: 4.17%, 0.0312 m, 12,345 EUR, 66.63% mIoU."""
    return f"{number_in(unit, value)}{'' if unit in (PERCENT, MIOU) else ' '}{unit}"


def number_in(unit: str, value: float) -> str:
    """The number alone, with as many digits as the unit's errors deserve."""
    if unit in (PERCENT, MIOU):
        return f"{value:.2f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def worst_first(tasks: Iterable[str], errors: Mapping[str, float], units: Mapping[str, str]) -> list[str]:
    """The worst task first; of several units, the worst of each, then the second of each, and so on."""

    def how_bad(task: str, unit: str) -> float:
        return shortfall(errors[task], unit) if task in errors else 0.0

    ranked = [sorted(group, key=lambda task: -how_bad(task, unit)) for unit, group in by_unit(tasks, units).items()]
    return [task for rank in zip_longest(*ranked) for task in rank if task is not None]


def cache_words(use: Mapping[str, int]) -> str:
    """What `TrainLoader.cache_use` counts: 99.2% hits, 1.3 GiB fetched."""
    hits, misses = use.get("hits", 0), use.get("misses", 0)
    return f"{100 * hits / max(hits + misses, 1):.1f}% hits, {use.get('fetched_bytes', 0) / 2**30:.3g} GiB fetched"


def by_unit(tasks: Iterable[str], units: Mapping[str, str]) -> dict[str, list[str]]:
    """The tasks of each unit, in order; where a unit is not recorded, the error is a percentage."""
    groups: dict[str, list[str]] = {}
    for task in tasks:
        groups.setdefault(units.get(task, PERCENT), []).append(task)
    return groups
