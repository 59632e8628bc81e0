"""An encoder of the user's own, given by its dotted path, whose process loses its disk."""

import errno
import os
from typing import Any

from torch import Tensor

from tests.support.faulty import Counting
from trainer.data.reading import shard_files


class DiskGoneOnRank1(Counting):
    """From its second training step on rank 1 can read no shard any more; its first two forwards are thrown away."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        z_BD = super().forward(x_BCHW)
        if self.num_forwards == 4 and os.environ.get("RANK") == "1":
            shard_files.RETRY_AFTER_SECONDS = (0.1,)
            os.pread = _gone
        return z_BD


def _gone(*_: Any) -> bytes:
    raise OSError(errno.EIO, os.strerror(errno.EIO))
