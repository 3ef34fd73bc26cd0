"""Wait until a cluster has its nodes: `python -m jobs.wait_for_nodes NUMBER`, where RAY_ADDRESS says which cluster."""

import argparse
import os
import socket
import sys
import time

import ray

from crmuons.ray_backend import cluster

PAUSE_S = 1.0


def main() -> int:
    """Wait; exit code 1 and one sentence where nodes are missing at the end of the time."""
    parser = argparse.ArgumentParser(description="Wait until the cluster at RAY_ADDRESS has its nodes.")
    parser.add_argument("number", type=int, help="of nodes, the head among them")
    parser.add_argument("--seconds", type=float, default=300, help="give up after so long (default: 300)")
    arguments = parser.parse_args()
    end = time.monotonic() + arguments.seconds
    try:
        wait_for_head(os.environ["RAY_ADDRESS"], end)
        wait_for_nodes(arguments.number, end)
    except TimeoutError as error:
        print(f"wait_for_nodes: {error}", file=sys.stderr)
        return 1
    return 0


def wait_for_head(address: str, end: float) -> None:
    """Wait until something listens at an address.

    Raises:
        TimeoutError: if nothing does by the end, a time of `time.monotonic`.
    """
    host, _, port = address.rpartition(":")
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError as error:
            if time.monotonic() > end:
                msg = f"nothing listens at RAY_ADDRESS = {address} ({error}); what the head node's step wrote says why"
                raise TimeoutError(msg) from error
            time.sleep(PAUSE_S)
        else:
            return


def wait_for_nodes(number: int, end: float) -> None:
    """Wait until so many nodes are alive.

    Raises:
        TimeoutError: if fewer are by the end, a time of `time.monotonic`.
    """
    with cluster.cluster():
        while (alive := sum(node["Alive"] for node in ray.nodes())) < number:
            if time.monotonic() > end:
                msg = f"{alive} of {number} Ray nodes are there; what the missing nodes' steps wrote says why"
                raise TimeoutError(msg)
            time.sleep(PAUSE_S)


if __name__ == "__main__":
    sys.exit(main())
