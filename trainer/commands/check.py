"""`paretrain check`: try everything that a run needs, without training."""

import time

from rich.table import Table

from paretrain import Balance, BalanceError
from paretrain.exchange import message_bytes
from trainer.commands.memory import Estimate, estimate
from trainer.commands.sizes import measure_sizes
from trainer.config.machine import num_cores, try_to_write
from trainer.config.schema import Experiment, TrainConfig
from trainer.data.format.manifest import Manifest
from trainer.data.reading.order import check_global_batch
from trainer.errors import UserError
from trainer.runtime.distributed import joined
from trainer.terminal import Terminal
from trainer.training.find_start import find_start
from trainer.training.gradients import forward_backward
from trainer.training.prepare_data import open_data
from trainer.training.run import Run, build_run

MAX_TASKS_SHOWN = 8


def check(experiment: Experiment, gpu_gib: float | None = None) -> None:
    """Validate configuration, shards, batch arithmetic and model, on one process; print what a run would do and need.

    Args:
        experiment: one of any number of processes is tried, under its own strategy.
        gpu_gib: memory of the GPU that each process will have; None: unknown.

    Raises:
        UserError: the first thing found wrong, a run's folder that `train` would refuse included, or that the run does
            not fit the GPU.
    """
    config, processes = experiment.train, experiment.parallel.processes
    try_to_write(experiment.run_dir)
    # The run may be meant for a larger machine; its threads and workers change none of what is found here.
    alone = experiment.parallel.model_copy(
        update={"processes": 1, "threads": min(experiment.parallel.threads, num_cores())}
    )
    loading = experiment.data.model_copy(update={"workers": min(experiment.data.workers, num_cores())})
    with joined(alone) as runtime:
        find_start(experiment, runtime)
        data = open_data(experiment.data, runtime)
        manifest = data.manifest
        check_global_batch(manifest.num_samples("train"), global_batch=config.global_batch, world_size=processes)
        micro_batch = config.model_copy(update={"global_batch": config.global_batch // processes})
        run = build_run(experiment.model_copy(update={"train": micro_batch, "data": loading}), data, runtime)
        batch = run.to_device(next(run.train_batches))
        started = time.perf_counter()
        try:
            balance = forward_backward(run.learner, batch)
        except BalanceError as error:
            raise UserError(f"the first batch cannot be balanced: {error}") from error
        seconds = time.perf_counter() - started
        sizes = measure_sizes(run, manifest, batch)
        needed = estimate(sizes, experiment.parallel.strategy, processes, experiment.parallel.offload)
    Terminal().print(_table(experiment, manifest, run, balance, seconds, needed))
    if gpu_gib is not None:
        _compare(needed, gpu_gib)


def _compare(needed: Estimate, gpu_gib: float) -> None:
    found = f"the estimate of {_amount(needed.memory)} a process"
    if not needed.fits(int(gpu_gib * 2**30)):
        raise UserError(
            f"{found} does not fit a GPU of {gpu_gib:g} GiB, of which a tenth is left for what the estimate does not "
            "hold.\nMore --processes share the batch, and under --strategy fsdp2 or zero3 the model too; "
            "train.global_batch decides the activations"
        )
    Terminal().print(f"{found} fits a GPU of {gpu_gib:g} GiB: {needed.memory / gpu_gib / 2**30:.0%} of it")


def _table(
    experiment: Experiment, manifest: Manifest, run: Run, balance: Balance, seconds: float, needed: Estimate
) -> Table:
    config, processes = experiment.train, experiment.parallel.processes
    encoder, heads = (run.num_parameters[part] for part in ("encoder", "heads"))
    steps_per_epoch = manifest.num_samples("train") // config.global_batch
    shown = list(zip(run.task_names, balance.losses_T, balance.alpha_T, strict=True))[:MAX_TASKS_SHOWN]
    table = Table(title=f"{experiment.name}: ready to train", show_header=False)
    rows = {
        "data": f"{manifest.name} in {experiment.data.path}: "
        + ", ".join(f"{manifest.num_samples(split):,} {split}" for split in manifest.splits)
        + " samples, as the manifest says",
        "tasks": f"{len(run.task_names)}: " + ", ".join(run.task_names[:MAX_TASKS_SHOWN]),
        "parameters": f"{encoder + heads:,}: encoder {encoder:,}, heads {heads:,}",
        "batch": _batch(config, processes),
        "length": f"{config.steps:,} steps = {config.steps / steps_per_epoch:.1f} epochs of {steps_per_epoch:,} steps",
        "exchange": f"{message_bytes(len(run.task_names), processes):,} bytes a process and step for α, "
        f"{needed.sent:,} bytes sent for parameters and gradients",
        "memory": _memory(needed, experiment.parallel.strategy),
        "one batch": f"{seconds:.3f} s forward and backward; "
        + ", ".join(f"{name} loss {loss:.3f} α {alpha:.3f}" for name, loss, alpha in shown),
        "balance": f"{experiment.balance.weighting}: min-norm {balance.min_norm:.3g}, duality gap {balance.gap:.1g}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _batch(config: TrainConfig, processes: int) -> str:
    factors = [f"{processes} process{'es' if processes > 1 else ''}"]
    if config.accumulation.steps > 1:
        factors.append(f"{config.accumulation.steps} micro-batches")
    each = config.global_batch // (processes * config.accumulation.steps)
    return f"{config.global_batch} samples a step = {' x '.join(factors)} x {each}"


def _memory(needed: Estimate, strategy: str) -> str:
    parts = {
        "parameters": needed.parameters,
        "gradients": needed.gradients,
        "optimizer": needed.optimizer,
        f"{strategy}'s buffers": needed.communication,
        "batch": needed.batch,
        "activations": needed.activations,
        "balancer": needed.balancer,
    }
    return (
        f"an estimate of {_amount(needed.memory)} a process under {strategy}: "
        + ", ".join(f"{name} {_amount(size)}" for name, size in parts.items() if size)
        + ". Not in it: a GPU's context, workspaces of its libraries, fragmentation"
        + (f". Offloaded to the host: {_amount(needed.offloaded)} a process" if needed.offloaded else "")
    )


def _amount(size: int) -> str:
    for power, unit in ((3, "GiB"), (2, "MiB")):
        if size >= 1024**power:
            return f"{size / 1024**power:.3g} {unit}"
    return f"{size / 1024:.3g} KiB"
