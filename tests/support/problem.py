"""A small multi-task problem, and a training step of it written without the trick: the oracle.

Shapes: T tasks, B samples, D representation width.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import Classification, MultiTaskModel
from models.encoders.lenet import LeNet
from models.heads.task_heads import SeparateHeads
from models.heads.vector import mlp_head
from tests.support.oracle import min_norm_by_enumeration

MISSING = -1


@dataclass(frozen=True)
class Problem:
    """Random images with `num_tasks` labels each; some labels are missing."""

    num_tasks: int
    batch: int = 24
    dtype: torch.dtype = torch.float64
    missing: float = 0.0
    blind: tuple[int, ...] = ()
    """Tasks without a label in the first half of the batch, and in no half at every third step."""
    steps: int = 20
    learning_rate: float = 0.05

    @property
    def tasks(self) -> list[Classification]:
        return [Classification(f"task{task}", 4) for task in range(self.num_tasks)]

    def model(self) -> MultiTaskModel:
        torch.manual_seed(0)
        encoder = LeNet((1, 16, 16), width=12, dropout=0.0)
        heads = [mlp_head(12, 4, hidden=8, dropout=0.0) for _ in self.tasks]
        return MultiTaskModel(encoder, SeparateHeads(heads)).to(self.dtype)

    def data(self, step: int) -> tuple[Tensor, Tensor]:
        """Images (B, 1, 16, 16) and labels (T, B) of the whole batch; learnable, so that the losses do move."""
        generator = torch.Generator().manual_seed(step)
        x_BCHW = torch.randn(self.batch, 1, 16, 16, generator=generator, dtype=torch.float64)
        labels_TB = torch.stack([(x_BCHW[:, 0, task, :4]).argmax(dim=1) for task in range(self.num_tasks)])
        absent_TB = torch.rand(labels_TB.shape, generator=generator) < self.missing
        for task in self.blind:
            absent_TB[task, : self.batch // (1 if step % 3 == 2 else 2)] = True
        return x_BCHW.to(self.dtype), labels_TB.masked_fill(absent_TB, MISSING)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate, momentum=0.9)


def two_pass_step(model: MultiTaskModel, x_BCHW: Tensor, labels_TB: Tensor) -> Tensor:
    """Fill every .grad in one process with the whole batch, by the definition. Returns α (T,).

    One forward to z, T separate gradients with respect to a detached z, their Gram matrix by plain dot products, α by
    trying every support, then one gradient of Σ α_t L_t for the encoder and one of Σ L_t for the heads.
    """
    z_BD = model.encoder(x_BCHW)
    leaf_BD = z_BD.detach().requires_grad_()
    losses = [
        F.cross_entropy(head(leaf_BD), labels_B, ignore_index=MISSING) if (labels_B != MISSING).any() else None
        for head, labels_B in zip(model.heads, labels_TB, strict=True)
    ]
    active = [task for task, loss in enumerate(losses) if loss is not None]
    gradients = [torch.autograd.grad(losses[task], leaf_BD, retain_graph=True)[0].double() for task in active]
    gram_AA = np.array([[float((left * right).sum()) for right in gradients] for left in gradients])
    alpha_A = min_norm_by_enumeration(gram_AA)[0]
    combined_BD = sum(alpha * gradient for alpha, gradient in zip(alpha_A.tolist(), gradients, strict=True))
    z_BD.backward(combined_BD.to(z_BD.dtype))
    head_parameters = list(model.heads.parameters())
    head_gradients = torch.autograd.grad(sum(losses[task] for task in active), head_parameters, allow_unused=True)
    for parameter, gradient in zip(head_parameters, head_gradients, strict=True):
        parameter.grad = torch.zeros_like(parameter) if gradient is None else gradient
    alpha_T = torch.zeros(len(labels_TB), dtype=torch.float64)
    alpha_T[active] = torch.from_numpy(alpha_A)
    return alpha_T


def parameter_space_step(model: MultiTaskModel, x_BCHW: Tensor, labels_TB: Tensor) -> Tensor:
    """Fill every .grad by MGDA in the space of the encoder's parameters, by its definition. Returns α (T,)."""
    z_BD = model.encoder(x_BCHW)
    losses = [
        F.cross_entropy(head(z_BD), labels_B, ignore_index=MISSING) if (labels_B != MISSING).any() else None
        for head, labels_B in zip(model.heads, labels_TB, strict=True)
    ]
    active = [task for task, loss in enumerate(losses) if loss is not None]
    shared = list(model.encoder.parameters())
    rows = [torch.autograd.grad(losses[task], shared, retain_graph=True) for task in active]
    vectors = [torch.cat([part.flatten().double() for part in row]) for row in rows]
    alpha_A = min_norm_by_enumeration(np.array([[float(left @ right) for right in vectors] for left in vectors]))[0]
    own = list(model.heads.parameters())
    of_heads = torch.autograd.grad(sum(losses[task] for task in active), own, allow_unused=True)
    for parameter, *of_tasks in zip(shared, *rows, strict=True):
        parameter.grad = sum(alpha * gradient for alpha, gradient in zip(alpha_A.tolist(), of_tasks, strict=True))
    for parameter, gradient in zip(own, of_heads, strict=True):
        parameter.grad = torch.zeros_like(parameter) if gradient is None else gradient
    alpha_T = torch.zeros(len(labels_TB), dtype=torch.float64)
    alpha_T[active] = torch.from_numpy(alpha_A)
    return alpha_T


def train_by_definition(problem: Problem) -> tuple[Tensor, Tensor]:
    """Train on one process without the trick. Returns α of every step, and the parameters at the end, flattened."""
    model = problem.model()
    optimizer = problem.optimizer(model)
    alphas = []
    for step in range(problem.steps):
        alphas.append(two_pass_step(model, *problem.data(step)))
        optimizer.step()
        optimizer.zero_grad()
    return torch.stack(alphas), nn.utils.parameters_to_vector(model.parameters()).detach()
