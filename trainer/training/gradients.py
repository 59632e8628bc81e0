"""The gradients of a step: of one batch, or of several micro-batches one after another.

Shapes: B samples on this rank, T tasks, P parameters of the encoder.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from models import training_losses
from models.freezing import trained
from paretrain import Balance
from trainer.data.reading.batch import Batch
from trainer.training.learner import Learner


def forward_backward(learner: Learner, batch: Batch) -> Balance:
    """Fill every parameter's gradient, by one encoder forward and one backward inside which α is found. Collective.

    With train.accumulation this happens micro-batch by micro-batch; `alpha: window` needs a second forward of each.

    Raises:
        BalanceError: no α could be found; the same on every rank.
    """
    accumulation = learner.accumulation
    if learner.balance.space == "parameters":
        _backward_of_each_task(learner, batch)
    elif accumulation.steps == 1:
        _backward(learner, batch)
    elif accumulation.alpha == "micro":
        return _backward_of_micro_batches(learner, _micro_batches(batch, accumulation.steps))
    else:
        _backward_of_window(learner, _micro_batches(batch, accumulation.steps))
    return _without_dropped_tasks(learner)


def warm_up(learner: Learner, batch: Batch) -> None:
    """Run one backward and throw its gradients away. Nothing changes but DDP's buckets.

    DDP rebuilds its buckets in the order of its first backward, and from three ranks on the last bits of a sum depend
    on the buckets: without this, the first step after a resume would differ from that of an uninterrupted run.

    Args:
        learner: as built or restored.
        batch: one without labels.
    """
    with _leaving_no_trace(learner):
        forward_backward(learner, batch)
    learner.engine.discard()


def encoder_gradients(learner: Learner, batch: Batch) -> Tensor:
    """Return each task's gradient by the encoder's trained parameters, (T, P), with the coming step's dropout."""
    with _leaving_no_trace(learner):
        sums_T, counts_T = training_losses(learner.tasks, learner.network(batch.inputs), batch.targets)
        encoder = list(trained(learner.network.encoder).values())
        return learner.balancer.parameter_gradients(sums_T, counts_T, encoder)


def copy_buffers(learner: Learner) -> list[Tensor]:
    """Return copies of the network's buffers, such as running statistics, for `restore_buffers`."""
    return [buffer.clone() for buffer in learner.network.buffers()]


def restore_buffers(learner: Learner, copies: Sequence[Tensor]) -> None:
    """Overwrite the network's buffers with their copies."""
    for buffer, copy in zip(learner.network.buffers(), copies, strict=True):
        buffer.copy_(copy)


def _backward(learner: Learner, batch: Batch, fraction: float = 1.0) -> None:
    """Add the gradients of a batch, times `fraction`."""
    engine, balancer = learner.engine, learner.balancer
    outputs = engine.model(batch.inputs, balancer=balancer)
    sums_T, counts_T = training_losses(learner.tasks, outputs, batch.targets)
    engine.backward(fraction * balancer.total(sums=sums_T, counts=counts_T))


def _backward_of_micro_batches(learner: Learner, micro_batches: Sequence[Batch]) -> Balance:
    """Find α for each micro-batch, and fill in the mean of their gradients."""
    balances = []
    for number, batch in enumerate(micro_batches, start=1):
        with learner.engine.micro_step(is_last=number == len(micro_batches)):
            _backward(learner, batch, fraction=1 / len(micro_batches))
            balances.append(_without_dropped_tasks(learner))
    return _mean(balances)


def _backward_of_window(learner: Learner, micro_batches: Sequence[Batch]) -> None:
    """Find one α for all micro-batches, and fill in the gradients of the one batch that they make up."""
    engine, window = learner.engine, learner.balancer.window()
    with _leaving_no_trace(learner):
        for batch in micro_batches:
            outputs = engine.predictor(batch.inputs, balancer=window)
            sums_T, counts_T = training_losses(learner.tasks, outputs, batch.targets)
            window.look(sums=sums_T, counts=counts_T, gradient_scale=engine.loss_scale.value)
    engine.discard()  # ZeRO-3 takes any backward for the first of a step.
    window.weigh()
    for number, batch in enumerate(micro_batches, start=1):
        with engine.micro_step(is_last=number == len(micro_batches)):
            outputs = engine.model(batch.inputs, balancer=window)
            sums_T, counts_T = training_losses(learner.tasks, outputs, batch.targets)
            engine.backward(window.total(sums=sums_T, counts=counts_T))


def _backward_of_each_task(learner: Learner, batch: Batch) -> None:
    """Find α in the space of the encoder's parameters, by one backward a task: MGDA itself."""
    network = learner.network
    sums_T, counts_T = training_losses(learner.tasks, network(batch.inputs), batch.targets)
    shared, own = list(trained(network.encoder).values()), list(trained(network.heads).values())
    learner.balancer.fill_gradients(sums_T, counts_T, shared, own)


def _without_dropped_tasks(learner: Learner) -> Balance:
    """Zero the gradients of the heads whose tasks the backward has dropped. Returns what the balancer found."""
    found = learner.balancer.last
    assert found is not None, "backward has just set it"
    if learner.balance.on_nonfinite == "drop_task":
        learner.balancer.zero_broken(learner.network.heads)
    return found


def _micro_batches(batch: Batch, num_parts: int) -> list[Batch]:
    """Split a batch, in its order."""
    tensors = batch.inputs, batch.sample_ids_B, *batch.targets.values()
    parts = zip(*(tensor.tensor_split(num_parts) for tensor in tensors), strict=True)
    return [
        replace(batch, inputs=inputs, sample_ids_B=ids_B, targets=dict(zip(batch.targets, targets, strict=True)))
        for inputs, ids_B, *targets in parts
    ]


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


@contextmanager
def _leaving_no_trace(learner: Learner) -> Iterator[None]:
    """Restore the running statistics and the random generators after the forwards inside the block."""
    buffers, device = copy_buffers(learner), learner.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # Else it forks those of all GPUs.
        yield
    restore_buffers(learner, buffers)
