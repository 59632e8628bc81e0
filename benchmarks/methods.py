"""One training step on the same network and batch by five methods, which fill every gradient, without optimizer.

plain       the sum of all tasks' mean losses, one backward: the lower bound
paretrain   exact α in that one backward
torchjd_ub  TorchJD's MGDA on the gradients with respect to z, composed by hand: T head backwards, one encoder backward
torchjd     TorchJD's documented path, `mtl_backward` and `jac_to_grad` with MGDA: T encoder backwards
mgda        exact MGDA in parameter space with this project's solver: T encoder backwards

plain, paretrain and mgda use stacked heads and the batched loss; TorchJD uses one module and one loss per task, as in
its documentation.

Shapes: T tasks, B samples, P encoder parameters.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchjd.aggregation import MGDA
from torchjd.autojac import jac_to_grad, mtl_backward

from models.heads.task_heads import SeparateHeads
from paretrain import Balancer
from paretrain.gram import gram
from paretrain.minnorm import solve
from studies.training_step import Problem, balanced_step, plain_step
from studies.turns import Step


def build_step(method: str, model: str, num_tasks: int) -> Step:
    """Return a step of the method on a new problem."""
    return STEPS[method](Problem(model, num_tasks, separate=method.startswith("torchjd")))


def plain(problem: Problem) -> Step:
    return lambda: plain_step(problem)


def paretrain(problem: Problem) -> Step:
    balancer = Balancer(len(problem.tasks))
    return lambda: balanced_step(problem, balancer)


def torchjd_ub(problem: Problem) -> Step:
    def step() -> None:
        problem.model.zero_grad()
        z_BD = problem.model.encoder(problem.images_BCHW)
        leaf_BD = z_BD.detach().requires_grad_()
        features_BD = leaf_BD.view_as(leaf_BD)
        mtl_backward(_head_losses(problem, features_BD), features=features_BD, shared_params=[leaf_BD])
        jac_to_grad([leaf_BD], MGDA())
        z_BD.backward(leaf_BD.grad)

    return step


def torchjd(problem: Problem) -> Step:
    def step() -> None:
        problem.model.zero_grad()
        z_BD = problem.model.encoder(problem.images_BCHW)
        mtl_backward(_head_losses(problem, z_BD), features=z_BD)
        jac_to_grad(problem.model.encoder.parameters(), MGDA())

    return step


def _head_losses(problem: Problem, features: Tensor) -> list[Tensor]:
    """Return the mean loss of each task, one tensor per task."""
    heads = problem.model.heads
    assert isinstance(heads, SeparateHeads)
    return [
        F.cross_entropy(head(features), target) for head, target in zip(heads, problem.targets.values(), strict=True)
    ]


def mgda(problem: Problem) -> Step:
    encoder, heads = (list(part.parameters()) for part in (problem.model.encoder, problem.model.heads))

    def step() -> None:
        problem.model.zero_grad()
        means_T = problem.mean_losses(problem.model(problem.images_BCHW))
        rows = [torch.autograd.grad(mean, encoder, retain_graph=True) for mean in means_T]
        gradients_TP = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
        del rows
        alpha_T = torch.from_numpy(solve(gram(gradients_TP).numpy()).alpha_T)
        combined_P = alpha_T.to(gradients_TP) @ gradients_TP
        parts = combined_P.split([parameter.numel() for parameter in encoder])
        for parameter, part in zip(encoder, parts, strict=True):
            parameter.grad = part.view_as(parameter)
        for parameter, gradient in zip(heads, torch.autograd.grad(means_T.sum(), heads), strict=True):
            parameter.grad = gradient

    return step


STEPS: dict[str, Callable[[Problem], Step]] = {
    "plain": plain,
    "paretrain": paretrain,
    "torchjd_ub": torchjd_ub,
    "torchjd": torchjd,
    "mgda": mgda,
}
