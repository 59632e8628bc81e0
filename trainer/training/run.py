"""A run: the parts that the loop moves, built from the configuration, and its state, saved and restored.

Shapes: B samples on this rank, T tasks.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from models import MultiTaskModel, Task
from paretrain import Balancer
from trainer.config.schema import Experiment
from trainer.data.format.specs import InputSpec
from trainer.data.reading.bad_samples import joined_states
from trainer.data.reading.images import to_input, to_targets
from trainer.data.reading.loader import Batch, EvalLoader, RankOptions, TrainLoader
from trainer.data.reading.order import START, Cursor
from trainer.data.remote.folder import DataFolder
from trainer.errors import UserError
from trainer.observe.metrics import Throughput
from trainer.run_folder import CHECKPOINTS
from trainer.runtime.checkpoints.reading import Found
from trainer.runtime.checkpoints.saving import Saver
from trainer.runtime.checkpoints.values import to_bytes
from trainer.runtime.collectives import Runtime
from trainer.runtime.engines.engine import Engine
from trainer.runtime.engines.strategies import build_engine
from trainer.training.build import build_balancer, build_network, build_tasks
from trainer.training.optimizer import build_optimizer
from trainer.training.prepare_data import Data, fetch_first
from trainer.training.restore import check_optimizer, load_model, load_weighting, read_state, refuse_other_data


@dataclass
class Run:
    """Everything that training moves.

    Attributes:
        network: the encoder and the heads themselves; a strategy may have left this rank no more than shards in them.
        num_parameters: of "encoder" and "heads", before they were cut in shards.
        engine: the network and its optimizer, spread over the ranks.
        train_batches: endless; its cursor is part of the run's state.
        test_batches: one pass over the test split.
        saver: writes checkpoints while the training goes on.
        throughput: the run's clock.
        step: optimizer steps done.
        samples: train samples consumed, by all ranks.
        batch_before: train.global_batch of the part that this run goes on from; None for a new run.
        damaged_checkpoints: how many were passed over, at all starts, because they were damaged.
    """

    experiment: Experiment
    runtime: Runtime
    data: Data
    input: InputSpec
    tasks: Sequence[Task]
    network: MultiTaskModel
    num_parameters: Mapping[str, int]
    engine: Engine
    balancer: Balancer
    train_batches: TrainLoader
    test_batches: EvalLoader
    saver: Saver
    throughput: Throughput
    step: int = 0
    samples: int = 0
    batch_before: int | None = None
    damaged_checkpoints: int = 0

    @property
    def task_names(self) -> list[str]:
        """Names of the tasks, in the order of every (T,) tensor."""
        return [task.name for task in self.tasks]

    def close(self) -> None:
        """End the data workers."""
        self.train_batches.close()
        self.test_batches.close()

    def to_input(self, inputs: Tensor) -> Tensor:
        """Pixels or features as the loader gives them -> the model's input, on its device."""
        return to_input(inputs, self.input, self.runtime.device)

    def augmented(self, batch: Batch) -> Batch:
        """A training batch as the model takes it, on its device."""
        device = self.runtime.device
        inputs = to_input(batch.inputs, self.input, device, batch.draws)
        return replace(batch, inputs=inputs, targets=to_targets(batch.targets, device, batch.draws))


