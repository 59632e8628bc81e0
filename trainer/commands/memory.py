"""Estimate what one process needs under each strategy, memory and bytes on the wire, from the sizes of a run.

The estimate is a written model that can be checked. It adds up everything that lives in a step as if all of it lived at
the same time, which is not quite so for gradients and activations.

W is the number of processes. Messages go around a ring: a process sends (W - 1) / W of what an all-gather or a
reduce-scatter handles, and twice that for an all-reduce.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from paretrain.gram import CHUNK_ENTRIES
from trainer.config.sections.optimizer import OptimizerConfig
from trainer.config.sections.parallel import OffloadConfig
from trainer.config.strategies import STRATEGIES, StrategyName
from trainer.runtime.engines.offload import NO_OFFLOAD
from trainer.runtime.engines.precision import Precision
from trainer.runtime.engines.zero import MAX_BUCKET_ENTRIES
from trainer.training.optimizer.build import state_slots
from trainer.training.optimizer.settings import Setting

ENTRY_BYTES = 4
"""Parameters, gradients and optimizer state are float32."""
ZERO_BUCKET_BYTES = ENTRY_BYTES * MAX_BUCKET_ENTRIES
"""Upper bound of DeepSpeed's buffer on every process for gradients that are about to be sent."""
ZERO3_LIVE_BYTES = ENTRY_BYTES * 1_000_000_000
"""DeepSpeed's stage3_max_live_parameters and stage3_max_reuse_distance: up to this size, ZeRO-3 keeps gathered
parameters until the backward has used them."""
SPARE = 0.1
"""Fraction of a GPU's memory that is left for what the estimate does not include."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the whole model and of one process's part of a batch, in bytes.

    Attributes:
        parameters: all parameters.
        trained: the parameters that are not frozen.
        largest: the largest parameter.
        buffers: all buffers, such as BatchNorm's running statistics.
        optimizer: the optimizer state of all parameters.
        parts: the parameters of each part that FSDP2 gathers on its own, the root first; empty under other strategies.
        batch: the inputs and targets of a step, over all its micro-batches.
        activations: what the forward of one micro-batch keeps for its backward.
        balancer: see `split_bytes`, `stacked_bytes` and `parameter_gradients_bytes`.
    """

    parameters: int
    trained: int
    largest: int
    buffers: int
    optimizer: int
    parts: tuple[int, ...]
    batch: int
    activations: int
    balancer: int


@dataclass(frozen=True)
class MemoryEstimate:
    """What one process needs, in bytes.

    Attributes:
        parameters: parameters and buffers.
        communication: what the strategy gathers, and its send buffers.
        sent: bytes that a process sends in a step, without those for α.
        offloaded: what lies in host memory or on its disk instead.
    """

    parameters: int
    gradients: int
    optimizer: int
    communication: int
    batch: int
    activations: int
    balancer: int
    sent: int
    offloaded: int = 0

    @property
    def total(self) -> int:
        """Return the sum of everything that is not offloaded."""
        held = self.parameters + self.gradients + self.optimizer + self.communication
        return held + self.batch + self.activations + self.balancer

    def fits(self, gpu_bytes: int) -> bool:
        """Return whether a GPU with `gpu_bytes` of memory has room for the total, and `SPARE` for the rest."""
        return self.total <= gpu_bytes * (1 - SPARE)


