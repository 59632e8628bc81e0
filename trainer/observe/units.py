"""Errors in their tasks' units. Only errors of one unit can be compared, or averaged."""

from collections.abc import Iterable, Mapping

PERCENT = "%"


def with_unit(value: float, unit: str) -> str:
    """An error as people read it: 4.17%, 0.0312 m, 12,345 EUR."""
    return f"{number_in(unit, value)}{'' if unit == PERCENT else ' '}{unit}"


def number_in(unit: str, value: float) -> str:
    """The number alone, with as many digits as the unit's errors deserve."""
    if unit == PERCENT:
        return f"{value:.2f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def by_unit(tasks: Iterable[str], units: Mapping[str, str]) -> dict[str, list[str]]:
    """The tasks of each unit, in order; where a unit is not recorded, the error is a percentage."""
    groups: dict[str, list[str]] = {}
    for task in tasks:
        groups.setdefault(units.get(task, PERCENT), []).append(task)
    return groups
