"""Ports for servers that tests start."""

import random
import socket
from contextlib import suppress


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on now, and that the system gives to nobody's connections before a server listens on them."""
    found: set[int] = set()
    while len(found) < number:
        # Below net.ipv4.ip_local_port_range; beside the ports of Ray and of Slurm jobs.
        port = random.randrange(21_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
            found.add(port)
    return list(found)
