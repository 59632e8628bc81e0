"""A training step on a random network and batch: every gradient of every parameter, without optimizer.

Shapes: T tasks, B samples, C channels, H rows, W columns.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models import Classification, MultiTaskModel, task_losses
from models.encoders.resnet import resnet18
from models.heads.task_heads import SeparateHeads, StackedHeads
from models.heads.vector import linear_head
from paretrain import Balancer

NUM_SAMPLES = 64
IMAGE_SHAPE = (3, 64, 64)
WIDTH = 512


def small_cnn() -> nn.Module:
    """Return four convolutions with BatchNorm and a fully connected layer to z."""
    layers: list[nn.Module] = []
    for channels, width, stride in ((3, 32, 2), (32, 64, 1), (64, 64, 2), (64, 128, 2)):
        layers += [nn.Conv2d(channels, width, 3, stride, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 8 * 8, WIDTH))


ENCODERS: dict[str, Callable[[], nn.Module]] = {"small_cnn": small_cnn, "resnet18": lambda: resnet18(IMAGE_SHAPE)}


class Problem:
    """A random network and batch with two classes per task, the same for every method.

    Args:
        model: a key of ENCODERS.
        num_tasks: T.
        separate: whether each task's head is a module of its own; they are stacked otherwise.
    """

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


def plain_step(problem: Problem) -> None:
    """Fill every gradient with that of the sum of all tasks' mean losses."""
    problem.model.zero_grad()
    problem.mean_losses(problem.model(problem.images_BCHW)).sum().backward()


def balanced_step(problem: Problem, balancer: Balancer) -> None:
    """Fill every gradient, the encoder's with that of the tasks' losses weighted by the balancer.

    Raises:
        RuntimeError: the weights are not certified.
    """
    problem.model.zero_grad()
    outputs = problem.model(problem.images_BCHW, balancer)
    sums_T, counts_T = task_losses(problem.tasks, outputs, problem.targets)
    balancer.total(sums=sums_T, counts=counts_T).backward()
    if balancer.last is None or not balancer.last.certified:
        raise RuntimeError("the weights are not certified")
