"""Runtimes as a launcher leaves them."""

import os

import torch
import torch.distributed as dist
from accelerate import Accelerator

from trainer.runtime.distributed import Runtime

ALONE = Runtime(None, 0, 1, torch.device("cpu"), None)  # type: ignore[arg-type]


def a_runtime(rank: int, world_size: int) -> Runtime:
    # As a launcher leaves it; the ranks have met already, and nobody goes to that address.
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{world_size}"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "OMP_NUM_THREADS": "1"}
    return Runtime(Accelerator(cpu=True), rank, world_size, torch.device("cpu"), dist.new_group())
