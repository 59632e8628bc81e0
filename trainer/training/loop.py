"""The training loop: take a batch, make a step, publish it, evaluate, save; until the last step or a stop request."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from paretrain import BalanceError, NonFiniteError
from trainer.data.reading.bad_samples import check_rare, combined
from trainer.data.reading.batch import Batch
from trainer.errors import SharedError, UnfinishedError, UserError
from trainer.observe.heartbeat import State
from trainer.observe.observers import Observers
from trainer.runtime.checkpoints.folder import CHECKPOINTS, last_saved
from trainer.runtime.stopping import Request, StopRequests
from trainer.training.cost import memory_mib, peak_memory_mib
from trainer.training.evaluate import Evaluation, evaluate
from trainer.training.garbage import collected_together
from trainer.training.gradients import warm_up
from trainer.training.memory_snapshot import snapshot_if_out_of_memory
from trainer.training.next_batch import next_batch
from trainer.training.optimizer.schedule import learning_rate
from trainer.training.profile import profiled
from trainer.training.records import (
    constraint_fields,
    eval_record,
    follows_evaluation,
    gram_record,
    step_records,
    train_record,
)
from trainer.training.run import Run
from trainer.training.selection import select
from trainer.training.step import StepResult, train_step
from trainer.training.tasks import deciding_metrics, metric_names

IF_NOT_FINITE = " To go on and skip such steps, add balance.on_nonfinite=skip_step; to leave out such tasks, drop_task"


def fit(run: Run, observers: Observers, stop_requests: StopRequests) -> Request:
    """Train from `run.step` until the run is complete, or until `stop_requests` end it, and save. Collective.

    Returns:
        The request that ended the training; GO_ON if nobody asked. The same on every rank.

    Raises:
        UnfinishedError: it was asked to end before the first step; the same on every rank.
        UserError: the data cannot be read, or no α could be found in a step; the same on every rank. No parameter was
            changed by that step.
        FaultError: a checkpoint could not be written; the same on every rank.
    """
    config, run_dir, rank = run.experiment.train, run.experiment.run_dir, run.runtime.rank
    with (
        run.saver.finished(),
        snapshot_if_out_of_memory(config.memory_snapshot, run_dir, rank),
        profiled(config.profile, run_dir, rank) as trace,
        collected_together(config.collect_garbage_every_steps) as collect,
    ):
        return _fit(run, observers, stop_requests, [trace, collect])


def _fit(
    run: Run, observers: Observers, stop_requests: StopRequests, before_step: Sequence[Callable[[int], None]]
) -> Request:
    started_at_step = saved_at_step = run.step
    request = Request.GO_ON
    with _naming_step(run, run.step + 1):
        warm_up(run.learner, run.to_device(run.train_batches.padding_batch()))
    while not run.is_complete and not request.ends:
        for act in before_step:
            act(run.step + 1)
        result, request = _make_step(run, observers, stop_requests, is_first=run.step == started_at_step)
        if result is not None:
            if _conclude_step(run, result, request, observers):
                saved_at_step = run.step
        elif run.step > saved_at_step:
            run.save()
        if request is not Request.GO_ON:
            run.saver.finish()
            with run.runtime.raise_together():
                stop_requests.fulfilled(request, run.step, started_at_step)
            observers.note(run.step, request.words)
    if not run.step:
        raise UnfinishedError("stopped while it waited for its first batch; there is nothing to save yet")
    return request


def _make_step(
    run: Run, observers: Observers, stop_requests: StopRequests, is_first: bool
) -> tuple[StepResult | None, Request]:
    """Wait for the next batch and make a step with it. Collective.

    Returns:
        The result, and the request of all ranks. No result: the data is late, and all ranks are to end.
    """
    step = run.step + 1
    observers.beat(run.step, State.TRAINING)
    run.runtime.set_phase(f"step {step}", patient=is_first, step=step)
    with _naming_step(run, step):
        note = partial(observers.note, run.step)
        batch, request = next_batch(run.train_batches, run.runtime, stop_requests, run.throughput, note)
        result = None if batch is None else _train_step(run, run.to_device(batch))
    return result, request


def _conclude_step(run: Run, result: StepResult, request: Request, observers: Observers) -> bool:
    """Count a step and publish it; evaluate and save where it is time. Return whether it was saved. Collective."""
    config = run.experiment
    run.count_step()
    is_last = run.step == config.train.steps
    ends = is_last or request.ends
    _publish_step(run, result, observers)
    if run.step % config.train.log_every_steps == 0 or ends:
        _publish_progress(run, result, observers)
    with run.throughput.paused():
        run.saver.advance()
        is_best = False
        if run.step % config.train.eval_every_steps == 0 or is_last:
            is_best = _evaluate_or_save(run, observers)
            if run.is_complete and not is_last:
                ends = True
                observers.note(run.step, _patience_words(run))
        is_due = run.step % config.checkpoint.every_steps == 0
        if is_due or ends or is_best or request is Request.SAVE:
            run.save()
            return True
    return False


@contextmanager
def _naming_step(run: Run, step: int) -> Iterator[None]:
    """Add the step to the errors of the block that stop a run, and say what is saved and how to go on."""
    try:
        yield
    except (BalanceError, UserError) as error:
        advice = IF_NOT_FINITE if isinstance(error, NonFiniteError) else ""
        run.saver.finish()
        saved = run.runtime.on_main(lambda: last_saved(run.experiment.run_dir / CHECKPOINTS)).capitalize()
        raise UserError(f"stopped at step {step}: {error}\n{saved}.{advice}") from error


def _train_step(run: Run, batch: Batch) -> StepResult:
    rate = learning_rate(run.step, run.experiment.train.steps, run.experiment.optimizer)
    every = run.experiment.balance.monitor_every_steps
    watch_slopes = every is not None and (run.step + 1) % every == 0
    return train_step(run.learner, batch, rate, watch_slopes=watch_slopes)


def _publish_step(run: Run, result: StepResult, observers: Observers) -> None:
    for record in step_records(run.step, result, run.task_names):
        observers.publish(record)
    # Where α is held over an evaluation, the next Gram matrix takes the place of the one of the evaluation's step.
    if follows_evaluation(run.step, result.balance, run.experiment.train.eval_every_steps):
        _publish_gram(run, observers)


def _publish_progress(run: Run, result: StepResult, observers: Observers) -> None:
    """Publish a step's numbers, and the samples that could not be used. Collective."""
    bad_samples = _bad_samples(run, observers)
    epochs = {stream.data.name: stream.cursor.epoch for stream in run.train_batches.streams}
    speed = run.throughput.read()
    record = train_record(
        run.step,
        result,
        run.task_names,
        epoch=min(epochs.values()),
        **({"epochs": epochs} if len(epochs) > 1 else {}),
        samples=run.samples,
        **speed,
        samples_per_second_per_process=speed["samples_per_second"] / run.runtime.world_size,
        **run.cost.of_speed(speed["samples_per_second"], run.runtime.world_size),
        memory_mib=memory_mib(),
        peak_memory_mib=peak_memory_mib(),
        learning_rate=learning_rate(run.step - 1, run.experiment.train.steps, run.experiment.optimizer),
    )
    held = constraint_fields(run.learner.network.heads, run.task_names)
    observers.publish({**record, **held, "bad_samples": bad_samples, **_cache_use(run)})


