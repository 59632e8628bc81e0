"""The gradients of a step: of one batch, or of several micro-batches one after another.

Shapes: B samples on this rank, T tasks.
"""

from collections.abc import Sequence

import numpy as np

from models import training_losses
from paretrain import Balance
from trainer.data.reading.batch import Batch
from trainer.training.learner import Learner
from trainer.training.micro_batches import micro_batches
from trainer.training.no_trace import leaving_no_trace
from trainer.training.parameter_space import backward_of_each_task


def forward_backward(learner: Learner, batch: Batch) -> Balance:
    """Fill every parameter's gradient, by one encoder forward and one backward inside which α is found. Collective.

    With train.accumulation this happens micro-batch by micro-batch; `alpha: window` needs a second forward of each.

    Raises:
        BalanceError: no α could be found; the same on every rank.
    """
    accumulation = learner.accumulation
    if learner.balance.space == "parameters":
        backward_of_each_task(learner, batch)
    elif accumulation.steps == 1:
        _backward(learner, batch)
    elif accumulation.alpha == "micro":
        return _backward_of_micro_batches(learner, micro_batches(batch, accumulation.steps))
    else:
        _backward_of_window(learner, micro_batches(batch, accumulation.steps))
    return _without_dropped_tasks(learner)


def warm_up(learner: Learner, batch: Batch) -> None:
    """Run one backward and throw its gradients away. Nothing changes but DDP's buckets.

    DDP rebuilds its buckets in the order of its first backward, and from three ranks on the last bits of a sum depend
    on the buckets: without this, the first step after a resume would differ from that of an uninterrupted run.

    Args:
        learner: as built or restored.
        batch: one without labels.
    """
    with leaving_no_trace(learner):
        forward_backward(learner, batch)
    learner.engine.discard()


def _backward(learner: Learner, batch: Batch, fraction: float = 1.0) -> None:
    """Add the gradients of a batch, times `fraction`."""
    engine, balancer = learner.engine, learner.balancer
    outputs = engine.model(batch.inputs, balancer=balancer)
    sums_T, counts_T = training_losses(learner.tasks, outputs, batch.targets)
    engine.backward(fraction * balancer.total(sums=sums_T, counts=counts_T))


def _backward_of_micro_batches(learner: Learner, parts: Sequence[Batch]) -> Balance:
    """Find α for each micro-batch, and fill in the mean of their gradients."""
    balances = []
    for number, batch in enumerate(parts, start=1):
        with learner.engine.micro_step(is_last=number == len(parts)):
            _backward(learner, batch, fraction=1 / len(parts))
            balances.append(_without_dropped_tasks(learner))
    return _mean(balances)


def _backward_of_window(learner: Learner, parts: Sequence[Batch]) -> None:
    """Find one α for all micro-batches, and fill in the gradients of the one batch that they make up."""
    engine, window = learner.engine, learner.balancer.window()
    with leaving_no_trace(learner):
        for batch in parts:
            outputs = engine.predictor(batch.inputs, balancer=window)
            sums_T, counts_T = training_losses(learner.tasks, outputs, batch.targets)
            window.look(sums=sums_T, counts=counts_T, gradient_scale=engine.loss_scale.value)
    engine.discard()  # ZeRO-3 takes any backward for the first of a step.
    window.weigh()
    for number, batch in enumerate(parts, start=1):
        with engine.micro_step(is_last=number == len(parts)):
            outputs = engine.model(batch.inputs, balancer=window)
            sums_T, counts_T = training_losses(learner.tasks, outputs, batch.targets)
            engine.backward(window.total(sums=sums_T, counts=counts_T))


def _without_dropped_tasks(learner: Learner) -> Balance:
    """Zero the gradients of the heads whose tasks the backward has dropped. Returns what the balancer found."""
    found = learner.balancer.last
    assert found is not None, "backward has just set it"
    if learner.balance.on_nonfinite == "drop_task":
        learner.balancer.zero_broken(learner.network.heads)
    return found


def _mean(balances: Sequence[Balance]) -> Balance:
    """Combine the balances of several micro-batches: α and min-norm are means, the gap is the widest.

    One micro-batch that was skipped as broken leaves no task active: a step must not use only part of its batch.
    """
    broken = next((balance.broken for balance in balances if balance.broken), None)
    skipped = any(balance.broken and not balance.active_T.any() for balance in balances)
    counts_T = np.sum([balance.counts_T for balance in balances], axis=0)
    sums_T = np.sum([balance.losses_T * balance.counts_T for balance in balances], axis=0)
    active_T = np.any([balance.active_T for balance in balances], axis=0)
    return Balance(
        alpha_T=np.mean([balance.alpha_T for balance in balances], axis=0),
        min_norm=float(np.mean([balance.min_norm for balance in balances])),
        gap=max(balance.gap for balance in balances),
        certified=all(balance.certified for balance in balances),
        active_T=np.zeros_like(active_T) if skipped else active_T,
        counts_T=counts_T,
        losses_T=sums_T / counts_T.clip(min=1),
        broken=broken,
        overflow=any(balance.overflow for balance in balances),
    )
