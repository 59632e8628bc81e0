"""Fault records, as ranks leave them."""

from typing import Any, Literal

from trainer.runtime.faults.records import FaultRecord


def fault_record(kind: Literal["failed", "lost_peer", "asked"], *, rank: int = 0, **changes: Any) -> FaultRecord:
    """Return a record of one of two ranks, with some fields changed."""
    place = "all_reduce at ranks.py:30 in sum"
    values = {"host": "alpha", "pid": 7, "world_size": 2, "phase": "step 4", "step": 4, "place": place}
    return FaultRecord(kind=kind, rank=rank, **values | changes)
