"""An encoder of the user's own, given by its dotted path, whose process loses its disk."""

import errno
import os
from typing import Any

from torch import Tensor

from models.lenet import LeNet
from trainer.data.reading import shard_files


class DiskGoneOnRank1(LeNet):
    """From its second training step on rank 1 can read no shard any more; a run's first forward is thrown away."""

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__(image_shape, dropout=0.0)
        self.num_forwards = 0

    def forward(self, x_BCHW: Tensor) -> Tensor:
        self.num_forwards += self.training
        if self.num_forwards == 3 and os.environ.get("RANK") == "1":
            shard_files.RETRY_AFTER_SECONDS = (0.1,)
            os.pread = _gone
        return super().forward(x_BCHW)


def _gone(*_: Any) -> bytes:
    raise OSError(errno.EIO, os.strerror(errno.EIO))
