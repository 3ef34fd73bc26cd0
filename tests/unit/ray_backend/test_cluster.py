"""The address of a cluster is tried before Ray does, which would take minutes to give up."""

import os
import socket
import time

import pytest

from crmuons.ray_backend import cluster


def test_a_dead_cluster_is_named_at_once(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        cluster.check_head(f"127.0.0.1:{port}")
        cluster.check_head(f"ray://127.0.0.1:{port}")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    begin = time.monotonic()
    with (
        pytest.raises(
            ConnectionError, match=rf"nothing answers at RAY_ADDRESS = 127\.0\.0\.1:{port} \(Connection refused\)"
        ),
        cluster.cluster(),
    ):
        pass
    assert time.monotonic() - begin < cluster.CONNECT_S


@pytest.mark.parametrize("address", ["", " ", "local"])
def test_an_address_that_names_no_cluster_starts_one_as_none_does(monkeypatch, address):
    """Ray itself would start a cluster that every user of the machine may change."""
    monkeypatch.setattr(cluster.private, "listen_on_loopback", lambda: None)  # It changes Ray in this process.
    monkeypatch.setattr(os, "environ", {**os.environ, "RAY_ADDRESS": address, "RAY_AUTH_MODE": "token"})
    cluster.set_environment()
    assert "RAY_ADDRESS" not in os.environ
    assert cluster.LOCAL_ENVIRONMENT.items() <= os.environ.items()


def test_a_host_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        held = [socket.socket() for _ in range(4)]  # Fill the queue of connections that nobody accepts.
        for each in held:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        with pytest.raises(ConnectionError, match="timed out"):
            cluster.check_head(f"127.0.0.1:{port}")
        for each in held:
            each.close()


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "head", "head:port", ":6379", "head:99999"])
def test_an_address_of_another_form_is_refused(address):
    with pytest.raises(ValueError, match="is not HOST:PORT of a cluster's head node"):
        cluster.check_head(address)


@pytest.mark.parametrize("address", ["auto", "local", ""])
def test_what_ray_finds_itself_is_left_to_it(address):
    cluster.check_head(address)
