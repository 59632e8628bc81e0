"""One training step: the gradients of a batch, and whether the optimizer follows them.

Shapes: B samples on this rank, T tasks.
"""

import math
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from models import training_losses
from models.heads.constrained import ConstrainedHeads
from paretrain import Balance, NonFiniteError
from paretrain.parameters import Slopes, slopes
from trainer.data.reading.batch import Batch
from trainer.training.gradients import forward_backward
from trainer.training.learner import Learner
from trainer.training.micro_batches import micro_batches
from trainer.training.no_trace import copy_buffers, leaving_no_trace, restore_buffers
from trainer.training.optimizer.schedule import set_learning_rate
from trainer.training.parameter_space import parameter_gram

BROKEN_IN_THE_ENCODER = "not finite: the parameters' gradient, though every task's at z is"


class Outcome(Enum):
    """What became of a step."""

    STEPPED = "the optimizer made a step"
    DROPPED_TASKS = "the optimizer made a step without the tasks whose loss or gradient was not finite"
    NO_GRADIENT = "skipped: no task has a labelled sample with a gradient"
    NOT_FINITE = "skipped: a loss or a gradient was not finite"
    OVERFLOW = "skipped: float16 overflowed in the backward, and the loss scale is lower now"


@dataclass(frozen=True)
class StepResult:
    """A step as it went, the same on every rank.

    Attributes:
        outcome: what became of it.
        balance: what the balancer found; with an α for each micro-batch, their mean.
        gradient_norm: of the whole gradient before clipping; 0 where no task has a gradient.
        slopes: how the step changes each task's loss; None where it was not asked for or cannot be said.
        loss_scale: of this step's backward.
        next_loss_scale: of the next one.
    """

    outcome: Outcome
    balance: Balance
    gradient_norm: Tensor
    slopes: Slopes | None
    loss_scale: float
    next_loss_scale: float


def train_step(learner: Learner, batch: Batch, rate: float, *, watch_slopes: bool = False) -> StepResult:
    """Fill the gradients, and step the optimizer where they are sound. Collective.

    Args:
        learner: what is trained.
        batch: this rank's part of a global batch, on the learner's device.
        rate: the learning rate.
        watch_slopes: compute how the step changes each task's loss, too, by one more backward a task.

    Raises:
        BalanceError: no α could be found, or something is not finite and balance.on_nonfinite is stop; the same on
            every rank, and no parameter has changed.
    """
    engine = learner.engine
    set_learning_rate(engine.optimizer, rate)
    gram_TT = parameter_gram(learner, batch) if watch_slopes else None
    goes_on = learner.balance.on_nonfinite != "stop"
    buffers = copy_buffers(learner) if goes_on else []
    balance = forward_backward(learner, batch)
    found = None
    if gram_TT is not None and not balance.broken:
        found = slopes(gram_TT.numpy(), balance.alpha_T, balance.active_T)
    loss_scale = engine.loss_scale.value
    outcome, gradient_norm = _step_optimizer(learner, balance)
    if learner.balancer.looks_back and outcome is Outcome.STEPPED and balance.age == 0:
        _look_back(learner, batch)
    if outcome in (Outcome.DROPPED_TASKS, Outcome.NOT_FINITE):
        if not goes_on:
            raise NonFiniteError(BROKEN_IN_THE_ENCODER)  # What is broken at z has raised in the backward already.
        restore_buffers(learner, buffers)
    if outcome in (Outcome.STEPPED, Outcome.DROPPED_TASKS) and isinstance(learner.network.heads, ConstrainedHeads):
        learner.network.heads.ascend()
    return StepResult(outcome, balance, gradient_norm, found, loss_scale, engine.loss_scale.value)


def _look_back(learner: Learner, batch: Batch) -> None:
    """Show the rule the losses of the batch by the new parameters: one more forward. Leaves no trace."""
    with torch.no_grad(), leaving_no_trace(learner):
        losses = [
            training_losses(learner.tasks, learner.engine.predictor(part.inputs), part.targets)
            for part in micro_batches(batch, learner.accumulation.steps)
        ]
    sums, counts = (torch.stack(list(parts)).sum(dim=0) for parts in zip(*losses, strict=True))
    learner.balancer.after_step(sums=sums, counts=counts)


def _step_optimizer(learner: Learner, balance: Balance) -> tuple[Outcome, Tensor]:
    engine = learner.engine
    # Without a gradient, momentum and weight decay would move the model on no evidence. An overflow's NaN does go to
    # the engine, whose loss scale learns from it.
    if not (balance.overflow or balance.active_T.any()):
        engine.discard()
        return Outcome.NOT_FINITE if balance.broken else Outcome.NO_GRADIENT, torch.zeros(())
    loss_scale = engine.loss_scale.value
    gradient_norm = engine.step()
    # Finite at the representation, a gradient can still break on its way through the encoder: the engine then skips.
    if math.isfinite(gradient_norm):
        return Outcome.DROPPED_TASKS if balance.broken else Outcome.STEPPED, gradient_norm
    # With a scale, it broke in the backward alone: the running statistics of the forward are sound.
    return Outcome.OVERFLOW if loss_scale > 1 else Outcome.NOT_FINITE, gradient_norm
