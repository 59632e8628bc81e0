"""A run: the parts that the loop moves, built from the configuration; and their state, saved and restored.

Shapes: B samples on this rank, T tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from models.freezing import trained
from paretrain import Balancer
from trainer.config.schema import Experiment
from trainer.data.reading.bad_samples import joined_states
from trainer.data.reading.batch import Batch
from trainer.data.reading.eval_loader import EvalLoader
from trainer.data.reading.images import to_input, to_targets
from trainer.data.reading.loader import TrainLoader
from trainer.data.reading.order import Cursor
from trainer.data.reading.stream import Stream
from trainer.errors import UserError
from trainer.observe.metrics import Throughput
from trainer.runtime.checkpoints.saving import Saver
from trainer.runtime.checkpoints.store import Uploader
from trainer.runtime.checkpoints.values import to_bytes
from trainer.runtime.collectives import Runtime
from trainer.runtime.engines.averaging import averaged_weights
from trainer.runtime.engines.strategies import build_engine
from trainer.training.batches import open_batches
from trainer.training.build import build_balancer, build_network, fill
from trainer.training.cost import StepCost, count_flops, peak_tflops
from trainer.training.groups import describe, settings
from trainer.training.learner import Learner
from trainer.training.look_over import look_over
from trainer.training.optimizer import build_optimizer
from trainer.training.prepare_data import Data, fetch_first
from trainer.training.restore import (
    Checkpoint,
    check_optimizer,
    load_held,
    load_model,
    load_weighting,
    refuse_other_data,
)
from trainer.training.selection import check_select, eval_split_of, is_patience_over
from trainer.training.start_encoder import Start, started
from trainer.training.state import (
    BadSamplesState,
    CursorState,
    HeldState,
    LossScaleState,
    SelectionState,
    SourceState,
    TrainState,
)
from trainer.training.tasks import build_tasks, metric_names
from trainer.training.uploads import open_saver


@dataclass
class Run:
    """The parts of a training, and how far it is.

    Attributes:
        learner: what each step changes.
        num_parameters: of "encoder" and "heads", before a strategy sharded them.
        train_batches: endless; the places in its sources are part of the run's state.
        eval_split: the split of the evaluations.
        eval_batches: one pass over it, by the name of the source.
        saver: writes checkpoints while the training goes on.
        uploader: uploads them, on rank 0; None: it does not.
        throughput: the run's clock.
        cost: of a sample, in floating-point operations.
        notes: what the user should know of the network, a sentence each.
        groups: of parameters, as the optimizer has them, a line each.
        start: where the encoder's weights came from; None: from random numbers, or from a checkpoint.
        step: optimizer steps done.
        samples: train samples consumed, by all ranks.
        damaged_checkpoints: how many were skipped because they were damaged, over all starts.
        selection: the best evaluation so far, where train.select asks for one.
    """

    experiment: Experiment
    runtime: Runtime
    data: Data
    learner: Learner
    num_parameters: Mapping[str, int]
    train_batches: TrainLoader
    eval_split: str
    eval_batches: Mapping[str, EvalLoader]
    saver: Saver
    uploader: Uploader | None
    throughput: Throughput
    cost: StepCost
    notes: Sequence[str]
    groups: Sequence[str]
    start: Start | None
    step: int = 0
    samples: int = 0
    damaged_checkpoints: int = 0
    selection: SelectionState | None = None

    @property
    def is_complete(self) -> bool:
        """Whether no step is left: all are made, or train.patience has ended the run."""
        config = self.experiment.train
        return self.step >= config.steps or is_patience_over(self.selection, config.patience)

    @property
    def task_names(self) -> list[str]:
        """Names of the tasks, in the order of every (T,) tensor."""
        return [task.name for task in self.learner.tasks]

    def close(self) -> None:
        """End the data workers."""
        self.train_batches.close()
        for batches in self.eval_batches.values():
            batches.close()

    def to_input(self, inputs: Tensor) -> Tensor:
        """Return pixels or features of the loader as the model's input, on its device."""
        return to_input(inputs, self.data.spec.input, self.runtime.device)

    def to_device(self, batch: Batch) -> Batch:
        """Return a training batch as the model takes it: augmented, on its device."""
        device = self.runtime.device
        inputs = to_input(batch.inputs, self.data.spec.input, device, batch.draws)
        return replace(batch, inputs=inputs, targets=to_targets(batch.targets, device, batch.draws))

    def count_step(self) -> None:
        """Count one more optimizer step, whether it moved the parameters or was skipped."""
        global_batch = self.experiment.train.global_batch
        self.step += 1
        self.samples += global_batch
        self.throughput.count(global_batch)

    def state(self) -> TrainState:
        """Return what a checkpoint holds beside tensors. Collective."""
        loss_scale = self.learner.engine.loss_scale.state_dict()
        held = self.learner.balancer.renewal.state_dict()
        return TrainState(
            step=self.step,
            samples=self.samples,
            global_batch=self.experiment.train.global_batch,
            seconds=self.throughput.elapsed_seconds,
            sources={stream.data.name: self._state_of(stream) for stream in self.train_batches.streams},
            fingerprint=self.train_batches.fingerprint,
            weighting=self.learner.balancer.weighting.state_dict(),
            loss_scale=LossScaleState.model_validate(loss_scale) if loss_scale else None,
            damaged_checkpoints=self.damaged_checkpoints,
            eval_split=self.eval_split,
            selection=self.selection,
            held=HeldState.model_validate(held) if held else None,
        )

    def _state_of(self, stream: Stream) -> SourceState:
        bad_samples = joined_states(self.runtime.gather(stream.bad_samples.state))
        return SourceState(cursor=CursorState(**asdict(stream.cursor)), bad_samples=BadSamplesState(**bad_samples))

    def save(self) -> None:
        """Begin to save the run as it is. Collective.

        Raises:
            FaultError: the checkpoint before could not be written; the last published one is intact.
        """
        self.runtime.set_phase(f"the checkpoint of step {self.step}", patient=True)
        engine, state = self.learner.engine, self.state()
        best = self.selection.step if self.selection else None
        self.saver.begin(self.step, engine.model_pieces(), engine.optimizer_pieces(), state.to_dict(), best)


