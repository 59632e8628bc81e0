"""What a step computes and holds: its floating-point operations, their share of the device's peak, and its memory."""

import resource
from dataclasses import dataclass

import psutil
import torch

from trainer.runtime.engines.precision import Precision

PEAK_TFLOPS = {
    "NVIDIA A100": 312.0,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H100 NVL": 835.0,
    "NVIDIA H100": 989.0,
    "NVIDIA H200 NVL": 835.0,
    "NVIDIA H200": 989.0,
    "NVIDIA L40S": 362.0,
}
"""Peak of dense 16-bit matrix products in TFLOP/s, from the data sheets; the first name that a device's begins with
counts. In float32 the peak depends on TF32, so none is given."""


@dataclass(frozen=True)
class StepCost:
    """What one sample costs, and what a device could do.

    Attributes:
        flops_per_sample: of the forward and the backward of the plain network, without α. What activation checkpointing
            computes twice counts twice.
        peak_tflops: of one process's device; None: unknown.
    """

    flops_per_sample: int
    peak_tflops: float | None

    def of_speed(self, samples_per_second: float, world_size: int) -> dict[str, float]:
        """Return `tflops_per_process`, and `mfu_percent` (model FLOPs utilization) where the peak is known.

        Chowdhery et al. 2022, arXiv 2204.02311, appendix B, define it.
        """
        tflops = self.flops_per_sample * samples_per_second / world_size / 1e12
        found = {"tflops_per_process": tflops}
        return found | ({"mfu_percent": 100 * tflops / self.peak_tflops} if self.peak_tflops else {})


def peak_tflops(device: torch.device, precision: Precision) -> float | None:
    """Return the peak of a device in TFLOP/s; None where it is not known."""
    if device.type != "cuda" or precision == "fp32":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for start, peak in PEAK_TFLOPS.items() if name.startswith(start)), None)


def memory_mib() -> float:
    """Return what this process holds: tensors on the GPU where there is one, else what is resident on the host."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated() / 2**20
    return float(psutil.Process().memory_info().rss) / 2**20


def peak_memory_mib() -> float:
    """Return the peak of the same in this process's life."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
