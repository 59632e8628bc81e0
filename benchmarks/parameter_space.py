"""Time a step with α from the gradients of the encoder's parameters, for python -m benchmarks.strategies.

ResNet-18 on 64 x 64 images, 40 linear heads, AdamW; 64 images a process. Two problems:

sources  4 sources of 16 images, each with labels of its own 10 tasks, which are a group: α in every step
shared   every image has labels of all 40 tasks, each a group of its own: α in every tenth step (balance.every_steps=10)

Each is compared with the plain summed step of the same engine and labels, which alternates with it. The mean of ten
steps of `shared` is that of one that finds α and nine that hold it. For `sources` there is the floor, too: the plain
step source by source, in four micro-batches, which is what separate gradients take before anything is done with them.
"""

import statistics
import time
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.ranks import on_every_rank
from models import task_losses
from models.tasks import MISSING
from paretrain import Balancer
from studies.training_step import Problem
from trainer.config.sections.balance import BalanceConfig
from trainer.config.sections.parallel import ParallelConfig
from trainer.config.sections.train import AccumulationConfig
from trainer.config.strategies import StrategyName
from trainer.data.reading.batch import Batch
from trainer.runtime.collectives import Runtime
from trainer.runtime.distributed import joined
from trainer.runtime.engines.strategies import build_engine
from trainer.training.gradients import forward_backward
from trainer.training.learner import Learner
from trainer.training.micro_batches import samples_of_groups

NUM_TASKS, NUM_SOURCES, EVERY_STEPS = 40, 4, 10
GROUP_OF = [task * NUM_SOURCES // NUM_TASKS for task in range(NUM_TASKS)]
STRATEGIES: tuple[StrategyName, ...] = ("ddp", "fsdp2", "zero2")

Seconds = tuple[float, float]
"""CPU seconds, and those of the clock."""


def measure(
    kind: str, strategy: StrategyName, processes: int, device: str, num_turns: int
) -> tuple[list[Seconds], list[Seconds], list[Seconds], list[Seconds]]:
    """Return the seconds of plain steps, plain ones source by source, those that find α and those that hold it."""
    config = ParallelConfig.model_validate(
        {"strategy": strategy, "processes": processes, "device": device}, strict=False
    )
    with joined(config) as runtime:
        learner, batch = _learner(kind, strategy, runtime)
        _plain(learner, batch, runtime)  # The first step, which allocates, is not counted.
        plain: list[Seconds] = []
        by_source: list[Seconds] = []
        found: list[Seconds] = []
        held: list[Seconds] = []
        for _ in range(num_turns):
            plain.append(_plain(learner, batch, runtime))
            if kind == "sources":
                by_source.append(_plain(learner, batch, runtime, by_source=True))
            seconds, age = _balanced(learner, batch, runtime)
            (held if age else found).append(seconds)
    return plain, by_source, found, held


def row(kind: str, strategy: StrategyName, processes: int, device: str, num_turns: int) -> dict[str, Any]:
    """Return the cost of α under a strategy, as ratios to the plain step: of medians over the turns."""
    of_ranks = on_every_rank(processes, measure, kind, strategy, processes, device, num_turns)
    # For plain steps, those by source, those that find α and those that hold it: the CPU time of all processes, and the
    # clock's time of the slowest one.
    cpu, wall = [], []
    for steps in zip(*of_ranks, strict=True):
        turns = list(zip(*steps, strict=True))
        cpu.append(statistics.median(sum(seconds[0] for seconds in turn) for turn in turns) if turns else 0.0)
        wall.append(statistics.median(max(seconds[1] for seconds in turn) for turn in turns) if turns else 0.0)
    return {
        "kind": kind,
        "strategy": strategy,
        "processes": processes,
        "ratio_to_plain": round(_mean(*cpu[2:]) / cpu[0], 3),
        "wall_ratio_to_plain": round(_mean(*wall[2:]) / wall[0], 3),
        "floor": round(cpu[1] / cpu[0], 3) or None,
        "plain_seconds": round(wall[0], 4),
    }


def _mean(found: float, held: float) -> float:
    """Return the mean step: nine of ten steps hold α, where any does."""
    return (found + (EVERY_STEPS - 1) * held) / EVERY_STEPS if held else found


def _learner(kind: str, strategy: StrategyName, runtime: Runtime) -> tuple[Learner, Batch]:
    problem = Problem("resnet18", NUM_TASKS, separate=False)
    source_B = torch.arange(len(problem.images_BCHW)) % NUM_SOURCES
    if kind == "sources":
        problem.targets = {
            name: target.where(source_B == group, MISSING)
            for (name, target), group in zip(problem.targets.items(), GROUP_OF, strict=True)
        }
    targets = {name: target.to(runtime.device) for name, target in problem.targets.items()}
    problem.model.to(runtime.device)
    engine = build_engine(strategy, problem.model, torch.optim.AdamW, runtime, clip_norm=None)
    balancer = Balancer(
        NUM_TASKS,
        group=runtime.balance_group,
        group_of=GROUP_OF if kind == "sources" else None,
        every_steps=1 if kind == "sources" else EVERY_STEPS,
    )
    learner = Learner(
        network=problem.model,
        engine=engine,
        tasks=problem.tasks,
        balancer=balancer,
        balance=BalanceConfig(space="parameters"),
        accumulation=AccumulationConfig(),
        device=runtime.device,
    )
    return learner, Batch(problem.images_BCHW.to(runtime.device), targets, source_B)


def _plain(learner: Learner, batch: Batch, runtime: Runtime, by_source: bool = False) -> Seconds:
    has_G1 = torch.ones(max(GROUP_OF) + 1, 1)

    def step() -> None:
        parts = samples_of_groups(batch, learner.tasks, GROUP_OF, has_G1) if by_source else [batch]
        for number, part in enumerate(parts, start=1):
            with learner.engine.micro_step(is_last=number == len(parts)):
                sums_T, counts_T = task_losses(learner.tasks, learner.engine.model(part.inputs), part.targets)
                learner.engine.backward((sums_T / counts_T.clamp(min=1)).mean())
        learner.engine.step()

    return _seconds(step, runtime)


def _balanced(learner: Learner, batch: Batch, runtime: Runtime) -> tuple[Seconds, int]:
    """Return the seconds of a step with α, and how many steps old its α is."""

    def step() -> None:
        forward_backward(learner, batch)
        learner.engine.step()

    seconds = _seconds(step, runtime)
    assert learner.balancer.last is not None, "the step sets it"
    return seconds, learner.balancer.last.age


def _seconds(step: Any, runtime: Runtime) -> Seconds:
    if runtime.world_size > 1:
        dist.barrier(runtime.host_group)
    cpu, wall = time.process_time(), time.perf_counter()
    step()
    if runtime.device.type == "cuda":
        torch.cuda.synchronize()
    return time.process_time() - cpu, time.perf_counter() - wall
