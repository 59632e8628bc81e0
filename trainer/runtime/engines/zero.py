"""DeepSpeed ZeRO-1/2/3: shard optimizer state, then gradients, then parameters (Rajbhandari et al. 2020, arXiv
1910.02054).

DeepSpeed is called directly: accelerate's wrapper steps the optimizer inside `backward`, but the loop decides after the
backward whether to step.

The file is long because one engine serves the three stages: what they share outweighs what each does otherwise.
"""

import logging
import os
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from models.freezing import trained
from trainer.config.sections.parallel import OffloadConfig
from trainer.errors import UserError
from trainer.runtime.checkpoints.pieces import OptimizerState, Piece, piece_of
from trainer.runtime.engines.averaging import averaged, swap
from trainer.runtime.engines.engine import BuildOptimizer, rank_and_size
from trainer.runtime.engines.offload import NO_OFFLOAD, offload_settings
from trainer.runtime.engines.precision import LossScale
from trainer.runtime.engines.shards import Room

MAX_BUCKET_ENTRIES = 500_000_000
"""Upper bound of DeepSpeed's reduce_bucket_size, all of which it would allocate, however small the model."""
STEP = "step"
"""The slot of Adam's count of steps: one number for all parameters of a shard."""


@dataclass(frozen=True)
class _Fragment:
    """This rank's part of a parameter.

    Attributes:
        name: the parameter's name.
        shape: the whole parameter's shape.
        start: the index of the part's first entry.
        flat: a group of this rank's parts, one after another, as the wrapped optimizer sees them.
        here: where this part lies in `flat`, and in each slot of the optimizer for `flat`.
    """

    name: str
    shape: torch.Size
    start: int
    flat: Tensor
    here: slice

    def piece(self, name: str, flat: Tensor) -> Piece:
        """Return this part of `flat`, a tensor with the layout of `self.flat`."""
        return Piece(name, self.shape, self.start, flat.detach()[self.here])

    def fill(self, flat: Tensor, whole: Tensor) -> None:
        """Copy this part of a whole tensor into `flat`, a tensor with the layout of `self.flat`."""
        mine = flat.detach()[self.here]
        mine.copy_(whole.flatten()[self.start :][: mine.numel()])


