"""A network and its optimizer, spread over the ranks by one strategy: one interface to all of them.

The gradient of a step is the average over the ranks of what each rank's backward gave; where there are several
backwards in a step, the sum of theirs. Between two steps an engine holds no gradient.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.runtime.precision import LossScale

OptimizerState = Mapping[str, Mapping[str, Tensor]]
"""Parameter name -> what the optimizer remembers of it (exp_avg, momentum_buffer, ...), as a whole tensor. Optimizer
hyperparameters are the configuration's, and the learning rate is set before every step: neither is state."""


@dataclass(frozen=True)
class State:
    """All that an engine's steps change, by parameter name, in whole tensors: no strategy shows in it.

    Attributes:
        model: the network's parameters and buffers.
        optimizer: see `OptimizerState`; empty before the first step.
    """

    model: Mapping[str, Tensor]
    optimizer: OptimizerState


class Engine(Protocol):
    """What the loop asks of a strategy. Every method is collective where the strategy communicates.

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

    def gather(self) -> State:
        """The state, on rank 0; what other ranks get back means nothing. Collective."""
        ...

    def load_optimizer(self, state: OptimizerState) -> None:
        """Go on from the optimizer state that any strategy gathered; every rank gives the whole of it."""
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
        self.optimizer = build_optimizer(list(network.parameters()))
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

    def gather(self) -> State:
        """See `Engine`."""
        return State(
            model={name: self._whole(tensor) for name, tensor in self.predictor.state_dict().items()},
            optimizer={
                name: {
                    slot: self._whole(value)
                    for slot, value in self.optimizer.state[parameter].items()
                    if value is not None  # SGD's momentum_buffer, where there is no momentum
                }
                for name, parameter in self.predictor.named_parameters()
                if parameter in self.optimizer.state
            },
        )

    def load_optimizer(self, state: OptimizerState) -> None:
        """See `Engine`."""
        mine = {
            index: {slot: self._share(value, parameter) for slot, value in state[name].items()}
            for index, (name, parameter) in enumerate(self.predictor.named_parameters())
            if name in state
        }
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": mine})

    def _clip(self) -> Tensor:
        """Scale the gradients down to a norm of at most `clip_norm`. Returns their norm before. Collective."""
        return nn.utils.clip_grad_norm_(self.predictor.parameters(), self._clip_norm)

    def _whole(self, value: Tensor) -> Tensor:
        """What all ranks together hold of a tensor, on rank 0. Collective."""
        return value.detach()

    def _share(self, value: Tensor, parameter: nn.Parameter) -> Tensor:
        """What this rank holds of a whole tensor that belongs to `parameter`."""
        if value.shape != parameter.shape:
            return value  # Adam's count of steps
        # In the parameter's memory format, without which the optimizer would round otherwise than before.
        return torch.empty_like(parameter).detach().copy_(value)