def build_run(
    experiment: Experiment,
    data: Data,
    runtime: Runtime,
    checkpoint: Checkpoint | None = None,
    *,
    weights_of: Checkpoint | None = None,
) -> Run:
    """Build the parts of a run. Collective.

    Args:
        experiment: the configuration.
        data: that it names.
        runtime: the processes.
        checkpoint: to go on from, where there is one: the loader starts at its cursor, and the network has its
            parameters, which must be in place before a strategy shards them. `restore_run` does the rest.
        weights_of: without a checkpoint to go on from, that of another run, whose parameters the network starts with.

    Raises:
        UserError: the parts do not fit the data or one another, or the checkpoint belongs to other ones.
    """
    tasks = build_tasks(data.spec, experiment.data.tasks, experiment.tasks, data.sources)
    names = metric_names(tasks, experiment.tasks)  # Here, since it refuses names that do not fit a task.
    network = build_network(experiment, data.spec, tasks)
    of_parameters = settings(network, experiment.optimizer)
    places = checkpoint.state.sources if checkpoint else {}
    cursors = {name: Cursor(**place.cursor.model_dump()) for name, place in places.items()}
    is_new = not (checkpoint or weights_of)
    start = started(network.encoder, experiment.model.encoder, runtime) if is_new else None
    # A run goes on as it began, also where its data has got a split val in the meantime.
    eval_split = eval_split_of(
        experiment.train.eval_split or (checkpoint.state.eval_split if checkpoint else None),
        [source.manifest for source in data.sources],
    )
    if experiment.train.select:
        check_select(experiment.train.select, experiment.train.eval_split, eval_split, tasks, names)
    fetch_first(
        data,
        cursors,
        runtime,
        seed=experiment.seed,
        group_samples=experiment.data.shuffle_samples,
        eval_split=eval_split,
    )
    with runtime.raise_together():
        train_batches, eval_batches = open_batches(
            experiment, data, data.spec.select_tasks([task.name for task in tasks]), eval_split, runtime, cursors
        )
    if checkpoint:
        names_of_sources = [source.name for source in data.sources]
        refuse_other_data(checkpoint, names_of_sources, train_batches.fingerprint, experiment.data.places)
        load_model(network, checkpoint.snapshot, runtime)
        check_optimizer(network, checkpoint.snapshot, experiment.optimizer, of_parameters)
    elif weights_of:
        weights = averaged_weights(weights_of.snapshot.model, weights_of.snapshot.optimizer)
        fill(network, weights, weights_of.snapshot.path, experiment.data.places)
    num_parameters = {
        name: sum(parameter.numel() for parameter in part.parameters()) for name, part in network.named_children()
    }
    notes = look_over(experiment, network.to(runtime.device), data.spec.input.encoder_shape, runtime)
    if start:
        notes = [start.sentence, *notes]
    groups = describe(of_parameters, trained(network))
    parallel = experiment.parallel
    cost = StepCost(
        count_flops(network, data.spec.input.encoder_shape, runtime.device, parallel.precision),
        parallel.peak_tflops or peak_tflops(runtime.device, parallel.precision),
    )
    if experiment.model.compile:
        network.encoder.compile()
        network.heads.compile()
    engine = build_engine(
        experiment.parallel.strategy,
        network,
        lambda parameters: build_optimizer(parameters, experiment.optimizer, of_parameters),
        runtime,
        experiment.optimizer.clip_norm,
        experiment.parallel.precision,
        experiment.parallel.offload.of_run(experiment.name),
        experiment.parallel.shard_processes,
        experiment.parallel.gather,
    )
    balancer = build_balancer(experiment.balance, tasks, runtime, seed=experiment.seed)
    _refuse_what_cannot_be_saved(balancer, experiment.balance.weighting)
    balance, accumulation = experiment.balance, experiment.train.accumulation
    # A run that starts from another one is not that one.
    same_run = checkpoint.snapshot.run if checkpoint and weights_of is None else None
    saver, uploader = open_saver(experiment, runtime, same_run)
    torch.manual_seed(experiment.seed * 1_000_003 + runtime.rank)  # From here on each rank draws its own dropout.
    return Run(
        experiment=experiment,
        runtime=runtime,
        data=data,
        learner=Learner(network, engine, tasks, balancer, balance, accumulation, runtime.device),
        num_parameters=num_parameters,
        train_batches=train_batches,
        eval_split=eval_split,
        eval_batches=eval_batches,
        saver=saver,
        uploader=uploader,
        throughput=Throughput(),
        cost=cost,
        notes=notes,
        groups=groups,
        start=start,
    )


