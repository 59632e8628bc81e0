"""What goes wrong on one rank is said on every rank, with the same words, and nobody is left waiting."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.distributed.problem import Problem
from tests.distributed.ranks import RankFailed, run_ranks
from trainer import Balancer
from trainer.balance import BalanceError, MinNormWeighting, Weights

PROBLEM = Problem(num_tasks=3)


class Broken(MinNormWeighting):
    """A rule that fails, on rank 0, where rules run."""

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        raise ZeroDivisionError("no luck")


class Doubtful(MinNormWeighting):
    """A rule that cannot vouch for its answer."""

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        return Weights(super().__call__(gram_AA, losses_A, tasks_A).alpha_A, certified=False)


def step_with(rank: int, fault: str) -> Any:
    """One step of two ranks, with `fault` on rank 1 (or in the rule). Returns the error's words, or what was found."""
    model = PROBLEM.model()
    rule = {"rule fails": Broken(), "uncertified": Doubtful()}.get(fault, MinNormWeighting())
    balancer = Balancer(["left", "middle", "right"], rule)
    x_BCHW, labels_TB = PROBLEM.data(0)
    mine = slice(12 * rank, 12 * rank + 12)
    views = balancer.split(model.encoder(x_BCHW[mine]))
    losses = []
    for t, (head, view) in enumerate(zip(model.heads, views, strict=True)):
        output = head(view)
        sum_, count = PROBLEM.tasks[t].loss(output, labels_TB[t, mine])
        if rank == 1 and t == 1:
            # ∂√x/∂x is infinite at 0: a finite loss with a gradient that is not.
            faults = {"nan loss": sum_ * float("nan"), "inf gradient": sum_ + (output - output).sum().sqrt()}
            sum_ = faults.get(fault, sum_)
        losses.append((sum_ * 0 if fault == "no gradient" and t == 1 else sum_, count * (fault != "no labels")))
    sums, counts = zip(*losses, strict=True)
    try:
        balancer.total([s * (fault != "no labels") for s in sums], counts).backward()
    except BalanceError as error:
        return str(error)
    encoder_moves = any(parameter.grad.abs().sum() > 0 for parameter in model.encoder.parameters())
    return balancer.last, encoder_moves


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("nan loss", "not finite: loss and gradient of task 'middle' on rank 1"),
        ("inf gradient", "not finite: gradient of task 'middle' on rank 1"),
        ("rule fails", "the weighting failed on rank 0: ZeroDivisionError: no luck"),
    ],
)
def test_every_rank_raises_the_same_words(fault: str, message: str) -> None:
    assert run_ranks(2, step_with, fault, limit_seconds=30) == [message, message]


def test_an_uncertified_answer_is_known_on_every_rank() -> None:
    found = run_ranks(2, step_with, "uncertified", limit_seconds=30)
    assert [balance.certified for balance, _ in found] == [False, False]


def test_without_any_label_no_task_is_active_and_the_encoder_gets_no_gradient() -> None:
    for balance, encoder_moves in run_ranks(2, step_with, "no labels", limit_seconds=30):
        assert not balance.active_T.any()
        assert balance.alpha_T.tolist() == [0, 0, 0]
        assert not encoder_moves


def test_a_task_with_labels_but_no_gradient_does_not_stop_the_encoder() -> None:
    for balance, encoder_moves in run_ranks(2, step_with, "no gradient", limit_seconds=30):
        assert balance.active_T.tolist() == [True, False, True]
        assert balance.alpha_T[1] == 0
        assert balance.alpha_T.sum() == pytest.approx(1)
        assert encoder_moves


def test_alpha_has_the_same_bits_on_every_rank_and_the_gram_matrix_is_on_rank_0() -> None:
    (first, _), (second, _) = run_ranks(2, step_with, "none", limit_seconds=30)
    assert first.alpha_T.tobytes() == second.alpha_T.tobytes()
    assert (first.min_norm, first.gap) == (second.min_norm, second.gap)
    assert second.gram_TT is None
    assert first.alpha_T @ first.gram_TT @ first.alpha_T == pytest.approx(first.min_norm)
    assert abs(first.gap) <= 1e-12 * np.trace(first.gram_TT)


def die_or_wait(rank: int) -> Tensor:
    if rank == 1:
        raise SystemExit(9)
    return torch.zeros(1)


def test_the_harness_itself_notices_a_rank_that_dies() -> None:
    with pytest.raises(RankFailed, match="rank 1"):
        run_ranks(2, die_or_wait, limit_seconds=30)
