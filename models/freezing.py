"""Freeze parts of a network: what is frozen keeps the values that it starts with."""

from collections.abc import Container

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def freeze(network: nn.Module, names: Container[str]) -> None:
    """Freeze parameters, and the running statistics of BatchNorm.

    A norm with frozen running statistics normalises by them in training too, as it does at evaluation. Dropout in a
    frozen part stays as it is.

    Args:
        network: changed in place. Call this before it is wrapped or sharded.
        names: names of its state_dict.
    """
    for name, parameter in network.named_parameters():
        if name in names:
            parameter.requires_grad_(False)
    for name, module in network.named_modules():
        if isinstance(module, _NormBase) and f"{name}.running_mean" in names:
            module.eval()
            module.train = lambda mode=True, norm=module: norm  # type: ignore[method-assign, misc]


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are not frozen, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
