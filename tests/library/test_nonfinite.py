"""NaN and infinity on one process: who stops, who goes on, and what is said. On several: tests/distributed."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from paretrain import Balancer, Broken, NonFiniteError
from paretrain.nonfinite import zero_gradients
from tests.support.problem import Problem, two_pass_step

PROBLEM = Problem(num_tasks=3)


def backward(balancer: Balancer, faults: dict[int, float], gradient_scale: float = 1.0) -> nn.Module:
    """One step in which the losses of some tasks are multiplied by NaN or infinity; returns the model."""
    model = PROBLEM.model()
    x_BCHW, labels_TB = PROBLEM.data(0)
    outputs = model(x_BCHW, balancer)
    losses = [task.loss(outputs[t], labels_TB[t]) for t, task in enumerate(PROBLEM.tasks)]
    sums = [sum_ * faults.get(t, 1.0) for t, (sum_, _) in enumerate(losses)]
    total = balancer.total(sums=sums, counts=[count for _, count in losses])
    (gradient_scale * total).backward()
    return model


def flat_gradient(module: nn.Module) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in module.parameters()])


@pytest.mark.parametrize("policy", ["stop", "drop_task"])
def test_where_no_sound_task_is_left_the_step_stops_and_says_so(policy: Any) -> None:
    balancer = Balancer(["a", "b", "c"], on_nonfinite=policy)
    with pytest.raises(NonFiniteError) as caught:
        backward(balancer, {0: torch.nan, 1: torch.inf, 2: torch.nan})
    alone = "; no other task has a label in this step" if policy == "drop_task" else ""
    assert str(caught.value) == f"not finite: loss and gradient of tasks 'a', 'b', 'c' on rank 0{alone}"
    assert balancer.last is None


def test_skipping_leaves_the_encoder_a_gradient_of_zero() -> None:
    balancer = Balancer(3, on_nonfinite="skip_step")
    model = backward(balancer, {2: torch.inf})
    assert balancer.last is not None
    assert balancer.last.broken is not None
    assert balancer.last.broken.tasks == [2]
    assert not balancer.last.active_T.any()
    assert not flat_gradient(model.encoder).any()


def test_dropping_a_task_is_training_without_it() -> None:
    balancer = Balancer(3, on_nonfinite="drop_task")
    model = backward(balancer, {1: torch.nan})
    assert flat_gradient(model.heads[1]).isnan().any()
    balancer.zero_broken(model.heads)
    x_BCHW, labels_TB = PROBLEM.data(0)
    labels_TB[1] = -1
    expected = PROBLEM.model()
    torch.testing.assert_close(balancer.alpha, two_pass_step(expected, x_BCHW, labels_TB), rtol=0, atol=1e-12)
    torch.testing.assert_close(flat_gradient(model), flat_gradient(expected), rtol=1e-12, atol=1e-14)
    assert balancer.last is not None
    assert balancer.last.active_T.tolist() == [True, False, True]
    assert np.isnan(balancer.last.losses_T).tolist() == [False, True, False]


def test_a_sound_step_zeroes_nothing() -> None:
    balancer = Balancer(3, on_nonfinite="drop_task")
    model = backward(balancer, {})
    before = flat_gradient(model)
    balancer.zero_broken(model.heads)
    assert torch.equal(flat_gradient(model), before)


def test_parameter_space_can_skip_a_step_but_not_drop_a_task() -> None:
    """There the gradient of every task passes through the sums of all: 0 · NaN is NaN."""
    for policy in ("skip_step", "drop_task"):
        model = PROBLEM.model()
        x_BCHW, labels_TB = PROBLEM.data(0)
        losses = [task.loss(output, labels_TB[0]) for task, output in zip(PROBLEM.tasks, model(x_BCHW), strict=True)]
        sums = torch.stack([sum_ for sum_, _ in losses]) * torch.tensor([1.0, torch.nan, 1.0])
        balancer = Balancer(3, on_nonfinite=policy)  # type: ignore[arg-type]
        arguments = sums, [24] * 3, list(model.encoder.parameters()), list(model.heads.parameters())
        if policy == "drop_task":
            with pytest.raises(NonFiniteError, match="gradient of tasks '0', '2' on rank 0; no other task"):
                balancer.fill_gradients(*arguments)
        else:
            balancer.fill_gradients(*arguments)
            assert not flat_gradient(model.encoder).any()


@pytest.mark.parametrize("scale", [2.0**12, 0.25])
def test_what_is_told_is_that_of_the_gradients_before_scaling(scale: float) -> None:
    plain, scaled = Balancer(3), Balancer(3)
    expected, found = backward(plain, {}), backward(scaled, {}, gradient_scale=scale)
    assert plain.last is not None
    assert scaled.last is not None
    assert torch.equal(scaled.alpha, plain.alpha)
    assert (scaled.last.min_norm, scaled.last.gap) == (plain.last.min_norm, plain.last.gap)
    assert np.array_equal(scaled.last.losses_T, plain.last.losses_T)
    torch.testing.assert_close(flat_gradient(found), scale * flat_gradient(expected), rtol=0, atol=0)


class Overflowing(torch.autograd.Function):
    """The identity, with a gradient that is infinite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.inf


