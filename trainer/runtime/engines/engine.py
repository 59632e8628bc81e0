"""The interface of all strategies: a network and its optimizer, distributed over the ranks.

The gradient of a step is the average over ranks of their backwards; several backwards in a step add up. Between two
steps an engine holds no gradient.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from models.freezing import trained
from trainer.runtime.checkpoints.pieces import OptimizerState, Piece, piece_of
from trainer.runtime.engines.averaging import averaged, swap
from trainer.runtime.engines.precision import LossScale
from trainer.runtime.engines.shards import FlatGradients, mean

BuildOptimizer = Callable[[list[tuple[str, nn.Parameter]]], Optimizer]
"""Makes an optimizer of parameters with their names, in the form that the optimizers of torch take."""


class Engine(Protocol):
    """A strategy as the training loop uses it.

    All methods are collective where the strategy communicates, except `model_pieces` and `optimizer_pieces`. The pieces
    of all ranks together are everything that steps change, each entry once, whatever the strategy.

    Attributes:
        model: called by training steps.
        predictor: called by evaluations, equally often on every rank: sharded parameters are gathered by the call.
        optimizer: has `param_groups`; set their learning rates before each step.
        loss_scale: `backward` multiplies the loss by it, and `step` divides the gradients by it.
    """

    model: nn.Module
    predictor: nn.Module
    optimizer: Optimizer
    loss_scale: LossScale

    def micro_step(self, is_last: bool) -> AbstractContextManager[None]:
        """Wrap one of several forwards and backwards of `model` in a step. Without it, each counts as the last one."""
        ...

    def backward(self, loss: Tensor, *, keep_graph: bool = False) -> None:
        """Run one backward. Afterwards the gradients are averaged over the ranks, or `step` will average them.

        Args:
            loss: a tensor of no dimension.
            keep_graph: whether another backward through the same forward follows.
        """
        ...

    def in_shards(self, num_backwards: int) -> AbstractContextManager[None]:
        """Wrap the forwards and backwards of `model` between which `take_shard` takes gradients away."""
        ...

    def new_shards(self, names: Sequence[str], num_backwards: int) -> Tensor:
        """Return room for this rank's shard of the gradients of some parameters, in each of several backwards.

        Returns:
            (G, S), of any values; S may differ between ranks. The shards of all ranks together have every entry once.
            The next call may return the same memory.
        """
        ...

    def take_shard(self, names: Sequence[str], shard_S: Tensor, *, add: bool) -> None:
        """Take the gradients of some parameters away, averaged over the ranks, and keep this rank's shard of them.

        The gradients of the other parameters stay, and those of further backwards add to them.

        Args:
            names: the parameters, the same in all calls.
            shard_S: a row of `new_shards`, where the shard is written.
            add: whether to add it to what is there.
        """
        ...

    def put_shard(self, names: Sequence[str], shard_S: Tensor) -> None:
        """Give the parameters `names` the gradients that this is a shard of, then go on with `step` or `discard`.

        The other parameters have the averages over the ranks of the gradients that have stayed.
        """
        ...

    def step(self) -> Tensor:
        """Clip the gradients, step the optimizer, drop the gradients. Return their unscaled norm before clipping.

        If the norm is not finite, skip the optimizer's step. Update the loss scale either way.
        """
        ...

    def discard(self) -> None:
        """Drop the gradients."""
        ...

    def averaged(self) -> AbstractContextManager[None]:
        """Give `predictor` the averages of the parameters inside the block, if the optimizer keeps averages.

        Afterwards the parameters are the same as before, bit for bit. Neither step nor save inside the block.
        """
        ...

    def model_pieces(self) -> Iterator[Piece]:
        """Return this rank's pieces of the network's parameters and buffers."""
        ...

    def optimizer_pieces(self) -> Iterator[Piece]:
        """Return this rank's pieces of the optimizer's state, named `<parameter>/<slot>`. None before a step."""
        ...

    def load_optimizer(self, state: OptimizerState) -> None:
        """Load the optimizer state that any strategy saved; every rank passes all of it."""
        ...


class TorchEngine:
    """Single process and DDP; base class of strategies whose gradients are in `.grad` and whose optimizer is torch's.

    Args:
        network: the bare network.
        model: the network inside its data-parallel wrapper, or the network itself.
        build_optimizer: makes an optimizer of the trained parameters, each with its name.
        clip_norm: upper bound of the gradient's norm; None: no bound.
        loss_scale: see `Engine`.
    """

    def __init__(
        self,
        network: nn.Module,
        model: nn.Module,
        build_optimizer: BuildOptimizer,
        clip_norm: float | None,
        loss_scale: LossScale,
    ) -> None:
        self.model = model
        # Not the DDP wrapper: every rank has the whole network, and the wrapper would broadcast its buffers in vain.
        self.predictor = network
        # Those that the optimizer has: while FSDP2 has gathered the parameters, the network shows others.
        self._parameters = dict(network.named_parameters())
        self.optimizer = build_optimizer(list(trained(network).items()))
        self.loss_scale = loss_scale
        self._clip_norm = clip_norm
        self._flat: FlatGradients | None = None

    def micro_step(self, is_last: bool) -> AbstractContextManager[None]:
        """See `Engine`."""
        if isinstance(self.model, nn.parallel.DistributedDataParallel) and not is_last:
            # The gradients are reduced once a step, as a sum.
            return self.model.no_sync()
        return nullcontext()

    def backward(self, loss: Tensor, *, keep_graph: bool = False) -> None:
        """See `Engine`."""
        # On one thread, so that DDP's collectives and those of the balancer have the same order on every rank.
        with torch.autograd.set_multithreading_enabled(False):
            (loss * self.loss_scale.value).backward(retain_graph=keep_graph)

    def in_shards(self, num_backwards: int) -> AbstractContextManager[None]:
        """See `Engine`."""
        return self.micro_step(is_last=False)

    def new_shards(self, names: Sequence[str], num_backwards: int) -> Tensor:
        """See `Engine`."""
        return self._flat_of(names).new_shards(num_backwards)

    def take_shard(self, names: Sequence[str], shard_S: Tensor, *, add: bool) -> None:
        """See `Engine`."""
        self._flat_of(names).scatter_mean(self._take(names), shard_S, add=add)

    def put_shard(self, names: Sequence[str], shard_S: Tensor) -> None:
        """See `Engine`."""
        others = [name for name, parameter in self._parameters.items() if parameter.grad is not None]
        self._put(names, self._flat_of(names).gather(shard_S))
        if others:
            self._put(others, mean(self._take(others)))

    def step(self) -> Tensor:
        """See `Engine`."""
        if self.loss_scale.value != 1:
            for gradient in self._gradients():
                gradient /= self.loss_scale.value
        norm = self._clip()
        is_finite = math.isfinite(norm)
        if is_finite:
            self.optimizer.step()
        self.loss_scale.update(overflow=not is_finite)
        self.discard()
        return norm

    def discard(self) -> None:
        """See `Engine`."""
        self.optimizer.zero_grad()

    def averaged(self) -> AbstractContextManager[None]:
        """See `Engine`."""
        return averaged(self.optimizer.state, self._swap_averages)

    def model_pieces(self) -> Iterator[Piece]:
        """See `Engine`."""
        for name, tensor in self.predictor.state_dict().items():
            if name in self._parameters:
                yield self._piece(name, tensor)
            elif rank_and_size()[0] == 0:  # Buffers: running statistics differ between ranks, and rank 0's are saved.
                yield piece_of(name, tensor, rank=0, world_size=1)

    def optimizer_pieces(self) -> Iterator[Piece]:
        """See `Engine`."""
        for name, parameter in self._parameters.items():
            for slot, value in self.optimizer.state.get(parameter, {}).items():
                if value is None:  # SGD's momentum_buffer, where there is no momentum
                    continue
                if value.shape == parameter.shape:
                    yield self._piece(f"{name}/{slot}", value)
                elif rank_and_size()[0] == 0:  # Adam's count of steps
                    yield piece_of(f"{name}/{slot}", value, rank=0, world_size=1)

    def load_optimizer(self, state: OptimizerState) -> None:
        """See `Engine`."""
        names = {parameter: name for name, parameter in self._parameters.items()}
        in_order = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        mine = {
            index: {slot: self._shard(value, parameter) for slot, value in state[names[parameter]].items()}
            for index, parameter in enumerate(in_order)
            if names[parameter] in state
        }
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": mine})

    def _take(self, names: Sequence[str]) -> list[Tensor]:
        """Take this rank's gradients of some parameters away. A missing one is zeros."""
        gradients = []
        for parameter in (self._parameters[name] for name in names):
            gradients.append(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
            parameter.grad = None
        return gradients

    def _put(self, names: Sequence[str], gradients: Sequence[Tensor]) -> None:
        for name, gradient in zip(names, gradients, strict=True):
            self._parameters[name].grad = gradient

    def _flat_of(self, names: Sequence[str]) -> FlatGradients:
        """Return what shards the gradients of some parameters, the same in all calls."""
        if self._flat is None:
            self._flat = FlatGradients([self._parameters[name] for name in names])
        return self._flat

    def _clip(self) -> Tensor:
        """Scale the gradients down to a norm of at most `clip_norm`, if any. Return their norm before. Collective."""
        norm = nn.utils.get_total_norm(self._gradients())
        if self._clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self._parameters.values(), self._clip_norm, norm)
        return norm

    def _gradients(self) -> list[Tensor]:
        return [each.grad for each in self._parameters.values() if each.grad is not None]

    def _swap_averages(self) -> None:
        for parameter, slots in self.optimizer.state.items():
            swap(parameter, slots)

    def _piece(self, name: str, value: Tensor) -> Piece:
        """Return this rank's piece of a parameter, or of an optimizer slot of the parameter's shape."""
        return piece_of(name, value, *rank_and_size())

    def _shard(self, value: Tensor, parameter: nn.Parameter) -> Tensor:
        """Return the part of a whole optimizer slot that this rank holds for `parameter`."""
        if value.shape != parameter.shape:
            return value  # Adam's count of steps
        # In the parameter's memory format: in another one, the optimizer would round differently than before the save.
        return torch.empty_like(parameter).detach().copy_(value)


def rank_and_size() -> tuple[int, int]:
    """Return this process's rank and the number of ranks."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
