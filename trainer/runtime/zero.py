"""DeepSpeed ZeRO-1/2/3: optimizer state, then gradients, then parameters in shards (Rajbhandari et al. 2020, arXiv
1910.02054).

DeepSpeed is called directly and not through accelerate, whose wrapper steps the optimizer inside `backward`: the loop
looks at what the backward found before it decides to step.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.errors import UserError
from trainer.runtime.engine import OptimizerState, State
from trainer.runtime.precision import LossScale

STEP = "step"
"""Adam's count of steps: one number for all parameters of a shard."""


class ZeroEngine:
    """ZeRO of `stage` 1, 2 or 3.

    Args:
        stage: what is sharded.
        network: the bare network, on its device, the same on every rank.
        build_optimizer: from parameters.
        clip_norm: upper bound of the gradient's norm; None: no bound.
        device: where the network lives.
        loss_scale: see `Engine`.
    """

    def __init__(
        self,
        stage: int,
        network: nn.Module,
        build_optimizer: Callable[[list[nn.Parameter]], Optimizer],
        clip_norm: float | None,
        device: torch.device,
        loss_scale: LossScale,
    ) -> None:
        deepspeed = _import_deepspeed(device)
        self._stage, self._network = stage, network
        self._engine, self.optimizer, _, _ = deepspeed.initialize(
            model=network,
            optimizer=build_optimizer(list(network.parameters())),
            config=settings(stage, clip_norm),
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

    def gather(self) -> State:
        """See `Engine`."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        saved = self._network.state_dict().keys()  # Without the buffers that a module rebuilds.
        model = {name: buffer for name, buffer in self._network.named_buffers() if name in saved}
        optimizer: dict[str, dict[str, Tensor]] = {}
        remembered = self._remembered()
        sharded = sorted(remembered.keys() - {STEP})  # Each is a collective: in one order on every rank.
        for name, parameter in self._network.named_parameters():
            weights = safe_get_full_fp32_param(parameter)
            slots = {slot: safe_get_full_optimizer_state(parameter, slot) for slot in sharded}
            if dist.get_rank() > 0:
                continue
            model[name] = weights.cpu()
            if remembered:
                alike = {STEP: remembered[STEP].clone()} if STEP in remembered else {}
                optimizer[name] = {slot: value.cpu() for slot, value in slots.items()} | alike
        return State(model, optimizer)

    def load_optimizer(self, state: OptimizerState) -> None:
        """See `Engine`."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if not state:
            return
        slots = next(iter(state.values()))
        for flat in self._flat_parameters():
            self.optimizer.optimizer.state[flat] = {
                slot: value.clone() if slot == STEP else torch.zeros_like(flat) for slot, value in slots.items()
            }
        if self._stage < 3:
            # What step() does after its first one: lets each parameter find its part of the state above.
            self.optimizer._lazy_init_hp_params_optimizer_state()
        for name, parameter in self._network.named_parameters():
            for slot, value in state.get(name, {}).items():
                if slot == STEP:
                    continue
                if self._stage < 3:
                    safe_set_full_optimizer_state(parameter, value, slot)
                else:
                    # Not the function above: it reaches beyond the end where the ranks do not divide the parameter.
                    numel = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
                    safe_set_local_optimizer_state(parameter, _share(value, numel), slot)

    def _flat_parameters(self) -> list[Tensor]:
        """This rank's shards, as the optimizer inside sees them."""
        if self._stage == 3:
            return list(self.optimizer.fp32_partitioned_groups_flat)
        return list(self.optimizer.single_partition_of_fp32_groups)

    def _remembered(self) -> dict[str, Tensor]:
        """What the optimizer inside remembers of its first shard; nothing before the first step."""
        state: dict[str, Tensor] = self.optimizer.optimizer.state.get(self._flat_parameters()[0], {})
        return {slot: value for slot, value in state.items() if value is not None}


def settings(stage: int, clip_norm: float | None) -> dict[str, Any]:
    """DeepSpeed's configuration, every number written out."""
    return {
        # For its own counters alone: how many samples a step has is the loader's business.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip_norm or 0.0,
        "zero_optimization": {"stage": stage},
        # Any optimizer that works element by element is right under ZeRO; its list holds Adam and few others.
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
    }


def _share(value: Tensor, numel: int) -> Tensor:
    """This rank's `numel` entries of a flat tensor, which zeros fill up where it ends before."""
    flat = value.flatten()
    padded = flat.new_zeros(numel * dist.get_world_size())
    padded[: flat.numel()] = flat
    return padded[numel * dist.get_rank() :][:numel]


def _import_deepspeed(device: torch.device) -> Any:
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
