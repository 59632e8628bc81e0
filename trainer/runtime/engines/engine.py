"""A network and its optimizer, spread over the ranks by one strategy: one interface to all of them.

The gradient of a step is the average over the ranks of what each rank's backward gave; where there are several
backwards in a step, the sum of theirs. Between two steps an engine holds no gradient.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.runtime.checkpoints.pieces import OptimizerState, Piece, piece_of
from trainer.runtime.engines.averaging import averaged, swap
from trainer.runtime.engines.precision import LossScale


class Engine(Protocol):
    """What the loop asks of a strategy. Every method but those of pieces is collective where the strategy communicates.

    The pieces of all ranks together are all that its steps change, each entry once: no strategy shows in it.

    Attributes:
        model: what a training step calls.
        predictor: what an evaluation calls, as often on every rank: where parameters are sharded, a call gathers them.
        optimizer: has `param_groups`, whose learning rates count for the next step.
        loss_scale: what `backward` multiplies the loss by, and `step` divides the gradients by.
    """

    model: nn.Module
    predictor: nn.Module
    optimizer: Optimizer
    loss_scale: LossScale

    def micro_step(self, is_last: bool) -> AbstractContextManager[None]:
        """Around one of several forwards and backwards of `model` in a step; outside of it, each counts as the last."""
        ...

    def backward(self, loss: Tensor) -> None:
        """One ordinary backward, after which the gradients are averaged over the ranks, or will be by `step`."""
        ...

    def step(self) -> Tensor:
        """Clip the gradients, step the optimizer, drop the gradients. Returns their norm before clipping, unscaled.

        Where it is not finite, no step is made. The loss scale learns from it.
        """
        ...

    def discard(self) -> None:
        """Drop the gradients."""
        ...

    def averaged(self) -> AbstractContextManager[None]:
        """Around evaluations: `predictor` has the parameters' averages where the optimizer keeps them. Collective.

        Afterwards all is as before, bit for bit. In between there is no step and nothing is saved.
        """
        ...

    def model_pieces(self) -> Iterator[Piece]:
        """What this rank is to save of the network's parameters and buffers."""
        ...

    def optimizer_pieces(self) -> Iterator[Piece]:
        """The same of the optimizer's state, by the names `<parameter>/<slot>`; nothing before the first step."""
        ...

    def load_optimizer(self, state: OptimizerState) -> None:
        """Go on from the optimizer state that any strategy saved; every rank gives the whole of it."""
        ...


class TorchEngine:
    """Strategies that leave each rank its gradients in `.grad` and an optimizer of torch: these are single and DDP.

    Args:
        network: the bare network.
        model: the network as the data-parallel wrapper holds it, or itself.
        build_optimizer: from parameters.
        clip_norm: upper bound of the gradient's norm; None: no bound.
        loss_scale: see `Engine`.
    """

    def __init__(
        self,
        network: nn.Module,
        model: nn.Module,
        build_optimizer: Callable[[list[nn.Parameter]], Optimizer],
        clip_norm: float | None,
        loss_scale: LossScale,
    ) -> None:
        self.model = model
        # Of DDP the network itself: every rank has all of it, and the wrapper would send its buffers for nothing.
        self.predictor = network
        # As the optimizer has them: FSDP2 shows others in their place while they are whole.
        self._parameters = dict(network.named_parameters())
        self.optimizer = build_optimizer(list(self._parameters.values()))
        self.loss_scale = loss_scale
        self._clip_norm = clip_norm if clip_norm is not None else float("inf")

    def micro_step(self, is_last: bool) -> AbstractContextManager[None]:
        """See `Engine`."""
        if isinstance(self.model, nn.parallel.DistributedDataParallel) and not is_last:
            # The gradients travel once a step, as a sum.
            return self.model.no_sync()
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """See `Engine`."""
        # On one thread the wrapper's collectives and the exchange are issued in the same order on every rank.
        with torch.autograd.set_multithreading_enabled(False):
            (loss * self.loss_scale.value).backward()

    def step(self) -> Tensor:
        """See `Engine`."""
        if self.loss_scale.value != 1:
            for parameter in self.predictor.parameters():
                if parameter.grad is not None:
                    parameter.grad /= self.loss_scale.value
        norm = self._clip()
        is_finite = bool(norm.isfinite())
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
            elif place()[0] == 0:  # Running statistics are each rank's own.
                yield piece_of(name, tensor, rank=0, world_size=1)

    def optimizer_pieces(self) -> Iterator[Piece]:
        """See `Engine`."""
        for name, parameter in self._parameters.items():
            for slot, value in self.optimizer.state.get(parameter, {}).items():
                if value is None:  # SGD's momentum_buffer, where there is no momentum
                    continue
                if value.shape == parameter.shape:
                    yield self._piece(f"{name}/{slot}", value)
                elif place()[0] == 0:  # Adam's count of steps
                    yield piece_of(f"{name}/{slot}", value, rank=0, world_size=1)

    def load_optimizer(self, state: OptimizerState) -> None:
        """See `Engine`."""
        mine = {
            index: {slot: self._share(value, parameter) for slot, value in state[name].items()}
            for index, (name, parameter) in enumerate(self._parameters.items())
            if name in state
        }
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": mine})

    def _clip(self) -> Tensor:
        """Scale the gradients down to a norm of at most `clip_norm`. Returns their norm before. Collective."""
        return nn.utils.clip_grad_norm_(self.predictor.parameters(), self._clip_norm)

    def _swap_averages(self) -> None:
        for parameter, slots in self.optimizer.state.items():
            swap(parameter, slots)

    def _piece(self, name: str, value: Tensor) -> Piece:
        """What this rank is to save of a parameter, or of what the optimizer remembers of each of its entries."""
        return piece_of(name, value, *place())

    def _share(self, value: Tensor, parameter: nn.Parameter) -> Tensor:
        """What this rank holds of a whole tensor that belongs to `parameter`."""
        if value.shape != parameter.shape:
            return value  # Adam's count of steps
        # In the parameter's memory format, without which the optimizer would round otherwise than before.
        return torch.empty_like(parameter).detach().copy_(value)


def place() -> tuple[int, int]:
    """This process's rank, and the number of ranks."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
