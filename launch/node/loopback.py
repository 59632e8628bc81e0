"""Let the processes of a run on one machine meet on the loopback interface, which no other machine can reach."""

import os
import socket
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters
from torch.distributed.elastic.rendezvous import rendezvous_handler_registry as registry
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

BACKEND = "loopback"
"""The value of accelerate's option --rdzv_backend."""
ADDRESS = "127.0.0.1"
INTERFACE = "lo"
TIMEOUT_SECONDS = 600


class LoopbackRendezvous(StaticTCPRendezvous):
    """A rendezvous of a single node that listens on the loopback interface alone, on a free port.

    Torch's own listens on every interface.
    """

    def __init__(self, run_id: str) -> None:
        listener = socket.create_server((ADDRESS, 0))
        port = listener.getsockname()[1]
        super().__init__(ADDRESS, port, rank=0, world_size=1, run_id=run_id, timeout=TIMEOUT_SECONDS)
        self._store = dist.TCPStore(  # type: ignore[attr-defined]
            ADDRESS,
            port,
            world_size=1,
            is_master=True,
            timeout=timedelta(seconds=TIMEOUT_SECONDS),
            multi_tenant=True,
            master_listen_fd=listener.detach(),
        )

    def get_backend(self) -> str:
        """Return the name under which it is registered."""
        return BACKEND


def use_loopback() -> None:
    """Register `BACKEND` with torch's launcher, and make gloo and NCCL use the loopback interface alone."""
    registry.register(BACKEND, _create)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", INTERFACE)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", INTERFACE)


def _create(parameters: RendezvousParameters) -> RendezvousHandler:
    return LoopbackRendezvous(parameters.run_id)