def build_run(experiment: Experiment, data: Data, runtime: Runtime, found: Found | None) -> Run:
    """Build a run and bring it to where the checkpoint `found` left it; None: to its start. Collective.

    Raises:
        UserError: the parts do not fit the data or one another, or the checkpoint belongs to other ones.
    """
    manifest = data.manifest
    tasks = build_tasks(manifest, experiment.data.tasks)
    network = build_network(experiment, manifest, tasks)
    snapshot = found.snapshot if found else None
    state = read_state(snapshot) if snapshot else None
    cursor = Cursor(**state.cursor.model_dump()) if state else START
    fetch_first(experiment, data, cursor, runtime)
    with runtime.raise_together():
        train_batches, test_batches = _open_data(experiment, data, tasks, runtime, cursor)
    if snapshot and state:
        refuse_other_data(snapshot, state, train_batches.fingerprint, experiment)
        load_model(network, snapshot)  # While it is whole on every rank, the same under every strategy.
        check_optimizer(network, snapshot, experiment.optimizer)
    num_parameters = {
        name: sum(parameter.numel() for parameter in part.parameters()) for name, part in network.named_children()
    }
    if experiment.model.compile:
        network.encoder.compile()
        network.heads.compile()
    engine = build_engine(
        experiment.parallel.strategy,
        network,
        lambda parameters: build_optimizer(parameters, experiment.optimizer),
        runtime,
        experiment.optimizer.clip_norm,
        experiment.parallel.precision,
        experiment.parallel.offload.of_run(experiment.name),
    )
    if snapshot and state:
        engine.load_optimizer(snapshot.optimizer)
        if state.loss_scale:
            engine.loss_scale.load_state_dict(state.loss_scale.model_dump())
    balancer = build_balancer(experiment.balance, tasks, runtime, seed=experiment.seed)
    _refuse_what_cannot_be_saved(balancer, experiment)
    run = Run(
        experiment=experiment,
        runtime=runtime,
        data=data,
        input=manifest.input,
        tasks=tasks,
        network=network,
        num_parameters=num_parameters,
        engine=engine,
        balancer=balancer,
        train_batches=train_batches,
        test_batches=test_batches,
        saver=Saver(
            experiment.run_dir / CHECKPOINTS,
            experiment.checkpoint.keep,
            runtime,
            run=snapshot.run if snapshot else runtime.on_main(lambda: secrets.token_hex(16)),
            config=experiment.model_dump(mode="json"),
        ),
        throughput=Throughput(elapsed_seconds=state.seconds if state else 0.0),
        step=state.step if state else 0,
        samples=state.samples if state else 0,
        batch_before=state.global_batch if state else None,
        damaged_checkpoints=state.damaged_checkpoints + len(found.damaged) if state and found else 0,
    )
    # From here on each rank draws numbers of its own (dropout).
    torch.manual_seed(experiment.seed * 1_000_003 + runtime.rank)
    if snapshot and state:
        with runtime.raise_together():
            load_weighting(run.balancer.weighting, state.weighting, snapshot)
            snapshot.restore_generators()
        if runtime.is_main:
            train_batches.bad_samples.load_state(state.bad_samples.model_dump())
    return run


def save_run(run: Run) -> None:
    """Begin to save the run as it is. Collective.

    Raises:
        FaultError: what was being saved before could not be written; the last published checkpoint stands.
    """
    run.runtime.set_phase(f"the checkpoint of step {run.step}", patient=True)
    state = {
        "step": run.step,
        "samples": run.samples,
        "global_batch": run.experiment.train.global_batch,
        "seconds": run.throughput.elapsed_seconds,
        "cursor": asdict(run.train_batches.cursor),
        "fingerprint": run.train_batches.fingerprint,
        "weighting": run.balancer.weighting.state_dict(),
        "loss_scale": run.engine.loss_scale.state_dict() or None,
        "bad_samples": joined_states(run.runtime.gather(run.train_batches.bad_samples.state)),
        "damaged_checkpoints": run.damaged_checkpoints,
    }
    run.saver.begin(run.step, run.engine.model_pieces(), run.engine.optimizer_pieces(), state)


def _open_data(
    experiment: Experiment, data: Data, tasks: Sequence[Task], runtime: Runtime, cursor: Cursor
) -> tuple[TrainLoader, EvalLoader]:
    config, names = experiment.data, [task.name for task in tasks]
    folder = DataFolder(data.folder, data.manifest, data.copy)
    options = RankOptions(
        rank=runtime.rank,
        world_size=runtime.world_size,
        workers=config.workers,
        pin_memory=runtime.device.type == "cuda",
        stopped_seconds=experiment.parallel.step_timeout_seconds,
    )
    batch = experiment.train.global_batch
    train_batches = TrainLoader(
        folder,
        tasks=names,
        global_batch=batch,
        seed=experiment.seed,
        group_samples=config.shuffle_samples,
        augment=config.augment,
        cursor=cursor,
        options=options,
    )
    test_batches = EvalLoader(folder, tasks=names, batch_size=batch // runtime.world_size, options=options)
    return train_batches, test_batches


def _refuse_what_cannot_be_saved(balancer: Balancer, experiment: Experiment) -> None:
    try:
        to_bytes(balancer.weighting.state_dict())
    except ValueError as error:
        raise UserError(
            f"balance.weighting={experiment.balance.weighting}: state_dict(){error}, which no checkpoint can hold: it "
            "could not be read back safely. Expected tensors, numbers, strings, and lists and dictionaries of them; "
            "of a NumPy array, torch.from_numpy(array) makes a tensor"
        ) from error
