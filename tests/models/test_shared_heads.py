"""Shared heads: the penalty is that of w_0 and v_t, and reaches the heads alone, exactly, however a batch is cut."""

import numpy as np
import pytest
import torch
from torch import nn

from models import Classification, MultiTaskModel, Regression, Tower, build_model, training_losses
from models.heads.shared import SharedHeads
from paretrain import Balancer
from paretrain.theory.asymptotics import coupling
from tests.support.losses import by_name
from tests.support.ranks import run_ranks

COMMON, OWN = 0.3, 0.7
OPTIONS = {"common": COMMON, "own": OWN}
T, B, D, C = 4, 24, 6, 3
TASKS = [Classification(f"t{task}", C) for task in range(T)]
CUT = [7, 17]


class Encoder(nn.Linear):
    def __init__(self) -> None:
        super().__init__(5, D)
        self.width = D


def model_with(head: str, options: dict) -> MultiTaskModel:
    torch.manual_seed(0)
    return build_model(Encoder(), TASKS, head, options).double()


def data() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    targets = {task.name: torch.randint(-1, C, (B,), generator=generator) for task in TASKS}
    return torch.randn(B, 5, generator=generator, dtype=torch.float64), targets


def penalty_gradient(model: MultiTaskModel) -> torch.Tensor:
    penalty_TT = torch.from_numpy(coupling(T, COMMON, OWN))
    return torch.einsum("ts,scd->tcd", penalty_TT, model.heads.first.weight_TCD.detach())


def test_the_penalty_is_that_of_what_tasks_have_in_common_and_of_their_own():
    model = model_with("shared", OPTIONS)
    weight_TCD = model.heads.first.weight_TCD.detach().numpy()
    common_CD = OWN * weight_TCD.sum(axis=0) / (COMMON + T * OWN)  # where the penalty's derivative by w_0 is zero

    expected = COMMON / 2 * (common_CD**2).sum() + OWN / 2 * ((weight_TCD - common_CD) ** 2).sum()

    assert model.heads.penalties().sum().item() == pytest.approx(expected, rel=1e-12)
    for moved_CD in (common_CD + 0.01, common_CD - 0.01):
        assert COMMON / 2 * (moved_CD**2).sum() + OWN / 2 * ((weight_TCD - moved_CD) ** 2).sum() > expected


