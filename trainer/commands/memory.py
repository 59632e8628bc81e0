"""From sizes to what one process needs: memory and bytes on the wire, under each strategy.

A model of it, written down so that it can be checked. Everything that lives in a step is added up as if it did so at
the same time, which gradients and activations do not quite.

W is the number of processes. Whatever travels goes around a ring, so a process sends (W - 1) / W of what an all-gather
or a reduce-scatter handles, and twice that for an all-reduce.
"""

from dataclasses import dataclass

from paretrain.gram import CHUNK_ENTRIES
from trainer.config.schema import OffloadConfig, OptimizerConfig
from trainer.runtime.engines.offload import NO_OFFLOAD
from trainer.runtime.engines.zero import MAX_BUCKET_ENTRIES

MOMENTS = {"adam": 2, "adamw": 2}
ENTRY_BYTES = 4
"""Parameters, gradients and optimizer state are float32."""
ZERO_BUCKET_BYTES = ENTRY_BYTES * MAX_BUCKET_ENTRIES
"""What DeepSpeed sets aside on every process for gradients that are about to be sent, at most."""
ZERO3_LIVE_BYTES = ENTRY_BYTES * 1_000_000_000
"""DeepSpeed's stage3_max_live_parameters and stage3_max_reuse_distance: up to here ZeRO-3 keeps what it has gathered
until the backward has used it."""
SPARE = 0.1
"""Of a GPU's memory: left for what the estimate does not hold."""


@dataclass(frozen=True)
class Sizes:
    """Of the whole model and of one process's share of a batch, in bytes.

    Attributes:
        parameters: all of them.
        largest: the largest one.
        buffers: all of them, such as BatchNorm's running statistics.
        optimizer: what the optimizer remembers of the parameters.
        parts: of each part that FSDP2 makes whole by itself, the root first, its parameters; empty elsewhere.
        batch: the inputs and targets of a step, of all its micro-batches.
        activations: what the forward of a micro-batch keeps for its backward.
        balancer: see `split_bytes` and its neighbours.
    """

    parameters: int
    largest: int
    buffers: int
    optimizer: int
    parts: tuple[int, ...]
    batch: int
    activations: int
    balancer: int


@dataclass(frozen=True)
class Estimate:
    """What one process needs, in bytes.

    Attributes:
        parameters: with the buffers.
        communication: what a strategy gathers, and room for what it sends.
        sent: bytes that a process sends in a step, those for α left out.
        offloaded: in the host's memory, or on its disk, for what was moved there.
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
    def memory(self) -> int:
        """All of it together but what is offloaded."""
        held = self.parameters + self.gradients + self.optimizer + self.communication
        return held + self.batch + self.activations + self.balancer

    def fits(self, gpu_bytes: int) -> bool:
        """Whether a GPU of so much memory has room for it, and for what no estimate holds."""
        return self.memory <= gpu_bytes * (1 - SPARE)


def estimate(sizes: Sizes, strategy: str, world_size: int, offload: OffloadConfig = NO_OFFLOAD) -> Estimate:
    """What one of `world_size` processes needs under `strategy` (parallel.strategy) and parallel.offload."""
    whole, share = sizes.parameters, -(-sizes.parameters // world_size)
    parameters = gradients = share
    optimizer, offloaded = -(-sizes.optimizer // world_size), 0
    if strategy in ("single", "ddp"):
        parameters = gradients = whole
        optimizer = sizes.optimizer
        communication = whole if world_size > 1 else 0  # DDP's buckets
        handled = 2 * whole
    elif strategy == "fsdp2":
        root, *others = sizes.parts
        # The root stays whole until the backward. Of the others one computes while the next one comes, and one has
        # whole gradients, which are copied to be scattered.
        communication = root + 4 * max(others)
        handled = 3 * whole - root
    else:
        gradients = share + (whole if strategy == "zero1" else 0)
        communication = min(whole, ZERO_BUCKET_BYTES)
        if strategy == "zero3":
            communication += min(whole, ZERO3_LIVE_BYTES)
            handled = (2 if whole <= ZERO3_LIVE_BYTES else 3) * whole
        else:
            parameters = whole
            handled = 3 * whole
        if offload.parameters != "none":
            offloaded += parameters
            parameters = 0
        if offload.optimizer == "none":
            parameters += share  # What the optimizer steps is a copy.
        else:
            # That copy, its gradient, and one more of either on its way.
            offloaded += optimizer + 3 * share
            gradients, optimizer = gradients - share, 0
            if strategy != "zero3":  # A gradient travels by a place of its own at both ends.
                communication, offloaded = communication + sizes.largest, offloaded + sizes.largest
    return Estimate(
        parameters=parameters + sizes.buffers,
        gradients=gradients,
        optimizer=optimizer,
        communication=communication,
        batch=sizes.batch,
        activations=sizes.activations,
        balancer=sizes.balancer,
        sent=handled * (world_size - 1) // world_size,
        offloaded=offloaded,
    )


def optimizer_bytes(parameters: int, config: OptimizerConfig) -> int:
    """What the optimizer remembers of so many bytes of parameters."""
    moments = MOMENTS.get(config.name, 1 if config.momentum else 0)
    return parameters * (moments + (config.ema_decay is not None))


def split_bytes(num_tasks: int, z_bytes: int) -> int:
    """Of `Balancer.split`: every task's gradient of the size of z, all of them stacked, a part of them in float64."""
    stack = num_tasks * z_bytes
    return 2 * stack + min(2 * stack, 8 * CHUNK_ENTRIES) + _gram_bytes(num_tasks)


def stacked_bytes(num_tasks: int, z_bytes: int, errors_bytes: int, weight_bytes: int) -> int:
    """Of `Balancer.linear`: the errors (B, T, C); they and the weights (T, C, D) once more in float64; a part of every
    task's gradient.
    """
    part = min(3 * num_tasks * z_bytes, 12 * CHUNK_ENTRIES)
    return 3 * errors_bytes + 2 * weight_bytes + part + _gram_bytes(num_tasks)


def parameter_gradients_bytes(num_tasks: int, encoder_bytes: int) -> int:
    """Of MGDA in the space of the parameters: every task's gradient of the encoder, stacked, and summed over ranks."""
    return 3 * num_tasks * encoder_bytes + _gram_bytes(num_tasks)


def _gram_bytes(num_tasks: int) -> int:
    """Its own, and as it is packed, reduced and mended."""
    return 4 * 8 * num_tasks**2
