"""Print the network interface that reaches another host: python -m launch.node.interface HEAD_HOST."""

import fcntl
import socket
import struct
import sys

from trainer.errors import UserError, run_command

SIOCGIFADDR = 0x8915
"""Linux's request for an interface's IPv4 address (netdevice(7))."""


def interface_to(host: str) -> str:
    """Return the name of the interface through which this machine reaches `host`; on `host` itself, the one it owns.

    Raises:
        UserError: `host` is unknown, or its name leads to a loopback address of this machine.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # UDP: connecting sends nothing.
            source = probe.getsockname()[0]
    except OSError as error:
        raise UserError(
            f"{socket.gethostname()} cannot reach HEAD_HOST={host}: {error}. Give node 0's IPv4 address, or name the "
            "interface: GLOO_SOCKET_IFNAME=NAME NCCL_SOCKET_IFNAME=NAME (ip -brief address lists them)"
        ) from None
    name = next((name for _, name in socket.if_nameindex() if _address_of(name) == source), None)
    if name is None or source.startswith("127."):
        raise UserError(
            f"on {socket.gethostname()} HEAD_HOST={host} leads to {source}, which no other host can reach: see "
            "/etc/hosts. Give node 0's address instead of its name"
        )
    return name


def _address_of(name: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            found = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
        except OSError:  # The interface has no address.
            return None
    return socket.inet_ntoa(found[20:24])


def main() -> None:
    """Run the command line."""
    if len(sys.argv) != 2:
        raise UserError("expected a host: python -m launch.node.interface HEAD_HOST")
    print(interface_to(sys.argv[1]))


if __name__ == "__main__":
    sys.exit(run_command(main))
