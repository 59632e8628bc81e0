"""Other people's loops on two ranks: each way to call the balancer gives the step of one process."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from models.heads.task_heads import StackedHeads
from paretrain import Balancer
from tests.support.problem import MISSING, Problem, two_pass_step
from tests.support.ragged import LABELLED, NAMES, PROBLEM, batch, summed
from tests.support.ranks import run_ranks


class Found(NamedTuple):
    """A step: α, the squared norm, and the gradients of encoder and heads, None where a parameter has none."""

    alpha_T: Tensor
    min_norm: float
    encoder: list[Tensor | None]
    heads: list[Tensor | None]


def averaged(outputs: Any, labels_TB: Tensor) -> dict[str, Any]:
    """Means as a masked mean is mostly written: 0 / 0 is NaN, and so is its gradient."""
    means, counts = [], []
    for output, labels_B in zip(outputs, labels_TB, strict=True):
        labelled_B = (labels_B != MISSING).double()
        losses_B = F.cross_entropy(output, labels_B.clamp(min=0), reduction="none")
        means.append((losses_B * labelled_B).sum() / labelled_B.sum())
        counts.append(int(labelled_B.sum()))
    return {"means": means, "counts": counts}


class InChunks(nn.Module):
    """Runs encoder and heads over parts of the batch, one after another."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_BCHW: Tensor, balancer: Any) -> list[Tensor]:
        outputs = [self.network(part_BCHW, balancer) for part_BCHW in x_BCHW.split([2, 4, len(x_BCHW) - 6])]
        return [torch.cat(parts) for parts in zip(*outputs, strict=True)]


class Pyramid(nn.Module):
    """Gives the heads z in two parts."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_BCHW: Tensor, balancer: Balancer) -> list[Tensor]:
        z_BD = self.network.encoder(x_BCHW)
        views = balancer.split((z_BD[:, :5], z_BD[:, 5:]))
        return [head(torch.cat(parts, dim=1)) for head, parts in zip(self.network.heads, views, strict=True)]


def wrapped(network: nn.Module) -> nn.Module:
    """Keep what is returned until the backward has ended: the wrapper's hooks live as long as it does."""
    return DistributedDataParallel(network, bucket_cap_mb=0.001)  # The exchange comes between its collectives.


def with_sums(network: nn.Module, balancer: Balancer, x: Tensor, y: Tensor) -> None:
    model = wrapped(network)
    balancer.total(**summed(model(x, balancer), y)).backward()


def with_means(network: nn.Module, balancer: Balancer, x: Tensor, y: Tensor) -> None:
    model = wrapped(network)
    balancer.total(**averaged(model(x, balancer), y)).backward()


def with_means_of_pytorch(network: nn.Module, balancer: Balancer, x: Tensor, y: Tensor) -> None:
    model = wrapped(network)
    means = [
        F.cross_entropy(output, labels_B, ignore_index=MISSING)
        for output, labels_B in zip(model(x, balancer), y, strict=True)
    ]
    balancer.total(means=means, counts=(y != MISSING).sum(dim=1)).backward()


def with_means_alone(network: nn.Module, balancer: Balancer, x: Tensor, y: Tensor) -> None:
    model = wrapped(network)
    balancer.total(means=averaged(model(x, balancer), y)["means"]).backward()


def with_small_weights(network: nn.Module, balancer: Balancer, x: Tensor, y: Tensor) -> None:
    model = wrapped(network)
    losses = summed(model(x, balancer), y)
    sums, weights = ([value / 1024 for value in losses[name]] for name in ("sums", "counts"))
    balancer.total(sums=sums, counts=weights).backward()


def with_names(network: nn.Module, balancer: Balancer, x: Tensor, y: Tensor) -> None:
    model = wrapped(network)
    losses = summed(model(x, balancer), y)
    in_other_order = {
        key: dict(reversed(list(zip(balancer.names, values, strict=True)))) for key, values in losses.items()
    }
    balancer.total(**in_other_order).backward()


