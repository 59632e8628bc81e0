"""α of thousands of tasks over ranks, by products of a Gram matrix that no rank has.

Shapes: T tasks, B samples, D representation width.
"""

import numpy as np
import torch
from torch import Tensor

import paretrain.balancer
import paretrain.minnorm
import paretrain.step
from paretrain import BalanceError, Balancer
from paretrain.gram import stacked_gram
from paretrain.ranks import Ranks
from tests.support.ranks import run_ranks

T, D, SAMPLES = 40, 6, (3, 8)


def data() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (sum(SAMPLES), D), (T, 2, D), (sum(SAMPLES), T, 2)
    z_BD, weight_TCD, goal_BTC = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return z_BD, weight_TCD, goal_BTC


def step(balancer: Balancer, rows: slice, broken: bool = False) -> Tensor:
    z_BD, weight_TCD, goal_BTC = data()
    errors_BTC = balancer.linear(z_BD[rows].requires_grad_(), weight_TCD.requires_grad_()) - goal_BTC[rows]
    sums_T = errors_BTC.square().sum((0, 2)) / 2
    if broken:
        sums_T = sums_T * torch.where(torch.arange(T) == 3, torch.nan, 1.0)
    balancer.total(sums=sums_T, counts=[len(errors_BTC)] * T).backward()
    return balancer.alpha


def on_a_rank(rank: int) -> dict[str, object]:
    paretrain.step.is_cheaper, paretrain.balancer.MANY_TASKS = (lambda *_: True), 2
    rows = slice(0, SAMPLES[0]) if rank == 0 else slice(SAMPLES[0], None)
    balancer = Balancer(T, on_nonfinite="drop_task")
    found: dict[str, object] = {"alpha": step(balancer, rows).numpy()}
    assert balancer.last is not None
    found["gap"], found["gram"] = balancer.last.gap, balancer.last.gram_TT
    # Task 3 is broken on rank 1 alone.
    found["dropped"] = step(balancer, rows, broken=rank == 1).numpy()

    def fails(*_: object) -> None:
        raise ValueError("no such point")

    paretrain.minnorm.solve_by_products = fails
    try:
        step(balancer, rows)
    except BalanceError as error:
        found["error"] = str(error)
    assert Ranks().sum(torch.ones(1)).item() == 2, "no message is left over"
    return found


def test_products_over_ranks_find_the_weights_of_the_whole_batch() -> None:
    first, second = run_ranks(2, on_a_rank)
    for name in ("alpha", "dropped"):
        np.testing.assert_array_equal(first[name], second[name])
    assert first["gram"] is None
    z_BD, weight_TCD, goal_BTC = data()
    errors_BTC = (z_BD @ weight_TCD.flatten(0, 1).T).view_as(goal_BTC) - goal_BTC
    gram_TT = stacked_gram(errors_BTC / sum(SAMPLES), weight_TCD).numpy()
    kept = np.arange(T) != 3
    for alpha_T, rows in ((first["alpha"], np.full(T, True)), (first["dropped"], kept)):
        slopes_T = (gram_TT @ alpha_T)[rows]
        assert alpha_T @ gram_TT @ alpha_T - slopes_T.min() <= 1e-8 * gram_TT.diagonal()[rows].mean()
    assert first["dropped"][3] == 0
    assert "no such point" in first["error"]
    assert first["error"] == second["error"]
