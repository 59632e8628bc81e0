"""Heads under constraints: they end at the optimum of the constrained problem, and their multipliers are one state."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from models import MultiTaskModel, build_model
from models.heads.constrained import ConstrainedHeads
from tests.support.problem import MISSING
from tests.support.ranks import run_ranks
from tests.support.runtimes import a_runtime
from tests.support.strategies import CASES, LABELLED, Case, a_learner, my_batch, new_engine, whole, write
from trainer.config.sections.train import AccumulationConfig
from trainer.runtime.distributed import Runtime
from trainer.runtime.engines.engine import Engine
from trainer.training.step import Outcome, train_step

COMMON, CONSTRAINT = 0.3, 0.05
T, B, D = 3, 40, 2


def least_squares() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (B, D) and labels (B, T): the second task is between the others, so that nothing holds it."""
    generator = torch.Generator().manual_seed(0)
    z_BD = torch.randn(B, D, generator=generator, dtype=torch.float64)
    truth_DT = torch.tensor([[1.0, 0.1, -0.8], [0.3, 0.1, 0.4]], dtype=torch.float64)
    return z_BD, z_BD @ truth_DT


def heads_of(num_tasks: int, width: int, dual_rate: float) -> ConstrainedHeads:
    torch.manual_seed(0)
    linear = [nn.Sequential(nn.Linear(width, 1)) for _ in range(num_tasks)]
    return ConstrainedHeads(linear, COMMON, CONSTRAINT, dual_rate)


def test_primal_dual_steps_end_at_the_constrained_optimum():
    """Against a general solver of the primal problem, and by the conditions of Karush, Kuhn and Tucker."""
    z_BD, labels_BT = least_squares()
    heads = heads_of(T, D, dual_rate=1.0).double()
    nn.init.zeros_(heads.first.bias_TC).requires_grad_(False)
    optimizer = torch.optim.SGD([heads.first.weight_TCD], lr=0.2)
    for _ in range(800):
        outputs = heads(z_BD, None)
        optimizer.zero_grad()
        loss = 0.5 * (outputs.heads[..., 0] - labels_BT).square().mean(dim=0).sum()
        (loss + outputs.penalty_T.sum()).backward()
        optimizer.step()
        with torch.no_grad():
            heads.ascend()
    weight_TD, multipliers_T = heads.first.weight_TCD.detach()[:, 0].numpy(), heads.multipliers_T.numpy()
    x, y = z_BD.numpy(), labels_BT.numpy()

    def objective(flat: np.ndarray) -> float:
        own_TD, common_D = flat[: T * D].reshape(T, D), flat[T * D :]
        return 0.5 * ((x @ own_TD.T - y) ** 2).mean(axis=0).sum() + COMMON / 2 * common_D @ common_D

    def slack(task: int, flat: np.ndarray) -> float:
        return CONSTRAINT - ((flat[: T * D].reshape(T, D)[task] - flat[T * D :]) ** 2).sum()

    constraints = [{"type": "ineq", "fun": partial(slack, task)} for task in range(T)]
    best = minimize(objective, np.zeros((T + 1) * D), constraints=constraints, method="SLSQP", options={"ftol": 1e-14})
    np.testing.assert_allclose(weight_TD, best.x[: T * D].reshape(T, D), atol=1e-5)
    common_D = best.x[T * D :]
    own_TD = weight_TD - common_D
    excess_T = (own_TD**2).sum(axis=1) - CONSTRAINT
    gradient_TD = ((x @ weight_TD.T - y).T @ x) / B
    np.testing.assert_allclose(gradient_TD + multipliers_T[:, None] * own_TD, 0, atol=1e-5)
    np.testing.assert_allclose(COMMON * common_D, multipliers_T @ own_TD, atol=1e-5)
    assert excess_T.max() < 1e-5
    np.testing.assert_allclose(multipliers_T * excess_T, 0, atol=1e-5)
    assert multipliers_T[1] == 0
    assert multipliers_T[[0, 2]].min() > 0.1


def constrained() -> MultiTaskModel:
    model = CASES["ResNet, stacked heads, AdamW"].model()
    options = {"common": COMMON, "constraint": CONSTRAINT, "dual_rate": 50.0}
    return build_model(model.encoder, LABELLED.tasks, "shared", options)


CASE = Case(constrained, False, lambda p: torch.optim.AdamW(p, lr=1e-3, eps=1e-4), 4)


def steps(engine: Engine, numbers: range, runtime: Runtime) -> None:
    """Make steps of which the second is cut into micro-batches."""
    learner = a_learner(engine, runtime)
    for step in numbers:
        accumulation = AccumulationConfig(steps=2 if step == 1 else 1)
        train_step(replace(learner, accumulation=accumulation), my_batch(CASE, step, runtime), 1e-3)


def on_a_rank(rank: int, strategies: list[str], folder: Path) -> dict[str, tuple[dict, dict]]:
    """Return what 4 steps lead to under each strategy: in one go, and with a resume in the middle."""
    runtime = a_runtime(rank, 2)
    found = {}
    for strategy in strategies:
        engine = new_engine(strategy, CASE, runtime)
        steps(engine, range(2), runtime)
        again = new_engine(strategy, CASE, runtime, write(engine, folder / strategy, runtime))
        for one in (engine, again):
            steps(one, range(2, 4), runtime)
        found[strategy] = whole(engine.model_pieces(), runtime), whole(again.model_pieces(), runtime)
    return found


def alone(rank: int) -> dict[str, torch.Tensor]:
    runtime = a_runtime(rank, 1)
    single = new_engine("single", CASE, runtime)
    steps(single, range(4), runtime)
    return whole(single.model_pieces(), runtime)


@pytest.mark.slow
@pytest.mark.processes
def test_ranks_equal_one_process_and_a_resume_is_exact_under_every_strategy(tmp_path):
    (expected,) = run_ranks(1, alone)
    assert (expected["heads.multipliers_T"] > 0).all()

    for of_rank in run_ranks(2, on_a_rank, ["ddp", "fsdp2", "zero3"], tmp_path):
        for strategy, (whole_run, resumed) in of_rank.items():
            for name, tensor in expected.items():
                torch.testing.assert_close(whole_run[name], tensor, rtol=1e-5, atol=1e-6, msg=f"{strategy} {name}")
                assert torch.equal(whole_run[name], resumed[name]), (strategy, name)


def without_labels(rank: int) -> tuple[Outcome, torch.Tensor]:
    runtime = a_runtime(rank, 1)
    learner = a_learner(new_engine("single", CASE, runtime), runtime)
    batch = my_batch(CASE, 0, runtime)
    unlabelled = {name: torch.full_like(target, MISSING) for name, target in batch.targets.items()}

    outcome = train_step(learner, replace(batch, targets=unlabelled), 1e-3).outcome
    return outcome, learner.network.heads.multipliers_T


@pytest.mark.processes
def test_a_step_that_is_not_made_moves_no_multiplier():
    ((outcome, multipliers_T),) = run_ranks(1, without_labels)
    assert outcome is Outcome.NO_GRADIENT
    assert not multipliers_T.any()


@pytest.mark.parametrize("options", [{"common": 1, "constraint": 1}, {"common": 1, "constraint": 0, "dual_rate": 1}])
def test_a_constraint_needs_positive_numbers(options):
    with pytest.raises(ValueError, match="constraint"):
        build_model(constrained().encoder, LABELLED.tasks, "shared", options)
