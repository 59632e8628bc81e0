"""Pass zeros through a network once before it is trained: what its outputs depend on, and what a sample costs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models import MultiTaskModel
from models.freezing import trained
from trainer.data.reading.inputs import SharedInput
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
        z_shapes: of each tensor of the representation of one sample.
    """

    unused: list[str]
    flops_per_sample: int
    z_shapes: list[tuple[int, ...]]


def try_out(network: MultiTaskModel, input_shape: Sequence[int], device: torch.device, precision: Precision) -> Tried:
    """Run one training forward and one backward of `NUM_INPUTS` inputs of zeros. The network remains as it was.

    Raises:
        UserError: the forward fails.
    """
    parameters = trained(network)
    forward = _outputs(network, input_shape, device, precision)
    with FlopCounterMode(display=False) as counter, forward as (outputs, returned):
        reached = set(_leaves(outputs))
        total = sum(tensor.float().sum() for tensor in _tensors_of(outputs))
        if isinstance(total, Tensor) and total.requires_grad:
            torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    unused = [name for name, parameter in parameters.items() if parameter not in reached]
    z_shapes = [tuple(z.shape[1:]) for z in _tensors_of(returned)]
    return Tried(unused, int(counter.get_total_flops()) // NUM_INPUTS, z_shapes)


def try_inputs(
    network: MultiTaskModel,
    inputs: Sequence[SharedInput],
    samples: Sequence[int],
    device: torch.device,
    precision: Precision,
) -> Tried:
    """Try each of several inputs: the first, for which the network was built, and the others.

    Args:
        network: as for `try_out`.
        inputs: of the sources.
        samples: how many of a step's samples have each of them.
        device: as for `try_out`.
        precision: as for `try_out`.

    Returns:
        The parameters that no output of any input depends on, and the FLOPs of the mean sample.

    Raises:
        UserError: the forward of an input fails, or its z has another shape than that of the first.
    """
    first, *others = inputs
    tried = [try_out(network, first.spec.encoder_shape, device, precision)]
    for other in others:
        try:
            tried.append(try_out(network, other.spec.encoder_shape, device, precision))
        except UserError as error:
            raise UserError(
                f"data.sources: the encoder was built for {first.words}, and cannot take {other.words}: {error}.\n"
                "Type an encoder that takes both, as model.encoder.name=resnet18 takes images of any size, or convert "
                "one of the sources again, with the --size of the other"
            ) from error
        if tried[-1].z_shapes != tried[0].z_shapes:
            ours, theirs = (" and ".join(map(str, each.z_shapes)) for each in (tried[0], tried[-1]))
            raise UserError(
                f"data.sources: the encoder's z of {first.words} has the shape {ours} a sample, and that of "
                f"{other.words} {theirs}. Expected one shape, as the heads read the z of all sources: type an encoder "
                "whose z is a vector, as that of model.encoder.name=resnet18 is, or convert one of the sources again"
            )
    return Tried(
        unused=[name for name in tried[0].unused if all(name in each.unused for each in tried)],
        flops_per_sample=sum(n * each.flops_per_sample for n, each in zip(samples, tried, strict=True)) // sum(samples),
        z_shapes=tried[0].z_shapes,
    )


@contextmanager
def _outputs(
    network: MultiTaskModel, input_shape: Sequence[int], device: torch.device, precision: Precision
) -> Iterator[tuple[Any, list[Tensor]]]:
    """Give the block the outputs of a training forward of `NUM_INPUTS` inputs of zeros, and what the encoder returned.

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
    yield outputs, returned
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
