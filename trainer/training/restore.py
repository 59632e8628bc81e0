"""Go on from a checkpoint: its files are whole, and what they say is checked before it is used."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from paretrain import Balancer
from paretrain.rules import Weighting
from trainer.config.sections.optimizer import OptimizerConfig
from trainer.errors import UserError
from trainer.runtime.checkpoints.folder import step_of
from trainer.runtime.checkpoints.manifest import STATE
from trainer.runtime.checkpoints.pieces import Tensors
from trainer.runtime.checkpoints.reading import Found, Snapshot
from trainer.runtime.collectives import Runtime
from trainer.training.migrations import in_todays_format
from trainer.training.optimizer.build import state_slots
from trainer.training.optimizer.settings import Setting
from trainer.training.state import HeldState, TrainState


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint that a run goes on from.

    Attributes:
        found: its files, and the damaged checkpoints after it.
        state: what it holds beside tensors.
    """

    found: Found
    state: TrainState

    @property
    def snapshot(self) -> Snapshot:
        """Its files."""
        return self.found.snapshot


def read_state(snapshot: Snapshot) -> TrainState:
    """Read a checkpoint's state.

    Raises:
        UserError: it is not what a run saves.
    """
    try:
        state = TrainState.from_dict(in_todays_format(snapshot.state, snapshot.format))
    except ValueError as error:
        raise UserError(f"checkpoint {snapshot.path} cannot be used: {STATE}: {error}") from None
    if state.step != step_of(snapshot.path):
        raise UserError(f"checkpoint {snapshot.path} cannot be used: {STATE} has step {state.step}")
    return state


def refuse_other_data(checkpoint: Checkpoint, names: Collection[str], fingerprint: str, places: str) -> None:
    """Refuse a checkpoint of other data, where its cursors would mean nothing.

    Args:
        checkpoint: to go on from.
        names: of the sources.
        fingerprint: of the data in `places`, as `TrainState` has it.
        places: where the data is.

    Raises:
        UserError: they are others than the checkpoint's.
    """
    expected = checkpoint.state.fingerprint
    if fingerprint != expected or set(names) != set(checkpoint.state.sources):
        raise UserError(
            f"checkpoint {checkpoint.snapshot.path} was trained on other data than {places} holds now "
            f"(fingerprint {expected[:12]}…, found {fingerprint[:12]}…): its position in "
            "the data means nothing there. Put the old data back, or type name=ANOTHER_NAME to start a new run"
        )


def load_model(network: nn.Module, snapshot: Snapshot, runtime: Runtime) -> None:
    """Fill the network, while it is whole on every rank: rank 0 reads the checkpoint and sends it to all. Collective.

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
        network.load_state_dict(snapshot.model if runtime.world_size == 1 else _FromRank0(snapshot.model, runtime))
    except RuntimeError as error:
        raise UserError(f"checkpoint {snapshot.path} holds another model than this one: {error}") from error


class _FromRank0(Mapping[str, Tensor]):
    """Tensors by name, read by rank 0 and sent to all. Every rank asks for each of them, in the same order."""

    def __init__(self, tensors: Tensors, runtime: Runtime) -> None:
        self._tensors, self._runtime = tensors, runtime

    def __getitem__(self, name: str) -> Tensor:
        shape, dtype = self._tensors.form(name)
        tensor = self._tensors[name] if self._runtime.is_main else torch.empty(shape, dtype=dtype)
        if tensor.numel():  # As bytes: gloo does not know every type.
            dist.broadcast(tensor.view(-1).view(torch.uint8), src=0, group=self._runtime.host_group)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def check_optimizer(
    network: nn.Module, snapshot: Snapshot, config: OptimizerConfig, settings: Mapping[str, Setting]
) -> None:
    """Check that the optimizer's state belongs to this optimizer and network.

    Args:
        network: whole on every rank.
        snapshot: of the checkpoint.
        config: of the optimizer.
        settings: of each parameter.

    Raises:
        UserError: it does not.
    """
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    kinds = {setting: state_slots(config, setting) for setting in set(settings.values())}
    for name, found in snapshot.optimizer.items():
        what, slots = None, kinds[settings[name]] if name in settings else {}
        if name not in shapes:
            what = f"a parameter '{name[:80]}', which the model lacks"
        elif found.keys() != slots.keys():
            what = f"{', '.join(sorted(found))[:200]} of {name}, expected {', '.join(sorted(slots))} of {config.name}"
        else:
            for slot in found:
                shape, dtype = found.form(slot)
                expected = shapes[name] if slots[slot] else torch.Size()
                if shape != expected or not dtype.is_floating_point:
                    what = f"{slot} of {name} of shape {list(shape)} and {dtype}, expected {list(expected)}"
        if what:
            raise UserError(f"checkpoint {snapshot.path} holds another optimizer than this one: it has {what}")


def load_weighting(weighting: Weighting, state: Mapping[str, Any], snapshot: Snapshot) -> None:
    """Give the weighting the state that it had.

    Raises:
        UserError: the weighting cannot use it.
    """
    try:
        _refuse_other_types(state, weighting.state_dict())
        weighting.load_state_dict(state)
    except Exception as error:  # A user's own weighting may fail in any way.
        raise UserError(
            f"checkpoint {snapshot.path} holds a state that balance.weighting cannot use: "
            f"{type(error).__name__}: {str(error)[:200]}"
        ) from error


def load_held(balancer: Balancer, held: HeldState | None, snapshot: Snapshot) -> None:
    """Give the balancer the weights that it held.

    Raises:
        UserError: they are those of other tasks.
    """
    try:
        balancer.renewal.load_state_dict(held.model_dump() if held else {}, len(balancer.names))
    except ValueError as error:
        raise UserError(f"checkpoint {snapshot.path} holds weights that cannot be used: {error}") from error


def _refuse_other_types(found: Any, fresh: Any, where: str = "state") -> None:
    """Refuse a string in place of a number, for example, which would fail only once it is computed with."""
    if isinstance(fresh, Mapping) and isinstance(found, Mapping):
        for key in fresh.keys() & found.keys():
            _refuse_other_types(found[key], fresh[key], f"{where}['{key}']")
        return
    for kind in (int | float, str, list, Mapping, torch.Tensor):
        if isinstance(fresh, kind) and not isinstance(found, kind):
            raise TypeError(f"{where} is a {type(found).__name__}, expected a {type(fresh).__name__}")
