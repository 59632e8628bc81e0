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
from torch import Tensor, nn
from torchjd.aggregation import MGDA
from torchjd.autojac import jac_to_grad, mtl_backward

from models import Classification, MultiTaskModel, task_losses
from models.encoders.resnet import resnet18
from models.heads.task_heads import SeparateHeads, StackedHeads
from models.heads.vector import linear_head
from paretrain import Balancer
from paretrain.gram import gram
from paretrain.minnorm import solve

NUM_SAMPLES = 64
IMAGE_SHAPE = (3, 64, 64)
WIDTH = 512

Step = Callable[[], object]


def small_cnn() -> nn.Module:
    """Return four convolutions with BatchNorm and a fully connected layer to z."""
    layers: list[nn.Module] = []
    for channels, width, stride in ((3, 32, 2), (32, 64, 1), (64, 64, 2), (64, 128, 2)):
        layers += [nn.Conv2d(channels, width, 3, stride, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 8 * 8, WIDTH))


ENCODERS: dict[str, Callable[[], nn.Module]] = {"small_cnn": small_cnn, "resnet18": lambda: resnet18(IMAGE_SHAPE)}


class Problem:
    """A random network and batch with two classes per task, the same for every method."""

    def __init__(self, model: str, num_tasks: int, separate: bool) -> None:
        torch.manual_seed(0)
        encoder = ENCODERS[model]()
        self.tasks = [Classification(f"{task}", 2) for task in range(num_tasks)]
        kind = SeparateHeads if separate else StackedHeads
        self.model = MultiTaskModel(encoder, kind([linear_head(WIDTH, 2) for _ in self.tasks]))
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.images_BCHW = torch.randn(NUM_SAMPLES, *IMAGE_SHAPE).to(memory_format=torch.channels_last)
        self.targets = {task.name: torch.randint(0, 2, (NUM_SAMPLES,)) for task in self.tasks}

    def mean_losses(self, outputs: Tensor | list[Tensor]) -> Tensor:
        """Return the mean loss of each task, (T,)."""
        sums_T, counts_T = task_losses(self.tasks, outputs, self.targets)
        return sums_T / counts_T

    def head_losses(self, features: Tensor) -> list[Tensor]:
        """Return the mean loss of each task, one tensor per task."""
        heads = self.model.heads
        assert isinstance(heads, SeparateHeads)
        return [
            F.cross_entropy(head(features), target) for head, target in zip(heads, self.targets.values(), strict=True)
        ]


def build_step(method: str, model: str, num_tasks: int) -> Step:
    """Return a step of the method on a new problem."""
    problem = Problem(model, num_tasks, separate=method.startswith("torchjd"))
    step = STEPS[method](problem)

    def fresh() -> None:
        problem.model.zero_grad()
        step()

    return fresh


def plain(problem: Problem) -> Step:
    return lambda: problem.mean_losses(problem.model(problem.images_BCHW)).sum().backward()


def paretrain(problem: Problem) -> Step:
    balancer = Balancer(len(problem.tasks))

    def step() -> None:
        outputs = problem.model(problem.images_BCHW, balancer)
        sums_T, counts_T = task_losses(problem.tasks, outputs, problem.targets)
        balancer.total(sums=sums_T, counts=counts_T).backward()
        assert balancer.last is not None
        assert balancer.last.certified

    return step


def torchjd_ub(problem: Problem) -> Step:
    def step() -> None:
        z_BD = problem.model.encoder(problem.images_BCHW)
        leaf_BD = z_BD.detach().requires_grad_()
        features_BD = leaf_BD.view_as(leaf_BD)
        mtl_backward(problem.head_losses(features_BD), features=features_BD, shared_params=[leaf_BD])
        jac_to_grad([leaf_BD], MGDA())
        z_BD.backward(leaf_BD.grad)

    return step


def torchjd(problem: Problem) -> Step:
    def step() -> None:
        z_BD = problem.model.encoder(problem.images_BCHW)
        mtl_backward(problem.head_losses(z_BD), features=z_BD)
        jac_to_grad(problem.model.encoder.parameters(), MGDA())

    return step


def mgda(problem: Problem) -> Step:
    encoder, heads = (list(part.parameters()) for part in (problem.model.encoder, problem.model.heads))

    def step() -> None:
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