def with_a_factor(network: nn.Module, balancer: Balancer, x: Tensor, y: Tensor) -> None:
    model = wrapped(network)
    (0.25 * balancer.total(**summed(model(x, balancer), y))).backward()
    for parameter in network.parameters():
        parameter.grad *= 4


def in_chunks(network: nn.Module, balancer: Balancer, x: Tensor, y: Tensor) -> None:
    model = wrapped(InChunks(network))
    balancer.total(**summed(model(x, balancer), y)).backward()


def in_chunks_of_stacked_heads(network: nn.Module, balancer: Balancer, x: Tensor, y: Tensor) -> None:
    heads, network.heads = network.heads, StackedHeads(list(network.heads))
    model = wrapped(InChunksOfOne(network))
    outputs_BTC = torch.cat(model(x, balancer))
    balancer.total(**summed(outputs_BTC.unbind(dim=1), y)).backward()
    network.heads = heads


class InChunksOfOne(InChunks):
    def forward(self, x_BCHW: Tensor, balancer: Any) -> list[Tensor]:
        return [self.network(part_BCHW, balancer) for part_BCHW in x_BCHW.split([2, 4, len(x_BCHW) - 6])]


def in_two_forwards(network: nn.Module, balancer: Balancer, x: Tensor, y: Tensor) -> None:
    model = wrapped(network)
    outputs = [model(part, balancer) for part in x.split([3, len(x) - 3])]
    balancer.total(**summed([torch.cat(parts) for parts in zip(*outputs, strict=True)], y)).backward()


def of_a_pyramid(network: nn.Module, balancer: Balancer, x: Tensor, y: Tensor) -> None:
    model = wrapped(Pyramid(network))
    balancer.total(**summed(model(x, balancer), y)).backward()


def in_chunks_under_fsdp2(network: nn.Module, balancer: Balancer, x: Tensor, y: Tensor) -> None:
    """With means, of which rank 0 has none for task 1: its head must have a gradient there all the same."""
    for module in (network.encoder, *network.heads, network):
        fully_shard(module)
    outputs = InChunks(network)(x, balancer)
    means = [
        F.cross_entropy(output, labels_B, ignore_index=MISSING) for output, labels_B in zip(outputs, y, strict=True)
    ]
    balancer.total(means=means, counts=(y != MISSING).sum(dim=1)).backward()
    for module in (network.encoder, network.heads):
        whole = [parameter.grad.full_tensor() for parameter in module.parameters()]
        module.whole_gradients = whole


def with_evaluations(network: nn.Module, balancer: Balancer, x: Tensor, y: Tensor) -> None:
    """Before the forward and between it and the backward, with gradients and without, of a teacher too."""
    model, teacher = wrapped(network), PROBLEM.model().requires_grad_(False)
    before = network(x, balancer)
    outputs = model(x, balancer)
    teacher(x, balancer)
    between = network(2 * x, balancer)
    with torch.no_grad():
        balancer.total(**summed(network(x, balancer), y))
    balancer.total(**summed(outputs, y)).backward()
    del before, between


class WithZ(nn.Module):
    """Returns z beside the outputs, as a wrapper that looks for unused parameters passes all of it through one node."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_BCHW: Tensor, balancer: Balancer) -> tuple[Tensor, list[Tensor]]:
        z_BD = self.network.encoder(x_BCHW)
        return z_BD, [head(view) for head, view in zip(self.network.heads, balancer.split(z_BD), strict=True)]


def with_z_beside_the_outputs(network: nn.Module, balancer: Balancer, x: Tensor, y: Tensor) -> None:
    model = DistributedDataParallel(WithZ(network), find_unused_parameters=True)
    balancer.total(**summed(model(x, balancer)[1], y)).backward()


def in_one_product(network: nn.Module, balancer: Balancer, x: Tensor, y: Tensor) -> None:
    """The heads' first layers as one batched product of all views: each loss then reaches all of them in the graph."""
    model = wrapped(network.encoder)
    views_TBD = torch.stack(balancer.split(model(x)))
    weight_TDH = torch.stack([head[0].weight.T for head in network.heads])
    bias_T1H = torch.stack([head[0].bias for head in network.heads])[:, None]
    hidden_TBH = torch.baddbmm(bias_T1H, views_TBD, weight_TDH)
    outputs = [head[1:](hidden) for head, hidden in zip(network.heads, hidden_TBH, strict=True)]
    balancer.total(**summed(outputs, y)).backward()
    for parameter in network.heads.parameters():
        dist.all_reduce(parameter.grad)
        parameter.grad /= 2


