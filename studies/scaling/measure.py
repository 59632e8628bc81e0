"""Measure what a step costs for each number of tasks and each way to weigh them.

Shapes: N turns.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from rich.progress import track

from paretrain import Balancer, MinNormWeighting, Normalised, Uniform, Weighting
from studies.training_step import Problem, balanced_step, plain_step
from studies.turns import apart, peak_mib, take_turns

PLAIN, EQUAL, MGDA_UB, NORMALISED = "plain", "equal weights", "MGDA-UB", "MGDA-UB, loss+"
RULES: Mapping[str, Callable[[], Weighting]] = {
    EQUAL: Uniform,
    MGDA_UB: MinNormWeighting,
    NORMALISED: lambda: Normalised(MinNormWeighting(), "loss+"),
}
METHODS = (PLAIN, *RULES)
"""A plain step is measured against itself: how far its ratio is from 1 is the error of the measurement."""

ENCODER = "small_cnn"


@dataclass(frozen=True)
class Scale:
    """The numbers of tasks to measure, and the limits of each row."""

    num_tasks: Sequence[int]
    least_turns: int
    most_turns: int
    seconds: float
    """After this time a row takes no more turns than it must."""
    row_seconds: float
    """The process of a row is killed after this time, and the method is left out for more tasks."""


QUICK = Scale((2, 40, 1000), least_turns=3, most_turns=5, seconds=5, row_seconds=60)
FULL = Scale((2, 10, 40, 100, 1000, 4096, 10_000), least_turns=5, most_turns=20, seconds=30, row_seconds=180)

PRELOAD = (__name__, "paretrain.minnorm", "torch._dynamo")
"""What training loads in its first step, too. The memory of all rows has it."""


@dataclass(frozen=True)
class Row:
    """The CPU seconds of a plain step and of the method's, turn by turn, and the memory of their process."""

    method: str
    num_tasks: int
    plain_N: Sequence[float]
    step_N: Sequence[float]
    peak_mib: float

    @property
    def ratio(self) -> "Spread":
        """How many plain steps one step takes, over the turns."""
        return spread(np.divide(self.step_N, self.plain_N))

    @property
    def plain_ms(self) -> float:
        """The median plain step."""
        return 1e3 * float(np.median(self.plain_N))


@dataclass(frozen=True)
class Missing:
    """A row that could not be measured, and why."""

    method: str
    num_tasks: int
    reason: str


@dataclass(frozen=True)
class Spread:
    """The median, the quartiles and the number of some values."""

    median: float
    low: float
    high: float
    n: int


def spread(values_N: np.ndarray) -> Spread:
    """Summarise values by median and quartiles, which a few disturbed turns do not move."""
    low, median, high = np.quantile(values_N, (0.25, 0.5, 0.75))
    return Spread(float(median), float(low), float(high), len(values_N))


def measure(scale: Scale) -> list[Row | Missing]:
    """Measure every method for every number of tasks, one after the other, each in a process of its own."""
    found: list[Row | Missing] = []
    reasons: dict[str, str] = {}
    pairs = [(num_tasks, method) for num_tasks in scale.num_tasks for method in METHODS]
    for num_tasks, method in track(pairs, description="timing"):
        if method in reasons:
            found.append(Missing(method, num_tasks, reasons[method]))
            continue
        row = apart(take_row, num_tasks, method, scale, seconds=scale.row_seconds, preload=PRELOAD)
        if isinstance(row, str):
            found.append(Missing(method, num_tasks, row))
            reasons[method] = f"{row} with {num_tasks:,} tasks"
        else:
            found.append(row)
    return found


def take_row(num_tasks: int, method: str, scale: Scale) -> Row:
    """Measure one row in this process."""
    problem = Problem(ENCODER, num_tasks, separate=False)
    plain = partial(plain_step, problem)
    step = plain if method == PLAIN else partial(balanced_step, problem, Balancer(num_tasks, RULES[method]()))
    turns = take_turns(plain, step, scale.least_turns, scale.most_turns, scale.seconds)
    plain_N, step_N = zip(*turns, strict=True)
    return Row(method, num_tasks, plain_N, step_N, peak_mib())
