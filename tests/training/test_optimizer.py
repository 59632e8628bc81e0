"""The learning rate is a function of the step."""

import pytest
import torch

from trainer.config.sections.optimizer import OptimizerConfig
from trainer.training.optimizer import build_optimizer, learning_rate


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


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_every_optimizer_takes_a_step(name: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    config = OptimizerConfig(name=name, learning_rate=0.1, momentum=0.9 if name == "sgd" else 0.0)
    optimizer = build_optimizer([("w", parameter)], config)
    parameter.sum().backward()
    optimizer.step()
    assert (parameter < 1).all()
