"""parallel.precision: a 16-bit forward over float32 parameters, and the loss scale that float16 needs.

Every strategy uses the same mechanism: `torch.autocast` inside the network's own forward. Parameters, gradients,
optimizer state, losses, the Gram matrix and all messages stay float32 or better. So α and a step mean the same under
every strategy, and a checkpoint does not depend on the precision. The mixed-precision modes of FSDP2 and DeepSpeed
would also save the backward's copy of the parameters, 2 bytes each, but keep norms and running statistics in 16 bits.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import nn

Precision = Literal["fp32", "bf16", "fp16"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def lower_precision(network: nn.Module, precision: Precision, device: torch.device) -> None:
    """Make the network's forward compute in `precision`, whatever wraps it later. Compute losses outside of it."""
    if precision != "fp32":
        autocast = torch.autocast(device.type, dtype=DTYPES[precision])
        network.forward = autocast(network.forward)


def lowered(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """Return a block in which a network computes in `precision`, as it does once `lower_precision` was called."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, dtype=DTYPES[precision])


class LossScale:
    """The factor of the loss in a backward, which keeps the gradients in float16's range.

    Dynamic loss scaling (Micikevicius et al. 2018, arXiv 1710.03740, section 3.2) with the constants of torch's
    GradScaler, which cannot read DeepSpeed's gradients. The scale is always a power of two, so scaling never rounds. It
    is the same on every rank, since all ranks see the norm of the whole gradient.

    Attributes:
        value: the scale of the next backward; always 1 if the precision is not fp16.
    """

    START = 2.0**16
    GROWS_AFTER_STEPS = 2000

    def __init__(self, precision: Precision = "fp32") -> None:
        self._is_dynamic = precision == "fp16"
        self.value = self.START if self._is_dynamic else 1.0
        self._num_sound_steps = 0

    def update(self, overflow: bool) -> None:
        """Halve the scale after an overflow, down to 1; double it after many steps without one."""
        if not self._is_dynamic:
            return
        self._num_sound_steps = 0 if overflow else self._num_sound_steps + 1
        if overflow:
            self.value = max(self.value / 2, 1.0)
        elif self._num_sound_steps == self.GROWS_AFTER_STEPS:
            self.value, self._num_sound_steps = 2 * self.value, 0

    def state_dict(self) -> dict[str, float]:
        """Return what a checkpoint must hold; empty if the precision is not fp16."""
        return {"value": self.value, "num_sound_steps": self._num_sound_steps} if self._is_dynamic else {}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue as saved; start anew if the run that saved had another precision."""
        if self._is_dynamic and state:
            self.value, self._num_sound_steps = state["value"], int(state["num_sound_steps"])
