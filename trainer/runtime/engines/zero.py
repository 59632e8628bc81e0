"""DeepSpeed ZeRO-1/2/3: optimizer state, then gradients, then parameters in shards (Rajbhandari et al. 2020, arXiv
1910.02054).

DeepSpeed is called directly and not through accelerate, whose wrapper steps the optimizer inside `backward`: the loop
looks at what the backward found before it decides to step.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.config.schema import OffloadConfig
from trainer.errors import UserError
from trainer.runtime.checkpoints.pieces import OptimizerState, Piece, piece_of
from trainer.runtime.engines.averaging import averaged, swap
from trainer.runtime.engines.engine import place
from trainer.runtime.engines.offload import NO_OFFLOAD, offload_settings
from trainer.runtime.engines.precision import LossScale

MAX_BUCKET_ENTRIES = 500_000_000
"""DeepSpeed's reduce_bucket_size, which it would set aside whole, however small the model."""
STEP = "step"
"""Adam's count of steps: one number for all parameters of a shard."""


@dataclass(frozen=True)
class _Fragment:
    """This rank's part of a parameter.

    Attributes:
        name: the parameter's.
        shape: the whole parameter's.
        start: how many of its entries come before.
        flat: the parameters' shards on this rank, one after another, as the optimizer inside sees them.
        here: where the part lies in `flat`, and in what the optimizer remembers of it.
    """

    name: str
    shape: torch.Size
    start: int
    flat: Tensor
    here: slice

    def piece(self, name: str, flat: Tensor) -> Piece:
        """What lies in `flat`, which has the layout of this one."""
        return Piece(name, self.shape, self.start, flat.detach()[self.here])

    def fill(self, flat: Tensor, whole: Tensor) -> None:
        """Put this rank's part of a whole tensor in its place."""
        mine = flat.detach()[self.here]
        mine.copy_(whole.flatten()[self.start :][: mine.numel()])


