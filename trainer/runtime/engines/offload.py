"""parallel.offload: DeepSpeed's settings for it, and a check that this machine can do it."""

import os
import tempfile
from pathlib import Path
from typing import Any

from trainer.config.sections.parallel import OffloadConfig
from trainer.errors import UserError

NO_OFFLOAD = OffloadConfig()

DISK_GROUP_ENTRIES = 100_000_000
"""Parameters that are read from the disk at a time. DeepSpeed's default is ten times as many."""
DISK_BUFFERS = 5
"""Buffers of one such group each: parameters, gradients, Adam's two moments, the average."""


def offload_settings(config: OffloadConfig, largest_shard: int) -> dict[str, Any]:
    """Return the settings for DeepSpeed's `zero_optimization`.

    Args:
        config: what is offloaded, and to where.
        largest_shard: one process's number of entries of the largest parameter.
    """
    asked = {"offload_optimizer": config.optimizer, "offload_param": config.parameters}
    found: dict[str, Any] = {
        key: _device_settings(device, config.nvme_dir) for key, device in asked.items() if device != "none"
    }
    if config.optimizer == "nvme":
        found["offload_optimizer"]["buffer_count"] = DISK_BUFFERS
        found["sub_group_size"] = DISK_GROUP_ENTRIES
    if config.parameters == "nvme":
        # By default DeepSpeed leaves the first billion in the host's memory, and has buffers of 100 million.
        found["offload_param"] |= {"max_in_cpu": 0, "buffer_size": largest_shard}
    return found


def check_disk(config: OffloadConfig) -> None:
    """Make sure that this machine can offload to a disk, if that is configured.

    Raises:
        UserError: nvme_dir cannot be written to, or DeepSpeed's `async_io`, which writes there, cannot be built.
    """
    if config.nvme_dir is None:
        return
    try:
        config.nvme_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=config.nvme_dir) as file:
            file.write(b"\0")
    except OSError as error:
        raise UserError(
            f"parallel.offload.nvme_dir={config.nvme_dir} is not a folder that can be written to: {error}. "
            "Type one on a disk of this machine's own"
        ) from None
    from deepspeed.ops.op_builder import AsyncIOBuilder

    try:
        AsyncIOBuilder().load(verbose=False)
    except Exception as error:
        raise UserError(
            "parallel.offload to nvme needs DeepSpeed's async_io, which cannot be built here: "
            f"{str(error).strip().splitlines()[0]}\nIt needs a C++ compiler, ninja and libaio with its headers "
            "(apt install build-essential ninja-build libaio-dev). Or type cpu in place of nvme"
        ) from None


def _device_settings(device: str, nvme_dir: Path | None) -> dict[str, Any]:
    return {"device": device} | ({"nvme_path": os.fspath(nvme_dir)} if device == "nvme" and nvme_dir else {})
