"""The state of a run in a checkpoint, beside the tensors of model and optimizer. `migrations` reads older forms."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer.runtime.checkpoints.manifest import MAX_STEPS, first_fault

Count = Annotated[int, Field(ge=0, le=MAX_STEPS)]


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class CursorState(_Section):
    """The position in the data, as `trainer.data.reading.order.Cursor`."""

    epoch: Annotated[int, Field(ge=0, lt=2**31)]
    samples: Count


class BadSamplesState(_Section):
    """The samples that could not be used, counted by reason."""

    total: dict[str, Count]
    in_epoch: dict[str, Count]
    first: str


class SourceState(_Section):
    """The place in a source, and its samples that could not be used, on all ranks together."""

    cursor: CursorState
    bad_samples: BadSamplesState


class LossScaleState(_Section):
    """The dynamic loss scale of fp16."""

    value: float = Field(ge=1, le=2.0**120)
    num_sound_steps: Count


class HeldState(_Section):
    """The weights that are held between two Gram matrices; see `paretrain.renewal`."""

    alpha: list[float]
    weighed: list[bool]
    min_norm: float
    gap: float
    certified: bool
    stale: float | None
    age: Annotated[int, Field(ge=1, le=MAX_STEPS)]
    interval: Annotated[int, Field(ge=1, le=MAX_STEPS)]


class SelectionState(_Section):
    """The best evaluation so far.

    Attributes:
        rule: the split, metric, mode and tasks that it was chosen by, in words. By another rule the choice starts anew.
        step: of the best evaluation; None: no evaluation had a finite value yet.
        value: of the best evaluation, as the rule has it.
        num_since: evaluations after the best one.
        first: the value of each task at the first evaluation, where the rule compares tasks of different units.
    """

    rule: str
    step: Count | None
    value: float | None
    num_since: Count
    first: dict[str, float]


class TrainState(_Section):
    """The state of a training between two steps, the same on every rank.

    Attributes:
        step: optimizer steps done.
        samples: train samples consumed, by all ranks.
        global_batch: samples a step.
        seconds: the run's clock.
        sources: the place in each source, by its name, which is empty for the only one.
        fingerprint: of the data, the seed and the shuffling: what decides which samples are at the cursors.
        weighting: what the weighting's `state_dict` returned, of any form.
        held: the weights of the tasks; None: none are held, so the next step finds them.
        loss_scale: None where the precision is not fp16.
        damaged_checkpoints: how many were skipped because they were damaged, over all starts.
        eval_split: the split of the evaluations.
        selection: the best evaluation so far; None: nothing is selected, or nothing was evaluated yet.
    """

    step: Count
    samples: Count
    global_batch: Annotated[int, Field(gt=0, le=MAX_STEPS)]
    seconds: float = Field(ge=0, le=1e12)
    sources: dict[str, SourceState]
    fingerprint: str
    weighting: Any
    loss_scale: LossScaleState | None
    damaged_checkpoints: Count
    eval_split: str = "test"
    """The default is what every run used before this field was there."""
    selection: SelectionState | None = None
    held: HeldState | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for a checkpoint. Tensors inside `weighting` are not copied."""
        return self.model_dump(exclude={"weighting"}) | {"weighting": self.weighting}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` returned.

        Raises:
            ValueError: a field is missing, unknown or of another type.
        """
        try:
            return cls.model_validate(dict(values))
        except (ValidationError, RecursionError) as error:
            raise ValueError(first_fault(error)) from None
