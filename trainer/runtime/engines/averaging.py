"""The exponential moving average (EMA) of the parameters, whose evaluations are often better and vary less.

It is one more slot of the optimizer's state. So every strategy shards, saves and resumes it as it does Adam's moments.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from trainer.errors import SharedError

AVERAGE = "ema"
"""The slot's name."""
State = Mapping[Any, Mapping[str, Tensor]]
"""The state of an optimizer: parameter, or its name -> slot -> tensor."""


def keep_average(optimizer: Optimizer, decay: float) -> None:
    """Make each step of `optimizer` update an average of every parameter that it steps.

    After a parameter's first step the average is the parameter; after its n-th step it is a_n = decay a_(n-1) +
    (1 - decay) p_n (Morales-Brotons et al. 2024, arXiv 2411.18704). A skipped step does not change it.
    """
    update = get_ema_multi_avg_fn(decay)

    def update_averages(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        stepped = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        for parameter in stepped:
            slots = optimizer.state[parameter]
            if AVERAGE not in slots:
                slots[AVERAGE] = parameter.detach().clone()
        if stepped:
            update([optimizer.state[parameter][AVERAGE] for parameter in stepped], stepped, None)

    optimizer.register_step_post_hook(update_averages)


@contextmanager
def averaged(state: State, swap_all: Callable[[], None]) -> Iterator[None]:
    """Swap the parameters with their averages inside the block, and back afterwards, bit for bit.

    Do nothing if there are no averages: none are kept, or there was no step yet.

    Args:
        state: the optimizer's state.
        swap_all: swaps all parameters with their averages, also in the copies that a forward uses. May be collective:
            every rank calls it, or ends.
    """
    if not has_averages(state):
        yield
        return
    swap_all()
    try:
        yield
    except SharedError:
        # Every rank raises a SharedError, so all reach this line. With any other error a rank must end without waiting.
        swap_all()
        raise
    swap_all()


@torch.no_grad()
def swap(parameter: Tensor, slots: dict[str, Tensor]) -> None:
    """Swap a parameter with its average, if it has one, bit for bit."""
    if AVERAGE in slots:
        before = parameter.clone()
        parameter.copy_(slots[AVERAGE])
        slots[AVERAGE].copy_(before)


def has_averages(state: State) -> bool:
    """Return whether an optimizer's state holds averages. If they are kept, it does from the first step on."""
    return any(AVERAGE in slots for slots in state.values())


def averaged_weights(model: Mapping[str, Tensor], state: State) -> dict[str, Tensor]:
    """Return a checkpoint's model with the averages in place of the parameters that have one.

    Buffers, such as BatchNorm's running statistics, remain those of the trained parameters.
    """
    return {**model, **{name: slots[AVERAGE] for name, slots in state.items() if AVERAGE in slots}}
