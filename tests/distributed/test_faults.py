"""What goes wrong on one rank, or is missing there, is the same on every rank, and nobody is left waiting."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paretrain import Balance, BalanceError, Balancer, MinNormWeighting, Weights
from tests.support.losses import by_name
from tests.support.problem import MISSING, Problem, two_pass_step
from tests.support.ranks import RankFailed, run_ranks
from trainer.config.sections.parallel import ParallelConfig
from trainer.errors import LostPeerError
from trainer.runtime.distributed import joined
from trainer.runtime.faults import roll_call

PROBLEM = Problem(num_tasks=3)
NAMES = ["left", "middle", "right"]


class BrokenRule(MinNormWeighting):
    """A rule that fails, on rank 0, where rules run."""

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        raise ZeroDivisionError("no luck")


class Doubtful(MinNormWeighting):
    """A rule that cannot vouch for its answer."""

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        return Weights(super().__call__(gram_AA, losses_A, tasks_A).alpha_A, certified=False)


FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda sums_T: sums_T,
    "rule fails": lambda sums_T: sums_T,
    "uncertified": lambda sums_T: sums_T,
    "no labels": lambda sums_T: sums_T * 0,
    "no gradient": lambda sums_T: sums_T * torch.tensor([1.0, 0.0, 1.0]),
    "tiny gradient": lambda sums_T: sums_T * torch.tensor([1.0, 1e-20, 1.0]),
    "small gradient": lambda sums_T: sums_T * torch.tensor([1.0, 1e-8, 1.0]),
}
"""What is done to the loss sums of every rank."""


def step_with(rank: int, fault: str) -> Any:
    """One step of two ranks. Returns the error's words, or what was found and whether the encoder moves."""
    model = PROBLEM.model()
    rule = {"rule fails": BrokenRule(), "uncertified": Doubtful()}.get(fault, MinNormWeighting())
    balancer = Balancer(NAMES, rule)
    x_BCHW, labels_TB = PROBLEM.data(0)
    mine = slice(12 * rank, 12 * rank + 12)
    outputs = model(x_BCHW[mine], balancer)
    losses = [task.loss(outputs[t], labels_TB[t, mine]) for t, task in enumerate(PROBLEM.tasks)]
    sums_T, counts_T = (torch.stack(column) for column in zip(*losses, strict=True))
    try:
        balancer.total(sums=FAULTS[fault](sums_T), counts=counts_T * (fault != "no labels")).backward()
    except BalanceError as error:
        return str(error)
    return balancer.last, any(parameter.grad.abs().sum() > 0 for parameter in model.encoder.parameters())


def step_with_each(rank: int) -> dict[str, Any]:
    return {fault: step_with(rank, fault) for fault in FAULTS}


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return run_ranks(2, step_with_each, limit_seconds=60)


def test_a_rule_that_fails_on_rank_0_is_an_error_with_the_same_words_everywhere(found: Any) -> None:
    message = "the weighting failed on rank 0: ZeroDivisionError: no luck"
    assert [of_rank["rule fails"] for of_rank in found] == [message, message]


def test_an_uncertified_answer_is_known_on_every_rank(found: Any) -> None:
    assert [of_rank["uncertified"][0].certified for of_rank in found] == [False, False]


def test_without_any_label_no_task_is_active_and_the_encoder_gets_no_gradient(found: Any) -> None:
    for of_rank in found:
        balance, encoder_moves = of_rank["no labels"]
        assert not balance.active_T.any()
        assert balance.alpha_T.tolist() == [0, 0, 0]
        assert not encoder_moves


@pytest.mark.parametrize("fault", ["no gradient", "tiny gradient"])
def test_a_task_without_a_gradient_to_speak_of_does_not_stop_the_encoder(found: Any, fault: str) -> None:
    for of_rank in found:
        balance, encoder_moves = of_rank[fault]
        assert balance.active_T.tolist() == [True, False, True]
        assert balance.alpha_T[1] == 0
        assert balance.alpha_T.sum() == pytest.approx(1)
        assert encoder_moves


def test_a_small_gradient_is_a_gradient(found: Any) -> None:
    """It takes nearly all the weight, as the min-norm point of such gradients must."""
    for of_rank in found:
        balance, encoder_moves = of_rank["small gradient"]
        assert balance.active_T.all()
        assert balance.alpha_T[1] == pytest.approx(1)
        assert encoder_moves


def test_alpha_has_the_same_bits_on_every_rank_and_the_gram_matrix_is_on_rank_0(found: Any) -> None:
    (first, _), (second, _) = (of_rank["none"] for of_rank in found)
    assert first.alpha_T.tobytes() == second.alpha_T.tobytes()
    assert (first.min_norm, first.gap) == (second.min_norm, second.gap)
    assert second.gram_TT is None
    assert first.alpha_T @ first.gram_TT @ first.alpha_T == pytest.approx(first.min_norm)
    assert abs(first.gap) <= 1e-12 * np.trace(first.gram_TT)


HETEROGENEOUS = torch.arange(24) % 4
"""Sample b has a label of task b % 4 alone; of no task where that is 3."""


