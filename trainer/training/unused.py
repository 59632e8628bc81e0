"""Find parameters that no output depends on: a slip in a network, or a part of one that came with its weights."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from models import MultiTaskModel
from models.freezing import trained
from trainer.config.strategies import StrategyName
from trainer.errors import UserError
from trainer.runtime.engines.precision import Precision, lowered
from trainer.user_code import errors_explained

NUM_INPUTS = 2
"""BatchNorm cannot be trained on one."""
MAX_SHOWN = 6


def unused_parameters(
    network: MultiTaskModel, input_shape: Sequence[int], device: torch.device, precision: Precision
) -> list[str]:
    """Run a training forward of zeros. Return the names of the trained parameters that no output depends on.

    Raises:
        UserError: the forward fails.
    """
    with trial(network, input_shape, device, precision) as outputs:
        reached = set(_leaves(outputs))
    return [name for name, parameter in trained(network).items() if parameter not in reached]


@contextmanager
def trial(
    network: MultiTaskModel, input_shape: Sequence[int], device: torch.device, precision: Precision
) -> Iterator[Any]:
    """Give the block the outputs of a training forward of `NUM_INPUTS` inputs of zeros.

    Nothing of the forward remains: buffers and random generators are as before.

    Raises:
        UserError: the forward fails.
    """
    zeros = torch.zeros(NUM_INPUTS, *input_shape, device=device)
    buffers = [buffer.clone() for buffer in network.buffers()]
    doing = f"a batch of {NUM_INPUTS} zero inputs {tuple(input_shape)} cannot pass through the encoder and the heads"
    try:
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            lowered(precision, device),
            errors_explained(doing),
        ):
            outputs = network(zeros)
    except ValueError as error:
        raise UserError(str(error)) from error
    yield outputs
    with torch.no_grad():
        for buffer, before in zip(network.buffers(), buffers, strict=True):
            buffer.copy_(before)


def say_unused(names: Sequence[str]) -> str:
    """Return a sentence about parameters that no output depends on."""
    shown = ", ".join(names[:MAX_SHOWN]) + (", ..." if len(names) > MAX_SHOWN else "")
    return f"no task's output depends on {len(names)} parameter{'s' if len(names) > 1 else ''}: {shown}"


def refuse_unused(names: Sequence[str], used: Collection[str], strategy: StrategyName, processes: int) -> None:
    """Refuse unused parameters where they stop a training.

    Args:
        names: of the unused parameters.
        used: names of the others that are trained.
        strategy: parallel.strategy.
        processes: parallel.processes.

    Raises:
        UserError: DDP would wait for their gradients.
    """
    if names and strategy == "ddp" and processes > 1:
        patterns = ", ".join(sorted({_pattern(name, used) for name in names}))
        raise UserError(
            f"{say_unused(names)}. DDP would wait for their gradients. Take them out of the module, or train without "
            f"them: 'model.freeze=[{patterns}]'"
        )


def _pattern(name: str, used: Collection[str]) -> str:
    """Return the widest pattern for a name that matches no used parameter."""
    parts = name.split(".")
    for depth in range(1, len(parts)):
        part = ".".join(parts[:depth])
        if not any(other.startswith(f"{part}.") for other in used):
            return f"{part}.*"
    return name


def _leaves(outputs: Any) -> Iterator[Tensor]:
    """Yield the leaves of the autograd graph behind all tensors in nested outputs."""
    waiting = [tensor.grad_fn for tensor in tensors_of(outputs) if tensor.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):  # AccumulateGrad
            yield node.variable
        new = {found for found, _ in node.next_functions if found is not None} - seen
        seen |= new
        waiting.extend(new)


def tensors_of(outputs: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested outputs."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, list | tuple):
        for output in outputs:
            yield from tensors_of(output)
