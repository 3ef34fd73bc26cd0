"""Wait until the cluster at RAY_ADDRESS has its nodes: `python -m jobs.wait_for_nodes NUMBER`."""

import argparse
import os
import socket
import sys
import time

import ray

from crmuons.ray_backend import cluster
from crmuons.unforeseen import guarded

PAUSE_S = 1.0


def main() -> int:
    """Wait; raise TimeoutError if nodes are missing when the time is over."""
    parser = argparse.ArgumentParser(description="Wait until the cluster at RAY_ADDRESS has its nodes.")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("number", type=int, help="number of nodes, including the head")
    parser.add_argument("--seconds", type=float, default=300, help="give up after this time (default: 300)")
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.seconds
    if "RAY_ADDRESS" not in os.environ:
        msg = "RAY_ADDRESS is not set; it is HOST:PORT of the cluster's head"
        raise ValueError(msg)
    wait_for_head(os.environ["RAY_ADDRESS"], deadline)
    wait_for_nodes(arguments.number, deadline)
    return 0


def wait_for_head(address: str, deadline: float) -> None:
    """Wait until something listens at an address.

    Args:
        address: HOST:PORT.
        deadline: a time of `time.monotonic`.

    Raises:
        TimeoutError: if nothing listens by the deadline.
    """
    host, _, port = address.rpartition(":")
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError as error:
            if time.monotonic() > deadline:
                msg = (
                    f"nothing listens at RAY_ADDRESS = {address} ({error}); the output of the head node's step gives the "
                    "reason"
                )
                raise TimeoutError(msg) from error
            time.sleep(PAUSE_S)
        else:
            return


def wait_for_nodes(number: int, deadline: float) -> None:
    """Wait until this number of nodes is alive.

    Args:
        number: number of nodes, including the head.
        deadline: a time of `time.monotonic`.

    Raises:
        TimeoutError: if fewer nodes are alive at the deadline.
    """
    with cluster.cluster():
        while (alive := sum(node["Alive"] for node in ray.nodes())) < number:
            if time.monotonic() > deadline:
                msg = (
                    f"{alive} of {number} Ray nodes are alive; the output of the missing nodes' steps gives the reason"
                )
                raise TimeoutError(msg)
            time.sleep(PAUSE_S)


if __name__ == "__main__":
    sys.exit(guarded("wait_for_nodes", main, sys.argv[1:]))
