"""A step has one outcome, which decides whether parameters and running statistics change, and what is published."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from models import training_losses
from paretrain import FAMO, Balancer, NonFiniteError
from tests.support.problem import MISSING
from tests.training.test_gradients import a_batch, a_learner
from trainer.config.sections.train import AccumulationConfig
from trainer.training.learner import Learner
from trainer.training.records import step_records
from trainer.training.step import Outcome, train_step

NAMES = ["a", "b", "c"]


def a_whole_batch_learner(on_nonfinite: str) -> Learner:
    return replace(a_learner(on_nonfinite), accumulation=AccumulationConfig())


def break_head(learner: Learner, task: int) -> None:
    """Make a task's loss NaN."""
    learner.network.heads[task].register_forward_hook(lambda module, inputs, output: output * torch.nan)  # type: ignore[index]


def break_encoder(learner: Learner) -> None:
    """Make the encoder's gradient NaN, while every task's gradient at the representation is finite."""
    parameter = next(learner.network.encoder.parameters())
    parameter.register_hook(lambda gradient: gradient * torch.nan)


def took(learner: Learner, **options: Any) -> tuple[Outcome, bool, list[tuple[str, str]]]:
    """Return the outcome of a step, whether parameters changed, and the kinds of its records."""
    before = [parameter.clone() for parameter in learner.network.parameters()]
    result = train_step(learner, options.pop("batch", a_batch()), 0.1, **options)
    pairs = zip(before, learner.network.parameters(), strict=True)
    records = [(record["kind"], record.get("action", "")) for record in step_records(1, result, NAMES)]
    return result.outcome, any(not torch.equal(old, new) for old, new in pairs), records


def test_a_sound_step_moves_the_parameters_and_publishes_nothing() -> None:
    assert took(a_whole_batch_learner("stop")) == (Outcome.STEPPED, True, [])
    assert took(a_whole_batch_learner("stop"), watch_slopes=True) == (Outcome.STEPPED, True, [("monitor", "")])


def test_a_broken_task_is_dropped_or_the_step_is_skipped_or_the_run_stops() -> None:
    for policy, expected in {
        "drop_task": (Outcome.DROPPED_TASKS, True, [("fault", "drop_task")]),
        "skip_step": (Outcome.NOT_FINITE, False, [("fault", "skip_step")]),
    }.items():
        learner = a_whole_batch_learner(policy)
        break_head(learner, 2)
        assert took(learner) == expected
    learner = a_whole_batch_learner("stop")
    break_head(learner, 2)
    with pytest.raises(NonFiniteError, match="loss and gradient of task"):
        took(learner)


def test_a_gradient_that_breaks_in_the_encoder_is_an_overflow_only_with_a_loss_scale() -> None:
    learner = a_whole_batch_learner("skip_step")
    break_encoder(learner)
    assert took(learner) == (Outcome.NOT_FINITE, False, [("fault", "skip_step")])
    learner.engine.loss_scale.value = 2.0
    assert took(learner) == (Outcome.OVERFLOW, False, [("fault", "overflow")])
    learner = a_whole_batch_learner("stop")
    break_encoder(learner)
    with pytest.raises(NonFiniteError, match="the parameters' gradient"):
        took(learner)


def test_without_any_label_no_parameter_moves() -> None:
    batch = a_batch()
    batch = replace(batch, targets={name: torch.full_like(found, MISSING) for name, found in batch.targets.items()})
    assert took(a_whole_batch_learner("stop"), batch=batch) == (Outcome.NO_GRADIENT, False, [("note", "")])


@pytest.mark.parametrize("parts", [1, 2])
def test_a_rule_that_looks_back_sees_the_losses_of_the_batch_after_the_step(parts: int) -> None:
    seen = []

    class Famo(FAMO):
        def after_step(self, losses_T: np.ndarray) -> None:
            seen.append(losses_T)
            super().after_step(losses_T)

    learner = replace(a_whole_batch_learner("stop"), accumulation=AccumulationConfig(steps=parts))
    learner = replace(learner, balancer=Balancer(3, Famo(3)))
    batch = a_batch()
    train_step(learner, batch, 0.1)
    sums_T, counts_T = training_losses(learner.tasks, learner.network(batch.inputs), batch.targets)
    np.testing.assert_allclose(seen, [(sums_T / counts_T).detach().numpy()])
    break_head(learner, 2)
    with pytest.raises(NonFiniteError):
        train_step(learner, batch, 0.1)
    assert len(seen) == 1, "no step was made"