def estimate_memory(
    sizes: Sizes,
    strategy: StrategyName,
    world_size: int,
    offload: OffloadConfig = NO_OFFLOAD,
    shard_processes: int | None = None,
    gather: Precision = "fp32",
) -> MemoryEstimate:
    """Estimate what one of `world_size` processes needs.

    Args:
        sizes: of the model and the batch.
        strategy: parallel.strategy.
        world_size: parallel.processes.
        offload: parallel.offload.
        shard_processes: parallel.shard_processes.
        gather: parallel.gather.
    """
    shards, stage = STRATEGIES[strategy].shards, STRATEGIES[strategy].zero_stage
    num_shards = world_size if stage == 3 else shard_processes or world_size
    shard = -(-sizes.trained // num_shards)
    needed = MemoryEstimate(
        parameters=sizes.buffers + (-(-sizes.parameters // num_shards) if "parameters" in shards else sizes.parameters),
        gradients=shard if "gradients" in shards else sizes.trained,
        optimizer=-(-sizes.optimizer // num_shards) if "optimizer" in shards else sizes.optimizer,
        communication=0,
        batch=sizes.batch,
        activations=sizes.activations,
        balancer=sizes.balancer,
        sent=0,
    )
    if not shards:
        buckets = sizes.trained if world_size > 1 else 0
        return replace(needed, communication=buckets, sent=_sent(2 * sizes.trained, world_size))
    if stage is None:
        return _of_fsdp2(needed, sizes, num_shards, world_size // num_shards, gather)
    return _of_zero(needed, sizes, stage, world_size, shard_processes, offload)


def _of_fsdp2(
    needed: MemoryEstimate, sizes: Sizes, num_shards: int, num_copies: int, gather: Precision
) -> MemoryEstimate:
    """Add what FSDP2 gathers and sends.

    It keeps the root whole until the backward. One of the other parts computes while the next one is gathered, and one
    has whole gradients, which are copied to be scattered. Between copies of the model, gradients are reduced.
    """
    root, *others = sizes.parts
    halves = 2 if gather == "fp32" else 1  # Of a float32, for each gathered entry and its gradient.
    handled = halves * (2 * sizes.parameters - root) // 2 + sizes.trained
    shard = -(-sizes.trained // num_shards)
    return replace(
        needed,
        communication=(halves * (root + 3 * max(others))) // 2 + max(others),
        sent=_sent(handled, num_shards) + 2 * shard * (num_copies - 1) // num_copies,
    )


def _of_zero(
    needed: MemoryEstimate,
    sizes: Sizes,
    stage: int,
    world_size: int,
    shard_processes: int | None,
    offload: OffloadConfig,
) -> MemoryEstimate:
    """Add what DeepSpeed's ZeRO gathers, sends and copies, and take away what it offloads."""
    whole, trained = sizes.parameters, sizes.trained
    shard = -(-trained // world_size)
    parameters, gradients, optimizer, offloaded = needed.parameters, needed.gradients, needed.optimizer, 0
    communication, sent = min(whole, ZERO_BUCKET_BYTES), _sent(3 * trained, world_size)
    if stage == 1:
        gradients += shard
    if stage == 3:
        communication += min(whole, ZERO3_LIVE_BYTES)
        sent = _sent(whole + trained, world_size)
        if whole > ZERO3_LIVE_BYTES:  # The backward gathers again.
            sent += _sent(whole, shard_processes or world_size)
        if shard_processes:  # A second copy of the parameters, inside the group.
            parameters += -(-whole // shard_processes)
    if offload.parameters != "none":
        offloaded += parameters - sizes.buffers
        parameters = sizes.buffers
    if offload.optimizer == "none":
        parameters += shard  # The optimizer steps a copy.
    else:
        # That copy, its gradient, and one more of each in transit.
        offloaded += optimizer + 3 * shard
        gradients, optimizer = gradients - shard, 0
        if stage != 3:  # A gradient passes through a buffer of its own at both ends.
            communication, offloaded = communication + sizes.largest, offloaded + sizes.largest
    return replace(
        needed,
        parameters=parameters,
        gradients=gradients,
        optimizer=optimizer,
        communication=communication,
        sent=sent,
        offloaded=offloaded,
    )


def _sent(handled: int, num_processes: int) -> int:
    """Return what a process of a ring sends of what the ring handles."""
    return handled * (num_processes - 1) // num_processes


def optimizer_bytes(
    parameters: Mapping[str, nn.Parameter], config: OptimizerConfig, settings: Mapping[str, Setting]
) -> int:
    """Return the size of the optimizer state of the trained parameters."""
    slots = {setting: sum(state_slots(config, setting).values()) for setting in set(settings.values())}
    return sum(slots[settings[name]] * parameter.nbytes for name, parameter in parameters.items())


def split_bytes(num_tasks: int, z_bytes: int) -> int:
    """Return what `Balancer.split` needs: one gradient of the size of z per task, their stack, and a chunk of it in
    float64.
    """
    stack = num_tasks * z_bytes
    return 2 * stack + min(2 * stack, 8 * CHUNK_ENTRIES) + _gram_bytes(num_tasks)


def stacked_bytes(num_tasks: int, z_bytes: int, errors_bytes: int, weight_bytes: int) -> int:
    """Return what `Balancer.linear` needs: the errors (B, T, C), a float64 copy of them and of the weights (T, C, D),
    and a chunk of every task's gradient.
    """
    part = min(3 * num_tasks * z_bytes, 12 * CHUNK_ENTRIES)
    return 3 * errors_bytes + 2 * weight_bytes + part + _gram_bytes(num_tasks)


def parameter_gradients_bytes(num_groups: int, encoder_bytes: int, world_size: int, strategy: StrategyName) -> int:
    """Return what MGDA in parameter space needs: this rank's shard of each group's gradient of the encoder, of the last
    one once more, and of their sum; a chunk in float64; where the strategy does not scatter it itself, the whole
    gradient, flat, and as gloo receives it; and the parameters, where FSDP2 keeps them gathered.
    """
    shards = (num_groups + 2) * -(-encoder_bytes // world_size)
    whole = 0 if STRATEGIES[strategy].shards else 2 * encoder_bytes
    gathered = encoder_bytes if strategy == "fsdp2" and num_groups >= world_size else 0
    return shards + whole + gathered + min(2 * shards, 8 * CHUNK_ENTRIES) + _gram_bytes(num_groups)


def _gram_bytes(num_tasks: int) -> int:
    """Return the size of the Gram matrix and of its packed, reduced and unpacked copies."""
    return 4 * 8 * num_tasks**2
