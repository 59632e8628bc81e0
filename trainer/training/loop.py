"""The training loop."""

from collections import Counter
from functools import partial
from typing import Any

from trainer.data.reading.bad_samples import check_rare, combined
from trainer.errors import SharedError, UnfinishedError
from trainer.observe.observers import Observers
from trainer.runtime.stopping import Request, StopRequests
from trainer.training.evaluate import evaluate
from trainer.training.gradients import warm_up
from trainer.training.next_batch import next_batch
from trainer.training.optimizer import learning_rate
from trainer.training.run import Run, save_run
from trainer.training.step import Step, train_step

GRAM_TASKS = 256
"""The Gram matrix is logged up to this number of tasks; beyond, T x T numbers a line are too many."""


def fit(run: Run, observers: Observers, stop_requests: StopRequests) -> None:
    """Train from `run.step` to the last step, or to the one after which `stop_requests` ask all ranks to end.

    Raises:
        UnfinishedError: it was asked to end before the first step; the same on every rank.
        UserError: no α could be found in a step, or a checkpoint could not be written; the same on every rank. No
            parameter was changed by that step.
    """
    with run.saver.finished():
        _fit(run, observers, stop_requests)


def _fit(run: Run, observers: Observers, stop_requests: StopRequests) -> None:
    config, total_steps = run.experiment.train, run.experiment.train.steps
    started_at_step = saved_at_step = run.step
    ends = False
    warm_up(run)
    while not ends:
        run.runtime.set_phase(f"step {run.step + 1}", patient=run.step == started_at_step, step=run.step + 1)
        batch, request = next_batch(run, stop_requests, observers)
        if batch is None:  # The data is late, and all are to end.
            if run.step > saved_at_step:
                save_run(run)
            _grant(run, stop_requests, request, observers, started_at_step)
            if not run.step:
                raise UnfinishedError("stopped while it waited for its first batch; there is nothing to save yet")
            break
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
            run.saver.advance()
            if run.step % config.eval_every_steps == 0 or is_last:
                try:
                    _evaluate(run, observers)
                except SharedError:
                    save_run(run)  # A test sample that cannot be used must not cost what was trained.
                    raise
            if run.step % run.experiment.checkpoint.every_steps == 0 or ends or request is Request.SAVE:
                save_run(run)
                saved_at_step = run.step
        if request is not Request.GO_ON:
            _grant(run, stop_requests, request, observers, started_at_step)


def _grant(run: Run, stop_requests: StopRequests, request: Request, observers: Observers, started_at_step: int) -> None:
    run.saver.finish()
    with run.runtime.raise_together():
        stop_requests.fulfilled(request, run.step, started_at_step)
    observers.note(run.step, request.words)


def _bad_samples(run: Run, observers: Observers) -> dict[str, int]:
    """Tell of the samples that no rank could use, and count them by reason. Collective.

    Raises:
        UserError: there are more of them than data.max_bad_fraction allows; the same on every rank.
    """
    report = combined(run.runtime.gather(run.train_batches.bad_samples.report()))
    for found in report.news:
        observers.note(run.step, f"bad {found}")
    num_samples, max_fraction = run.train_batches.num_samples, run.experiment.data.max_bad_fraction
    check_rare(report, num_samples=num_samples, max_fraction=max_fraction)
    return dict(report.total)


def _cache_use(run: Run) -> dict[str, dict[str, int]]:
    """What all ranks have found in the cache of remote data, and fetched into it. Collective."""
    mine = run.train_batches.cache_use + Counter(fetched_bytes=run.data.fetched_bytes)
    use = sum(run.runtime.gather(mine), Counter())
    return {"cache": dict(use)} if use else {}


def _evaluate(run: Run, observers: Observers) -> None:
    run.runtime.set_phase(f"the evaluation after step {run.step}", patient=True)
    started = run.throughput.elapsed_seconds
    run.data.fetch(run.data.manifest.split("test").shards, run.runtime)
    # Running statistics of BatchNorm are each rank's own; those of rank 0 are what a checkpoint holds.
    run.runtime.broadcast_(run.network.buffers())
    with run.engine.averaged():
        look = partial(observers.look, run.step)
        found = evaluate(run.engine.predictor, run.test_batches, run.tasks, run.to_input, run.runtime, look)
    seconds = run.throughput.elapsed_seconds - started
    observers.publish(
        {
            "kind": "eval",
            "step": run.step,
            "errors": found.errors,
            "units": found.units,
            **({"by_class": found.by_class} if found.by_class else {}),
            "losses": found.losses,
            "samples": found.samples,
            "averaged": run.experiment.optimizer.ema_decay is not None,
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
