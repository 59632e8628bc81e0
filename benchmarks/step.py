"""Time one training step against the plain summed loss and against peers:  python -m benchmarks.step [--quick]

Each row runs in its own process with one thread. A plain step and a step of the method alternate; the ratio is the
median ratio of their CPU times, which other load on the machine affects least. The peak is the resident memory of the
process, including PyTorch and the plain step, which needs the least. A method that exceeds the time limit is left out
of this row and of those with more tasks. The last line printed is one JSON object.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from rich.console import Console
from rich.table import Table

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
MEMORY_BYTES = 16 * 2**30


def measure(answer: Connection, model: str, num_tasks: int, method: str, seconds: float) -> None:
    """Send the numbers of one row, or the reason why there are none. Runs in its own process."""
    import torch
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    torch.set_num_threads(1)
    with threadpool_limits(1):
        try:
            answer.send(_take_turns(model, num_tasks, method, seconds))
        except (MemoryError, RuntimeError) as error:
            if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
                raise
            answer.send(f"over {MEMORY_BYTES >> 30} GiB")


def _take_turns(model: str, num_tasks: int, method: str, seconds: float) -> dict[str, float]:
    from benchmarks.methods import build_step

    plain = build_step("plain", model, num_tasks)
    if method == "plain":
        floor = _cpu_seconds(plain)
        turns = [(floor, floor)]
    else:
        step = build_step(method, model, num_tasks)
        turns = []
        started = time.perf_counter()
        while not turns or (len(turns) <= MAX_TURNS and time.perf_counter() - started < seconds):
            # Alternate which comes first, too: the second one reuses memory that the first has freed.
            if len(turns) % 2:
                turns.append((_cpu_seconds(plain), _cpu_seconds(step)))
            else:
                turns.append((_cpu_seconds(step), _cpu_seconds(plain))[::-1])
    # The first turn is a warm-up, unless it is the only one.
    turns = turns[1:] or turns
    return {
        "ratio_to_plain": statistics.median(taken / floor for floor, taken in turns),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "plain_ms": 1e3 * statistics.median(floor for floor, _ in turns),
    }


def _cpu_seconds(step: Callable[[], object]) -> float:
    started = time.process_time()
    step()
    return time.process_time() - started


def measure_apart(model: str, num_tasks: int, method: str, row_seconds: float, measure_seconds: float) -> Any:
    """Return the numbers of a row, or the reason why there are none."""
    context = multiprocessing.get_context("forkserver")
    # Torch is imported once, by the server that forks the processes of the rows, and not here.
    context.set_forkserver_preload(["benchmarks.methods", "rich.table", "threadpoolctl"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(theirs, model, num_tasks, method, measure_seconds))
    process.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(row_seconds) else f"over {row_seconds:.0f} s"
    except EOFError:
        return "died"
    finally:
        process.kill()
        process.join()


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
            found = measure_apart(model, num_tasks, method, min(limits.row_seconds, left), limits.measure_seconds)
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