def test_only_the_heads_gradients_change():
    shared, linear = model_with("shared", OPTIONS), model_with("linear", {})
    x_BF, targets = data()
    alphas = []
    for model in (shared, linear):
        balancer = Balancer(T)
        balancer.total(**by_name(training_losses(TASKS, model(x_BF, balancer), targets))).backward()
        alphas.append(balancer.alpha)

    torch.testing.assert_close(alphas[0], alphas[1], rtol=1e-12, atol=1e-14)
    for found, expected in zip(shared.encoder.parameters(), linear.encoder.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-12, atol=1e-14)
    expected_TCD = linear.heads.first.weight_TCD.grad + penalty_gradient(linear)
    torch.testing.assert_close(shared.heads.first.weight_TCD.grad, expected_TCD, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(shared.heads.first.bias_TC.grad, linear.heads.first.bias_TC.grad, rtol=1e-12, atol=0)


def test_evaluation_knows_no_penalty_and_the_parameters_are_those_of_linear_heads():
    shared, linear = model_with("shared", OPTIONS).eval(), model_with("linear", {}).eval()
    linear.load_state_dict(shared.state_dict())

    assert torch.equal(shared(data()[0]), linear(data()[0]))


def test_a_graph_holds_its_pairs_together():
    options = {"own": OWN, "graph": {"t0": {"t1": 0.5, "t3": 0.2}, "t3": {"t2": 0.9}}}
    model = model_with("shared", options)
    weight_TN = model.heads.first.weight_TCD.detach().flatten(1)
    expected = OWN / 2 * (weight_TN**2).sum()
    for one, other, weight in ((0, 1, 0.5), (0, 3, 0.2), (2, 3, 0.9)):
        expected = expected + weight / 2 * ((weight_TN[one] - weight_TN[other]) ** 2).sum()

    torch.testing.assert_close(model.heads.penalties().sum(), expected, rtol=1e-12, atol=0)
    assert set(model.state_dict()) == set(model_with("linear", {}).state_dict())
    for graph in ({"t0": {"t0": 1}}, {"t0": {"t9": 1}}, {"t0": {"t1": -1}}, {"t0": {"t1": 1}, "t1": {"t0": 1}}, "t0"):
        with pytest.raises(ValueError, match="the graph has"):
            model_with("shared", options | {"graph": graph})


def test_learnt_similarity_is_the_square_of_the_trace_norm():
    """Value and gradient, although the similarities are constant in the backward."""
    model = model_with("shared", {"learnt": OWN})
    weight_TCD = model.heads.first.weight_TCD
    expected = OWN / 2 * torch.linalg.svdvals(weight_TCD.flatten(1)).sum() ** 2

    (found_gradient,) = torch.autograd.grad(model.heads.penalties().sum(), weight_TCD)
    (expected_gradient,) = torch.autograd.grad(expected, weight_TCD)

    torch.testing.assert_close(model.heads.penalties().sum(), expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(found_gradient, expected_gradient, rtol=1e-10, atol=1e-12)


def under_ddp(rank: int) -> list[torch.Tensor]:
    model = nn.parallel.DistributedDataParallel(model_with("shared", OPTIONS))
    x_BF, targets = data()
    mine, balancer = slice(sum(CUT[:rank]), sum(CUT[: rank + 1])), Balancer(T)
    part = {name: target[mine] for name, target in targets.items()}
    balancer.total(**by_name(training_losses(TASKS, model(x_BF[mine], balancer=balancer), part))).backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.processes
def test_ragged_ranks_equal_one_process():
    model = model_with("shared", OPTIONS)
    x_BF, targets = data()
    balancer = Balancer(T)
    balancer.total(**by_name(training_losses(TASKS, model(x_BF, balancer), targets))).backward()

    for of_rank in run_ranks(2, under_ddp):
        for found, parameter in zip(of_rank, model.parameters(), strict=True):
            torch.testing.assert_close(found, parameter.grad, rtol=1e-12, atol=1e-14)


def test_training_reaches_the_closed_form():
    """Squared errors below the Huber loss's bend: full-batch descent ends at equation 2's minimum."""
    generator = np.random.default_rng(0)
    z_BD = generator.standard_normal((B, D))
    labels_BT = np.clip(z_BD @ generator.standard_normal((D, T)) * 0.1, -0.5, 0.5)
    tasks = [Regression(f"t{task}") for task in range(T)]
    torch.manual_seed(0)
    heads = SharedHeads([nn.Sequential(nn.Linear(D, 1)) for _ in range(T)], COMMON, OWN).double()
    model = MultiTaskModel(nn.Identity(), heads)
    targets = {task.name: torch.from_numpy(labels_BT[:, t]) for t, task in enumerate(tasks)}
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=200, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        sums_T, counts_T = training_losses(tasks, model(torch.from_numpy(z_BD)), targets)
        loss = (sums_T / counts_T).sum()
        loss.backward()
        return loss

    optimizer.step(closure)

    centred_BD, centred_BT = z_BD - z_BD.mean(axis=0), labels_BT - labels_BT.mean(axis=0)
    system = np.kron(np.eye(T), centred_BD.T @ centred_BD / B) + np.kron(coupling(T, COMMON, OWN), np.eye(D))
    expected_TD = np.linalg.solve(system, (centred_BD.T @ centred_BT / B).T.ravel()).reshape(T, D)
    np.testing.assert_allclose(heads.first.weight_TCD.detach()[:, 0], expected_TD, atol=1e-7)


@pytest.mark.parametrize(
    ("tasks", "options", "tower", "phrase"),
    [
        (TASKS, {"common": 1}, None, "positive numbers"),
        (TASKS, {"common": -1, "own": 1}, None, "positive numbers"),
        (TASKS, {"common": 1, "own": 1, "hidden": 3}, None, "positive numbers"),
        ([*TASKS, Classification("two", 2)], OPTIONS, None, "tasks that are alike"),
        (TASKS, OPTIONS, Tower(), "without towers"),
    ],
)
def test_what_cannot_be_shared_is_refused(tasks, options, tower, phrase):
    with pytest.raises(ValueError, match=phrase):
        build_model(Encoder(), tasks, "shared", options, tower)
