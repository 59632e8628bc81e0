"""What a checkpoint must hold for a run to go on from it. Its files are whole; what they say is not trusted."""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from paretrain.rules import Weighting
from trainer.config.schema import Experiment, OptimizerConfig
from trainer.errors import UserError
from trainer.runtime.checkpoints.folder import step_of
from trainer.runtime.checkpoints.manifest import MAX_STEPS, STATE, first_fault
from trainer.runtime.checkpoints.reading import Snapshot
from trainer.runtime.engines.averaging import AVERAGE

Count = Annotated[int, Field(ge=0, le=MAX_STEPS)]


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class CursorState(_Section):
    """The place in the data."""

    epoch: Annotated[int, Field(ge=0, lt=2**31)]
    samples: Count


class BadSamplesState(_Section):
    """The samples that could not be used."""

    total: dict[str, Count]
    in_epoch: dict[str, Count]
    first: str


class LossScaleState(_Section):
    """What fp16 multiplies the losses by."""

    value: float = Field(ge=1, le=2.0**120)
    num_sound_steps: Count


class RunState(_Section):
    """What a checkpoint holds beside tensors of the model and the optimizer.

    Attributes:
        step: optimizer steps done.
        samples: train samples consumed.
        global_batch: samples a step.
        seconds: the run's clock.
        fingerprint: the data's.
        weighting: of any form: what the weighting's state_dict gave.
        loss_scale: None where the precision is not fp16.
        damaged_checkpoints: how many were passed over because they were damaged.
    """

    step: Count
    samples: Count
    global_batch: Annotated[int, Field(gt=0, le=MAX_STEPS)]
    seconds: float = Field(ge=0, le=1e12)
    cursor: CursorState
    fingerprint: str
    weighting: Any
    loss_scale: LossScaleState | None
    bad_samples: BadSamplesState
    damaged_checkpoints: Count


def read_state(snapshot: Snapshot) -> RunState:
    """Read a checkpoint's state.

    Raises:
        UserError: it is not what a run saves.
    """
    try:
        state = RunState.model_validate(snapshot.state)
    except (ValidationError, RecursionError) as error:
        raise UserError(f"checkpoint {snapshot.path} cannot be used: {STATE}: {first_fault(error)}") from None
    if state.step != step_of(snapshot.path):
        raise UserError(f"checkpoint {snapshot.path} cannot be used: {STATE} is of step {state.step}")
    return state


def refuse_other_data(snapshot: Snapshot, state: RunState, found: str, experiment: Experiment) -> None:
    """Refuse a checkpoint of other data, where its cursor would mean nothing.

    Args:
        found: the fingerprint of the data that are there.

    Raises:
        UserError: it is another one than the checkpoint's.
    """
    expected = state.fingerprint
    if found != expected:
        raise UserError(
            f"checkpoint {snapshot.path} was trained on other data than {experiment.data.path} holds now "
            f"(fingerprint {expected[:12]}…, found {found[:12]}…): its place in "
            "the data means nothing there. Put the old data back, or type name=ANOTHER_NAME to start a new run"
        )


def load_model(network: nn.Module, snapshot: Snapshot) -> None:
    """Fill the network, while it is whole.

    Raises:
        UserError: the checkpoint holds another one.
    """
    for name, tensor in network.state_dict().items():
        if name in snapshot.model and snapshot.model.form(name)[1] != tensor.dtype:
            raise UserError(
                f"checkpoint {snapshot.path} holds another model than this one: {name} is of "
                f"{snapshot.model.form(name)[1]}, expected {tensor.dtype}"
            )
    try:
        network.load_state_dict(snapshot.model)
    except RuntimeError as error:
        raise UserError(f"checkpoint {snapshot.path} holds another model than this one: {error}") from error


def check_optimizer(network: nn.Module, snapshot: Snapshot, config: OptimizerConfig) -> None:
    """Make sure that the optimizer's state is one of this optimizer and network.

    Args:
        network: whole.

    Raises:
        UserError: it is not.
    """
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    slots = _slots(config)
    for name, found in snapshot.optimizer.items():
        what = None
        if name not in shapes:
            what = f"a parameter '{name[:80]}', which the model lacks"
        elif found.keys() != slots:
            what = f"{', '.join(sorted(found))[:200]} of {name}, expected {', '.join(sorted(slots))} of {config.name}"
        else:
            for slot in found:
                shape, dtype = found.form(slot)
                expected = torch.Size() if slot == "step" else shapes[name]
                if shape != expected or not dtype.is_floating_point:
                    what = f"{slot} of {name} of shape {list(shape)} and {dtype}, expected {list(expected)}"
        if what:
            raise UserError(f"checkpoint {snapshot.path} holds another optimizer than this one: it has {what}")


def load_weighting(weighting: Weighting, state: Mapping[str, Any], snapshot: Snapshot) -> None:
    """Give the weighting its state back.

    Raises:
        UserError: the weighting cannot use it.
    """
    try:
        _refuse_other_types(state, weighting.state_dict())
        weighting.load_state_dict(state)
    except Exception as error:  # A weighting of the user's own may fail in any way.
        raise UserError(
            f"checkpoint {snapshot.path} holds a state that balance.weighting cannot use: "
            f"{type(error).__name__}: {str(error)[:200]}"
        ) from error


def _refuse_other_types(found: Any, fresh: Any, where: str = "state") -> None:
    """Refuse a string, say, in the place of a number, which would fail only when it is computed with."""
    if isinstance(fresh, Mapping) and isinstance(found, Mapping):
        for key in fresh.keys() & found.keys():
            _refuse_other_types(found[key], fresh[key], f"{where}['{key}']")
        return
    for kind in (int | float, str, list, Mapping, torch.Tensor):
        if isinstance(fresh, kind) and not isinstance(found, kind):
            raise TypeError(f"{where} is a {type(found).__name__}, expected a {type(fresh).__name__}")


def _slots(config: OptimizerConfig) -> set[str]:
    slots = {"momentum_buffer"} if config.momentum else set()
    if config.name != "sgd":
        slots = {"step", "exp_avg", "exp_avg_sq"}
    return slots | ({AVERAGE} if config.ema_decay is not None else set())
