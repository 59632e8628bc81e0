"""`paretrain check`: try everything that a run needs, without training."""

import time

from rich.console import Console
from rich.table import Table

from trainer.balance.exchange import message_bytes
from trainer.config import Experiment
from trainer.data.manifest import Manifest
from trainer.data.order import check_global_batch
from trainer.loop import forward_backward
from trainer.opening import open_data
from trainer.run import Run, build_run
from trainer.runtime.setup import joined

MAX_TASKS_SHOWN = 8


def check(experiment: Experiment) -> None:
    """Validate configuration, shards, batch arithmetic and model, on one process; print what a run would do.

    Raises:
        UserError: the first thing found wrong.
    """
    config, processes = experiment.train, experiment.parallel.processes
    alone = experiment.parallel.model_copy(update={"processes": 1})
    with joined(alone) as runtime:
        manifest = open_data(experiment, runtime)
        check_global_batch(manifest.num_samples("train"), global_batch=config.global_batch, world_size=processes)
        micro_batch = config.model_copy(update={"global_batch": config.global_batch // processes})
        run = build_run(experiment.model_copy(update={"train": micro_batch}), manifest, runtime, None)
        batch = run.augmented(next(run.train_batches))
        started = time.perf_counter()
        forward_backward(run, batch)
        seconds = time.perf_counter() - started
    Console().print(_table(experiment, manifest, run, seconds))


def _table(experiment: Experiment, manifest: Manifest, run: Run, seconds: float) -> Table:
    config, processes = experiment.train, experiment.parallel.processes
    encoder, heads = (run.num_parameters[part] for part in ("encoder", "heads"))
    steps_per_epoch = manifest.num_samples("train") // config.global_batch
    balance = run.balancer.last
    assert balance is not None, "a batch was tried"
    shown = list(zip(run.task_names, balance.losses_T, balance.alpha_T, strict=True))[:MAX_TASKS_SHOWN]
    table = Table(title=f"{experiment.name}: ready to train", show_header=False)
    rows = {
        "data": f"{manifest.name} in {experiment.data.path}: "
        + ", ".join(f"{manifest.num_samples(split):,} {split}" for split in manifest.splits)
        + " samples, as the manifest says",
        "tasks": f"{len(run.tasks)}: " + ", ".join(run.task_names[:MAX_TASKS_SHOWN]),
        "parameters": f"{encoder + heads:,}: encoder {encoder:,}, heads {heads:,}",
        "batch": f"{config.global_batch} samples a step = {config.global_batch // processes} on each of {processes} "
        f"process{'es' if processes > 1 else ''}",
        "length": f"{config.steps:,} steps = {config.steps / steps_per_epoch:.1f} epochs of {steps_per_epoch:,} steps",
        "exchange": f"{message_bytes(len(run.tasks), processes):,} bytes a process and step for α, "
        f"{4 * (encoder + heads):,} bytes for the gradients",
        "one batch": f"{seconds:.3f} s forward and backward; "
        + ", ".join(f"{name} loss {loss:.3f} α {alpha:.3f}" for name, loss, alpha in shown),
        "balance": f"{experiment.balance.weighting}: min-norm {balance.min_norm:.3g}, duality gap {balance.gap:.1g}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table
