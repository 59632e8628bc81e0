"""The training loop."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from models import task_losses
from trainer.balance import Balance, BalanceError
from trainer.balance.parameters import slopes
from trainer.data.loader import MISSING, Batch
from trainer.data.order import PADDING
from trainer.errors import RankError, UserError
from trainer.evaluation import evaluate
from trainer.observe.observers import Observers
from trainer.optimization import learning_rate, set_learning_rate
from trainer.run import Run, save_run

GRAM_TASKS = 256
"""The Gram matrix is logged up to this number of tasks; beyond, T x T numbers a line are too many."""


def fit(run: Run, observers: Observers) -> None:
    """Train from `run.step` to the last step.

    Raises:
        UserError: no α could be found in a step, or a checkpoint could not be written; the same on every rank. No
            parameter was changed by that step.
    """
    config, total_steps = run.experiment.train, run.experiment.train.steps
    _warm_up(run)
    while run.step < total_steps:
        batch = _next_batch(run)
        rate = learning_rate(run.step, total_steps, run.experiment.optimizer)
        gradient_norm = train_step(run, batch, rate, observers)
        run.step += 1
        run.throughput.count(config.global_batch)
        is_last = run.step == total_steps
        if run.step % config.log_every_steps == 0 or is_last:
            observers.publish(_train_record(run, rate, gradient_norm))
        with run.throughput.paused():
            if run.step % config.eval_every_steps == 0 or is_last:
                _evaluate(run, observers)
            if run.step % run.experiment.checkpoint.every_steps == 0 or is_last:
                save_run(run)


def train_step(run: Run, batch: Batch, rate: float, observers: Observers) -> Tensor:
    """One forward, one backward, one optimizer step. Returns the norm of the whole gradient before clipping."""
    set_learning_rate(run.optimizer, rate)
    every = run.experiment.balance.monitor_every_steps
    watched_TP = _parameter_gradients(run, batch) if every and (run.step + 1) % every == 0 else None
    balance = forward_backward(run, batch)
    if watched_TP is not None:
        seen = slopes(watched_TP, balance.alpha_T, balance.active_T)
        found = {"worst_slope": seen.worst, "num_ascending": seen.num_ascending}
        observers.publish({"kind": "monitor", "step": run.step + 1, **found})
    gradient_norm = run.runtime.clip_gradients(run.model, run.experiment.optimizer.clip_norm)
    if not balance.certified:
        observers.note(run.step + 1, f"α is not certified: the duality gap is {balance.gap:.3g}")
    if balance.active_T.any():
        run.optimizer.step()
    else:
        # Momentum and weight decay would move the model on no evidence at all.
        observers.note(run.step + 1, "no task has a labelled sample with a gradient: step skipped")
    run.optimizer.zero_grad()
    return gradient_norm


def forward_backward(run: Run, batch: Batch) -> Balance:
    """Fill every parameter's gradient: one encoder forward, one backward through which α is found.

    Raises:
        UserError: no α could be found; the same on every rank.
    """
    in_parameters = run.experiment.balance.space == "parameters"
    images = run.to_input(batch.images_BHWC)
    outputs = run.network(images) if in_parameters else run.model(images, balancer=run.balancer)
    sums_T, counts_T = task_losses(run.tasks, outputs, batch.targets)
    try:
        if in_parameters:
            shared, own = list(run.network.encoder.parameters()), list(run.network.heads.parameters())
            run.balancer.fill_gradients(sums_T, counts_T, shared, own)
        else:
            run.runtime.backward(run.balancer.total(sums_T, counts_T))
    except BalanceError as error:
        raise UserError(f"stopped at step {run.step + 1}: {error}. The last checkpoint stands") from error
    assert run.balancer.last is not None, "backward has just set it"
    return run.balancer.last


def _warm_up(run: Run) -> None:
    """Throw the first backward away, one of a batch without labels that changes nothing.

    DDP cuts its buckets anew in the order of its first backward, and from three ranks on the last bits of a sum depend
    on the cut: without this, the first step after a resume would differ from that of an uninterrupted run.
    """
    image, share = run.image, run.experiment.train.global_batch // run.runtime.world_size
    images_BHWC = torch.zeros(share, image.height, image.width, image.channels, dtype=torch.uint8)
    nothing = {name: torch.full((share,), MISSING) for name in run.task_names}
    with _without_trace(run):
        forward_backward(run, Batch(images_BHWC, nothing, torch.full((share,), PADDING)))
    run.optimizer.zero_grad()


def _parameter_gradients(run: Run, batch: Batch) -> Tensor:
    """All tasks' gradients with respect to the encoder's parameters (T, P), by the dropout of the step to come."""
    with _without_trace(run):
        outputs = run.network(run.to_input(batch.images_BHWC))
        sums_T, counts_T = task_losses(run.tasks, outputs, batch.targets)
        return run.balancer.parameter_gradients(sums_T, counts_T, list(run.network.encoder.parameters()))


@contextmanager
def _without_trace(run: Run) -> Iterator[None]:
    """Leave random generators and buffers (BatchNorm's running statistics) as they were."""
    buffers = [buffer.clone() for buffer in run.network.buffers()]
    with torch.random.fork_rng():
        yield
    for buffer, before in zip(run.network.buffers(), buffers, strict=True):
        buffer.copy_(before)


def _next_batch(run: Run) -> Batch:
    try:
        with run.throughput.data_wait():
            return next(run.train_batches)
    except UserError as error:
        raise RankError(f"rank {run.runtime.rank} stopped at step {run.step + 1}: {error}") from error


def _evaluate(run: Run, observers: Observers) -> None:
    started = run.throughput.elapsed_seconds
    found = evaluate(run.network, run.test_batches, run.tasks, run.to_input, run.runtime)
    seconds = run.throughput.elapsed_seconds - started
    observers.publish(
        {
            "kind": "eval",
            "step": run.step,
            "errors": found.errors,
            "losses": found.losses,
            "samples": found.samples,
            "seconds": seconds,
        }
    )
    balance = run.balancer.last
    if balance is not None and balance.gram_TT is not None and len(run.tasks) <= GRAM_TASKS:
        observers.publish({"kind": "gram", "step": run.step, "gram": balance.gram_TT.tolist()})


def _train_record(run: Run, rate: float, gradient_norm: Tensor) -> dict[str, Any]:
    balance = run.balancer.last
    assert balance is not None, "a step has been made"
    return {
        "kind": "train",
        "step": run.step,
        "epoch": run.train_batches.cursor.epoch,
        "samples": run.step * run.experiment.train.global_batch,
        **run.throughput.read(),
        "learning_rate": rate,
        "losses": dict(zip(run.task_names, balance.losses_T.tolist(), strict=True)),
        "alpha": dict(zip(run.task_names, balance.alpha_T.tolist(), strict=True)),
        "min_norm": balance.min_norm,
        "gap": balance.gap,
        "gradient_norm": float(gradient_norm),
    }
