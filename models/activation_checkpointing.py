"""Activation checkpointing: less memory for more time (Chen et al. 2016, arXiv 1604.06174)."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(encoder: nn.Module) -> None:
    """Make each block of the encoder store its input only, and recompute the rest in the backward.

    A block is a child of an outermost nn.Sequential or nn.ModuleList that has layers of its own, such as a residual
    block or a transformer layer. Outputs, gradients, random masks, buffers and the names in checkpoints stay the same,
    bit for bit. A training step runs the forward of the blocks twice; an evaluation runs it once.

    Args:
        encoder: changed in place. Call this before it is wrapped or sharded.

    Raises:
        ValueError: the encoder has no such block.
    """
    blocks = list(_blocks(encoder))
    if not blocks:
        raise ValueError(
            f"{type(encoder).__name__} has no blocks whose activations could be recomputed: no nn.Sequential or "
            "nn.ModuleList in it holds modules of several layers"
        )
    for block in blocks:
        # A wrapping module would rename the parameters. Hooks, including those of FSDP, stay outside.
        block.forward = partial(_checkpointed, block, block.forward)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    is_list = isinstance(module, nn.Sequential | nn.ModuleList)
    for child in module.children():
        if not is_list:
            yield from _blocks(child)
        elif any(True for _ in child.children()):
            yield child


def _checkpointed(block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if torch.compiler.is_compiling():  # A compiled backward recomputes values, but not changes of buffers.
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    # Reentrant checkpointing runs a backward inside the backward and needs an input that requires a gradient.
    return checkpoint(forward, *args, use_reentrant=False, context_fn=partial(_contexts, block), **kwargs)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _UnchangedBuffers(block)


class _UnchangedBuffers(AbstractContextManager[None]):
    """Keep the recomputation from updating buffers, such as the running statistics of BatchNorm, a second time.

    It is entered once for each backward. One forward may have several, for example to measure the parameter gradient of
    each task.
    """

    def __init__(self, block: nn.Module) -> None:
        self._block = block

    def __enter__(self) -> None:
        self._before = [buffer.clone() for buffer in self._block.buffers()]

    @torch.no_grad()
    def __exit__(self, *_: object) -> None:
        for buffer, before in zip(self._block.buffers(), self._before, strict=True):
            buffer.copy_(before)