class ZeroEngine:
    """ZeRO of `stage` 1, 2 or 3.

    Args:
        stage: what is sharded.
        network: the bare network, on its device, the same on every rank.
        build_optimizer: from parameters.
        clip_norm: upper bound of the gradient's norm; None: no bound.
        device: where the network lives.
        loss_scale: see `Engine`.
        offload: what goes out of the device's memory; see `check_disk`.
    """

    def __init__(
        self,
        stage: int,
        network: nn.Module,
        build_optimizer: Callable[[list[nn.Parameter]], Optimizer],
        clip_norm: float | None,
        device: torch.device,
        loss_scale: LossScale,
        offload: OffloadConfig = NO_OFFLOAD,
    ) -> None:
        deepspeed = import_deepspeed(device)
        self._stage, self._network = stage, network
        self._engine, self.optimizer, _, _ = deepspeed.initialize(
            model=network,
            optimizer=build_optimizer(list(network.parameters())),
            config=settings(stage, clip_norm, [p.numel() for p in network.parameters()], offload, place()[1]),
            dist_init_required=False,
        )
        self.model: nn.Module = self._engine
        self.predictor: nn.Module = self._engine if stage == 3 else network
        self.loss_scale = loss_scale

    @contextmanager
    def micro_step(self, is_last: bool) -> Iterator[None]:
        """See `Engine`."""
        self._engine.set_gradient_accumulation_boundary(is_last)
        yield
        self._engine.set_gradient_accumulation_boundary(True)

    def backward(self, loss: Tensor) -> None:
        """See `Engine`."""
        with torch.autograd.set_multithreading_enabled(False):
            self._engine.backward(loss * self.loss_scale.value)

    def step(self) -> Tensor:
        """See `Engine`."""
        # Not by DeepSpeed's own scale: with one, its stage 3 refuses the backward by which a window looks at the heads.
        if self.loss_scale.value != 1:
            for group in self.optimizer.averaged_gradients.values():
                for gradient in group:
                    gradient /= self.loss_scale.value
        self._engine.step()
        self.loss_scale.update(overflow=self.optimizer.overflow)
        if self.optimizer.overflow:  # Its word for a norm that is not finite; no step was made.
            return torch.tensor(torch.inf)
        return torch.as_tensor(self._engine.get_global_grad_norm())

    def discard(self) -> None:
        """See `Engine`."""
        self.optimizer.zero_grad()
        # Stages 1 and 2 have copied them already, and would add the next backward's to the copy.
        for copies in (self.optimizer.averaged_gradients, getattr(self.optimizer, "all_grad_tensors", {})):
            for group in copies:
                copies[group] = None
        # And those that are offloaded, with what was found out about them.
        self.optimizer.reset_cpu_buffers()
        if self._stage < 3:
            self.optimizer.micro_step_id = -1

    def averaged(self) -> AbstractContextManager[None]:
        """See `Engine`."""
        return averaged(self.optimizer.optimizer.state, self._swap_averages)

    def model_pieces(self) -> Iterator[Piece]:
        """See `Engine`."""
        rank, world_size = place()
        saved = self._network.state_dict().keys()  # Without the buffers that a module rebuilds.
        for name, buffer in self._network.named_buffers():
            if rank == 0 and name in saved:
                yield piece_of(name, buffer, rank=0, world_size=1)
        for fragment in self._fragments():
            yield fragment.piece(fragment.name, fragment.flat)
        for name, parameter in self._network.named_parameters():
            if parameter.requires_grad:
                continue
            if self._stage < 3:  # It is in no shard.
                yield piece_of(name, parameter, rank, world_size)
            else:
                start, length = _share(parameter)
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
                elif fragment.start == 0:  # On one rank alone.
                    yield piece_of(name, value, rank=0, world_size=1)

    def load_optimizer(self, state: OptimizerState) -> None:
        """See `Engine`."""
        if not state:
            return
        slots = next(iter(state.values()))
        remembered = self.optimizer.optimizer.state
        for group, flat in enumerate(self._flat_parameters()):
            with self._in_memory(group):
                remembered[flat] = {
                    slot: slots[slot].clone() if slot == STEP else torch.zeros_like(flat) for slot in slots
                }
                for fragment in self._fragments_of(group, flat):
                    for slot in state.get(fragment.name, {}).keys() - {STEP}:
                        fragment.fill(remembered[flat][slot], state[fragment.name][slot])

    def _fragments(self) -> Iterator[_Fragment]:
        """Where this rank's parts of the parameters lie, which is in memory until the next one is asked for."""
        for group, flat in enumerate(self._flat_parameters()):
            with self._in_memory(group):
                yield from self._fragments_of(group, flat)

    def _fragments_of(self, group: int, flat: Tensor) -> Iterator[_Fragment]:
        for name, parameter in self._network.named_parameters():
            if not parameter.requires_grad:
                continue
            if self._stage == 3:
                shape, (start, length) = parameter.ds_shape, _share(parameter)  # type: ignore[attr-defined]
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
        """While a shard, and what is remembered of it, lies in memory and not on a disk."""
        on_disk = self._stage == 3 and self.optimizer._swappable_optimizer_subgroup(group)
        if on_disk:
            self.optimizer._optimizer_states_and_gradient_swap_in(group)
        yield
        if on_disk:
            self.optimizer._optimizer_states_and_gradient_swap_out(group)

    def _flat_parameters(self) -> list[Tensor]:
        """This rank's shards, as the optimizer inside sees them."""
        if self._stage == 3:
            return list(self.optimizer.fp32_partitioned_groups_flat)
        return list(self.optimizer.single_partition_of_fp32_groups)

    def _swap_averages(self) -> None:
        """And bring what stands in the shards then to the parameters that a forward uses, as DeepSpeed's step does."""
        if self._stage == 3:
            self.optimizer._partition_all_parameters()
        for group, flat in enumerate(self._flat_parameters()):
            with self._in_memory(group):
                swap(flat, self.optimizer.optimizer.state[flat])
                if self._stage == 3:
                    self.optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if self._stage < 3:
            self.optimizer.update_lp_params()


def _share(parameter: Any) -> tuple[int, int]:
    """Of a parameter under ZeRO-3, where this rank's part begins, and how many entries it has."""
    length = parameter.partition_numel()
    start = min(place()[0] * length, parameter.ds_shape.numel())
    # Behind the last entry there may be padding.
    return start, min(length, parameter.ds_shape.numel() - start)


def settings(
    stage: int, clip_norm: float | None, num_entries: Sequence[int], offload: OffloadConfig, world_size: int
) -> dict[str, Any]:
    """DeepSpeed's configuration, every number written out; `num_entries` of each parameter."""
    return {
        # For its own counters alone: how many samples a step has is the loader's business.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip_norm or 0.0,
        "zero_optimization": {"stage": stage, "reduce_bucket_size": min(sum(num_entries), MAX_BUCKET_ENTRIES)}
        | offload_settings(offload, -(-max(num_entries) // world_size)),
        # Torch's optimizers step on the CPU too; DeepSpeed's own would be compiled first, and round otherwise.
        "zero_force_ds_cpu_optimizer": False,
        # Any optimizer that works element by element is right under ZeRO; its list holds Adam and few others.
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
    }


def import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, which must be told of the device before.

    Raises:
        UserError: it is not installed.
    """
    # DeepSpeed asks these of the environment alone; on a machine with a GPU it would take that one.
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
    # It calls torch by names that torch 2.13 would have replaced, at every collective.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    # Else it would compile, for minutes, collectives in shared memory that torch's own do as well.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
