"""Losses of the models' tasks, as `Balancer.total` takes them."""

from collections.abc import Iterable
from typing import Any


def by_name(sums_and_counts: Iterable[Any]) -> dict[str, Any]:
    """Name the pair that `task_losses`, or `zip` over the losses of single tasks, gives."""
    sums, counts = sums_and_counts
    return {"sums": sums, "counts": counts}
