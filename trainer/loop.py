"""The training loop."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import training_losses
from trainer.balance import Balance, BalanceError, NonFiniteError
from trainer.balance.parameters import slopes
from trainer.data.bad_samples import check_rare, combined
from trainer.data.loader import Batch
from trainer.errors import UserError
from trainer.evaluation import evaluate
from trainer.observe.observers import Observers
from trainer.optimization import learning_rate, set_learning_rate
from trainer.run import Run, save_run
from trainer.runtime.stopping import Request, Wishes

GRAM_TASKS = 256
"""The Gram matrix is logged up to this number of tasks; beyond, T x T numbers a line are too many."""

WAY_ON = "To go on from it without such steps, or tasks: add balance.on_nonfinite=skip_step, or drop_task"


def fit(run: Run, observers: Observers, wishes: Wishes) -> None:
    """Train from `run.step` to the last step, or to the one after which `wishes` ask all ranks to end.

    Raises:
        UserError: no α could be found in a step, or a checkpoint could not be written; the same on every rank. No
            parameter was changed by that step.
    """
    config, total_steps = run.experiment.train, run.experiment.train.steps
    started_at_step, ends = run.step, False
    _warm_up(run)
    while not ends:
        batch, request = _next_batch(run, wishes)
        rate = learning_rate(run.step, total_steps, run.experiment.optimizer)
        gradient_norm = train_step(run, batch, rate, observers)
        run.step += 1
        run.samples += config.global_batch
        run.throughput.count(config.global_batch)
        is_last = run.step == total_steps
        ends = is_last or request.ends
        if run.step % config.log_every_steps == 0 or ends:
            bad_samples = _bad_samples(run, observers)
            observers.publish(_train_record(run, rate, gradient_norm) | {"bad_samples": bad_samples})
        with run.throughput.paused():
            if run.step % config.eval_every_steps == 0 or is_last:
                _evaluate(run, observers)
            if run.step % run.experiment.checkpoint.every_steps == 0 or ends or request is Request.SAVE:
                save_run(run)
        if request is not Request.GO_ON:
            with run.runtime.together():
                wishes.granted(request, run.step, started_at_step)
            observers.note(run.step, request.words)


def train_step(run: Run, batch: Batch, rate: float, observers: Observers) -> Tensor:
    """One forward, one backward, one optimizer step.

    Returns:
        The norm of the whole gradient before clipping; 0 where no task has a gradient.

    Raises:
        UserError: something is not finite, and balance.on_nonfinite says stop.
    """
    set_learning_rate(run.engine.optimizer, rate)
    every = run.experiment.balance.monitor_every_steps
    watched_TP = _parameter_gradients(run, batch) if every and (run.step + 1) % every == 0 else None
    stops = run.experiment.balance.on_nonfinite == "stop"
    buffers = [] if stops else [buffer.clone() for buffer in run.network.buffers()]
    balance = forward_backward(run, batch)
    if watched_TP is not None and not balance.broken:
        seen = slopes(watched_TP, balance.alpha_T, balance.active_T)
        found = {"worst_slope": seen.worst, "num_ascending": seen.num_ascending}
        observers.publish({"kind": "monitor", "step": run.step + 1, **found})
    if not balance.certified:
        observers.note(run.step + 1, f"α is not certified: the duality gap is {balance.gap:.3g}")
    # Without a gradient momentum and weight decay would move the model on no evidence at all.
    ready = bool(balance.active_T.any()) and not (balance.broken and stops)
    if ready:
        gradient_norm = run.engine.step()
    else:
        run.engine.discard()
        gradient_norm = torch.zeros(())
    # Finite at the representation, a gradient can still break on its way through the encoder. Then no step was made.
    finite = bool(gradient_norm.isfinite())
    moves = ready and finite
    if balance.broken or not finite:
        fault = _fault_record(run, balance, moves)
        if stops:
            raise UserError(f"stopped at step {run.step + 1}: {fault['found']}. The last checkpoint stands.\n{WAY_ON}")
        observers.publish(fault)
        _restore_buffers(run, buffers)
    elif not moves:
        observers.note(run.step + 1, "no task has a labelled sample with a gradient: step skipped")
    return gradient_norm


def forward_backward(run: Run, batch: Batch) -> Balance:
    """Fill every parameter's gradient: one encoder forward, one backward through which α is found.

    Raises:
        UserError: no α could be found; the same on every rank.
    """
    in_parameters = run.experiment.balance.space == "parameters"
    outputs = run.network(batch.inputs) if in_parameters else run.engine.model(batch.inputs, balancer=run.balancer)
    sums_T, counts_T = training_losses(run.tasks, outputs, batch.targets)
    try:
        if in_parameters:
            shared, own = list(run.network.encoder.parameters()), list(run.network.heads.parameters())
            run.balancer.fill_gradients(sums_T, counts_T, shared, own)
        else:
            run.engine.backward(run.balancer.total(sums_T, counts_T))
    except BalanceError as error:
        way_on = f".\n{WAY_ON}" if isinstance(error, NonFiniteError) else ""
        raise UserError(f"stopped at step {run.step + 1}: {error}. The last checkpoint stands{way_on}") from error
    assert run.balancer.last is not None, "backward has just set it"
    if run.experiment.balance.on_nonfinite == "drop_task":
        run.balancer.zero_broken(run.network.heads)
    return run.balancer.last


def _warm_up(run: Run) -> None:
    """Throw the first backward away, one of a batch without labels that changes nothing.

    DDP cuts its buckets anew in the order of its first backward, and from three ranks on the last bits of a sum depend
    on the cut: without this, the first step after a resume would differ from that of an uninterrupted run.
    """
    with _without_trace(run):
        forward_backward(run, run.augmented(run.train_batches.padding_batch()))
    run.engine.discard()


def _parameter_gradients(run: Run, batch: Batch) -> Tensor:
    """All tasks' gradients with respect to the encoder's parameters (T, P), by the dropout of the step to come."""
    with _without_trace(run):
        outputs = run.network(batch.inputs)
        sums_T, counts_T = training_losses(run.tasks, outputs, batch.targets)
        return run.balancer.parameter_gradients(sums_T, counts_T, list(run.network.encoder.parameters()))


@contextmanager
def _without_trace(run: Run) -> Iterator[None]:
    """Leave random generators and buffers (BatchNorm's running statistics) as they were."""
    buffers = [buffer.clone() for buffer in run.network.buffers()]
    with torch.random.fork_rng():
        yield
    _restore_buffers(run, buffers)


def _restore_buffers(run: Run, buffers: Sequence[Tensor]) -> None:
    for buffer, before in zip(run.network.buffers(), buffers, strict=True):
        buffer.copy_(before)


def _next_batch(run: Run, wishes: Wishes) -> tuple[Batch, Request]:
    """The next batch, and what is to be done after its step, the same on every rank. Collective.

    Raises:
        UserError: the data of a rank has failed; the same on every rank.
    """
    fault: UserError | None = None
    try:
        with run.throughput.data_wait():
            batch = next(run.train_batches)
    except UserError as error:
        fault = error
    request = Request(run.runtime.agree(Request.FAULT if fault else wishes.read()))
    if request is Request.FAULT:
        with run.runtime.together():
            if fault:
                raise UserError(f"stopped at step {run.step + 1}: {fault}\nThe last checkpoint stands") from fault
    return run.augmented(batch), request


def _bad_samples(run: Run, observers: Observers) -> dict[str, int]:
    """Tell of the samples that no rank could use, and count them by reason. Collective.

    Raises:
        UserError: there are more of them than data.max_bad_fraction allows; the same on every rank.
    """
    report = combined(run.runtime.gather(run.train_batches.report_bad_samples()))
    for found in report.news:
        observers.note(run.step, f"bad {found}")
    num_samples, max_fraction = run.train_batches.num_samples, run.experiment.data.max_bad_fraction
    check_rare(report, num_samples=num_samples, max_fraction=max_fraction)
    return dict(report.total)


def _evaluate(run: Run, observers: Observers) -> None:
    started = run.throughput.elapsed_seconds
    # Running statistics of BatchNorm are each rank's own; those of rank 0 are what a checkpoint holds.
    run.runtime.from_main(run.network.buffers())
    found = evaluate(run.engine.predictor, run.test_batches, run.tasks, run.to_input, run.runtime)
    seconds = run.throughput.elapsed_seconds - started
    observers.publish(
        {
            "kind": "eval",
            "step": run.step,
            "errors": found.errors,
            "units": found.units,
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
        "samples": run.samples,
        **run.throughput.read(),
        "learning_rate": rate,
        "losses": dict(zip(run.task_names, balance.losses_T.tolist(), strict=True)),
        "alpha": dict(zip(run.task_names, balance.alpha_T.tolist(), strict=True)),
        "min_norm": balance.min_norm,
        "gap": balance.gap,
        "gradient_norm": float(gradient_norm),
    }


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
