"""A mistake in a loop of two ranks is the same sentence on both."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from paretrain import BalanceError, Balancer, NonFiniteError
from tests.support.problem import MISSING
from tests.support.ragged import NAMES, PROBLEM, batch, summed
from tests.support.ranks import run_ranks


def a_mean_as_a_sum(rank: int, balancer: Balancer, outputs: list[Tensor], y: Tensor) -> None:
    means = [
        F.cross_entropy(output, labels_B, ignore_index=MISSING) for output, labels_B in zip(outputs, y, strict=True)
    ]
    balancer.total(sums=means, counts=[1, 1, 1])


def a_loss_without_a_count(rank: int, balancer: Balancer, outputs: list[Tensor], y: Tensor) -> None:
    losses = summed(outputs, y)
    balancer.total(sums=losses["sums"], counts=[*losses["counts"][:2], losses["counts"][2] * (1 - rank)])


def a_negative_count(rank: int, balancer: Balancer, outputs: list[Tensor], y: Tensor) -> None:
    losses = summed(outputs, y)
    balancer.total(sums=losses["sums"], counts=[losses["counts"][0] - 100 * rank, *losses["counts"][1:]])


def by_position(rank: int, balancer: Balancer, outputs: list[Tensor], y: Tensor) -> None:
    balancer.total(*summed(outputs, y).values())


def half_a_mean_as_a_sum(rank: int, balancer: Balancer, outputs: list[Tensor], y: Tensor) -> None:
    means = [0.5 * F.cross_entropy(output, labels_B.clamp(min=0)) for output, labels_B in zip(outputs, y, strict=True)]
    means[1] = means[1] + outputs[1].square().mean()
    balancer.total(sums=means, counts=[len(y[0])] * 3)


def z_in_place_of_a_view(rank: int, balancer: Balancer, outputs: list[Tensor], y: Tensor) -> None:
    network = PROBLEM.model()
    z_BD = network.encoder(batch(rank, PROBLEM)[0])
    left, _, right = balancer.split(z_BD)
    balancer.total(**summed([head(z) for head, z in zip(network.heads, (left, z_BD, right), strict=True)], y))


def the_view_of_another_task(rank: int, balancer: Balancer, outputs: list[Tensor], y: Tensor) -> None:
    network = PROBLEM.model()
    views = balancer.split(network.encoder(batch(rank, PROBLEM)[0]))
    balancer.total(**summed([head(views[0]) for head in network.heads], y))


def a_head_on_top_of_another(rank: int, balancer: Balancer, outputs: list[Tensor], y: Tensor) -> None:
    balancer.total(**summed([outputs[0], outputs[1], outputs[2] + outputs[0]], y))


def z_in_a_window(rank: int, balancer: Balancer, outputs: list[Tensor], y: Tensor) -> None:
    network, window = PROBLEM.model(), balancer.window()
    z_BD = network.encoder(batch(rank, PROBLEM)[0])
    views = window.split(z_BD)
    window.look(**summed([head(z) for head, z in zip(network.heads, (z_BD, *views[1:]), strict=True)], y))
    window.weigh()


def numbers_as_losses(rank: int, balancer: Balancer, outputs: list[Tensor], y: Tensor) -> None:
    losses = summed(outputs, y)
    balancer.total(sums=[loss.item() for loss in losses["sums"]], counts=losses["counts"])


def a_split_without_gradients(rank: int, balancer: Balancer, outputs: list[Tensor], y: Tensor) -> None:
    network, balancer = PROBLEM.model(), Balancer(NAMES)
    with torch.no_grad():
        views = balancer.split(network.encoder(batch(rank, PROBLEM)[0]))
    balancer.total(**summed([head(view) for head, view in zip(network.heads, views, strict=True)], y)).backward()


def a_backward_to_the_heads_alone(rank: int, balancer: Balancer, outputs: list[Tensor], y: Tensor) -> None:
    network = PROBLEM.model()
    total = balancer.total(**summed(network(batch(rank, PROBLEM)[0], balancer), y))
    total.backward(inputs=list(network.heads.parameters()))


def another_loss(rank: int, balancer: Balancer, outputs: list[Tensor], y: Tensor) -> None:
    losses = summed(outputs, y)
    balancer.total(**losses)
    sum(losses["sums"]).backward()


def another_name(rank: int, balancer: Balancer, outputs: list[Tensor], y: Tensor) -> None:
    losses = summed(outputs, y)
    balancer.total(sums=dict(zip(["left", "middle", "rihgt"], losses["sums"], strict=True)), counts=losses["counts"])


def stale_alpha(rank: int, balancer: Balancer, outputs: list[Tensor], y: Tensor) -> None:
    balancer.total(**summed(outputs, y)).backward()
    balancer.total(sums=torch.zeros(3, requires_grad=True), counts=[0, 0, 0])
    _ = balancer.alpha


def without_a_view(rank: int, balancer: Balancer, outputs: list[Tensor], y: Tensor) -> None:
    own = torch.ones(3, dtype=torch.float64, requires_grad=True)
    balancer.total(sums=own * 2, counts=[1, 1, 1]).backward()


def one_split_out_of_another(rank: int, balancer: Balancer, outputs: list[Tensor], y: Tensor) -> None:
    z = torch.ones(4, 2, dtype=torch.float64, requires_grad=True)
    views = balancer.split(z)
    deeper = balancer.split(views[0] * 2)
    balancer.total(sums=[view.sum() for view in deeper], counts=[4, 4, 4]).backward()


def nan_behind_a_frozen_encoder(rank: int, balancer: Balancer, outputs: list[Tensor], y: Tensor) -> None:
    network = PROBLEM.model()
    network.encoder.requires_grad_(False)
    losses = summed(network(PROBLEM.data(0)[0][:5], balancer), PROBLEM.data(0)[1][:, :5])
    losses["sums"][0] = losses["sums"][0] * (torch.nan if rank else 1)
    balancer.total(**losses).backward()


def inside_join(rank: int, balancer: Balancer, outputs: list[Tensor], y: Tensor) -> None:
    model = DistributedDataParallel(PROBLEM.model())
    with model.join():
        model(PROBLEM.data(0)[0][:4], balancer)


MISTAKES: dict[Callable[..., None], tuple[type[Exception], str]] = {
    a_mean_as_a_sum: (BalanceError, r"tasks 'left', 'middle', 'right': a mean .* total\(means=..., counts=...\)"),
    half_a_mean_as_a_sum: (BalanceError, r"tasks 'left', 'middle', 'right': a mean .* total\(means=..., counts=...\)"),
    z_in_place_of_a_view: (BalanceError, "task 'middle': a loss that reads z"),
    the_view_of_another_task: (BalanceError, "tasks 'middle', 'right': a loss that reads z, or another task's view"),
    a_head_on_top_of_another: (BalanceError, "task 'right': a loss that reads z, or another task's view"),
    z_in_a_window: (BalanceError, "task 'left': a loss that reads z"),
    numbers_as_losses: (TypeError, r"found float: leave out .item\(\)"),
    a_split_without_gradients: (RuntimeError, "not under torch.no_grad"),
    a_backward_to_the_heads_alone: (RuntimeError, r"In backward\(inputs=...\)"),
    a_loss_without_a_count: (BalanceError, "task 'right': a loss, but a count of 0"),
    a_negative_count: (BalanceError, "task 'left': a count that is negative"),
    by_position: (TypeError, r"by keyword: total\(sums=..., counts=...\)"),
    another_loss: (RuntimeError, "call backward on that scalar"),
    another_name: (ValueError, "tasks left, middle, right; found those of left, middle, rihgt"),
    stale_alpha: (RuntimeError, "no α yet"),
    without_a_view: (RuntimeError, "must read the view"),
    one_split_out_of_another: (RuntimeError, r"balancer.split\(\(z1, z2\)\)"),
    nan_behind_a_frozen_encoder: (NonFiniteError, "loss and gradient of task 'left' on rank 1"),
    inside_join: (RuntimeError, "same number of steps"),
}


@contextmanager
def caught(found: dict[str, str], name: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, RuntimeError) as error:
        found[name] = f"{type(error).__name__}: {error}"


def mistakes(rank: int) -> dict[str, str]:
    found: dict[str, str] = {}
    for mistake in MISTAKES:
        balancer = Balancer(NAMES)
        x, y = batch(rank, PROBLEM)
        with caught(found, mistake.__name__):
            mistake(rank, balancer, PROBLEM.model()(x, balancer), y)
    return found


@pytest.fixture(scope="module")
def sentences() -> list[dict[str, str]]:
    return run_ranks(2, mistakes)


@pytest.mark.processes
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_the_same_sentence_on_both_ranks(
    mistake: Callable[..., None], sentences: list[dict[str, str]]
) -> None:
    kind, phrase = MISTAKES[mistake]
    first, second = (of_rank[mistake.__name__] for of_rank in sentences)
    assert first == second
    with pytest.raises(kind, match=phrase):
        raise kind(first)
    assert first.startswith(kind.__name__)


@pytest.mark.parametrize("z", [torch.zeros(2, 3, dtype=torch.cfloat), torch.zeros(2, 3, dtype=torch.long), ()])
def test_a_z_without_a_gradient_is_refused(z: Any) -> None:
    with pytest.raises(TypeError, match=r"view_as_real|no gradient|empty"):
        Balancer(2).split(z)
