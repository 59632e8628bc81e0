"""`paretrain eval`: print the errors of a checkpoint."""

from pathlib import Path

from rich.table import Table

from trainer.config.sections.parallel import ParallelConfig
from trainer.data.reading.images import to_input
from trainer.data.reading.loader import EvalLoader
from trainer.data.remote.folder import DataFolder
from trainer.observe.units import PERCENT, with_unit
from trainer.run_folder import checkpoint_of, read_config
from trainer.runtime.checkpoints.reading import load
from trainer.runtime.distributed import joined
from trainer.runtime.engines.averaging import averaged_weights, has_averages
from trainer.terminal import Terminal
from trainer.training.build import build_network, build_tasks, fill, metric_names
from trainer.training.evaluate import Evaluation, evaluate
from trainer.training.prepare_data import open_split
from trainer.training.restore import read_state


def evaluate_run(run_dir: Path, split: str, step: int | None) -> Evaluation:
    """Evaluate a checkpoint on one process and print its errors.

    Args:
        run_dir: folder of the run.
        split: split of the run's data.
        step: step of the checkpoint; None: the last one.

    Raises:
        UserError: there is no such run, checkpoint or split, or it is damaged.
    """
    experiment = read_config(run_dir)
    path = checkpoint_of(run_dir, step)
    data = experiment.data
    with joined(ParallelConfig(device=experiment.parallel.device)) as runtime:
        opened = open_split(data, split, runtime)
        manifest = opened.manifest
        tasks = build_tasks(manifest, data.tasks)
        names = [task.name for task in tasks]
        network = build_network(experiment, manifest, tasks)
        # The batch that the run itself evaluates on each process: it fits into memory.
        batch_size = experiment.train.global_batch // experiment.parallel.processes
        folder = DataFolder(opened.folder, manifest, opened.copy)
        batches = EvalLoader(folder, split=split, tasks=names, batch_size=batch_size)
        snapshot = load(path, runtime)
        evaluated_step = read_state(snapshot).step
        fill(network, averaged_weights(snapshot.model, snapshot.optimizer), path, data.path)
        network.to(runtime.device)
        found = evaluate(
            network,
            batches,
            tasks,
            metric_names(tasks),
            lambda inputs: to_input(inputs, manifest.input, runtime.device),
            runtime,
        )
    averaged = "averaged weights, " if has_averages(snapshot.optimizer) else ""
    table = Table(title=f"{run_dir}, step {evaluated_step}: {averaged}{split} split, {found.samples} samples")
    for column in ("task", "error or score" if found.by_class else "error", "loss"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for name in names:
        error, loss = found.errors[name], found.losses[name]
        if error is None or loss is None:
            table.add_row(name, "no labels", "no labels")
        else:
            table.add_row(name, with_unit(error, found.units[name]), f"{loss:.4f}")
        for part, percent in found.by_class.get(name, {}).items():
            table.add_row(f"  {part}", "-" if percent is None else with_unit(percent, PERCENT))
    Terminal().print(table)
    return found
