"""The blocks of an encoder: what sharding gathers one by one, and what layer-wise decay counts."""

from torch import nn


def blocks(module: nn.Module) -> list[nn.Module]:
    """Return the members of the module's outermost lists (nn.Sequential, nn.ModuleList) that have parameters."""
    if isinstance(module, nn.Sequential | nn.ModuleList):
        return [child for child in module if any(True for _ in child.parameters())]
    return [block for child in module.children() for block in blocks(child)]
