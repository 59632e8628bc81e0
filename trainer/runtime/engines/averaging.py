"""The exponential moving average of the parameters (EMA), whose evaluations are often better and always steadier.

It is one more slot of the optimizer's state. So it is cut in shards, saved, resumed and moved between strategies as
Adam's moments are, and no strategy needs a way of its own to keep it.
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
"""Parameter, or its name -> what an optimizer remembers of it."""


def keep_average(optimizer: Optimizer, decay: float) -> None:
    """Let every step of `optimizer` move an average of each parameter that it steps.

    After a parameter's first step the average is the parameter, after its n-th one a_n = decay a_(n-1) + (1 - decay)
    p_n (Morales-Brotons et al. 2024, arXiv 2411.18704). So a step that is skipped does not move it.
    """
    move = get_ema_multi_avg_fn(decay)

    def follow(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        stepped = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        for parameter in stepped:
            slots = optimizer.state[parameter]
            if AVERAGE not in slots:
                slots[AVERAGE] = parameter.detach().clone()
        if stepped:
            move([optimizer.state[parameter][AVERAGE] for parameter in stepped], stepped, None)

    optimizer.register_step_post_hook(follow)


@contextmanager
def averaged(state: State, swap_all: Callable[[], None]) -> Iterator[None]:
    """Put the averages in the parameters' place; afterwards all is as before, bit for bit.

    Nothing happens where there are no averages: none are kept, or no step was made yet.

    Args:
        state: an optimizer's.
        swap_all: lets all parameters and their averages change places, also in the copies that a forward uses. It
            may be collective: every rank comes by it, or ends.
    """
    if not has_averages(state):
        yield
        return
    swap_all()
    try:
        yield
    except SharedError:
        # Every rank got this one, so all come by here. After any other a rank must end, and not wait for the others.
        swap_all()
        raise
    swap_all()


@torch.no_grad()
def swap(parameter: Tensor, slots: dict[str, Tensor]) -> None:
    """Let a parameter and its average, where it has one, change places, bit for bit."""
    if AVERAGE in slots:
        before = parameter.clone()
        parameter.copy_(slots[AVERAGE])
        slots[AVERAGE].copy_(before)


def has_averages(state: State) -> bool:
    """Whether an optimizer's state holds averages; it does from the first step on, where they are kept."""
    return any(AVERAGE in slots for slots in state.values())


def averaged_weights(model: Mapping[str, Tensor], state: State) -> dict[str, Tensor]:
    """A checkpoint's model, with the averages in the place of the parameters that have one.

    Buffers, such as BatchNorm's running statistics, remain those of the trained parameters.
    """
    return {**model, **{name: slots[AVERAGE] for name, slots in state.items() if AVERAGE in slots}}
