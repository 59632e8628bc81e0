"""`paretrain check`: try everything that a run needs, without training."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.table import Table

from paretrain import Balance, BalanceError
from paretrain.exchange import message_bytes
from trainer.commands.measure import measure_sizes
from trainer.commands.memory import MemoryEstimate, Sizes, estimate_memory
from trainer.config.machine import num_cores, try_to_write
from trainer.config.schema import Experiment
from trainer.config.sections.data import DataConfig
from trainer.config.sections.train import TrainConfig
from trainer.data.reading.bad_samples import Report, check_rare
from trainer.data.reading.shares import samples_per_step
from trainer.data.remote.folder import DataFolder
from trainer.errors import UserError
from trainer.runtime.distributed import joined
from trainer.terminal import Terminal
from trainer.training.build_run import build_run
from trainer.training.find_start import find_start
from trainer.training.gradients import forward_backward
from trainer.training.prepare_data import open_data
from trainer.training.run import Run

MAX_TASKS_SHOWN = 8


@dataclass(frozen=True)
class _Trial:
    """What was tried on one process: one batch, forward and backward.

    Attributes:
        run: as one process of the real one.
        sources: the data folders.
        samples_per_step: of each source, over all processes of the real run.
        bad_samples: of the batch, for each source.
        balance: what the balancer found.
        seconds: of the forward and backward.
        sizes: of the model and the batch.
    """

    run: Run
    sources: Sequence[DataFolder]
    samples_per_step: Sequence[int]
    bad_samples: Sequence[Report]
    balance: Balance
    seconds: float
    sizes: Sizes


def check(experiment: Experiment, gpu_gib: float | None = None) -> None:
    """Check configuration, shards, batch arithmetic and model on one process; print what the run would do and need.

    Args:
        experiment: one of its processes is tried here, under its own strategy.
        gpu_gib: memory of each process's GPU; None: unknown.

    Raises:
        UserError: something is wrong, `train` would refuse the run's folder, or the run does not fit the GPU.
    """
    if experiment.parallel.device == "cuda" and not torch.cuda.is_available():  # A cluster's login node, say.
        Terminal(soft_wrap=True).print("no GPU here: all else is checked, on the CPU")
        on_cpu = {"device": "cpu", "precision": "fp32"}
        experiment = experiment.model_copy(update={"parallel": experiment.parallel.model_copy(update=on_cpu)})
    try_to_write(experiment.run_dir)
    trial, parallel = _try(experiment), experiment.parallel
    needed = estimate_memory(
        trial.sizes,
        parallel.strategy,
        parallel.processes,
        parallel.offload,
        parallel.shard_processes,
        parallel.gather,
    )
    table = Table(title=f"{experiment.name}: ready to train", show_header=False)
    for name, value in _rows(experiment, trial, needed).items():
        table.add_row(name, value)
    Terminal().print(table)
    for report in trial.bad_samples:
        if report.total:
            print(f"{report.total.total()} samples of the batch cannot be used. The first is {report.first}")
    if gpu_gib is not None:
        _compare(needed, gpu_gib)


def _try(experiment: Experiment) -> _Trial:
    """Do on one process what training does, up to the end of the first backward.

    Raises:
        UserError: something is wrong, or `train` would refuse the run's folder.
    """
    config, processes = experiment.train, experiment.parallel.processes
    # The run may be meant for a larger machine; fewer threads and workers here do not change what is found.
    alone = experiment.parallel.model_copy(
        update={"processes": 1, "shard_processes": None, "threads": min(experiment.parallel.threads, num_cores())}
    )
    loading = experiment.data.model_copy(update={"workers": min(experiment.data.workers, num_cores())})
    with joined(alone) as runtime:
        find_start(experiment, runtime)
        data = open_data(experiment.data, runtime)
        counts = samples_per_step(experiment.data, data.sources, config.global_batch, processes)
        micro_batch = config.model_copy(update={"global_batch": config.global_batch // processes})
        loading = _of_one_process(loading, data.sources, [count // processes for count in counts])
        run = build_run(experiment.model_copy(update={"train": micro_batch, "data": loading}), data, runtime)
        batch = run.to_device(next(run.train_batches))
        bad_samples = [stream.bad_samples.report() for stream in run.train_batches.streams]
        for stream, report in zip(run.train_batches.streams, bad_samples, strict=True):
            check_rare(report, num_samples=stream.num_samples, max_fraction=experiment.data.max_bad_fraction)
        started = time.perf_counter()
        try:
            balance = forward_backward(run.learner, batch)
        except BalanceError as error:
            raise UserError(f"the first batch cannot be balanced: {error}") from error
        seconds = time.perf_counter() - started
        return _Trial(run, data.sources, counts, bad_samples, balance, seconds, measure_sizes(run, batch))


def _rows(experiment: Experiment, trial: _Trial, needed: MemoryEstimate) -> dict[str, str]:
    """Return what to print: the name of a row -> its text."""
    run, balance, processes = trial.run, trial.balance, experiment.parallel.processes
    description = run.description
    places = experiment.data.folders
    num_parameters = ", ".join(f"{part} {number:,}" for part, number in description.num_parameters.items())
    sent = message_bytes(len(run.task_names), processes)
    return {
        "data": "\n".join(_data(source, places[source.name].path) for source in trial.sources),
        "tasks": f"{len(run.task_names)}: {', '.join(run.task_names[:MAX_TASKS_SHOWN])}",
        "parameters": f"{sum(description.num_parameters.values()):,}: {num_parameters}",
        **({"notes": "; ".join(description.notes)} if description.notes else {}),
        "optimizer": f"{experiment.optimizer.name}: " + "\n".join(description.groups),
        "batch": _batch(experiment.train, processes),
        "length": _length(experiment.train, trial.sources, trial.samples_per_step),
        "exchange": f"{sent:,} bytes per process and step for α, {needed.sent:,} for parameters and gradients",
        "memory": _memory(needed, experiment.parallel.strategy),
        "one batch": f"{trial.seconds:.3f} s forward and backward; {_losses(balance, run.task_names)}",
        "balance": f"{experiment.balance.words}: min-norm {balance.min_norm:.3g}, duality gap {balance.gap:.1g}",
    }


def _of_one_process(config: DataConfig, sources: Sequence[DataFolder], counts: Sequence[int]) -> DataConfig:
    """Return the section with which one process has so many samples of each source."""
    if not config.sources:
        return config
    shares = {
        source.name: config.sources[source.name].model_copy(update={"share": count})
        for source, count in zip(sources, counts, strict=True)
    }
    return config.model_copy(update={"sources": shares, "temperature": None, "multiple_of": 1})


def _data(source: DataFolder, path: str) -> str:
    manifest = source.manifest
    samples = ", ".join(f"{manifest.num_samples(split):,} {split}" for split in manifest.splits)
    name = f"{source.name}: " if source.name else ""
    return f"{name}{manifest.name} in {path}: {samples} samples, as the manifest says"


def _batch(config: TrainConfig, processes: int) -> str:
    factors = [f"{processes} process{'es' if processes > 1 else ''}"]
    if config.accumulation.steps > 1:
        factors.append(f"{config.accumulation.steps} micro-batches")
    each = config.global_batch // (processes * config.accumulation.steps)
    return f"{config.global_batch} samples per step = {' x '.join(factors)} x {each}"


def _length(config: TrainConfig, sources: Sequence[DataFolder], counts: Sequence[int]) -> str:
    lines = []
    for source, count in zip(sources, counts, strict=True):
        steps_per_epoch = source.manifest.num_samples("train") // count
        epochs = f"{config.steps / steps_per_epoch:.1f} epochs of {steps_per_epoch:,} steps"
        if not source.name:
            return f"{config.steps:,} steps = {epochs}"
        repeats = f"repeats after step {steps_per_epoch:,}" if steps_per_epoch < config.steps else "never repeats"
        lines.append(f"{source.name}: {count} samples a step, {epochs}, {repeats}")
    return "\n".join([f"{config.steps:,} steps", *lines])


def _losses(balance: Balance, names: list[str]) -> str:
    shown = list(zip(names, balance.counts_T, balance.losses_T, balance.alpha_T, strict=True))[:MAX_TASKS_SHOWN]
    return ", ".join(
        f"{name} loss {loss:.3f} α {alpha:.3f}" if count else f"{name} absent: no label in this batch"
        for name, count, loss, alpha in shown
    )


def _memory(needed: MemoryEstimate, strategy: str) -> str:
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
        f"an estimate of {_amount(needed.total)} per process under {strategy}: "
        + ", ".join(f"{name} {_amount(size)}" for name, size in parts.items() if size)
        + ". Not included: a GPU's context, workspaces of its libraries, fragmentation"
        + (f". Offloaded to the host: {_amount(needed.offloaded)} per process" if needed.offloaded else "")
    )


def _compare(needed: MemoryEstimate, gpu_gib: float) -> None:
    found = f"the estimate of {_amount(needed.total)} per process"
    if not needed.fits(int(gpu_gib * 2**30)):
        raise UserError(
            f"{found} does not fit a GPU of {gpu_gib:g} GiB, a tenth of which is kept free for what the estimate does "
            "not include.\nUse more --processes, which share the batch, and --strategy fsdp2 or zero3, under which "
            "they share the model too; a smaller train.global_batch shrinks the activations"
        )
    Terminal().print(f"{found} fits a GPU of {gpu_gib:g} GiB: {needed.total / gpu_gib / 2**30:.0%} of it")


def _amount(size: int) -> str:
    for power, unit in ((3, "GiB"), (2, "MiB")):
        if size >= 999.5 * 1024 ** (power - 1):  # Four digits would be written as 1e+03.
            return f"{size / 1024**power:.3g} {unit}"
    return f"{size / 1024:.3g} KiB"
