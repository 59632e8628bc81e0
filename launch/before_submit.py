"""Check what a job would find wrong only when it starts, perhaps after hours in the queue: data, network and rule."""

from collections.abc import Sequence
from pathlib import Path

from trainer.config.schema import Experiment
from trainer.data.format.address import is_url
from trainer.data.format.manifest import read_manifest
from trainer.data.reading.mixture import merged
from trainer.data.reading.shares import samples_per_step
from trainer.data.remote.folder import DataFolder
from trainer.errors import UserError
from trainer.run_path import CONFIG, refuse_no_run
from trainer.training.network.build import build_network
from trainer.training.rules import build_rule
from trainer.training.selection import check_select, eval_split_of
from trainer.training.task_groups import with_groups_of_sources
from trainer.training.tasks import build_tasks, metric_names


def check_runs(experiments: Sequence[Experiment], *, so: str) -> None:
    """Refuse runs that could not start. Data behind an address are left to the job.

    Args:
        experiments: the runs.
        so: what follows from it, for the message: "nothing was submitted".

    Raises:
        UserError: naming the run.
    """
    built: list[object] = []
    for experiment in experiments:
        parts = experiment.data, experiment.tasks, experiment.model, experiment.balance, experiment.train
        remote = any(is_url(source.path) for source in experiment.data.folders.values())
        if remote or parts in built:  # The runs of a grid often differ in their seeds alone.
            continue
        built.append(parts)
        try:
            _check(experiment)
        except UserError as error:
            raise UserError(f"{experiment.name} could not start, so {so}: {error}") from None


def gpu_note(device: str, processes_per_node: int) -> str | None:
    """Return what a user who wants GPUs has to know; None where the job asks for them."""
    if device == "cuda":
        return None
    return (
        f"parallel.device=cpu: the job asks for no GPU, and its {processes_per_node} processes on each node share the "
        "cores. For one GPU a process, add parallel.device=cuda"
    )


def _check(experiment: Experiment) -> None:
    sources = [
        DataFolder(Path(source.path), read_manifest(Path(source.path)), None, name, source.tasks)
        for name, source in experiment.data.folders.items()
    ]
    manifests = [source.manifest for source in sources]
    for manifest in manifests:
        manifest.split("train")
    spec = merged(sources)
    tasks = build_tasks(spec, experiment.data.tasks, experiment.tasks, sources)
    config = experiment.train
    split = eval_split_of(config.eval_split, manifests)
    if config.select:
        metrics = metric_names(tasks, experiment.tasks)
        check_select(config.select, config.eval_split, split, tasks, metrics)
    samples_per_step(experiment.data, sources, config.global_batch, experiment.parallel.processes)
    build_network(experiment, spec, tasks)
    task_names = [task.name for task in tasks]
    if not (experiment.run_dir / CONFIG).exists():  # A run that goes on reads neither again.
        if config.start_from is not None:
            refuse_no_run(config.start_from)
        weights = experiment.model.encoder.weights
        if weights is not None and not weights.exists():
            raise UserError(f"model.encoder.weights={weights}: there is no such file or folder here")
    build_rule(with_groups_of_sources(experiment.balance, sources, task_names), task_names, experiment.seed)
