"""A run: the parts that the loop moves, built from the configuration, and its state, saved and restored.

Shapes: B samples on this rank, T tasks.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models import MultiTaskModel, Task
from trainer.balance import Balancer
from trainer.build import build_balancer, build_network, build_tasks
from trainer.config import Experiment
from trainer.data.images import to_input
from trainer.data.loader import EvalLoader, TrainLoader
from trainer.data.manifest import ImageSpec, Manifest
from trainer.data.order import Cursor
from trainer.errors import UserError
from trainer.observe.metrics import Throughput
from trainer.optimization import build_optimizer
from trainer.run_dir import CHECKPOINTS
from trainer.runtime.checkpoint import Snapshot, save
from trainer.runtime.setup import Runtime


@dataclass
class Run:
    """Everything that training moves.

    Attributes:
        network: the encoder and the heads themselves.
        model: the network as the data-parallel wrapper holds it.
        train_batches: endless; its cursor is part of the run's state.
        test_batches: one pass over the test split.
        throughput: the run's clock.
        step: optimizer steps done.
    """

    experiment: Experiment
    runtime: Runtime
    image: ImageSpec
    tasks: Sequence[Task]
    network: MultiTaskModel
    model: nn.Module
    optimizer: torch.optim.Optimizer
    balancer: Balancer
    train_batches: TrainLoader
    test_batches: EvalLoader
    throughput: Throughput
    step: int = 0

    @property
    def task_names(self) -> list[str]:
        """Names of the tasks, in the order of every (T,) tensor."""
        return [task.name for task in self.tasks]

    def close(self) -> None:
        """End the data workers."""
        self.train_batches.close()
        self.test_batches.close()

    def to_input(self, images_BHWC: Tensor) -> Tensor:
        """uint8 images -> the model's input, on its device."""
        return to_input(images_BHWC, self.image, self.runtime.device)


def build_run(experiment: Experiment, manifest: Manifest, runtime: Runtime, snapshot: Snapshot | None) -> Run:
    """Build a run and bring it to where `snapshot` left it; None: to its start. Collective.

    Raises:
        UserError: the parts do not fit the data or one another, or the snapshot belongs to other ones.
    """
    tasks = build_tasks(manifest, experiment.data.tasks)
    network = build_network(experiment, manifest, tasks)
    model, optimizer = runtime.prepare(network, build_optimizer(network.parameters(), experiment.optimizer))
    state: dict[str, Any] = {"step": 0, "seconds": 0.0, "cursor": {"epoch": 0, "samples": 0}}
    if snapshot:
        state = snapshot.state
    with runtime.together():
        train_batches, test_batches = _open_data(experiment, tasks, runtime, Cursor(**state["cursor"]))
    run = Run(
        experiment=experiment,
        runtime=runtime,
        image=manifest.image,
        tasks=tasks,
        network=network,
        model=model,
        optimizer=optimizer,
        balancer=build_balancer(experiment.balance, tasks, runtime, seed=experiment.seed),
        train_batches=train_batches,
        test_batches=test_batches,
        throughput=Throughput(elapsed_seconds=state["seconds"]),
        step=state["step"],
    )
    # From here on each rank draws numbers of its own (dropout).
    torch.manual_seed(experiment.seed * 1_000_003 + runtime.rank)
    if snapshot:
        _restore(run, snapshot)
    return run


def save_run(run: Run) -> None:
    """Publish a checkpoint of the run as it is. Collective.

    Raises:
        UserError: it could not be written; the last one stands.
    """
    state = {
        "step": run.step,
        "seconds": run.throughput.elapsed_seconds,
        "cursor": asdict(run.train_batches.cursor),
        "fingerprint": run.train_batches.fingerprint,
        "optimizer": run.optimizer.state_dict(),
        "weighting": run.balancer.weighting.state_dict(),
    }
    folder = run.experiment.run_dir / CHECKPOINTS
    save(
        folder,
        run.step,
        model=run.network.state_dict(),
        state=state,
        runtime=run.runtime,
        keep=run.experiment.checkpoint.keep,
    )


def _open_data(
    experiment: Experiment, tasks: Sequence[Task], runtime: Runtime, cursor: Cursor
) -> tuple[TrainLoader, EvalLoader]:
    config, names = experiment.data, [task.name for task in tasks]
    rank, world_size = runtime.rank, runtime.world_size
    batch = experiment.train.global_batch
    train_batches = TrainLoader(
        config.path,
        tasks=names,
        global_batch=batch,
        seed=experiment.seed,
        rank=rank,
        world_size=world_size,
        workers=config.workers,
        cursor=cursor,
    )
    test_batches = EvalLoader(
        config.path,
        tasks=names,
        batch_size=batch // world_size,
        rank=rank,
        world_size=world_size,
        workers=config.workers,
    )
    return train_batches, test_batches


def _restore(run: Run, snapshot: Snapshot) -> None:
    state = snapshot.state
    if state["fingerprint"] != run.train_batches.fingerprint:
        raise UserError(
            f"checkpoint {snapshot.path} was trained on other data than {run.experiment.data.path} holds now "
            f"(fingerprint {state['fingerprint'][:12]}…, found {run.train_batches.fingerprint[:12]}…): its place in "
            "the data means nothing there. Put the old data back, or type name=ANOTHER_NAME to start a new run"
        )
    try:
        run.network.load_state_dict(snapshot.model)
    except RuntimeError as error:
        raise UserError(f"checkpoint {snapshot.path} holds another model than this one: {error}") from error
    run.optimizer.load_state_dict(state["optimizer"])
    run.balancer.weighting.load_state_dict(state["weighting"])
    snapshot.restore_generators()