class ZeroEngine:
    """ZeRO of stage 1, 2 or 3.

    Args:
        stage: 1: shard optimizer state; 2: gradients too; 3: parameters too.
        network: the bare network, on its device, the same on every rank.
        build_optimizer: makes an optimizer of the trained parameters, each with its name.
        clip_norm: upper bound of the gradient's norm; None: no bound.
        device: where the network lives.
        loss_scale: see `Engine`.
        offload: what to keep outside the device's memory; see `check_disk`.
        group_size: stage 3: this many neighbouring ranks hold a second copy of the parameters in shards, from which the
            backward gathers: hpZ of ZeRO++ (Wang et al. 2023, arXiv 2306.10209). None: no second copy.
    """

    def __init__(
        self,
        stage: int,
        network: nn.Module,
        build_optimizer: BuildOptimizer,
        clip_norm: float | None,
        device: torch.device,
        loss_scale: LossScale,
        offload: OffloadConfig = NO_OFFLOAD,
        group_size: int | None = None,
    ) -> None:
        deepspeed = import_deepspeed(device)
        self._stage, self._network = stage, network
        num_entries = [parameter.numel() for parameter in network.parameters()]
        self._engine, self.optimizer, _, _ = deepspeed.initialize(
            model=network,
            optimizer=build_optimizer(list(trained(network).items())),
            config=settings(stage, clip_norm, num_entries, offload, rank_and_size()[1], group_size),
            dist_init_required=False,
        )
        self.model: nn.Module = self._engine
        self.predictor: nn.Module = self._engine if stage == 3 else network
        self.loss_scale = loss_scale
        # Between `take_shard` and `put_shard`: the last gradients as DeepSpeed has them, and the sums of what stayed.
        self._averaged: dict[int, list[Tensor]] = {}
        self._stayed: dict[str, Tensor] = {}
        self._room = Room()

    @contextmanager
    def micro_step(self, is_last: bool) -> Iterator[None]:
        """See `Engine`."""
        self._engine.set_gradient_accumulation_boundary(is_last)
        yield
        self._engine.set_gradient_accumulation_boundary(True)

    def backward(self, loss: Tensor, *, keep_graph: bool = False) -> None:
        """See `Engine`."""
        with torch.autograd.set_multithreading_enabled(False):
            self._engine.backward(loss * self.loss_scale.value, retain_graph=keep_graph)

    def in_shards(self, num_backwards: int) -> AbstractContextManager[None]:
        """See `Engine`."""
        self._forget()
        return nullcontext()

    def new_shards(self, names: Sequence[str], num_backwards: int) -> Tensor:
        """See `Engine`."""
        flats = self._flat_parameters()
        fragments = [part for group, flat in enumerate(flats) for part in self._fragments_of(group, flat)]
        size = sum(part.here.stop - part.here.start for part in fragments if part.name in names)
        return self._room.shards(num_backwards, size, flats[0])

    def take_shard(self, names: Sequence[str], shard_S: Tensor, *, add: bool) -> None:
        """See `Engine`."""
        self._averaged = dict(self.optimizer.averaged_gradients)
        self._drop()
        is_first = not self._stayed
        start = 0
        for name, gradient in self._averaged_parts():
            if name in names:
                there = shard_S[start : start + len(gradient)]
                there.copy_(there + gradient if add else gradient)
                start += len(gradient)
            elif is_first:  # DeepSpeed forgets the gradients of the other parameters, so their sum is kept here.
                self._stayed[name] = gradient.clone()
            else:
                self._stayed[name] += gradient
        self._forget()

    def _forget(self) -> None:
        """Zero the gradients of stage 3: a backward replaces only those of the parameters that it reaches."""
        if self._stage == 3:
            self.optimizer.grad_partitions_flat_buffer.zero_()

    def put_shard(self, names: Sequence[str], shard_S: Tensor) -> None:
        """See `Engine`."""
        start = 0
        for name, gradient in self._averaged_parts():
            if name in names:
                gradient.copy_(shard_S[start : start + len(gradient)])
                start += len(gradient)
            else:
                gradient.copy_(self._stayed[name])
        self.optimizer.averaged_gradients.update(self._averaged)
        self._stayed, self._averaged = {}, {}

    def _averaged_parts(self) -> Iterator[tuple[str, Tensor]]:
        """Yield this rank's part of the last gradient of each parameter: the parameter's name, and a flat view."""
        for group, flat in enumerate(self._flat_parameters()):
            gradients = self._averaged[group]
            starts = list(accumulate((gradient.numel() for gradient in gradients[:-1]), initial=0))
            for fragment in self._fragments_of(group, flat):
                number = bisect_right(starts, fragment.here.start) - 1
                here = slice(fragment.here.start - starts[number], fragment.here.stop - starts[number])
                yield fragment.name, gradients[number].view(-1)[here]

    def step(self) -> Tensor:
        """See `Engine`."""
        # DeepSpeed's own loss scale is not used: with it, stage 3 refuses the backward that a window makes for the
        # heads.
        if self.loss_scale.value != 1:
            for group in self.optimizer.averaged_gradients.values():
                for gradient in group:
                    gradient /= self.loss_scale.value
        self._engine.step()
        self.loss_scale.update(overflow=self.optimizer.overflow)
        if self.optimizer.overflow:  # The norm was not finite, and no step was made.
            return torch.tensor(torch.inf)
        return torch.as_tensor(self._engine.get_global_grad_norm())

    def discard(self) -> None:
        """See `Engine`."""
        self._stayed, self._averaged = {}, {}
        self._drop()

    def _drop(self) -> None:
        self.optimizer.zero_grad()
        # Stages 1 and 2 have copied the gradients already, and would add the next ones to the copies.
        for copies in (self.optimizer.averaged_gradients, getattr(self.optimizer, "all_grad_tensors", {})):
            for group in copies:
                copies[group] = None
        # The offloaded gradients too, with their norms.
        self.optimizer.reset_cpu_buffers()
        if self._stage < 3:
            self.optimizer.micro_step_id = -1

    def averaged(self) -> AbstractContextManager[None]:
        """See `Engine`."""
        return averaged(self.optimizer.optimizer.state, self._swap_averages)

    def model_pieces(self) -> Iterator[Piece]:
        """See `Engine`."""
        rank, world_size = rank_and_size()
        saved = self._network.state_dict().keys()  # Without non-persistent buffers.
        for name, buffer in self._network.named_buffers():
            if rank == 0 and name in saved:
                yield piece_of(name, buffer, rank=0, world_size=1)
        for fragment in self._fragments():
            yield fragment.piece(fragment.name, fragment.flat)
        for name, parameter in self._network.named_parameters():
            if parameter.requires_grad:
                continue
            if self._stage < 3:  # Frozen parameters are in no shard.
                yield piece_of(name, parameter, rank, world_size)
            else:
                start, length = _shard_range(parameter)
                yield Piece(name, parameter.ds_shape, start, parameter.ds_tensor[:length])  # type: ignore[attr-defined]

    def optimizer_pieces(self) -> Iterator[Piece]:
        """See `Engine`."""
        for fragment in self._fragments():
            for slot, value in self.optimizer.optimizer.state.get(fragment.flat, {}).items():
                name = f"{fragment.name}/{slot}"
                if value is None:  # SGD's momentum_buffer, where there is no momentum
                    continue
                if slot != STEP:
                    yield fragment.piece(name, value)
                elif fragment.start == 0:  # Saved by one rank.
                    yield piece_of(name, value, rank=0, world_size=1)

    def load_optimizer(self, state: OptimizerState) -> None:
        """See `Engine`."""
        if not state:
            return
        slots = next(iter(state.values()))
        own_state = self.optimizer.optimizer.state
        for group, flat in enumerate(self._flat_parameters()):
            with self._in_memory(group):
                own_state[flat] = {
                    slot: slots[slot].clone() if slot == STEP else torch.zeros_like(flat) for slot in slots
                }
                for fragment in self._fragments_of(group, flat):
                    for slot in state.get(fragment.name, {}).keys() - {STEP}:
                        fragment.fill(own_state[flat][slot], state[fragment.name][slot])

    def _fragments(self) -> Iterator[_Fragment]:
        """Yield this rank's parts of the parameters. Each is in memory until the next one is asked for."""
        for group, flat in enumerate(self._flat_parameters()):
            with self._in_memory(group):
                yield from self._fragments_of(group, flat)

    def _fragments_of(self, group: int, flat: Tensor) -> Iterator[_Fragment]:
        for name, parameter in self._network.named_parameters():
            if not parameter.requires_grad:
                continue
            if self._stage == 3:
                shape, (start, length) = parameter.ds_shape, _shard_range(parameter)  # type: ignore[attr-defined]
                its_group, offset, _ = self.optimizer.grad_position[self.optimizer.get_param_id(parameter)]
                fragment = _Fragment(name, shape, start, flat, slice(offset, offset + length))
            elif mapping := getattr(parameter, "_hp_mapping", None):
                start, there = mapping.lp_fragment_address.start, mapping.hp_fragment_address
                its_group = mapping.param_group_index
                fragment = _Fragment(name, parameter.shape, start, flat, slice(there.start, there.start + there.numel))
            else:
                continue
            if its_group == group:
                yield fragment

    @contextmanager
    def _in_memory(self, group: int) -> Iterator[None]:
        """Hold a group of parts, and its optimizer state, in memory inside the block, if it is offloaded to a disk."""
        on_disk = self._stage == 3 and self.optimizer._swappable_optimizer_subgroup(group)
        if on_disk:
            self.optimizer._optimizer_states_and_gradient_swap_in(group)
        yield
        if on_disk:
            self.optimizer._optimizer_states_and_gradient_swap_out(group)

    def _flat_parameters(self) -> list[Tensor]:
        """Return the groups of this rank's parts, as the wrapped optimizer sees them."""
        if self._stage == 3:
            return list(self.optimizer.fp32_partitioned_groups_flat)
        return list(self.optimizer.single_partition_of_fp32_groups)

    def _swap_averages(self) -> None:
        """Swap the shards with their averages, then update the parameters of forwards, as DeepSpeed's step does."""
        if self._stage == 3:
            self.optimizer._partition_all_parameters()
            self.optimizer.invalidate_secondary_tensor()
        for group, flat in enumerate(self._flat_parameters()):
            with self._in_memory(group):
                swap(flat, self.optimizer.optimizer.state[flat])
                if self._stage == 3:
                    self.optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if self._stage < 3:
            self.optimizer.update_lp_params()


