"""The learning rate as a pure function of the step."""

import math

import torch

from trainer.config.sections.optimizer import OptimizerConfig

SCALE = "learning_rate_scale"
"""Key of an optimizer's group of parameters: the factor of the learning rate there."""
ONE_CYCLE_START = 1 / 25
"""Where the one-cycle schedule starts, as a fraction of the peak."""
ONE_CYCLE_END = 1e-4
"""Where it ends, as a fraction of its start. Both are the defaults of torch's OneCycleLR."""


def learning_rate(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Return the learning rate of optimizer step `step`, counted from 0.

    A function of the step alone, so that it is the same after a resume and whatever the number of processes.
    """
    if config.schedule == "one_cycle":
        return config.learning_rate * _one_cycle(step, total_steps, config.warmup_steps)
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "step":
        assert config.decay_every_steps is not None, "the configuration checks this"
        assert config.decay_factor is not None, "the configuration checks this"
        return float(config.learning_rate * config.decay_factor ** (step // config.decay_every_steps))
    progress = (step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1)
    if config.schedule == "cosine":
        return config.learning_rate * (1 + math.cos(math.pi * progress)) / 2
    if config.schedule == "linear":
        return config.learning_rate * (1 - progress)
    if config.schedule == "polynomial":
        assert config.power is not None, "the configuration checks this"
        return float(config.learning_rate * (1 - progress) ** config.power)
    return config.learning_rate


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of all groups of parameters, each times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = value * group.get(SCALE, 1.0)


def _one_cycle(step: int, total_steps: int, warmup_steps: int) -> float:
    """Return the factor of the one-cycle schedule: up and down along half cosines (Smith & Topin 2017, 1708.07120)."""
    peak = max(warmup_steps - 1, 0)
    if step < peak:
        return _between(ONE_CYCLE_START, 1.0, step / peak)
    return _between(1.0, ONE_CYCLE_START * ONE_CYCLE_END, (step - peak) / max(total_steps - 1 - peak, 1))


def _between(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
