"""Sources whose inputs have several shapes: on two ranks, under every strategy, the steps of one process in float64."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models import MultiTaskModel, Task, training_losses
from models.tasks import without_labels
from tests.support.mixed_data import THIRD, write_rows
from tests.support.oracle import min_norm_by_enumeration
from tests.support.ranks import run_ranks
from tests.support.runtimes import ALONE, a_runtime
from tests.support.strategies import whole
from tests.support.tiny_data import spec, write_tiny
from trainer.config.file import parse_config
from trainer.data.reading.batch import Batch
from trainer.training.build_run import build_run
from trainer.training.network.build import build_network
from trainer.training.prepare_data import open_data
from trainer.training.step import train_step
from trainer.training.tasks import build_tasks

RATE = 0.5
STEPS = 4
TASKS = {"a": "digit", "b": "even", "c": "even", "d": "third"}
"""Images of 8 x 8 pixels, of 12 x 12, of 8 x 8 again, and rows. The groups are the sources' tasks."""
SPACES = {"parameters": 1, "parameters, in micro-batches": 2, "representation": 1, "representation, a window": 2}

Found = tuple[list[Batch], list[Tensor], dict[str, Tensor]]
"""This rank's batches, α of each step, and the parameters at the end."""


def experiment(folder: Path, space: str, strategy: str) -> Any:
    values = {
        "name": "run",
        "output": f"{folder / 'runs'}",
        "data": {"sources": {name: {"path": f"{folder / name}", "tasks": [task]} for name, task in TASKS.items()}},
        "model": {"encoder": {"name": "tests.support.encoders.ImagesAndRows"}, "head": {"name": "linear"}},
        "balance": {"space": space.partition(",")[0]},
        "optimizer": {"name": "sgd", "learning_rate": RATE, "momentum": 0.0, "weight_decay": 0.0},
        "train": {"steps": STEPS, "global_batch": 32, "eval_every_steps": STEPS},
        "checkpoint": {"every_steps": STEPS},
        "parallel": {"processes": 2, "strategy": strategy},
    }
    values["train"]["accumulation"] = {"steps": SPACES[space], "alpha": "window"} if SPACES[space] > 1 else {}
    return parse_config(values, "the test")


def on_a_rank(
    rank: int, folder: Path, spaces: Sequence[str], strategies: Sequence[str]
) -> dict[tuple[str, str], Found]:
    runtime = a_runtime(rank, 2)
    cases = itertools.product(spaces, strategies)
    return {(space, strategy): _trained(folder, space, strategy, runtime) for space, strategy in cases}


def _trained(folder: Path, space: str, strategy: str, runtime: Any) -> Found:
    config = experiment(folder, space, strategy)
    run = build_run(config, open_data(config.data, runtime), runtime)
    assert run.learner.balancer.group_of == [0, 1, 2], "of digit, even and third"
    batches, alphas = [], []
    for step in range(STEPS):
        batch = run.to_device(next(run.train_batches))
        if step == 1 and runtime.rank == 1:  # Every rank runs the same forwards still.
            batch.targets["even"] = without_labels(batch.targets["even"])
        if step == 2:
            batch.targets["digit"] = without_labels(batch.targets["digit"])
        result = train_step(run.learner, batch, RATE)
        batches.append(batch)
        alphas.append(torch.from_numpy(result.balance.alpha_T))
    run.close()
    return batches, alphas, whole(run.learner.engine.model_pieces(), runtime)


def by_definition(
    network: MultiTaskModel, tasks: list[Task], batches: Sequence[Sequence[Batch]], space: str
) -> tuple[list[Tensor], Mapping[str, Tensor]]:
    """Train by plain gradients: of each group with respect to the encoder, or of each task with respect to z."""
    encoder, heads, alphas = list(network.encoder.parameters()), list(network.heads.parameters()), []
    for of_ranks in batches:
        parts = [part for batch in of_ranks for part in batch.by_shape()]
        zs = [network.encoder(part.only_inputs.double()) for part in parts]
        losses = [
            training_losses(tasks, network.heads(z, None), part.targets) for z, part in zip(zs, parts, strict=True)
        ]
        sums_T, counts_T = (torch.stack(each).sum(dim=0) for each in zip(*losses, strict=True))
        means_T, labelled_T = sums_T / counts_T.clamp(min=1), counts_T > 0
        through = encoder if space == "parameters" else zs
        rows = [torch.autograd.grad(mean, through, retain_graph=True, allow_unused=True) for mean in means_T]
        full = [[torch.zeros_like(x) if g is None else g for g, x in zip(row, through, strict=True)] for row in rows]
        vectors = np.stack([torch.cat([part.flatten() for part in row]).numpy() for row in full])[labelled_T]
        alpha_T = torch.zeros(len(tasks), dtype=torch.float64)
        alpha_T[labelled_T] = torch.from_numpy(min_norm_by_enumeration(vectors @ vectors.T)[0])
        own = torch.autograd.grad(means_T.sum(), heads, retain_graph=True)
        shared = torch.autograd.grad(alpha_T @ means_T, encoder)
        with torch.no_grad():
            for parameter, gradient in zip([*encoder, *heads], [*shared, *own], strict=True):
                parameter -= RATE * gradient
        alphas.append(alpha_T)
    return alphas, network.state_dict()


@pytest.mark.parametrize(
    ("spaces", "strategies"),
    [
        (["parameters, in micro-batches", "representation"], ["fsdp2"]),
        pytest.param(list(SPACES), ["ddp", "fsdp2", "zero1", "zero2", "zero3"], marks=pytest.mark.slow),
    ],
)
def test_every_strategy_makes_the_steps_of_one_process(
    tmp_path: Path, spaces: list[str], strategies: list[str]
) -> None:
    for name, side in {"a": 8, "b": 12, "c": 8}.items():
        write_tiny(tmp_path / name, train=40, image=spec(height=side, width=side))
    write_rows(tmp_path / "d", 0, (THIRD,), train=40)
    first, second = run_ranks(2, on_a_rank, tmp_path, spaces, strategies, limit_seconds=240)
    for (space, strategy), (batches, alphas, parameters) in first.items():
        others, same, _ = second[space, strategy]
        config = experiment(tmp_path, space, strategy)
        data = open_data(config.data, ALONE)
        tasks = build_tasks(data.spec, None, {}, data.sources)
        network = build_network(config, data.spec, tasks).double()
        expected_alphas, expected = by_definition(
            network, tasks, list(zip(batches, others, strict=True)), config.balance.space
        )
        for found, of_other_rank, wanted in zip(alphas, same, expected_alphas, strict=True):
            assert torch.equal(found, of_other_rank), (space, strategy)
            assert found.tolist() == pytest.approx(wanted.tolist(), abs=1e-6), (space, strategy)
        for name, tensor in expected.items():
            assert float((parameters[name] - tensor).norm() / tensor.norm()) <= 1e-5, (space, strategy, name)
