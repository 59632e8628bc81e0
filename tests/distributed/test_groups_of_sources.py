"""Data sources in the space of the parameters: a group a source by default, on two ranks as on one in float64."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models import MultiTaskModel, Task, training_losses
from models.tasks import without_labels
from tests.support.mixed_data import EVEN, THIRD, weight, write_rows
from tests.support.oracle import min_norm_by_enumeration
from tests.support.ranks import run_ranks
from tests.support.runtimes import ALONE, a_runtime
from trainer.config.file import parse_config
from trainer.data.reading.batch import Batch
from trainer.training.build_run import build_run
from trainer.training.gradients import forward_backward
from trainer.training.network.build import build_network
from trainer.training.prepare_data import open_data
from trainer.training.tasks import build_tasks

GROUPS = {"a": ["third"], "b": ["even", "weight"]}


def experiment(folder: Path, micro_batches: int = 1) -> Any:
    sources = {"b": {"path": f"{folder / 'rows'}", "tasks": GROUPS["b"]}, "a": {"path": f"{folder / 'others'}"}}
    values = {
        "name": "run",
        "output": f"{folder / 'runs'}",
        "data": {"sources": sources},
        "model": {"encoder": {"name": "mlp", "options": {"hidden": [8]}}, "head": {"name": "linear"}},
        "balance": {"space": "parameters"},
        "optimizer": {"name": "sgd", "learning_rate": 0.05},
        "train": {"steps": 3, "global_batch": 8, "eval_every_steps": 3, "accumulation": {"steps": micro_batches}},
        "checkpoint": {"every_steps": 3},
        "parallel": {"processes": 2, "strategy": "ddp"},
    }
    return parse_config(values, "the test")


def on_a_rank(rank: int, folder: Path) -> list[tuple[Batch, Tensor, dict[str, Tensor]]]:
    runtime = a_runtime(rank, 2)
    found = []
    for micro_batches in (1, 2):
        config = experiment(folder, micro_batches)
        run = build_run(config, open_data(config.data, runtime), runtime)
        assert "share one α: a (third); b (even, weight)" in " ".join(run.description.notes)
        for step in range(2):
            batch = run.to_device(next(run.train_batches))
            if step == 1:
                batch.targets["weight"] = without_labels(batch.targets["weight"])
            forward_backward(run.learner, batch)
            parameters = run.learner.network.named_parameters()
            gradients = {name: one.grad.clone() for name, one in parameters if one.grad is not None}
            run.learner.engine.discard()
            found.append((batch, run.learner.balancer.alpha, gradients))
        run.close()
    return found


def by_definition(network: MultiTaskModel, tasks: list[Task], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Return α, (T,), and every gradient, from the gradient of each group's mean loss."""
    sums_T, counts_T = training_losses(tasks, network(batch.inputs.double()), batch.targets)
    labelled_T = counts_T > 0
    means_T = sums_T / counts_T.clamp(min=1)
    encoder, heads = list(network.encoder.parameters()), list(network.heads.parameters())
    shares_GT = torch.tensor([[task.name in names for task in tasks] for names in GROUPS.values()]) * labelled_T
    shares_GT = shares_GT.double() / shares_GT.sum(dim=1, keepdim=True)
    rows = [torch.autograd.grad(mean, encoder, retain_graph=True) for mean in shares_GT @ means_T]
    vectors_GP = np.stack([torch.cat([part.flatten() for part in row]).numpy() for row in rows])
    alpha_G = min_norm_by_enumeration(vectors_GP @ vectors_GP.T)[0]
    combined = [sum(a * part for a, part in zip(alpha_G, parts, strict=True)) for parts in zip(*rows, strict=True)]
    own = torch.autograd.grad(means_T.sum(), heads)
    names = [name for name, _ in network.named_parameters()]
    return torch.from_numpy(alpha_G) @ shares_GT, dict(zip(names, [*combined, *own], strict=True))


def test_two_ranks_balance_the_sources_as_one_process_does(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows", 1, (EVEN, weight()), train=32)
    write_rows(tmp_path / "others", 2, (THIRD,), train=12)
    config = experiment(tmp_path)
    data = open_data(config.data, ALONE)
    tasks = build_tasks(data.spec, None, {}, data.sources)
    network = build_network(config, data.spec, tasks).double()
    names = [task.name for task in tasks]
    first, second = run_ranks(2, on_a_rank, tmp_path)
    for number, ((batch, alpha_T, gradients), (other, same_T, _)) in enumerate(zip(first, second, strict=True)):
        assert torch.equal(alpha_T, same_T)
        targets = {name: torch.cat([batch.targets[name], other.targets[name]]) for name in batch.targets}
        whole = Batch(torch.cat([batch.inputs, other.inputs]), targets, batch.sample_ids_B)
        expected_T, expected = by_definition(network, tasks, whole)
        assert (expected_T[names.index("weight")] == 0) == (number % 2 == 1), "it has no label then"
        assert alpha_T.tolist() == pytest.approx(expected_T.tolist(), abs=1e-6), number
        for name, gradient in expected.items():
            torch.testing.assert_close(gradients[name].double(), gradient, rtol=0, atol=1e-6)
