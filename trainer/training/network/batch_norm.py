"""BatchNorm takes its statistics from the samples of one process, which may be few."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

FEW_SAMPLES = 8


def few_samples(network: nn.Module, samples: int) -> str | None:
    """Return a sentence about BatchNorm that sees few samples; None where there is none of it, or there are more.

    Args:
        network: the whole one.
        samples: of a forward of one process.
    """
    kinds = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    if samples >= FEW_SAMPLES or all(isinstance(module, nn.SyncBatchNorm) for module in kinds):
        return None
    return (
        f"BatchNorm takes its statistics from {samples} sample{'s' if samples > 1 else ''}, those of one process: they "
        "are noisy, and differ with the number of processes. Use GroupNorm (model.encoder.options.norm=group for our "
        "ResNets), on GPUs SyncBatchNorm (norm=sync), or a larger train.global_batch"
    )
