"""Every rule gives the same bits on 1, 2 and 4 processes, from the same Gram matrix summed over them."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist

from paretrain import (
    FAMO,
    BalanceError,
    Balancer,
    Chebyshev,
    DynamicWeightAverage,
    Fixed,
    GO4Align,
    GradNorm,
    GradVac,
    MinNormWeighting,
    Normalised,
    PCGrad,
    Random,
    Tension,
    Uncertainty,
    Uniform,
    Weighting,
)
from paretrain.exchange import exchange
from paretrain.ranks import Ranks
from paretrain.rules.rule import Stateless, Weights
from paretrain.solve import solve_step
from tests.support.ranks import run_ranks
from tests.support.rules import OF_PAPERS
from trainer.config.sections.balance import BalanceConfig
from trainer.training.rules import build_rule

NAMES = ["left", "middle", "right"]
STEPS = 25
COLUMNS = 24


def from_torchjd(name: str) -> Callable[[], Weighting]:
    return lambda: build_rule(BalanceConfig(weighting=f"torchjd.aggregation.{name}"), NAMES)


class NoNumber(Stateless):
    """A rule that ends in NaN."""

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        return Weights(np.full(len(tasks_A), np.nan))


RULES: dict[str, Callable[[], Weighting]] = {
    "min_norm": MinNormWeighting,
    "uniform": Uniform,
    "fixed": lambda: Fixed([0.5, 0.25, 0.25]),
    "random": lambda: Random(3),
    "uncertainty": lambda: Uncertainty(3),
    "gradnorm": lambda: GradNorm(3),
    "dwa": lambda: DynamicWeightAverage(3, window_steps=4),
    "tension": lambda: Tension(3),
    "preference": lambda: Chebyshev([1, 2, 3]),
    "normalised": lambda: Normalised(MinNormWeighting(), "loss+"),
    "pcgrad": lambda: PCGrad(3),
    "gradvac": lambda: GradVac(3),
    "famo": lambda: FAMO(3),
    "go4align": lambda: GO4Align(3),
    **OF_PAPERS,
    "UPGrad": from_torchjd("UPGradWeighting"),
    "PCGrad": from_torchjd("PCGradWeighting"),
}


def share_of_step(step: int, ranks: Ranks) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """This rank's columns of gradients of whole numbers: their sums are exact in any order."""
    generator = np.random.default_rng(step)
    gradients_TN = torch.from_numpy(generator.integers(-3, 4, size=(3, COLUMNS)).astype(np.float64))
    losses_TN = torch.from_numpy(generator.integers(1, 9, size=(3, COLUMNS)) / 64)
    counts_T = torch.tensor([COLUMNS] * 3, dtype=torch.float64)
    if step % 3 == 1:
        gradients_TN[1], losses_TN[1], counts_T[1] = 0, 0, 0
    width = COLUMNS // ranks.size
    mine = slice(ranks.rank * width, (ranks.rank + 1) * width)
    return gradients_TN[:, mine] @ gradients_TN[:, mine].T, losses_TN[:, mine].sum(dim=1), counts_T


def run_every_rule(rank: int) -> dict[str, bytes]:
    ranks, found = Ranks(dist.group.WORLD), {}
    for name, make in RULES.items():
        # Only rank 0 asks the rule, so another rule elsewhere must change nothing.
        rule = make() if rank == 0 else Uniform()
        alphas = []
        for step in range(STEPS):
            gram_TT, losses_T, counts_T = share_of_step(step, ranks)
            verdict, _ = exchange(gram_TT, losses_T, counts_T, ranks, partial(solve_step, rule=rule))
            alphas.append(verdict.alpha_T)
        found[name] = np.array(alphas).tobytes()
    try:
        exchange(*share_of_step(0, ranks), ranks, partial(solve_step, rule=NoNumber()))
    except BalanceError as error:
        found["NaN"] = str(error).encode()
    found["famo, after a step"] = learnt_after_a_step(ranks)
    return found


def learnt_after_a_step(ranks: Ranks) -> bytes:
    """Return what rank 0 learns of a step's losses, in float32: their means over the ranks are rounded."""
    balancer = Balancer(NAMES, FAMO(3), ranks.group)
    balancer.weighting(np.eye(3), np.ones(3), np.arange(3))
    _, losses_T, counts_T = share_of_step(0, ranks)
    balancer.after_step(sums=losses_T, counts=counts_T / ranks.size)
    return ranks.broadcast(torch.tensor(balancer.state_dict()["weighting"]["squares"])).numpy().tobytes()


@pytest.fixture(scope="module")
def on_one_process() -> dict[str, bytes]:
    (found,) = run_ranks(1, run_every_rule)
    return found


@pytest.mark.parametrize("world_size", [2, 4])
def test_every_rank_of_any_number_has_the_bits_of_one(world_size: int, on_one_process: dict[str, bytes]) -> None:
    for found in run_ranks(world_size, run_every_rule):
        assert found == on_one_process


def test_the_rules_do_decide_something(on_one_process: dict[str, bytes]) -> None:
    alphas = {name: np.frombuffer(on_one_process[name]).reshape(STEPS, 3) for name in RULES}
    assert len({alpha.tobytes() for alpha in alphas.values()}) == len(RULES)
    for name, alpha_ST in alphas.items():
        assert not alpha_ST[1::3, 1].any(), name
        assert alpha_ST[0::3].any(axis=0).all(), name


def test_a_rule_learns_from_the_losses_of_all_ranks_after_a_step(on_one_process: dict[str, bytes]) -> None:
    assert np.frombuffer(on_one_process["famo, after a step"], dtype=np.float32).all()


def test_weights_that_are_no_numbers_stop_every_rank(on_one_process: dict[str, bytes]) -> None:
    assert b"the weighting failed on rank 0: ValueError: expected 3 finite weights" in on_one_process["NaN"]
