"""MGDA in parameter space from shards, on one process: groups, held weights, micro-batches, and what is not finite."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from paretrain import Balancer, MinNormWeighting
from tests.support.oracle import min_norm_by_enumeration
from tests.support.problem import MISSING, parameter_space_step
from tests.training.test_gradients import PROBLEM, a_batch, a_learner, stacked
from trainer.config.sections.balance import BalanceConfig
from trainer.config.sections.train import AccumulationConfig
from trainer.errors import UserError
from trainer.training.gradients import forward_backward
from trainer.training.learner import Learner
from trainer.training.parameter_space import parameter_gram
from trainer.training.task_groups import task_groups


def in_parameter_space(parts: int = 1, **options: Any) -> Learner:
    policy = options.get("on_nonfinite", "stop")
    balancer = Balancer(PROBLEM.num_tasks, MinNormWeighting(), **options)
    balance = BalanceConfig(space="parameters", on_nonfinite=policy)
    return replace(a_learner(), balancer=balancer, balance=balance, accumulation=AccumulationConfig(steps=parts))


def gradients(learner: Any) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in learner.network.parameters()]


@pytest.mark.parametrize("parts", [1, 4])
def test_micro_batches_give_what_the_whole_batch_gives(parts: int) -> None:
    learner, expected = in_parameter_space(parts), PROBLEM.model()
    forward_backward(learner, a_batch())
    alpha_T = parameter_space_step(expected, *PROBLEM.data(0))
    torch.testing.assert_close(learner.balancer.alpha, alpha_T, rtol=0, atol=1e-10)
    for found, parameter in zip(gradients(learner), expected.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=0, atol=1e-12)


def test_a_step_that_holds_alpha_takes_one_backward_through_the_encoder() -> None:
    learner, calls = in_parameter_space(2, every_steps=2), []
    next(learner.network.encoder.parameters()).register_hook(calls.append)
    counted = []
    for _ in range(4):
        calls.clear()
        learner.engine.discard()
        forward_backward(learner, a_batch())
        counted.append(len(calls))
    assert counted == [6, 2, 6, 2], "a backward a task and micro-batch, or one a micro-batch"
    held = gradients(learner)
    learner.engine.discard()
    assert learner.balancer.last is not None
    assert learner.balancer.last.age == 1
    forward_backward(learner, a_batch())
    # The same batch and parameters: the combined gradient is the same, found from the tasks' own.
    for found, expected in zip(gradients(learner), held, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_group_takes_one_backward_and_its_heads_keep_their_own_gradients() -> None:
    learner, each = in_parameter_space(group_of=[0, 1, 0]), in_parameter_space()
    gram_TT = parameter_gram(learner, a_batch()).numpy()
    assert all(parameter.grad is None for parameter in learner.network.parameters())
    calls: list[Tensor] = []
    next(learner.network.encoder.parameters()).register_hook(calls.append)
    balance = forward_backward(learner, a_batch())
    assert len(calls) == 2
    shares_GT = np.array([[0.5, 0, 0.5], [0, 1, 0]])
    alpha_G, shortest = min_norm_by_enumeration(shares_GT @ gram_TT @ shares_GT.T)
    np.testing.assert_allclose(balance.alpha_T, alpha_G @ shares_GT, atol=1e-10)
    assert balance.min_norm == pytest.approx(shortest)
    assert balance.gap == pytest.approx(0, abs=1e-12 * shortest)
    forward_backward(each, a_batch())
    for found, expected in zip(learner.network.heads.parameters(), each.network.heads.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=0, atol=1e-12)
    encoder = list(learner.network.encoder.parameters())
    assert sum(float((parameter.grad**2).sum()) for parameter in encoder) == pytest.approx(shortest)  # type: ignore[operator]


@pytest.mark.parametrize("parts", [1, 2])
def test_groups_that_share_no_sample_run_their_own_samples_alone(parts: int) -> None:
    learner, batch = in_parameter_space(parts, group_of=[0, 1, 0]), a_batch()
    is_first_B = torch.arange(len(batch.inputs)) % 3 == 0
    targets = {
        name: target.where(is_first_B if name == "task1" else ~is_first_B, MISSING)
        for name, target in batch.targets.items()
    }
    batch = replace(batch, targets=targets)
    rows: list[int] = []
    learner.network.encoder.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    balance = forward_backward(learner, batch)
    labelled_TB = torch.stack(list(targets.values())) != MISSING
    num_labelled = int(labelled_TB[1].sum() + (labelled_TB[0] | labelled_TB[2]).sum())
    # With micro-batches, one forward of each comes first, to count the labels; and task1 has none in the first one,
    # where two samples without a label stand in.
    assert sum(rows[parts if parts > 1 else 0 :]) == num_labelled + 2 * (parts > 1), "no sample runs twice"
    gram_TT = parameter_gram(in_parameter_space(parts), batch).numpy()
    shares_GT = np.array([[0.5, 0, 0.5], [0, 1, 0]])
    alpha_G, shortest = min_norm_by_enumeration(shares_GT @ gram_TT @ shares_GT.T)
    np.testing.assert_allclose(balance.alpha_T, alpha_G @ shares_GT, atol=1e-10)
    encoder = list(learner.network.encoder.parameters())
    assert sum(float((parameter.grad**2).sum()) for parameter in encoder) == pytest.approx(shortest)  # type: ignore[operator]
    expected = in_parameter_space()
    forward_backward(expected, batch)
    for found, other in zip(learner.network.heads.parameters(), expected.network.heads.parameters(), strict=True):
        torch.testing.assert_close(found.grad, other.grad, rtol=0, atol=1e-12)


def test_the_tasks_of_a_group_that_have_labels_share_its_weight() -> None:
    learner, batch = in_parameter_space(group_of=[0, 1, 0]), a_batch()
    absent = torch.full_like(batch.targets["task2"], MISSING)
    batch = replace(batch, targets=batch.targets | {"task2": absent})
    balance = forward_backward(learner, batch)
    assert balance.alpha_T[2] == 0
    assert balance.alpha_T.sum() == pytest.approx(1)
    expected = PROBLEM.model()
    alpha_T = parameter_space_step(expected, batch.inputs, stacked(batch).T)
    np.testing.assert_allclose(balance.alpha_T, alpha_T, atol=1e-10)


@pytest.mark.parametrize("holds", [False, True])
def test_what_is_not_finite_skips_the_step(holds: bool) -> None:
    learner = in_parameter_space(on_nonfinite="skip_step", every_steps=9)
    if holds:
        forward_backward(learner, a_batch())
        learner.engine.discard()
    learner.network.heads[1].register_forward_hook(lambda module, inputs, output: output * torch.nan)  # type: ignore[index]
    balance = forward_backward(learner, a_batch())
    assert balance.broken is not None
    assert not balance.active_T.any()
    assert all(not parameter.grad.any() for parameter in learner.network.encoder.parameters())  # type: ignore[union-attr]


def test_groups_are_read_from_patterns_of_names() -> None:
    tasks = ["age", "seg", "smile_a", "smile_b"]
    groups = {"faces": ["age", "smile*"]}
    assert task_groups(groups, tasks) == (["faces", "seg"], [0, 1, 0, 0])
    assert task_groups({}, tasks) == (tasks, [0, 1, 2, 3])
    for wrong, said in {
        ("faces", "agee"): "did you mean 'age'",
        ("seg", "age"): "another task, which is in no group, has this name",
    }.items():
        with pytest.raises(UserError, match=said):
            task_groups({wrong[0]: [wrong[1]]}, tasks)
    with pytest.raises(UserError, match="'age' is in two groups, faces and more"):
        task_groups(groups | {"more": ["age"]}, tasks)
