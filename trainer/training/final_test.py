"""Evaluate the test split once, at the end of a run that was evaluated on another split."""

from collections.abc import Mapping

from torch import nn

from trainer.data.reading.eval_loader import EvalLoader
from trainer.errors import UserError
from trainer.observe.heartbeat import State
from trainer.observe.metrics import read_metrics
from trainer.observe.observers import Observers
from trainer.run_folder import METRICS
from trainer.runtime.checkpoints.folder import CHECKPOINTS, folder_of_step
from trainer.runtime.checkpoints.reading import load
from trainer.runtime.engines.averaging import averaged_weights
from trainer.runtime.engines.precision import lower_precision
from trainer.training.batches import open_eval_batches
from trainer.training.evaluate import Evaluation, evaluate
from trainer.training.network.build import build_network, fill
from trainer.training.records import eval_record
from trainer.training.run import Run
from trainer.training.tasks import deciding_metrics, metric_names

TEST = "test"


def step_that_counts(run: Run) -> int:
    """Return the step of the best checkpoint where train.select chooses one, else the last step."""
    return run.step if run.selection is None or run.selection.step is None else run.selection.step


def needs_test(run: Run) -> bool:
    """Return whether a run that makes no more steps still has to be evaluated on the test split. Collective."""
    if run.eval_split == TEST or not run.data.has(TEST):
        return False
    path, step = run.experiment.run_dir / METRICS, step_that_counts(run)
    return run.runtime.on_main(
        lambda: (
            not path.exists() or all(record["kind"] != TEST or record["step"] != step for record in read_metrics(path))
        )
    )


def run_final_test(run: Run, observers: Observers) -> None:
    """Evaluate the test split with the checkpoint that counts, and publish the record. Collective.

    Raises:
        UserError: a sample cannot be used, or the best checkpoint is gone or damaged; the same on every rank.
    """
    step, runtime = step_that_counts(run), run.runtime
    runtime.set_phase(f"the test of step {step}", patient=True)
    observers.beat(run.step, State.EVALUATING)
    started = run.throughput.elapsed_seconds
    run.data.fetch_split(TEST, runtime)
    found = _of_the_last_step(run) if step == run.step else _of_an_earlier_step(run, step)
    averaged, seconds = run.experiment.optimizer.ema_decay is not None, run.throughput.elapsed_seconds - started
    deciding = deciding_metrics(run.learner.tasks, run.experiment.tasks)
    observers.publish(eval_record("test", step, found, TEST, deciding, averaged=averaged, seconds=seconds))


def _of_the_last_step(run: Run) -> Evaluation:
    batches = _batches(run)
    with run.learner.engine.averaged():
        found = _evaluated(run, run.learner.engine.predictor, batches)
    for each in batches.values():
        each.close()
    return found


def _of_an_earlier_step(run: Run, step: int) -> Evaluation:
    """Evaluate a checkpoint, whole on every rank: without gradients and optimizer it takes less than training does."""
    path = folder_of_step(run.experiment.run_dir / CHECKPOINTS, step)
    if not run.runtime.on_main(path.is_dir):
        raise UserError(
            f"the best checkpoint, {path}, is gone, so the test split cannot be evaluated with it. Put it back, or "
            f"evaluate the last one: paretrain eval {run.experiment.run_dir}"
        )
    snapshot = load(path, run.runtime)
    network = build_network(run.experiment, run.data.spec, run.learner.tasks)
    fill(network, averaged_weights(snapshot.model, snapshot.optimizer), path, run.experiment.data.places)
    lower_precision(network, run.experiment.parallel.precision, run.runtime.device)
    batches = _batches(run)
    network.to(run.runtime.device)
    found = _evaluated(run, network, batches)
    for each in batches.values():
        each.close()
    return found


def _evaluated(run: Run, model: nn.Module, batches: Mapping[str, EvalLoader]) -> Evaluation:
    tasks = run.learner.tasks
    return evaluate(model, batches, tasks, metric_names(tasks, run.experiment.tasks), run.to_input, run.runtime)


def _batches(run: Run) -> dict[str, EvalLoader]:
    specs = run.data.spec.select_tasks(run.task_names)
    return open_eval_batches(run.experiment, run.data, specs, TEST, run.runtime)
