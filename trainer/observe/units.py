"""Errors in their tasks' units. Only errors of one unit can be compared, or averaged."""

from collections.abc import Iterable, Mapping
from itertools import zip_longest

PERCENT = "%"


def with_unit(value: float, unit: str) -> str:
    """An error as people read it: 4.17%, 0.0312 m, 12,345 EUR."""
    return f"{number_in(unit, value)}{'' if unit == PERCENT else ' '}{unit}"


def number_in(unit: str, value: float) -> str:
    """The number alone, with as many digits as the unit's errors deserve."""
    if unit == PERCENT:
        return f"{value:.2f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def worst_first(tasks: Iterable[str], errors: Mapping[str, float], units: Mapping[str, str]) -> list[str]:
    """The tasks by falling error; of several units, the worst of each, then the second of each, and so on."""
    ranked = [sorted(group, key=lambda task: -errors.get(task, 0.0)) for group in by_unit(tasks, units).values()]
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
