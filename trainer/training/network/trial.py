"""Pass zeros through a network once before it is trained: what its outputs depend on, and what a sample costs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models import MultiTaskModel
from models.freezing import trained
from trainer.errors import UserError
from trainer.runtime.engines.precision import Precision, lowered
from trainer.user_code import errors_explained

NUM_INPUTS = 2
"""BatchNorm cannot be trained on one."""


class Tried(NamedTuple):
    """What a trial has found.

    Attributes:
        unused: names of the trained parameters that no output depends on.
        flops_per_sample: floating-point operations of the forward and the backward; those of matrix products,
            convolutions and attention count.
    """

    unused: list[str]
    flops_per_sample: int


def try_out(network: MultiTaskModel, input_shape: Sequence[int], device: torch.device, precision: Precision) -> Tried:
    """Run one training forward and one backward of `NUM_INPUTS` inputs of zeros. The network remains as it was.

    Raises:
        UserError: the forward fails.
    """
    parameters = trained(network)
    with FlopCounterMode(display=False) as counter, _outputs(network, input_shape, device, precision) as outputs:
        reached = set(_leaves(outputs))
        total = sum(tensor.float().sum() for tensor in _tensors_of(outputs))
        if isinstance(total, Tensor) and total.requires_grad:
            torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    unused = [name for name, parameter in parameters.items() if parameter not in reached]
    return Tried(unused, int(counter.get_total_flops()) // NUM_INPUTS)


@contextmanager
def _outputs(
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
    returned: list[Any] = []
    hook = network.encoder.register_forward_hook(lambda _module, _inputs, z: returned.append(z))
    try:
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            lowered(precision, device),
            errors_explained(doing),
        ):
            outputs = network(zeros)
    except ValueError as error:
        shapes = " and ".join(str(tuple(z.shape)) for z in _tensors_of(returned))
        width = getattr(network.encoder, "width", None)
        about_z = f". The encoder returned z of the shape {shapes}, and its `width` is {width}" if shapes else ""
        raise UserError(f"{error}{about_z}") from error
    finally:
        hook.remove()
    yield outputs
    with torch.no_grad():
        for buffer, before in zip(network.buffers(), buffers, strict=True):
            buffer.copy_(before)


def _leaves(outputs: Any) -> Iterator[Tensor]:
    """Yield the leaves of the autograd graph behind all tensors in nested outputs."""
    waiting = [tensor.grad_fn for tensor in _tensors_of(outputs) if tensor.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):  # AccumulateGrad
            yield node.variable
        new = {found for found, _ in node.next_functions if found is not None} - seen
        seen |= new
        waiting.extend(new)


def _tensors_of(outputs: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested outputs."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, list | tuple):
        for output in outputs:
            yield from _tensors_of(output)
