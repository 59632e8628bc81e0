"""A window of micro-batches, on one process: α and gradients are those of one batch of all their samples."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import MultiTaskModel, task_losses
from models.heads.task_heads import StackedHeads
from paretrain import Balancer, NonFiniteError
from tests.support.losses import by_name
from tests.support.problem import Problem, two_pass_step

PROBLEM = Problem(num_tasks=3, missing=0.3, blind=(1,))
"""Task 1 has no label in the first half of the batch: none in some micro-batches."""
SIZES = [5, 1, 6, 12]

Batch = tuple[Tensor, dict[str, Tensor]]


def micro_batches(step: int = 0) -> list[Batch]:
    x_BCHW, labels_TB = PROBLEM.data(step)
    names = [task.name for task in PROBLEM.tasks]
    return [
        (part_BCHW, dict(zip(names, part_TB, strict=True)))
        for part_BCHW, part_TB in zip(x_BCHW.split(SIZES), labels_TB.split(SIZES, dim=1), strict=True)
    ]


def windowed(model: MultiTaskModel, balancer: Balancer, batches: list[Batch], scale: float = 1.0) -> None:
    window = balancer.window()
    with torch.random.fork_rng():
        for x_BCHW, targets in batches:
            window.look(**by_name(task_losses(PROBLEM.tasks, model(x_BCHW, window), targets)), gradient_scale=scale)
    assert all(parameter.grad is None for parameter in model.parameters()), "a look leaves no gradient"
    window.weigh()
    for x_BCHW, targets in batches:
        (scale * window.total(**by_name(task_losses(PROBLEM.tasks, model(x_BCHW, window), targets)))).backward()


@pytest.mark.parametrize("scale", [1.0, 2.0**16])
@pytest.mark.parametrize("stacked", [False, True])
def test_a_window_equals_one_batch(stacked: bool, scale: float) -> None:
    expected = PROBLEM.model()
    alpha_T = two_pass_step(expected, *PROBLEM.data(0))
    whole = Balancer(PROBLEM.num_tasks)
    x_BCHW, labels_TB = PROBLEM.data(0)
    targets = dict(zip((task.name for task in PROBLEM.tasks), labels_TB, strict=True))
    whole.total(**by_name(task_losses(PROBLEM.tasks, PROBLEM.model()(x_BCHW, whole), targets))).backward()

    model, balancer = PROBLEM.model(), Balancer(PROBLEM.num_tasks)
    if stacked:
        model = MultiTaskModel(model.encoder, StackedHeads(list(model.heads)))
    windowed(model, balancer, micro_batches(), scale)
    torch.testing.assert_close(balancer.alpha, alpha_T, rtol=0, atol=1e-12)
    for name in ("losses_T", "counts_T", "min_norm", "gram_TT"):
        assert getattr(balancer.last, name) == pytest.approx(getattr(whole.last, name), rel=1e-10), name
    for parameter, reference in zip(model.encoder.parameters(), expected.encoder.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad / scale, reference.grad, rtol=1e-10, atol=1e-14)
    if not stacked:
        for parameter, reference in zip(model.heads.parameters(), expected.heads.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad / scale, reference.grad, rtol=1e-10, atol=1e-14)


class Dropping(nn.Module):
    """An encoder that draws random numbers in its forward."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.dropout(self.encoder(x_BCHW), p=0.5)


def test_both_passes_draw_the_same_dropout() -> None:
    model = PROBLEM.model()
    model.encoder = Dropping(model.encoder)
    batches = micro_batches()
    torch.manual_seed(7)
    balancer = Balancer(PROBLEM.num_tasks)
    windowed(model, balancer, batches)

    expected = PROBLEM.model()
    torch.manual_seed(7)
    z_BD = torch.cat([Dropping(expected.encoder)(x_BCHW) for x_BCHW, _ in batches])
    whole = Balancer(PROBLEM.num_tasks)
    targets = {name: torch.cat([part[name] for _, part in batches]) for name in batches[0][1]}
    whole.total(**by_name(task_losses(PROBLEM.tasks, expected.heads(z_BD, whole), targets))).backward()
    torch.testing.assert_close(balancer.alpha, whole.alpha, rtol=0, atol=1e-12)
    for parameter, reference in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, reference.grad, rtol=1e-10, atol=1e-14)


def test_a_broken_micro_batch_stops_the_window() -> None:
    batches = micro_batches()
    batches[2][0].mul_(torch.nan)
    with pytest.raises(NonFiniteError, match="not finite: loss and gradient of tasks"):
        windowed(PROBLEM.model(), Balancer(PROBLEM.num_tasks), batches)


def test_an_overflow_reaches_every_gradient_of_the_encoder() -> None:
    """So that the loss scale of every rank learns of it."""
    batches = micro_batches()
    model, balancer = PROBLEM.model().float(), Balancer(PROBLEM.num_tasks)
    narrow = [(x_BCHW.float(), targets) for x_BCHW, targets in batches]
    windowed(model, balancer, narrow, scale=1e39)  # more than float32 has room for
    assert balancer.last is not None
    assert balancer.last.overflow
    assert not any(parameter.grad.norm().isfinite() for parameter in model.encoder.parameters())


def test_calls_out_of_order_are_refused() -> None:
    model, balancer = PROBLEM.model(), Balancer(PROBLEM.num_tasks)
    window, (x_BCHW, targets) = balancer.window(), micro_batches()[0]
    losses = task_losses(PROBLEM.tasks, model(x_BCHW), targets)
    with pytest.raises(RuntimeError, match="look"):
        window.look(**by_name(losses))
    with pytest.raises(RuntimeError, match=r"look\(\) before weigh\(\)"):
        window.weigh()
    with pytest.raises(RuntimeError, match=r"weigh\(\) before total\(\)"):
        window.total(**by_name(losses))
