"""One rank in a diagnosis: what is known of it, and how much it looks like the first cause."""

from dataclasses import dataclass
from enum import IntEnum


class Blame(IntEnum):
    """How much a rank looks like the first cause."""

    VICTIM = 0
    """It lost another rank."""
    THERE = 1
    """Others asked where it is, and it answered."""
    SILENT = 2
    FAILED = 3
    CRASHED = 4
    KILLED = 5


@dataclass(frozen=True)
class Rank:
    """One rank, as far as its traces tell.

    Attributes:
        number: the rank.
        host: its machine.
        blame: how much it looks like the first cause.
        story: what happened, in words.
        collective: the last collective that its flight record knows, with its number and state.
        sequence: the number of that collective.
    """

    number: int
    host: str
    blame: Blame
    story: str
    collective: str | None = None
    sequence: int | None = None