def _shard_range(parameter: Any) -> tuple[int, int]:
    """Return the first entry of this rank's part of a parameter under ZeRO-3, and the number of its entries."""
    length = parameter.partition_numel()
    start = min(rank_and_size()[0] * length, parameter.ds_shape.numel())
    # There may be padding after the last entry.
    return start, min(length, parameter.ds_shape.numel() - start)


def settings(
    stage: int,
    clip_norm: float | None,
    num_entries: Sequence[int],
    offload: OffloadConfig,
    world_size: int,
    group_size: int | None = None,
) -> dict[str, Any]:
    """Return DeepSpeed's configuration, every number written out; `num_entries` has the size of each parameter."""
    return {
        # Used for DeepSpeed's own counters only: the loader decides on the samples of a step.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip_norm or 0.0,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": min(sum(num_entries), MAX_BUCKET_ENTRIES),
            "zero_hpz_partition_size": group_size or 1,
        }
        | offload_settings(offload, -(-max(num_entries) // world_size)),
        # Torch's optimizers step on the CPU too; DeepSpeed's must be compiled first, and rounds differently.
        "zero_force_ds_cpu_optimizer": False,
        # ZeRO is correct for any optimizer that works element by element; DeepSpeed's list has Adam and few others.
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
    }


def import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed and return it, set up for a device.

    Raises:
        UserError: it is not installed.
    """
    # DeepSpeed reads these from the environment only; by default it would use a GPU if there is one.
    os.environ["DS_ACCELERATOR"] = device.type
    os.environ.setdefault("LOCAL_RANK", "0")
    try:
        import deepspeed
    except ImportError as error:
        raise UserError(
            f"parallel.strategy=zero1, zero2 and zero3 need DeepSpeed, which cannot be imported ({error}). "
            "Install it: pip install 'paretrain[deepspeed]'. Or type parallel.strategy=fsdp2"
        ) from None
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # At every collective DeepSpeed calls torch by names that are deprecated since torch 2.13.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    # Otherwise it would compile, for minutes, shared-memory collectives that are no better than torch's.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
