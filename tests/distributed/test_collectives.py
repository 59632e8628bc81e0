"""A step has the same collectives whatever its batch holds, and finds the same α whichever group they go through."""

import os
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator

from launch.diagnose.flight import last_collective
from models.tasks import MISSING
from paretrain import Balancer
from tests.support.losses import by_name
from tests.support.problem import Problem
from tests.support.ranks import run_ranks
from trainer.config.schema import Experiment
from trainer.config.sections.parallel import ParallelConfig
from trainer.data.reading.batch import Batch
from trainer.data.sources.digits import write_digits
from trainer.runtime.collectives import Runtime
from trainer.runtime.distributed import exchange_group
from trainer.runtime.engines.strategies import build_engine
from trainer.train import train
from trainer.training import loop, summary
from trainer.training.learner import Learner

BREAKING_HEAD = {"name": "tests.support.faulty.NanOfEverySecondTask"}
"""In the second step."""
CASES: dict[str, dict[str, Any]] = {
    "stop": {},
    "skip_step": {"model.head": BREAKING_HEAD, "balance": {"on_nonfinite": "skip_step"}},
    "drop_task": {"model.head": BREAKING_HEAD, "balance": {"on_nonfinite": "drop_task"}},
    "uniform": {"balance": {"weighting": "uniform"}},
}
UNLABELLED = 2
"""From this step on rank 1 has no labels, and in the next one no rank has one of the first task."""


def as_launched(rank: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


def recorded() -> list[str]:
    """Every collective so far, those that DDP calls in C++ too: by torch's flight recorder."""
    return [entry["profiling_name"] for entry in pickle.loads(torch._C._distributed_c10d._dump_fr_trace())["entries"]]


def without_some_labels(batch: Batch, step: int, rank: int) -> Batch:
    first = next(iter(batch.targets))
    gone = {
        name: torch.full_like(target, MISSING)
        for name, target in batch.targets.items()
        if rank == 1 or (step > UNLABELLED and name == first)
    }
    return replace(batch, targets=batch.targets | gone) if step >= UNLABELLED else batch


def collectives_of_each_step(rank: int, digits: Path, folder: Path) -> dict[str, list[list[str]]]:
    as_launched(rank)
    train_step, found = loop.train_step, {}
    steps: list[list[str]] = []

    def counted(learner: Learner, batch: Batch, *others: Any, **options: Any) -> Any:
        before = len(recorded())
        result = train_step(learner, without_some_labels(batch, len(steps), rank), *others, **options)
        steps.append(recorded()[before:])
        return result

    loop.train_step = counted  # type: ignore[attr-defined]
    summary.write_report = lambda *_: None  # type: ignore[attr-defined]  # Takes longer than all the rest.
    for case, settings in CASES.items():
        found[case] = steps = []
        if not dist.is_initialized():  # A run leaves its group.
            dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/{case}.store", 2), rank=rank, world_size=2)
        train(an_experiment(case, digits, folder, settings))
    (folder / f"flight_{rank}").write_bytes(torch._C._distributed_c10d._dump_fr_trace())
    return found


def an_experiment(name: str, digits: Path, output: Path, settings: dict[str, Any]) -> Experiment:
    values = {
        "name": name,
        "output": output,
        "data": {"path": str(digits)},
        "model": {"encoder": {"name": "lenet"}, "head": settings.get("model.head", {"name": "linear"})},
        "balance": settings.get("balance", {}),
        "optimizer": {"name": "sgd", "learning_rate": 0.05},
        "train": {"steps": UNLABELLED + 2, "global_batch": 20, "eval_every_steps": 100},
        "checkpoint": {"every_steps": 100},
        "parallel": {"processes": 2},
    }
    return Experiment.model_validate(values)


def test_the_number_of_collectives_of_a_step_is_constant(tmp_path: Path) -> None:
    """With all labels; not finite, in the second step; without labels on a rank; without one of a task on any."""
    write_digits(tmp_path / "digits", train_samples=80, test_samples=20)
    for of_rank in run_ranks(2, collectives_of_each_step, tmp_path / "digits", tmp_path, limit_seconds=120):
        assert of_rank.keys() == CASES.keys()
        for case, steps in of_rank.items():
            first, *others = map(Counter, steps)
            # The counts and DDP's one bucket; the Gram matrix; α.
            expected = Counter({"gloo:all_reduce": 2, "gloo:reduce": 1, "gloo:broadcast": 1})
            assert others == [expected] * (UNLABELLED + 1), case
            # In its second forward, after the one that is thrown away, DDP tells of the buckets that it has cut anew.
            assert first == expected + Counter({"gloo:broadcast": 2}), case
    for rank in range(2):  # What torch itself has written is what diagnose reads.
        last = last_collective(tmp_path / f"flight_{rank}")
        assert last is not None
        assert last.profiling_name.startswith("gloo:")


PROBLEM = Problem(num_tasks=3, dtype=torch.float32)
GROUPS = ("dedicated", "default", "gloo")


def alphas_over_each_group(rank: int, strategies: list[str]) -> dict[str, list[torch.Tensor]]:
    as_launched(rank)
    host_group = dist.new_group(backend="gloo")
    found: dict[str, list[torch.Tensor]] = {strategy: [] for strategy in strategies}
    for strategy in strategies:
        for name in GROUPS:
            group = exchange_group(ParallelConfig(processes=2, exchange_group=name), host_group)
            assert (group is None, group is host_group) == (name == "default", name == "gloo")
            runtime = Runtime(Accelerator(cpu=True), rank, 2, torch.device("cpu"), group, host_group)
            engine = build_engine(strategy, PROBLEM.model(), lambda p: torch.optim.SGD(p, lr=0.05), runtime, None)
            balancer = Balancer(3, group=runtime.balance_group)
            for step in range(3):
                x_BCHW, labels_TB = PROBLEM.data(step)
                mine = slice(12 * rank, 12 * rank + 12)
                outputs = engine.model(x_BCHW[mine], balancer=balancer)
                losses = [task.loss(outputs[t], labels_TB[t, mine]) for t, task in enumerate(PROBLEM.tasks)]
                engine.backward(balancer.total(**by_name(zip(*losses, strict=True))))
                engine.step()
            found[strategy].append(balancer.alpha)
    return found


def test_alpha_is_the_same_over_each_group_with_gradients_on_their_way_in_the_same_backward() -> None:
    first, second = run_ranks(2, alphas_over_each_group, ["ddp", "fsdp2", "zero3"], limit_seconds=120)
    for strategy, alphas in first.items():
        for alpha_T in alphas[1:] + second[strategy]:
            torch.testing.assert_close(alpha_T, alphas[0], rtol=0, atol=0)
        torch.testing.assert_close(alphas[0], first["ddp"][0], rtol=0, atol=1e-6)
