"""Encoders and a rule, given by their dotted paths, that break on one rank of a run in its second step.

Two forwards come before step 1: one tries the network, and one is thrown away. So that of step 2 is the fourth.
"""

import errno
import os
import signal
from typing import Any

import numpy as np
from torch import Tensor

from models.encoders.lenet import LeNet
from paretrain import MinNormWeighting, Weights
from trainer.runtime.checkpoints import saving


class Breaking(LeNet):
    """Breaks on rank 1.

    Args:
        image_shape: see LeNet.
        where: in its forward, its backward, or when the rank writes the checkpoint of step 2.
        how: raise, disk (an error of the disk's), kill or stop; no: not at all.
    """

    def __init__(self, image_shape: tuple[int, int, int], where: str = "forward", how: str = "no") -> None:
        super().__init__(image_shape, dropout=0.0)
        self.where, self.how = where, how
        self.num_forwards = 0

    def forward(self, x_BCHW: Tensor) -> Tensor:
        self.num_forwards += self.training
        z_BD = super().forward(x_BCHW)
        if self.how != "no" and self.num_forwards == 4 and os.environ["RANK"] == "1":
            if self.where == "forward":
                self.break_here()
            if self.where == "backward":
                z_BD.register_hook(self.break_here)
            if self.where == "checkpoint":
                saving.write_files = self.break_here
        return z_BD

    def break_here(self, *_: Any) -> Any:
        if self.how == "raise":
            raise ValueError("no luck")
        if self.how == "disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[self.how])


class BreakingRule(MinNormWeighting):
    """Raises on rank 0, where rules run."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.num_calls = 0

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        self.num_calls += 1
        if self.num_calls == 2:
            raise ValueError("no luck")
        return super().__call__(gram_AA, losses_A, tasks_A)
