"""A norm over the samples of all processes: α and the encoder's gradient are those of one process with the whole batch.

SyncBatchNorm is such a norm, but torch has it for no CPU.

Shapes: T tasks, B samples, F features, D representation width, C outputs of a head.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from paretrain import Balancer
from tests.support.oracle import min_norm_by_enumeration
from tests.support.ranks import run_ranks

CUT = (7, 17)
"""The samples of each rank."""
NUM_TASKS = 3
PLACES = ("encoder", "heads")


class SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        total = local.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return SumOverRanks.forward(ctx, gradient)


class SyncNorm(nn.Module):
    def forward(self, x_BD: Tensor) -> Tensor:
        samples = SumOverRanks.apply(x_BD.new_tensor(len(x_BD)))
        centred_BD = x_BD - SumOverRanks.apply(x_BD.sum(0)) / samples
        variance_D = SumOverRanks.apply(centred_BD.square().sum(0)) / samples
        return centred_BD / (variance_D + 1e-5).sqrt()


def network(norm: nn.Module, place: str) -> tuple[nn.Module, nn.ModuleList]:
    torch.manual_seed(0)
    encoder = [nn.Linear(5, 8), *([norm] if place == "encoder" else []), nn.Tanh(), nn.Linear(8, 6)]
    heads = [nn.Sequential(nn.Linear(6, 4), *([norm] if place == "heads" else []), nn.Tanh()) for _ in range(NUM_TASKS)]
    return nn.Sequential(*encoder).double(), nn.ModuleList(heads).double()


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(sum(CUT), 5).double(), torch.randn(NUM_TASKS, sum(CUT), 4).double()


def gradient_of(encoder: nn.Module) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in encoder.parameters() if parameter.grad is not None])


def by_definition(place: str) -> tuple[Tensor, Tensor]:
    """Return α and the encoder's gradient from one process, which has the whole batch, and T backwards."""
    encoder, heads = network(nn.BatchNorm1d(8 if place == "encoder" else 4, affine=False), place)
    x_BF, y_TBC = batch()
    z_BD = encoder(x_BF)
    losses = [(head(z_BD) - y_BC).square().sum() / len(x_BF) for head, y_BC in zip(heads, y_TBC, strict=True)]
    gradients_TN = torch.stack([torch.autograd.grad(loss, z_BD)[0].flatten() for loss in losses])
    alpha_T = torch.as_tensor(min_norm_by_enumeration((gradients_TN @ gradients_TN.T).numpy())[0])
    z_BD = encoder(x_BF)
    z_BD.backward((alpha_T @ gradients_TN).view_as(z_BD))
    return alpha_T, gradient_of(encoder)


def on_rank(rank: int, place: str) -> tuple[Tensor, Tensor]:
    encoder, heads = network(SyncNorm(), place)
    distributed = nn.parallel.DistributedDataParallel(encoder)
    x_BF, y_TBC = batch()
    mine = slice(sum(CUT[:rank]), sum(CUT[: rank + 1]))
    balancer = Balancer(tasks=NUM_TASKS)
    views = balancer.split(distributed(x_BF[mine]))
    sums = [(head(view) - y_BC[mine]).square().sum() for head, view, y_BC in zip(heads, views, y_TBC, strict=True)]
    balancer.total(sums=sums, counts=[CUT[rank]] * NUM_TASKS).backward()
    return balancer.alpha, gradient_of(encoder)


def in_both_places(rank: int) -> list[tuple[Tensor, Tensor]]:
    return [on_rank(rank, place) for place in PLACES]


def test_a_norm_over_all_samples_leaves_the_weights_exact() -> None:
    expected = [by_definition(place) for place in PLACES]
    assert all(alpha_T.min() > 0 for alpha_T, _ in expected)
    for found in run_ranks(len(CUT), in_both_places):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
