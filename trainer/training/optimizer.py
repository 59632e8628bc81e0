"""The optimizer, and the learning rate as a pure function of the step."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from trainer.config.sections.optimizer import OptimizerConfig
from trainer.runtime.engines.averaging import keep_average


def build_optimizer(parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build the optimizer, which also keeps the parameters' average. Its learning rate is set before each step.

    Args:
        parameters: with their names.
        config: of the optimizer.
    """
    optimizer = _build([parameter for _, parameter in parameters], config)
    if config.ema_decay is not None:
        keep_average(optimizer, config.ema_decay)
    return optimizer


def learning_rate(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Return the learning rate of optimizer step `step`, counted from 0.

    A function of the step alone, so that it is the same after a resume and whatever the number of processes.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "step":
        assert config.decay_every_steps is not None, "the configuration checks this"
        assert config.decay_factor is not None, "the configuration checks this"
        return float(config.learning_rate * config.decay_factor ** (step // config.decay_every_steps))
    if config.schedule == "cosine":
        progress = (step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1)
        return config.learning_rate * (1 + math.cos(math.pi * progress)) / 2
    return config.learning_rate


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = value


def _build(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    rate, decay = config.learning_rate, config.weight_decay
    if config.name == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=config.momentum, weight_decay=decay)
    if config.name == "adam":
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay)
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
