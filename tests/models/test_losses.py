"""Losses against torch's own, where it has them; and α of weighted losses against gradients taken one by one."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models import Classification, Regression, Segmentation, build_model, task_losses, training_losses
from models.encoders.mlp import MLP
from models.losses import CROSS_ENTROPY, ClassLoss, NumberLoss
from models.tasks import UNLABELLED
from paretrain import Balancer
from paretrain.reference import frank_wolfe

WEIGHTS = (0.5, 2.0, 3.0)


def logits_and_labels(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    labels = torch.tensor(rng.integers(-1, shape[-1], shape[:-1]))
    return torch.tensor(rng.normal(0, 2, shape), requires_grad=True), labels


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_is_that_of_torch(smoothing: float, weights: tuple[float, ...] | None) -> None:
    logits_BC, labels_B = logits_and_labels(7, 3)
    loss, count = Classification("a", 3, ClassLoss(0.0, smoothing, weights)).loss(logits_BC, labels_B)
    factor_C = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    expected = F.cross_entropy(
        logits_BC, labels_B, factor_C, ignore_index=-1, reduction="sum", label_smoothing=smoothing
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert int(count) == int((labels_B >= 0).sum()), "the plain number of labelled samples, whatever their weights"
    ours, theirs = (torch.autograd.grad(value, logits_BC)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_the_focal_loss_is_that_of_the_paper() -> None:
    logits_BC, labels_B = logits_and_labels(7, 3)
    loss, _ = Classification("a", 3, ClassLoss(2.5, 0.0, WEIGHTS)).loss(logits_BC, labels_B)
    p_BC = logits_BC.detach().softmax(dim=1).numpy()
    expected = sum(
        -WEIGHTS[y] * (1 - p[y]) ** 2.5 * np.log(p[y]) for p, y in zip(p_BC, labels_B.tolist(), strict=True) if y >= 0
    )
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    sure_BC = torch.tensor([[1000.0, 0.0]], requires_grad=True)
    for gamma in (0.5, 1.0, 2.0):
        sure, _ = Classification("a", 2, ClassLoss(gamma)).loss(sure_BC, torch.tensor([0]))
        (gradient,) = torch.autograd.grad(sure, sure_BC)
        assert sure.item() == 0
        assert gradient.tolist() == [[0, 0]], "no NaN where the answer is certain and right"


def test_losses_of_numbers_are_those_of_torch() -> None:
    output_B1 = torch.tensor([[0.0], [1.0], [5.0], [2.0]])
    target_B = torch.tensor([0.5, 1.0, 0.0, torch.nan])
    expected = {
        NumberLoss("huber", 0.3): F.huber_loss,
        NumberLoss("l1"): F.l1_loss,
        NumberLoss("l2"): F.mse_loss,
    }
    for objective, function in expected.items():
        options = {"delta": 0.3} if objective.name == "huber" else {}
        loss, count = Regression("a", objective=objective).loss(output_B1, target_B)
        assert loss.item() == pytest.approx(float(function(output_B1[:3, 0], target_B[:3], reduction="sum", **options)))
        assert int(count) == 3


def test_pixels_have_weights_too() -> None:
    logits_BCHW = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    target_BHW = torch.randint(0, 3, (2, 4, 5), generator=torch.Generator().manual_seed(1))
    target_BHW[0, 0] = UNLABELLED
    loss, count = Segmentation("a", ("x", "y", "z"), ClassLoss(class_weights=WEIGHTS)).loss(logits_BCHW, target_BHW)
    expected = F.cross_entropy(logits_BCHW, target_BHW, torch.tensor(WEIGHTS), ignore_index=UNLABELLED, reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert int(count) == 35


def test_stacked_tasks_may_have_different_losses() -> None:
    logits_BTC, labels_BT = logits_and_labels(6, 5, 3)
    losses = (
        ClassLoss(class_weights=WEIGHTS),
        CROSS_ENTROPY,
        ClassLoss(2.0),
        CROSS_ENTROPY,
        ClassLoss(2.0, 0.0, WEIGHTS),
    )
    tasks = [Classification(f"t{place}", 3, loss) for place, loss in enumerate(losses)]
    targets = {task.name: labels_BT[:, place] for place, task in enumerate(tasks)}
    sums_T, counts_T = task_losses(tasks, logits_BTC, targets)
    for place, task in enumerate(tasks):
        alone, count = task.loss(logits_BTC[:, place], labels_BT[:, place])
        assert sums_T[place].item() == pytest.approx(alone.item(), rel=1e-12)
        assert int(counts_T[place]) == int(count)


@pytest.mark.parametrize("num_parts", [1, 2])
def test_alpha_of_weighted_losses_is_exact(num_parts: int) -> None:
    """As a whole and in micro-batches: α is that of each task's weighted mean over the batch, by its own gradient."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    losses = (ClassLoss(class_weights=(0.2, 4.0)), ClassLoss(2.0, 0.0, (1.0, 9.0)), ClassLoss(0.0, 0.1))
    tasks = [Classification(f"t{place}", 2, loss) for place, loss in enumerate(losses)]
    network = build_model(MLP((4,), hidden=[6]), tasks, "linear", {}).double()
    x_BF = torch.tensor(rng.normal(0, 1, (8, 4)))
    targets = {task.name: torch.tensor(rng.integers(-1, 2, 8)) for task in tasks}
    z = network.encoder(x_BF).detach().requires_grad_()
    outputs, gradients = network.heads(z, None), []
    for place, task in enumerate(tasks):
        separate = dataclasses.replace(task)
        loss, count = separate.loss(outputs[:, place], targets[task.name])
        gradients.append(torch.autograd.grad(loss / count, z, retain_graph=True)[0].flatten())
    expected_T = frank_wolfe(torch.stack(gradients), max_iterations=100_000)
    balancer = Balancer([task.name for task in tasks])
    if num_parts == 1:
        sums_T, counts_T = training_losses(tasks, network(x_BF, balancer=balancer), targets)
        balancer.total(sums=sums_T, counts=counts_T).backward()
    else:
        window = balancer.window()
        parts = [slice(0, 3), slice(3, 8)]
        each = [(x_BF[part], {name: target[part] for name, target in targets.items()}) for part in parts]
        for x, y in each:
            sums_T, counts_T = training_losses(tasks, network(x, balancer=window), y)
            window.look(sums=sums_T, counts=counts_T)
        window.weigh()
        for x, y in each:
            sums_T, counts_T = training_losses(tasks, network(x, balancer=window), y)
            window.total(sums=sums_T, counts=counts_T).backward()
    torch.testing.assert_close(balancer.alpha, expected_T, rtol=0, atol=1e-5)
    assert (balancer.alpha > 0.01).all(), "all tasks take part, or the test says little"
