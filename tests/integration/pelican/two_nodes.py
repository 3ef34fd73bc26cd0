"""A driver on one node and workers on another that shares no directory and has no token: python -m tests.integration.pelican.two_nodes

usage: OTHER_HOME URL RENEWED WORDS... where BEARER_TOKEN_FILE names the driver's token, and RENEWED a file that replaces it.
"""

import os
import shutil
import sys
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from crmuons.cli import main
from crmuons.ray_backend.tokens import receive, shared
from crmuons.storage.pelican import tokens


def signatures() -> tuple[list[str], list[str]]:
    """The ends of the tokens that the other node finds by itself, and in all."""
    receive()
    return [each.value[-8:] for each in tokens.local_tokens()], [each.value[-8:] for each in tokens.find_tokens()]


def run(other_home: Path, url: str, renewed: Path, words: list[str]) -> int:
    """Share a token, renew it, and train."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    there = {"HOME": str(other_home), "XDG_RUNTIME_DIR": str(other_home), "BEARER_TOKEN_FILE": ""}
    cluster.add_node(num_cpus=3, env_vars=there | {"XDG_CACHE_HOME": str(other_home / "cache")})
    ray.init(cluster.address, log_to_driver=False)
    seen = ray.remote(signatures)
    mine = Path(os.environ["BEARER_TOKEN_FILE"])
    with shared([url]):
        before = mine.read_text()[-8:]
        print("shared:", ray.get(seen.remote()) == ([], [before]))
        shutil.copyfile(renewed, mine)
        deadline = time.monotonic() + 60
        while ray.get(seen.remote())[1] != [renewed.read_text()[-8:]]:
            assert time.monotonic() < deadline, "the other node never saw the renewed token"
            time.sleep(1)
        print("renewed: True")
    code = main(words)
    ray.shutdown()
    cluster.shutdown()
    return code


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:]))