def _bad_samples(run: Run, observers: Observers) -> dict[str, int]:
    """Note the samples that no rank could use, and count them by reason. Collective.

    Raises:
        UserError: there are more of them than data.max_bad_fraction allows; the same on every rank.
    """
    total: Counter[str] = Counter()
    for stream in run.train_batches.streams:
        report = combined(run.runtime.gather(stream.bad_samples.report()))
        for found in report.news:
            observers.note(run.step, f"bad {found}")
        check_rare(report, num_samples=stream.num_samples, max_fraction=run.experiment.data.max_bad_fraction)
        total += report.total
    return dict(total)


def _cache_use(run: Run) -> dict[str, dict[str, int]]:
    """Sum what all ranks have found in the cache of remote data, and fetched into it. Collective."""
    mine = run.train_batches.cache_use + Counter(fetched_bytes=run.data.fetched_bytes)
    use = sum(run.runtime.gather(mine), Counter())
    return {"cache": dict(use)} if use else {}


def _evaluate_or_save(run: Run, observers: Observers) -> bool:
    """Evaluate, and return whether it is the best evaluation so far, by train.select. Collective.

    Where that fails, save first: a sample that cannot be used must not cost what was trained.
    """
    try:
        found = _evaluate(run, observers)
        return _is_best(run, found)
    except SharedError:
        run.save()
        raise


def _is_best(run: Run, found: Evaluation) -> bool:
    config, before = run.experiment.train.select, run.selection
    if config is None:
        return False
    # Rank 0 decides: all ranks save the best checkpoint, and end, at the same step.
    run.selection = run.runtime.on_main(lambda: select(before, run.step, found, config, run.eval_split))
    return run.selection.step == run.step


def _patience_words(run: Run) -> str:
    assert run.selection, "without a choice there is no patience"
    return (
        f"train.patience: the last {run.selection.num_since} evaluations were no better than that of step "
        f"{run.selection.step} ({run.selection.rule}); the run is complete"
    )


def _evaluate(run: Run, observers: Observers) -> Evaluation:
    learner = run.learner
    run.runtime.set_phase(f"the evaluation after step {run.step}", patient=True)
    observers.beat(run.step, State.EVALUATING)
    started = run.throughput.elapsed_seconds
    run.data.fetch_split(run.eval_split, run.runtime)
    # Running statistics of BatchNorm are each rank's own; those of rank 0 are what a checkpoint holds.
    run.runtime.broadcast_(learner.network.buffers())
    with learner.engine.averaged():
        predictor, look = learner.engine.predictor, partial(observers.keep_predictions, run.step)
        names = metric_names(learner.tasks, run.experiment.tasks)
        found = evaluate(predictor, run.eval_batches, learner.tasks, names, run.to_input, run.runtime, look)
    seconds = run.throughput.elapsed_seconds - started
    averaged = run.experiment.optimizer.ema_decay is not None
    if found.too_large:
        observers.note(run.step, found.too_large)
    deciding = deciding_metrics(learner.tasks, run.experiment.tasks)
    observers.publish(
        eval_record("eval", run.step, found, run.eval_split, deciding, averaged=averaged, seconds=seconds)
    )
    if run.experiment.balance.every_steps == 1:
        _publish_gram(run, observers)
    return found


def _publish_gram(run: Run, observers: Observers) -> None:
    gram = gram_record(run.step, run.learner.balancer.last)
    if gram is not None:
        observers.publish(gram)
