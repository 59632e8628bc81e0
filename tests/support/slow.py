"""An encoder that takes its time, so that a test can reach into the middle of a run."""

import time

from torch import Tensor

from models.encoders.lenet import LeNet


class SlowLeNet(LeNet):
    """LeNet, with a pause before each training forward."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """See LeNet."""
        if self.training:
            time.sleep(0.1)
        return super().forward(x_BCHW)
