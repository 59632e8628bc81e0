"""Build the engine of a strategy."""

import torch
from torch import nn

from models import MultiTaskModel
from trainer.config.sections.parallel import OffloadConfig
from trainer.config.strategies import STRATEGIES, StrategyName
from trainer.runtime.collectives import Runtime
from trainer.runtime.engines.engine import BuildOptimizer, Engine, TorchEngine
from trainer.runtime.engines.offload import NO_OFFLOAD, check_disk
from trainer.runtime.engines.precision import LossScale, Precision, lower_precision
from trainer.runtime.engines.zero import ZeroEngine, import_deepspeed


def build_engine(
    strategy: StrategyName,
    network: MultiTaskModel,
    build_optimizer: BuildOptimizer,
    runtime: Runtime,
    clip_norm: float | None,
    precision: Precision = "fp32",
    offload: OffloadConfig = NO_OFFLOAD,
    shard_processes: int | None = None,
    gather: Precision = "fp32",
) -> Engine:
    """Distribute a network over the ranks. Collective.

    Args:
        strategy: parallel.strategy.
        network: an encoder and its heads, with the parameters to start from, the same on every rank. The engine takes
            it over.
        build_optimizer: makes an optimizer of the trained parameters, each with its name; it must work element by
            element, as Adam does.
        runtime: the processes.
        clip_norm: upper bound of the gradient's norm over all parameters; None: no bound.
        precision: parallel.precision.
        offload: parallel.offload.
        shard_processes: parallel.shard_processes.
        gather: parallel.gather.

    Raises:
        UserError: the strategy is not installed, or this machine cannot offload.
    """
    lower_precision(network, precision, runtime.device)
    loss_scale = LossScale(precision)
    if not STRATEGIES[strategy].shards:
        model = runtime.accelerator.prepare_model(network)
        if runtime.world_size > 1 and not isinstance(model, nn.parallel.DistributedDataParallel):
            raise AssertionError(f"accelerate left the model unwrapped: {type(model).__name__}")
        return TorchEngine(network, model, build_optimizer, clip_norm, loss_scale)
    # Shards are ranges of flat parameters, and fully_shard refuses parameters in channels_last format.
    network = network.to(runtime.device, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    stage = STRATEGIES[strategy].zero_stage
    if stage is None:
        from trainer.runtime.engines.fsdp import Fsdp2Engine, hybrid_mesh  # torch takes more than a second to load it.

        mesh = hybrid_mesh(runtime.device, runtime.world_size, shard_processes) if shard_processes else None
        return Fsdp2Engine(network, build_optimizer, clip_norm, loss_scale, mesh, gather)
    with runtime.raise_together():
        import_deepspeed(runtime.device)
        check_disk(offload)
    return ZeroEngine(stage, network, build_optimizer, clip_norm, runtime.device, loss_scale, offload, shard_processes)