def step_without_some_labels(rank: int, marked_by: str) -> tuple[Balance, list[Tensor]]:
    """Each sample has labels of one task at most, and rank 1 has none of task 2."""
    model = PROBLEM.model()
    balancer = Balancer(NAMES)
    x_BCHW, labels_TB = PROBLEM.data(0)
    present_TB = torch.arange(3)[:, None] == HETEROGENEOUS
    present_TB[2, 12:] = False
    mine = slice(12 * rank, 12 * rank + 12)
    sums, counts = [], []
    wrapped = nn.parallel.DistributedDataParallel(model, bucket_cap_mb=0.001)
    outputs = wrapped(x_BCHW[mine], balancer)
    for output, labels_B, present_B in zip(outputs, labels_TB[:, mine], present_TB[:, mine], strict=True):
        if marked_by == "index":
            classes_B = labels_B.where(present_B, MISSING)
            sums.append(F.cross_entropy(output, classes_B, ignore_index=MISSING, reduction="sum"))
            counts.append(present_B.sum())
        elif marked_by == "mask":
            sums.append(F.cross_entropy(output, labels_B, reduction="none")[present_B].sum())
            counts.append(present_B.sum())
        else:
            target_B = labels_B.double().masked_fill(~present_B, torch.nan)
            known_B = ~target_B.isnan()
            # The target is mended before it meets the output: behind a mask that comes after, 0 · NaN would wait.
            classes_B = target_B.where(known_B, 0).long()
            sums.append(F.cross_entropy(output, classes_B, reduction="none").where(known_B, 0).sum())
            counts.append(known_B.sum())
    balancer.total(sums=sums, counts=counts).backward()
    assert balancer.last is not None
    return balancer.last, [parameter.grad for parameter in model.parameters()]


def step_without_labels_in_each_way(rank: int) -> dict[str, Any]:
    return {marked_by: step_without_some_labels(rank, marked_by) for marked_by in ("index", "mask", "nan")}


def test_samples_with_labels_of_some_tasks_only_equal_the_definition_however_that_is_marked() -> None:
    x_BCHW, labels_TB = PROBLEM.data(0)
    labels_TB[torch.arange(3)[:, None] != HETEROGENEOUS] = MISSING
    labels_TB[2, 12:] = MISSING
    model = PROBLEM.model()
    alpha_T = two_pass_step(model, x_BCHW, labels_TB)
    for of_rank in run_ranks(2, step_without_labels_in_each_way, limit_seconds=60):
        for balance, gradients in of_rank.values():
            assert balance.counts_T.tolist() == [6, 6, 3]
            torch.testing.assert_close(torch.from_numpy(balance.alpha_T), alpha_T, rtol=0, atol=1e-12)
            for gradient, parameter in zip(gradients, model.parameters(), strict=True):
                torch.testing.assert_close(gradient, parameter.grad, rtol=1e-12, atol=1e-14)


WAIT_SECONDS = 2


def die_inside_the_backward(rank: int, where: str, how: str, words: Path) -> None:
    """Rank 1 is gone, or stuck, in the middle of a step; rank 0 writes down what it was told."""
    # The group is there already; accelerate looks for a launcher's variables all the same.
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    roll_call.ANSWER_SECONDS = 2.0

    def end(_: Tensor) -> None:
        while rank == 1 and how == "stuck" and not words.exists():
            time.sleep(0.05)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        with joined(ParallelConfig(processes=2, timeout_seconds=WAIT_SECONDS)) as runtime:
            network = PROBLEM.model()
            balancer = Balancer(NAMES, group=runtime.balance_group)
            x_BCHW, labels_TB = PROBLEM.data(0)
            model = nn.parallel.DistributedDataParallel(network, bucket_cap_mb=0.001)
            outputs = model(x_BCHW, balancer)
            inside = outputs[0] if where == "before the exchange" else next(network.encoder.parameters())
            inside.register_hook(end)
            losses = [task.loss(outputs[t], labels_TB[t]) for t, task in enumerate(PROBLEM.tasks)]
            balancer.total(**by_name(zip(*losses, strict=True))).backward()
    except LostPeerError as error:
        words.write_text(str(error))


@pytest.mark.parametrize(
    ("where", "how"),
    [("before the exchange", "killed"), ("after the exchange", "killed"), ("before the exchange", "stuck")],
)
def test_a_rank_that_is_lost_inside_the_backward_is_told_by_the_others(where: str, how: str, tmp_path: Path) -> None:
    words = tmp_path / "words"
    run_ranks(2, die_inside_the_backward, where, how, words, limit_seconds=30, lost=(1,))
    said = words.read_text()
    assert said.startswith(f"rank 0 on {os.uname().nodename} stopped: another process of this run is gone or stuck")
    assert f"rank 1 on {os.uname().nodename} (process " in said
    assert ("timed out" in said.lower()) == (how == "stuck"), said


def die_or_wait(rank: int) -> Tensor:
    if rank == 1:
        raise SystemExit(9)
    return torch.zeros(1)


def test_the_harness_itself_notices_a_rank_that_dies() -> None:
    with pytest.raises(RankFailed, match="rank 1"):
        run_ranks(2, die_or_wait, limit_seconds=30)
