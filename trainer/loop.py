"""The training loop."""

from collections import Counter
from typing import Any

from trainer.data.reading.bad_samples import check_rare, combined
from trainer.data.reading.loader import Batch
from trainer.errors import UserError
from trainer.evaluation import evaluate
from trainer.gradients import warm_up
from trainer.observe.observers import Observers
from trainer.optimization import learning_rate
from trainer.run import Run, save_run
from trainer.runtime.stopping import Request, Wishes
from trainer.step import Step, train_step

GRAM_TASKS = 256
"""The Gram matrix is logged up to this number of tasks; beyond, T x T numbers a line are too many."""


def fit(run: Run, observers: Observers, wishes: Wishes) -> None:
    """Train from `run.step` to the last step, or to the one after which `wishes` ask all ranks to end.

    Raises:
        UserError: no α could be found in a step, or a checkpoint could not be written; the same on every rank. No
            parameter was changed by that step.
    """
    config, total_steps = run.experiment.train, run.experiment.train.steps
    started_at_step, ends = run.step, False
    warm_up(run)
    while not ends:
        batch, request = _next_batch(run, wishes)
        rate = learning_rate(run.step, total_steps, run.experiment.optimizer)
        step = train_step(run, batch, rate, observers)
        run.step += 1
        run.samples += config.global_batch
        run.throughput.count(config.global_batch)
        is_last = run.step == total_steps
        ends = is_last or request.ends
        if run.step % config.log_every_steps == 0 or ends:
            bad_samples = _bad_samples(run, observers)
            record = _train_record(run, rate, step) | {"bad_samples": bad_samples}
            observers.publish(record | _cache_use(run))
        with run.throughput.paused():
            if run.step % config.eval_every_steps == 0 or is_last:
                try:
                    _evaluate(run, observers)
                except UserError:
                    save_run(run)  # A test sample that cannot be used must not cost what was trained.
                    raise
            if run.step % run.experiment.checkpoint.every_steps == 0 or ends or request is Request.SAVE:
                save_run(run)
        if request is not Request.GO_ON:
            with run.runtime.together():
                wishes.granted(request, run.step, started_at_step)
            observers.note(run.step, request.words)


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


def _cache_use(run: Run) -> dict[str, dict[str, int]]:
    """What all ranks have found in the cache of remote data, and fetched into it while training. Collective."""
    use = sum(run.runtime.gather(run.train_batches.cache_use), Counter())
    return {"cache": dict(use)} if use else {}


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


def _train_record(run: Run, rate: float, step: Step) -> dict[str, Any]:
    balance = step.balance
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
        "gradient_norm": float(step.gradient_norm),
    }
