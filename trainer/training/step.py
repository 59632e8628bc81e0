"""One training step: the gradients of a batch, and what becomes of them."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from paretrain import Balance
from paretrain.parameters import slopes
from trainer.data.reading.loader import Batch
from trainer.errors import UserError
from trainer.observe.observers import Observers
from trainer.training.gradients import WAY_ON, forward_backward, parameter_gradients, restore_buffers
from trainer.training.optimizer import set_learning_rate
from trainer.training.run import Run


class Step(NamedTuple):
    """What is to be told of a step.

    Attributes:
        balance: what the balancer found; of several micro-batches with an α of their own, a mean.
        gradient_norm: of the whole gradient before clipping; 0 where no task has a gradient.
    """

    balance: Balance
    gradient_norm: Tensor


def train_step(run: Run, batch: Batch, rate: float, observers: Observers) -> Step:
    """Fill the gradients, and step the optimizer where they are sound.

    Raises:
        UserError: something is not finite, and balance.on_nonfinite says stop.
    """
    set_learning_rate(run.engine.optimizer, rate)
    every = run.experiment.balance.monitor_every_steps
    watched_TP = parameter_gradients(run, batch) if every and (run.step + 1) % every == 0 else None
    stops = run.experiment.balance.on_nonfinite == "stop"
    buffers = [] if stops else [buffer.clone() for buffer in run.network.buffers()]
    balance = forward_backward(run, batch)
    if watched_TP is not None and not balance.broken:
        seen = slopes(watched_TP, balance.alpha_T, balance.active_T)
        found = {"worst_slope": seen.worst, "num_ascending": seen.num_ascending}
        observers.publish({"kind": "monitor", "step": run.step + 1, **found})
    if not balance.certified:
        observers.note(run.step + 1, f"α is not certified: the duality gap is {balance.gap:.3g}")
    # Without a gradient momentum and weight decay would move the model on no evidence at all. The NaN of an overflow
    # goes to the engine, whose loss scale learns from it.
    ready = balance.overflow or bool(balance.active_T.any())
    scale = run.engine.loss_scale.value
    gradient_norm = run.engine.step() if ready else torch.zeros(())
    if not ready:
        run.engine.discard()
    # Finite at the representation, a gradient can still break on its way through the encoder. Then no step was made.
    finite = bool(gradient_norm.isfinite())
    if not finite and scale > 1:
        # It broke in the backward alone: the running statistics of the forward are sound.
        observers.publish(_overflow_record(run, scale))
    elif balance.broken or not finite:
        fault = _fault_record(run, balance, moves=ready and finite)
        if stops:
            raise UserError(f"stopped at step {run.step + 1}: {fault['found']}. The last checkpoint stands.\n{WAY_ON}")
        observers.publish(fault)
        restore_buffers(run, buffers)
    elif not ready:
        observers.note(run.step + 1, "no task has a labelled sample with a gradient: step skipped")
    return Step(balance, gradient_norm)


def _fault_record(run: Run, balance: Balance, moves: bool) -> dict[str, Any]:
    """What was not finite in this step, and what is done about it."""
    names, broken = run.task_names, balance.broken
    words = broken.describe(names) if broken else "the parameters' gradient, though every task's at z is"
    return {
        "kind": "fault",
        "step": run.step + 1,
        "action": "drop_task" if moves else "skip_step",
        "losses": [names[task] for task in np.flatnonzero(broken.losses_T)] if broken else [],
        "gradients": [names[task] for task in np.flatnonzero(broken.gradients_T)] if broken else [],
        "found": f"not finite: {words}",
    }


def _overflow_record(run: Run, scale: float) -> dict[str, Any]:
    """The step that float16 had no room for: no task is to blame."""
    return {
        "kind": "fault",
        "step": run.step + 1,
        "action": "overflow",
        "losses": [],
        "gradients": [],
        "found": f"overflow in float16: the loss scale goes from {scale:g} to {run.engine.loss_scale.value:g}",
    }
