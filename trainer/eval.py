"""`paretrain eval`: the errors of a checkpoint."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from trainer.build import build_network, build_tasks
from trainer.config import ParallelConfig
from trainer.data.format.manifest import read_manifest
from trainer.data.reading.images import to_input
from trainer.data.reading.loader import EvalLoader
from trainer.data.remote.folder import open_folder
from trainer.evaluation import Evaluation, evaluate
from trainer.observe.units import with_unit
from trainer.run_dir import checkpoint_of, read_config
from trainer.runtime.checkpoint import load
from trainer.runtime.setup import joined

BATCH_SIZE = 256


def evaluate_run(run_dir: Path, split: str, step: int | None) -> Evaluation:
    """Evaluate the checkpoint of `step` (None: the last one) on one process, and print its errors.

    Raises:
        UserError: no such run, checkpoint or split, or a damaged one.
    """
    experiment = read_config(run_dir)
    path = checkpoint_of(run_dir, step)
    data = experiment.data
    folder = open_folder(data.path, data.cache.dir, data.cache.max_bytes)
    manifest = read_manifest(folder)
    tasks = build_tasks(manifest, experiment.data.tasks)
    names = [task.name for task in tasks]
    network = build_network(experiment, manifest, tasks)
    batches = EvalLoader(folder, split=split, tasks=names, batch_size=BATCH_SIZE)
    with joined(ParallelConfig(device=experiment.parallel.device)) as runtime:
        snapshot = load(path, runtime)
        network.load_state_dict(snapshot.model)
        network.to(runtime.device)
        found = evaluate(
            network, batches, tasks, lambda inputs: to_input(inputs, manifest.input, runtime.device), runtime
        )
    table = Table(title=f"{run_dir}, step {snapshot.state['step']}: {split} split, {found.samples} samples")
    for column in ("task", "error", "loss"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for name in names:
        error, loss = found.errors[name], found.losses[name]
        if error is None or loss is None:
            table.add_row(name, "no labels", "no labels")
        else:
            table.add_row(name, with_unit(error, found.units[name]), f"{loss:.4f}")
    Console().print(table)
    return found
