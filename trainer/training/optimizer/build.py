"""The optimizer: one of torch's or the user's own, with a learning rate and a weight decay for each parameter."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.config.sections.optimizer import NAMES, OptimizerConfig
from trainer.errors import UserError
from trainer.runtime.engines.averaging import keep_average
from trainer.training.optimizer.muon import MuonAndAdamW
from trainer.training.optimizer.schedule import SCALE
from trainer.training.optimizer.settings import Setting
from trainer.user_code import call, load, refuse_unknown

OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "muon": MuonAndAdamW,
}
"""`build(groups, lr=..., **options)`; a group has `params` and `weight_decay`."""
EXPECTED = "expected a torch.optim.Optimizer"


def build_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig, settings: Mapping[str, Setting]
) -> Optimizer:
    """Build the optimizer, which also keeps the parameters' average. Its learning rates are set before each step.

    Args:
        parameters: with their names.
        config: of the optimizer.
        settings: of each parameter.

    Raises:
        UserError: the optimizer or an option is unknown, or it refuses a value.
    """
    optimizer = _build(parameters, config, settings)
    if config.ema_decay is not None:
        keep_average(optimizer, config.ema_decay)
    return optimizer


def state_slots(config: OptimizerConfig, setting: Setting) -> dict[str, bool]:
    """Return what the optimizer keeps of a parameter with this setting: slot -> whether it has the parameter's shape.

    The others are single numbers, such as Adam's count of steps.

    Raises:
        UserError: as `build_optimizer`; or it cannot make a step, or keeps what no checkpoint could hold.
    """
    parameter = nn.Parameter(torch.ones(2, 3))
    optimizer = build_optimizer([("parameter", parameter)], config, {"parameter": setting})
    parameter.grad = torch.ones_like(parameter)
    named = f"optimizer '{config.name}'"
    try:
        call(optimizer.step, doing=f"{named} cannot make a step")
    except ValueError as error:
        raise UserError(str(error)) from error
    found = {slot: value for slot, value in optimizer.state[parameter].items() if value is not None}
    for slot, value in found.items():
        if not (isinstance(value, Tensor) and value.shape in (parameter.shape, torch.Size())):
            raise UserError(
                f"{named} keeps a '{slot}' for each parameter that no checkpoint can hold: expected a tensor of the "
                f"parameter's shape, or of one number, found {type(value).__name__}"
            )
    return {slot: value.shape == parameter.shape for slot, value in found.items()}


def _build(
    parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig, settings: Mapping[str, Setting]
) -> Optimizer:
    named = f"optimizer '{config.name}'"
    options: dict[str, Any] = {"momentum": config.momentum} if config.name == "sgd" else {}
    # YAML has lists alone, and an optimizer may compare its betas with a tuple.
    options |= {key: tuple(value) if isinstance(value, list) else value for key, value in config.options.items()}
    by_setting: dict[Setting, list[nn.Parameter]] = {}
    for name, parameter in parameters:
        by_setting.setdefault(settings[name], []).append(parameter)
    groups = [_group(setting, members, config.name) for setting, members in by_setting.items()]
    try:
        build = OPTIMIZERS.get(config.name) or _own(config.name, named)
        _refuse_options(config, build, named, decays=any(group["weight_decay"] for group in groups))
        shown = ", ".join(f"{key}={value!r}" for key, value in options.items()) or "no options"
        optimizer: Optimizer = call(
            build, groups, lr=config.learning_rate, **options, doing=f"{named} cannot be built with {shown}"
        )
        if not isinstance(optimizer, Optimizer):
            raise ValueError(f"{named} gave {type(optimizer).__name__}; {EXPECTED}")
    except ValueError as error:
        raise UserError(str(error)) from error
    return optimizer


def _group(setting: Setting, members: list[nn.Parameter], name: str) -> dict[str, Any]:
    group = {"params": members, "weight_decay": setting.weight_decay, SCALE: setting.learning_rate_scale}
    return group | {"is_matrix": setting.is_matrix} if name == "muon" else group


def _own(name: str, named: str) -> Callable[..., Optimizer]:
    return load(name, Optimizer, named=named, expected=EXPECTED)


def _refuse_options(config: OptimizerConfig, build: Callable[..., Any], named: str, *, decays: bool) -> None:
    """Refuse options that the optimizer does not take.

    Raises:
        ValueError: it has one, or there is weight decay and it takes none.
    """
    taken = inspect.signature(build).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        return
    allowed = [name for name in taken if name not in ("params", "groups", "lr", "weight_decay")]
    refuse_unknown(config.options, allowed, named)
    if decays and config.name not in NAMES and "weight_decay" not in taken:
        raise ValueError(f"{named} takes no weight_decay: leave it out of the optimizer and its groups")
