"""Activation checkpointing: memory for time (Chen et al. 2016, arXiv 1604.06174)."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(encoder: nn.Module) -> None:
    """Let each block of the encoder keep its input alone and compute the rest once more in the backward.

    A block is what an outermost list (nn.Sequential, nn.ModuleList) holds and has layers of its own: a residual block,
    a transformer's layer. Outputs, gradients, random masks, buffers and the names in checkpoints stay what they were,
    bit for bit; a step has one more forward of the blocks. Nothing is recomputed at evaluation.

    Args:
        encoder: changed in place; before it is wrapped or sharded.

    Raises:
        ValueError: the encoder has no such block.
    """
    blocks = list(_blocks(encoder))
    if not blocks:
        raise ValueError(
            f"{type(encoder).__name__} has no blocks whose activations could be computed again: no nn.Sequential or "
            "nn.ModuleList in it holds modules of several layers"
        )
    for block in blocks:
        # Not a wrapping module, which would rename the parameters. Hooks, those of FSDP too, stay outside.
        block.forward = partial(_twice, block, block.forward)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    is_list = isinstance(module, nn.Sequential | nn.ModuleList)
    for child in module.children():
        if not is_list:
            yield from _blocks(child)
        elif any(True for _ in child.children()):
            yield child


def _twice(block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if torch.compiler.is_compiling():  # A compiled backward computes values again, not what a forward does to buffers.
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    # The reentrant kind would run a backward inside the backward, and need an input that has a gradient.
    return checkpoint(forward, *args, use_reentrant=False, context_fn=partial(_contexts, block), **kwargs)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _UnchangedBuffers(block)


class _UnchangedBuffers(AbstractContextManager[None]):
    """BatchNorm moves its running statistics in each forward: the second one of a step must not.

    Entered once a backward: one forward may have several, as when each task's parameter gradients are looked at.
    """

    def __init__(self, block: nn.Module) -> None:
        self._block = block

    def __enter__(self) -> None:
        self._before = [buffer.clone() for buffer in self._block.buffers()]

    @torch.no_grad()
    def __exit__(self, *_: object) -> None:
        for buffer, before in zip(self._block.buffers(), self._before, strict=True):
            buffer.copy_(before)
