"""A step's gradients: of one batch, or of several micro-batches one after another."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from models import training_losses
from paretrain import Balance, BalanceError, NonFiniteError
from trainer.data.reading.loader import Batch
from trainer.errors import UserError
from trainer.training.run import Run

WAY_ON = "To go on from it without such steps, or tasks: add balance.on_nonfinite=skip_step, or drop_task"


def forward_backward(run: Run, batch: Batch) -> Balance:
    """Fill every parameter's gradient, by one encoder forward and one backward through which α is found.

    With train.accumulation that is done micro-batch by micro-batch; a window has another forward of each.

    Raises:
        UserError: no α could be found; the same on every rank.
    """
    accumulation = run.experiment.train.accumulation
    try:
        if run.experiment.balance.space == "parameters":
            return _in_parameters(run, batch)
        if accumulation.steps == 1:
            return _of_one_batch(run, batch)
        micro_batches = _cut(batch, accumulation.steps)
        if accumulation.alpha == "micro":
            return _of_micro_batches(run, micro_batches)
        return _of_a_window(run, micro_batches)
    except BalanceError as error:
        way_on = f".\n{WAY_ON}" if isinstance(error, NonFiniteError) else ""
        raise UserError(f"stopped at step {run.step + 1}: {error}. The last checkpoint stands{way_on}") from error


def warm_up(run: Run) -> None:
    """Throw the first backward away, one of a batch without labels that changes nothing.

    DDP cuts its buckets anew in the order of its first backward, and from three ranks on the last bits of a sum depend
    on the cut: without this, the first step after a resume would differ from that of an uninterrupted run.
    """
    with _without_trace(run):
        forward_backward(run, run.augmented(run.train_batches.padding_batch()))
    run.engine.discard()


def parameter_gradients(run: Run, batch: Batch) -> Tensor:
    """All tasks' gradients with respect to the encoder's parameters (T, P), by the dropout of the step to come."""
    with _without_trace(run):
        sums_T, counts_T = training_losses(run.tasks, run.network(batch.inputs), batch.targets)
        return run.balancer.parameter_gradients(sums_T, counts_T, list(run.network.encoder.parameters()))


def restore_buffers(run: Run, buffers: Sequence[Tensor]) -> None:
    """Put the network's buffers back to what they were."""
    for buffer, before in zip(run.network.buffers(), buffers, strict=True):
        buffer.copy_(before)


def _of_one_batch(run: Run, batch: Batch, share: float = 1.0) -> Balance:
    """The gradients of the batch, times `share`."""
    outputs = run.engine.model(batch.inputs, balancer=run.balancer)
    losses = training_losses(run.tasks, outputs, batch.targets)
    run.engine.backward(share * run.balancer.total(*losses, gradient_scale=share * run.engine.loss_scale.value))
    return _found(run)


def _of_micro_batches(run: Run, micro_batches: Sequence[Batch]) -> Balance:
    """An α for each micro-batch, and the mean of their gradients."""
    balances = []
    for number, batch in enumerate(micro_batches, start=1):
        with run.engine.micro_step(is_last=number == len(micro_batches)):
            balances.append(_of_one_batch(run, batch, share=1 / len(micro_batches)))
    return _mean(balances)


def _of_a_window(run: Run, micro_batches: Sequence[Batch]) -> Balance:
    """One α for all micro-batches, and the gradients of the one batch that they are."""
    window = run.balancer.window()
    with _without_trace(run):
        for batch in micro_batches:
            outputs = run.engine.predictor(batch.inputs, balancer=window)
            window.look(*training_losses(run.tasks, outputs, batch.targets), run.engine.loss_scale.value)
    run.engine.discard()  # ZeRO-3 takes any backward for the first of a step.
    window.weigh()
    for number, batch in enumerate(micro_batches, start=1):
        with run.engine.micro_step(is_last=number == len(micro_batches)):
            outputs = run.engine.model(batch.inputs, balancer=window)
            run.engine.backward(window.total(*training_losses(run.tasks, outputs, batch.targets)))
    return _found(run)


def _in_parameters(run: Run, batch: Batch) -> Balance:
    """MGDA itself, one backward a task."""
    sums_T, counts_T = training_losses(run.tasks, run.network(batch.inputs), batch.targets)
    shared, own = list(run.network.encoder.parameters()), list(run.network.heads.parameters())
    run.balancer.fill_gradients(sums_T, counts_T, shared, own)
    return _found(run)


def _found(run: Run) -> Balance:
    """What the balancer found, after it has left nothing of a task that was dropped."""
    assert run.balancer.last is not None, "backward has just set it"
    if run.experiment.balance.on_nonfinite == "drop_task":
        run.balancer.zero_broken(run.network.heads)
    return run.balancer.last


def _cut(batch: Batch, num_parts: int) -> list[Batch]:
    """The batch as micro-batches, in its order."""
    tensors = batch.inputs, batch.sample_ids_B, *batch.targets.values()
    parts = zip(*(tensor.tensor_split(num_parts) for tensor in tensors), strict=True)
    return [
        replace(batch, inputs=inputs, sample_ids_B=ids_B, targets=dict(zip(batch.targets, targets, strict=True)))
        for inputs, ids_B, *targets in parts
    ]


def _mean(balances: Sequence[Balance]) -> Balance:
    """One account of several micro-batches: α and min-norm are means, the gap is the widest.

    One micro-batch that was skipped as broken leaves no task active: the step must not be made on part of its batch.
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
def _without_trace(run: Run) -> Iterator[None]:
    """Leave no trace of forwards in the running statistics, nor in the random numbers to come."""
    buffers = [buffer.clone() for buffer in run.network.buffers()]
    device = run.runtime.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # Else those of all GPUs.
        yield
    restore_buffers(run, buffers)
