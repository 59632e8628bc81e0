"""Time a step with α against a step with the plain summed loss, under each strategy:
python -m benchmarks.strategies [--quick] [--space parameters] [--processes 2] [--device cpu]

ResNet-18 on 64 x 64 images, 40 linear heads, AdamW. Both kinds of step (forward, backward, optimizer; one thread per
process) alternate on the same engine. For each step it measures the CPU time of all processes together, which other
load affects least, and the wall-clock time of the slowest process, which a user waits for. A ratio is the median of the
ratios of the turns. The last line printed is one JSON object. `--space parameters`: see parameter_space.py.
"""

import argparse
import json
import statistics
import time
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from benchmarks import parameter_space
from benchmarks.ranks import on_every_rank
from models import task_losses
from paretrain import Balancer
from studies.training_step import Problem
from trainer.config.sections.parallel import ParallelConfig
from trainer.config.strategies import STRATEGIES, StrategyName
from trainer.runtime.collectives import Runtime
from trainer.runtime.distributed import joined
from trainer.runtime.engines.engine import Engine
from trainer.runtime.engines.strategies import build_engine

NUM_TASKS = 40
TURNS = {True: 6, False: 30}


def measure(
    strategy: StrategyName, processes: int, device: str, num_turns: int
) -> list[tuple[list[float], list[float]]]:
    """Return for each turn the CPU and wall seconds of the plain step and of the one with α, on this rank."""
    config = ParallelConfig.model_validate(
        {"strategy": strategy, "processes": processes, "device": device}, strict=False
    )
    with joined(config) as runtime:
        problem = Problem("resnet18", NUM_TASKS, separate=False)
        problem.images_BCHW = problem.images_BCHW.to(runtime.device)
        problem.targets = {name: labels_B.to(runtime.device) for name, labels_B in problem.targets.items()}
        problem.model.to(runtime.device)
        engine = build_engine(strategy, problem.model, torch.optim.AdamW, runtime, clip_norm=None)
        balancer = Balancer(NUM_TASKS, group=runtime.balance_group)
        turns = []
        for turn in range(num_turns + 1):
            # Alternate which comes first, too: the second one reuses memory that the first has freed.
            kinds = (None, balancer) if turn % 2 else (balancer, None)
            found = {kind: _seconds(engine, problem, runtime, kind) for kind in kinds}
            turns.append((found[None], found[balancer]))
    return turns[1:]


def _seconds(engine: Engine, problem: Problem, runtime: Runtime, balancer: Balancer | None) -> list[float]:
    if runtime.world_size > 1:
        dist.barrier(runtime.host_group)
    cpu, wall = time.process_time(), time.perf_counter()
    outputs = engine.model(problem.images_BCHW, balancer=balancer)
    losses = task_losses(problem.tasks, outputs, problem.targets)
    engine.backward(balancer.total(sums=losses[0], counts=losses[1]) if balancer else (losses[0] / losses[1]).mean())
    engine.step()
    if runtime.device.type == "cuda":
        torch.cuda.synchronize()
    return [time.process_time() - cpu, time.perf_counter() - wall]


def row(strategy: StrategyName, processes: int, device: str, num_turns: int) -> dict[str, Any]:
    """Return the cost of α under a strategy."""
    of_ranks = on_every_rank(processes, measure, strategy, processes, device, num_turns)
    plain, balanced = (
        [
            (sum(rank[turn][kind][0] for rank in of_ranks), max(rank[turn][kind][1] for rank in of_ranks))
            for turn in range(num_turns)
        ]
        for kind in (0, 1)
    )
    ratios = [[ours / floor for ours, floor in zip(*turn, strict=True)] for turn in zip(balanced, plain, strict=True)]
    cpu, wall = (statistics.median(ratio) for ratio in zip(*ratios, strict=True))
    return {
        "strategy": strategy,
        "processes": processes,
        "ratio_to_plain": round(cpu, 3),
        "wall_ratio_to_plain": round(wall, 3),
        "plain_seconds": round(statistics.median(wall for _, wall in plain), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.strategies", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer turns")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--space", choices=("representation", "parameters"), default="representation")
    arguments = parser.parse_args()
    if arguments.space == "parameters":
        _in_parameter_space(arguments)
        return
    table = Table("strategy", "processes", "α / plain, CPU time", "α / plain, wall clock", "plain step (s)")
    rows = []
    for strategy in STRATEGIES:
        processes = arguments.processes if STRATEGIES[strategy].several_processes else 1
        found = row(strategy, processes, arguments.device, TURNS[arguments.quick])
        table.add_row(*(str(value) for value in found.values()))
        rows.append(found)
    Console(width=120).print(table)
    print(json.dumps({"rows": rows}))


def _in_parameter_space(arguments: argparse.Namespace) -> None:
    turns = {True: 3, False: 20}[arguments.quick]
    rows = []
    columns = (
        "problem",
        "strategy",
        "processes",
        "α / plain, CPU time",
        "α / plain, wall clock",
        "floor",
        "plain step (s)",
    )
    table = Table(*columns)
    for kind in ("sources", "shared"):
        for strategy in parameter_space.STRATEGIES:
            found = parameter_space.row(kind, strategy, arguments.processes, arguments.device, turns)
            table.add_row(*("" if value is None else str(value) for value in found.values()))
            rows.append(found)
    Console(width=120).print(table)
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
