"""A run: the parts that the loop moves, and their state, saved and restored.

Shapes: B samples on this rank, T tasks.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from trainer.config.schema import Experiment
from trainer.data.format.specs import InputSpec
from trainer.data.reading.bad_samples import joined_states
from trainer.data.reading.batch import Batch, joined
from trainer.data.reading.eval_loader import EvalLoader
from trainer.data.reading.images import to_input, to_targets
from trainer.data.reading.loader import TrainLoader
from trainer.data.reading.stream import Stream
from trainer.observe.throughput import Throughput
from trainer.runtime.checkpoints.saving import Saver
from trainer.runtime.checkpoints.store import Uploader
from trainer.runtime.collectives import Runtime
from trainer.training.cost import StepCost
from trainer.training.description import Description
from trainer.training.learner import Learner
from trainer.training.prepare_data import Data
from trainer.training.restore import (
    Checkpoint,
    load_held,
    load_weighting,
)
from trainer.training.selection import is_patience_over
from trainer.training.state import (
    BadSamplesState,
    CursorState,
    HeldState,
    LossScaleState,
    SelectionState,
    SourceState,
    TrainState,
)


@dataclass
class Run:
    """The parts of a training, and how far it is.

    Attributes:
        learner: what each step changes.
        description: what the user should know of it.
        train_batches: endless; the places in its sources are part of the run's state.
        eval_split: the split of the evaluations.
        eval_batches: one pass over it, by the name of the source.
        saver: writes checkpoints while the training goes on.
        uploader: uploads them, on rank 0; None: it does not.
        throughput: the run's clock.
        cost: of a sample, in floating-point operations.
        step: optimizer steps done.
        samples: train samples consumed, by all ranks.
        damaged_checkpoints: how many were skipped because they were damaged, over all starts.
        selection: the best evaluation so far, where train.select asks for one.
    """

    experiment: Experiment
    runtime: Runtime
    data: Data
    learner: Learner
    description: Description
    train_batches: TrainLoader
    eval_split: str
    eval_batches: Mapping[str, EvalLoader]
    saver: Saver
    uploader: Uploader | None
    throughput: Throughput
    cost: StepCost
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

    def to_input(self, source: str, inputs: Tensor) -> Tensor:
        """Return pixels or features of a source as the model's input, on its device."""
        return to_input(inputs, self.data.input_of(source), self.runtime.device)

    def to_device(self, batch: Batch) -> Batch:
        """Return a training batch as the model takes it: augmented, on its device."""
        parts = zip(batch.by_shape(), self.data.inputs, strict=True)
        return joined([_to_device(part, of_part.spec, self.runtime.device) for part, of_part in parts])

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


def _to_device(batch: Batch, spec: InputSpec, device: torch.device) -> Batch:
    inputs = to_input(batch.only_inputs, spec, device, batch.draws)
    return replace(batch, inputs=inputs, targets=to_targets(batch.targets, device, batch.draws))


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