@pytest.mark.parametrize("policy", ["stop", "skip_step", "drop_task"])
def test_a_gradient_that_is_not_finite_is_an_overflow_only_of_scaled_losses_in_float16(policy: Any) -> None:
    for scale, dtype in ((65536.0, torch.float16), (1.0, torch.float16), (65536.0, torch.float64)):
        z_BD = torch.ones(4, 2, dtype=dtype, requires_grad=True)
        overflows = scale > 1 and dtype == torch.float16
        balancer = Balancer(2, on_nonfinite=policy)
        first, second = balancer.split(z_BD)
        sums = [Overflowing.apply(first).float().sum(), second.float().sum()]
        total = balancer.total(sums=sums, counts=[4, 4])
        if policy == "stop" and not overflows:
            with pytest.raises(NonFiniteError, match="gradient of task '0' on rank 0"):
                (scale * total).backward()
            continue
        (scale * total).backward()
        assert balancer.last is not None
        assert balancer.last.overflow == overflows
        assert z_BD.grad is not None
        if overflows:
            assert z_BD.grad.isnan().all(), "the scaler would not notice"
        else:
            assert z_BD.grad.isfinite().all()
            assert balancer.last.alpha_T.tolist() == ([0, 1] if policy == "drop_task" else [0, 0])


def test_a_loss_that_is_not_finite_is_no_overflow() -> None:
    with pytest.raises(NonFiniteError, match="loss and gradient of task '0'"):
        backward(Balancer(3), {0: torch.nan}, gradient_scale=1024.0)


def test_misuse_is_named() -> None:
    with pytest.raises(ValueError, match="on_nonfinite must be one of stop, skip_step, drop_task, found 'ignore'"):
        Balancer(2, on_nonfinite="ignore")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="gradient_scale must be positive and finite, found 0"):
        Balancer(1).window().look(sums=torch.ones(1), counts=[1], gradient_scale=0)
    heads = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    with pytest.raises(ValueError, match="one head for each of 2 tasks, found 3"):
        zero_gradients(heads, [0], 2)
    with pytest.raises(RuntimeError, match=r"weight of a head has no \.grad"):
        zero_gradients(heads, [0], 3)
    shared = nn.Linear(2, 5)
    shared(torch.ones(1, 2)).sum().backward()
    with pytest.raises(ValueError, match=r"a row for each of 3 tasks; parameter weight is \(5, 2\)"):
        zero_gradients(shared, [0], 3)


def test_a_frozen_parameter_of_a_head_has_nothing_to_zero() -> None:
    heads = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
    heads[0].bias.requires_grad_(False)
    sum(head(torch.ones(1, 2)).sum() for head in heads).backward()
    zero_gradients(heads, [0], 2)
    assert not heads[0].weight.grad.any()
    assert heads[1].weight.grad.all()


def test_a_message_names_a_few_of_many() -> None:
    names = [f"t{task}" for task in range(1000)]
    losses_T, gradients_T = np.zeros(1000, dtype=bool), np.ones(1000, dtype=bool)
    losses_T[7] = True
    said = Broken(losses_T, gradients_T, tuple(range(64))).describe(names)
    assert said == (
        "loss and gradient of task 't7', gradient of 999 tasks: 't0', 't1', 't2', 't3', 't4', 't5', 't6', 't8', ... "
        "on 64 ranks: 0, 1, 2, 3, 4, 5, 6, 7, ..."
    )
    assert Broken(losses_T, losses_T, ()).describe(names) == "loss and gradient of task 't7' in the sum over the ranks"
