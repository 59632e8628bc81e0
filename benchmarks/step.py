"""Time one training step against the plain summed loss and against peers:  python -m benchmarks.step [--quick]

Each row runs in its own process with one thread. A plain step and a step of the method alternate; the ratio is the
median ratio of their CPU times, which other load on the machine affects least. The peak is the resident memory of the
process, including PyTorch and the plain step, which needs the least. A method that exceeds the time limit is left out
of this row and of those with more tasks. The last line printed is one JSON object.
"""

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from studies.turns import apart, cpu_seconds, peak_mib, take_turns

METHODS = ("plain", "paretrain", "torchjd_ub", "torchjd", "mgda")
SIZES = (2, 10, 40, 100, 400, 1000, 4096, 10_000)
FULL = [(model, size, method) for model in ("small_cnn", "resnet18") for size in SIZES for method in METHODS]
# The most important rows first, since the time may run out before the end of the list.
QUICK = [
    *[("small_cnn", size, "paretrain") for size in (2, 40, 100, 1000)],
    ("resnet18", 1000, "paretrain"),
    ("small_cnn", 40, "mgda"),
    ("small_cnn", 1000, "plain"),
    ("small_cnn", 1000, "torchjd_ub"),
    ("small_cnn", 2, "torchjd"),
]


@dataclass(frozen=True)
class Limits:
    """The time to spend."""

    row_seconds: float
    """The process of a row is killed after this time."""
    measure_seconds: float
    """Turns are repeated for this time, but not more than MAX_TURNS times."""
    all_seconds: float = float("inf")


LIMITS = {True: Limits(row_seconds=20, measure_seconds=3.5, all_seconds=44), False: Limits(240, 20)}
MAX_TURNS = 25
# Torch is imported once, by the server that forks the processes of the rows, and not here.
PRELOAD = ("benchmarks.methods", "rich.table", "torch._dynamo")


def measure(model: str, num_tasks: int, method: str, seconds: float) -> dict[str, float]:
    """Return the numbers of one row."""
    from benchmarks.methods import build_step

    plain = build_step("plain", model, num_tasks)
    if method == "plain":
        floor = cpu_seconds(plain)
        turns = [(floor, floor)]
    else:
        least = 1 if method == "paretrain" else 0  # A step of the slowest peers takes minutes.
        turns = take_turns(plain, build_step(method, model, num_tasks), least, MAX_TURNS, seconds)
    return {
        "ratio_to_plain": statistics.median(taken / floor for floor, taken in turns),
        "peak_mib": peak_mib(),
        "plain_ms": 1e3 * statistics.median(floor for floor, _ in turns),
    }


def run(quick: bool, console: Console) -> list[dict[str, Any]]:
    limits = LIMITS[quick]
    started = time.perf_counter()
    rows: list[dict[str, Any]] = []
    given_up: dict[tuple[str, str], str] = {}
    table = Table(title="One training step, batch of 64, images 64 x 64, one thread")
    for column in ("model", "T", "method", "ratio to plain", "peak MiB", "plain ms"):
        table.add_column(column, justify="left" if column in ("model", "method") else "right")
    for model, num_tasks, method in QUICK if quick else FULL:
        left = limits.all_seconds - (time.perf_counter() - started)
        if left < 1:
            console.print("out of time: some rows are missing")
            break
        found: Any = given_up.get((model, method))
        if found is None:
            found = apart(
                measure,
                *(model, num_tasks, method, limits.measure_seconds),
                seconds=min(limits.row_seconds, left),
                preload=PRELOAD,
            )
        if isinstance(found, str):
            given_up.setdefault((model, method), f"{found} at T = {num_tasks:,}")
            table.add_row(model, f"{num_tasks:,}", method, found)
            continue
        rows.append(
            {
                "model": model,
                "T": num_tasks,
                "method": method,
                "ratio_to_plain": round(found["ratio_to_plain"], 3),
                "peak_mib": round(found["peak_mib"]),
            }
        )
        cells = f"{found['ratio_to_plain']:.2f}", f"{found['peak_mib']:.0f}", f"{found['plain_ms']:.0f}"
        table.add_row(model, f"{num_tasks:,}", method, *cells)
        console.print(f"{model} T={num_tasks} {method}: {cells[0]} x plain, {cells[1]} MiB", style="dim")
    console.print(table)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the rows that matter most: under 50 seconds")
    quick = parser.parse_args().quick
    rows = run(quick, Console(width=120))
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