def restore_run(run: Run, checkpoint: Checkpoint) -> None:
    """Bring a run that was built for `checkpoint` to where the checkpoint left it. Collective.

    Raises:
        UserError: the weighting cannot use its state, or a random generator its own.
    """
    snapshot, state = checkpoint.snapshot, checkpoint.state
    run.learner.engine.load_optimizer(snapshot.optimizer)
    if state.loss_scale:
        run.learner.engine.loss_scale.load_state_dict(state.loss_scale.model_dump())
    with run.runtime.raise_together():
        load_weighting(run.learner.balancer.weighting, state.weighting, snapshot)
        load_held(run.learner.balancer, state.held, snapshot)
        snapshot.restore_generators()
    if run.runtime.is_main:  # The state counts those of all ranks.
        for stream in run.train_batches.streams:
            stream.bad_samples.load_state(state.sources[stream.data.name].bad_samples.model_dump())
    run.throughput = Throughput(elapsed_seconds=state.seconds)
    run.step, run.samples = state.step, state.samples
    run.damaged_checkpoints = state.damaged_checkpoints + len(checkpoint.found.damaged)
    run.selection = state.selection if run.experiment.train.select else None


def _refuse_what_cannot_be_saved(balancer: Balancer, weighting: str) -> None:
    try:
        to_bytes(balancer.weighting.state_dict())
    except ValueError as error:
        raise UserError(
            f"balance.weighting={weighting}: state_dict(){error}, which no checkpoint can hold: it "
            "could not be read back safely. Expected tensors, numbers, strings, and lists and dictionaries of them; "
            "of a NumPy array, torch.from_numpy(array) makes a tensor"
        ) from error