def frozen(network: nn.Module, balancer: Balancer, x: Tensor, y: Tensor) -> None:
    network.encoder.requires_grad_(False)
    model = wrapped(network)
    balancer.total(**summed(model(x, balancer), y)).backward()


LOOPS: dict[str, tuple[Problem, Callable[..., None]]] = {
    "sums": (PROBLEM, with_sums),
    "means, NaN where a rank has no label": (PROBLEM, with_means),
    "means of PyTorch, NaN likewise": (PROBLEM, with_means_of_pytorch),
    "means alone": (LABELLED, with_means_alone),
    "weights that sum to less than 1": (PROBLEM, with_small_weights),
    "losses by name": (PROBLEM, with_names),
    "a factor that nobody tells": (PROBLEM, with_a_factor),
    "chunks": (PROBLEM, in_chunks),
    "chunks of stacked heads": (PROBLEM, in_chunks_of_stacked_heads),
    "two forwards": (PROBLEM, in_two_forwards),
    "a z of several tensors": (PROBLEM, of_a_pyramid),
    "chunks under FSDP2": (PROBLEM, in_chunks_under_fsdp2),
    "evaluations before and between": (PROBLEM, with_evaluations),
    "a frozen encoder": (PROBLEM, frozen),
    "z beside the outputs": (PROBLEM, with_z_beside_the_outputs),
    "views in one product": (PROBLEM, in_one_product),
}


def gradients(module: nn.Module) -> list[Tensor | None]:
    return getattr(module, "whole_gradients", None) or [parameter.grad for parameter in module.parameters()]


def step_of_each(rank: int, folder: Path) -> dict[str, Found]:
    """Each balancer is made before the process group, as a module's constructor may."""
    dist.destroy_process_group()
    balancers, found = {name: Balancer(NAMES) for name in LOOPS}, {}
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/group", 2), rank=rank, world_size=2)
    for name, (problem, loop) in LOOPS.items():
        network, balancer = problem.model(), balancers[name]
        loop(network, balancer, *batch(rank, problem))
        assert balancer.last is not None
        found[name] = Found(
            balancer.alpha, balancer.last.min_norm, gradients(network.encoder), gradients(network.heads)
        )
    return found


@cache
def by_definition(problem: Problem) -> Found:
    model, balancer = problem.model(), Balancer(NAMES)
    alpha_T = two_pass_step(model, *problem.data(0))
    balancer.total(**summed(problem.model()(problem.data(0)[0], balancer), problem.data(0)[1])).backward()
    assert balancer.last is not None
    return Found(alpha_T, balancer.last.min_norm, gradients(model.encoder), gradients(model.heads))


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Found]]:
    return run_ranks(2, step_of_each, tmp_path_factory.mktemp("group"))


@pytest.mark.processes
@pytest.mark.parametrize("name", LOOPS)
def test_the_step_is_that_of_one_process(name: str, steps: list[dict[str, Found]]) -> None:
    expected = by_definition(LOOPS[name][0])
    for found in (of_rank[name] for of_rank in steps):
        torch.testing.assert_close(found.alpha_T, expected.alpha_T, rtol=0, atol=1e-12)
        assert found.min_norm == pytest.approx(expected.min_norm, rel=1e-10)
        if name == "a frozen encoder":
            assert not any(gradient is not None for gradient in found.encoder)
        else:
            assert_same(found.encoder, expected.encoder)
        if "stacked" not in name:
            assert_same(found.heads, expected.heads)


def assert_same(found: list[Tensor | None], expected: list[Tensor | None]) -> None:
    for ours, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-14)
