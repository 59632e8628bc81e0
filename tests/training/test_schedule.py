"""The learning rate is a function of the step."""

import pytest
import torch

from trainer.config.sections.optimizer import OptimizerConfig
from trainer.training.optimizer.schedule import learning_rate


def test_constant_after_a_linear_warm_up() -> None:
    config = OptimizerConfig(name="sgd", learning_rate=0.4, warmup_steps=4)
    assert [learning_rate(step, 10, config) for step in range(6)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_step_decay() -> None:
    config = OptimizerConfig(name="sgd", learning_rate=1.0, schedule="step", decay_every_steps=3, decay_factor=0.5)
    assert [learning_rate(step, 9, config) for step in range(7)] == [1, 1, 1, 0.5, 0.5, 0.5, 0.25]


def test_cosine_falls_from_the_peak_towards_zero_and_is_half_in_the_middle() -> None:
    config = OptimizerConfig(name="adam", learning_rate=2.0, schedule="cosine", warmup_steps=10)
    rates = [learning_rate(step, 110, config) for step in range(10, 110)]
    assert rates[0] == 2.0
    assert rates[50] == pytest.approx(1.0)
    assert 0 < rates[-1] < 0.001
    assert rates == sorted(rates, reverse=True)


def test_linear_and_polynomial_fall_to_zero_after_the_warm_up() -> None:
    linear = OptimizerConfig(name="sgd", learning_rate=1.0, schedule="linear", warmup_steps=2)
    assert [learning_rate(step, 6, linear) for step in range(6)] == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25])
    square = OptimizerConfig(name="sgd", learning_rate=1.0, schedule="polynomial", power=2.0)
    assert [learning_rate(step, 4, square) for step in range(4)] == pytest.approx([1, 0.5625, 0.25, 0.0625])


def test_one_cycle_is_that_of_torch() -> None:
    config = OptimizerConfig(name="sgd", learning_rate=0.3, schedule="one_cycle", warmup_steps=6)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.3, total_steps=20, pct_start=6 / 20, cycle_momentum=False
    )
    for step in range(20):
        assert learning_rate(step, 20, config) == pytest.approx(reference.get_last_lr()[0])
        optimizer.step()
        if step < 19:
            reference.step()
