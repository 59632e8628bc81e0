"""Measure the cost of α with several processes:
python -m benchmarks.exchange [--quick] [--processes 2] [--group dedicated]

Each process runs DDP over gloo on ResNet-18 with 64 images of 64 x 64 and one thread. The share is the wall time of the
exchange (pack, reduce, solve, broadcast) relative to that of the step: for each step the shortest exchange among the
processes, since the process that arrives last does not wait; then the median over steps. The last line printed is one
JSON object.
"""

import argparse
import json
import statistics
import time
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import nn

from benchmarks.ranks import on_every_rank
from models import task_losses
from paretrain import Balancer
from paretrain.exchange import exchange
from studies.training_step import Problem

SIZES = {True: (2, 40), False: (2, 40, 1000)}
NUM_STEPS = 5


def measure(num_tasks: int, group: str) -> list[tuple[float, float]]:
    """Return the seconds of each step and of the exchange in it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    problem = Problem("resnet18", num_tasks, separate=False)
    model = nn.parallel.DistributedDataParallel(problem.model)
    balancer = Balancer(num_tasks, group=dist.new_group() if group == "dedicated" else None)
    inside = 0.0

    def timed_exchange(*arguments: Any, **named: Any) -> Any:
        nonlocal inside
        started = time.perf_counter()
        found = exchange(*arguments, **named)
        inside = time.perf_counter() - started
        return found

    rows = []
    with threadpool_limits(1), mock.patch("paretrain.balancer.exchange", timed_exchange):
        for _ in range(NUM_STEPS + 1):
            dist.barrier()
            started = time.perf_counter()
            model.zero_grad()
            outputs = model(problem.images_BCHW, balancer=balancer)
            sums_T, counts_T = task_losses(problem.tasks, outputs, problem.targets)
            balancer.total(sums=sums_T, counts=counts_T).backward()
            rows.append((time.perf_counter() - started, inside))
    dist.destroy_process_group()
    return rows[1:]


def share(processes: int, num_tasks: int, group: str) -> tuple[float, float]:
    """Return the median seconds of a step and the median share of the exchange."""
    steps = list(zip(*on_every_rank(processes, measure, num_tasks, group), strict=True))
    seconds = [max(step for step, _ in of_ranks) for of_ranks in steps]
    shares = [min(inside for _, inside in of_ranks) / whole for of_ranks, whole in zip(steps, seconds, strict=True)]
    return statistics.median(seconds), statistics.median(shares)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exchange", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="without the row of 1000 tasks")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--group", choices=("dedicated", "default"), default="dedicated")
    arguments = parser.parse_args()
    processes = arguments.processes
    table = Table("T", "step (s)", "exchange (%)", title=f"ResNet-18, {processes} processes")
    rows = []
    for num_tasks in SIZES[arguments.quick]:
        seconds, part = share(processes, num_tasks, arguments.group)
        table.add_row(str(num_tasks), f"{seconds:.2f}", f"{100 * part:.2f}")
        rows.append({"T": num_tasks, "processes": processes, "step_seconds": seconds, "exchange_share": part})
    Console(width=120).print(table)
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
