"""parallel.precision: the forward in fewer bits over float32 parameters, and the loss scale that float16 needs.

One way under every strategy: `torch.autocast` inside the network's own forward. Parameters, their gradients, what the
optimizer remembers, losses, Gram matrix and every message stay float32 or better, so α and a step mean the same
everywhere, and a checkpoint does not depend on it. What the modes of FSDP2 and DeepSpeed would save beyond that is the
backward's copy of the parameters, 2 bytes each, at the price of norms and running statistics in 16 bits.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

Precision = Literal["fp32", "bf16", "fp16"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def lower_precision(network: nn.Module, precision: Precision, device: torch.device) -> None:
    """Let the network's forward compute in `precision`, whatever wraps it later. Its losses belong outside."""
    if precision != "fp32":
        autocast = torch.autocast(device.type, dtype=DTYPES[precision])
        network.forward = autocast(network.forward)


class LossScale:
    """By what a loss is multiplied before its backward, so that float16 can hold the gradients on their way.

    Dynamic loss scaling (Micikevicius et al. 2018, arXiv 1710.03740, section 3.2), with torch's GradScaler's numbers; a
    class of its own because that one cannot look into DeepSpeed's gradients. It stays a power of two: scaling rounds
    nothing. The same on every rank, since all ranks see the same norm of the whole gradient.

    Attributes:
        value: the scale of the next backward; always 1 where the precision is not fp16.
    """

    START = 2.0**16
    GROWS_AFTER_STEPS = 2000

    def __init__(self, precision: Precision = "fp32") -> None:
        self._is_dynamic = precision == "fp16"
        self.value = self.START if self._is_dynamic else 1.0
        self._num_sound_steps = 0

    def update(self, overflow: bool) -> None:
        """Learn from a step: halve after an overflow, down to 1; double after many sound steps in a row."""
        if not self._is_dynamic:
            return
        self._num_sound_steps = 0 if overflow else self._num_sound_steps + 1
        if overflow:
            self.value = max(self.value / 2, 1.0)
        elif self._num_sound_steps == self.GROWS_AFTER_STEPS:
            self.value, self._num_sound_steps = 2 * self.value, 0

    def state_dict(self) -> dict[str, float]:
        """Return what a checkpoint must hold; nothing where the precision is not fp16."""
        return {"value": self.value, "num_sound_steps": self._num_sound_steps} if self._is_dynamic else {}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on as saved; from a run in another precision: as new."""
        if self._is_dynamic and state:
            self.value, self._num_sound_steps = state["value"], int(state["num_sound_steps"])
