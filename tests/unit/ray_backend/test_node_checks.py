"""The checks on the nodes of a cluster before a run starts: each test plays one node, in a process without Ray."""

import http.server
import re
import threading
from contextlib import contextmanager

import pytest

from crmuons.ray_backend import node_checks
from crmuons.ray_backend.node_checks import NodeCheck
from crmuons.storage.files import File
from crmuons.tracking.health import unreachable_reason


def check(storage, mark, data=None):
    return NodeCheck(str(storage), mark, data, None)


def test_a_node_that_shares_storage_and_data_finds_no_fault_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    storage = tmp_path / "new" / "runs"
    with node_checks.marker_file(storage) as mark:
        found = node_checks.run_node_check(check(storage, mark, File(str(tmp_path / "a.parquet"), 4)))
        assert [each.name for each in storage.iterdir()] == [mark]
    assert found == ([], node_checks.versions(), None)
    assert not list(storage.iterdir())


def test_a_directory_of_the_same_name_that_is_another_one_is_told_from_the_drivers(tmp_path):
    with node_checks.marker_file(tmp_path / "driver") as mark:
        (fault,) = node_checks.run_node_check(check(tmp_path, mark)).faults  # There is a directory, without the mark.
    assert f"run.storage_path = {tmp_path} is not the driver's directory" in fault
    assert "or a URL" in fault


def test_a_mark_that_is_seen_where_nothing_can_be_written_is_a_fault(tmp_path):
    # /proc refuses every new file, to root as well.
    (fault,) = node_checks.run_node_check(check("/proc", "version")).faults
    assert "run.storage_path = /proc cannot be written" in fault
    assert "every node can write to" in fault


def test_storage_and_data_are_told_together(tmp_path):
    missing = File(str(tmp_path / "gone.parquet"), 4)
    storage, data = node_checks.run_node_check(check(tmp_path, "no-mark", missing)).faults
    assert "run.storage_path" in storage
    assert f"{missing.url} of data.train cannot be read" in data


def test_a_url_and_the_nodes_own_copy_have_to_be_writable(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (fault,) = node_checks.run_node_check(check("memory://bucket/runs", None)).faults
    assert f"{tmp_path / 'file'} is a file" in fault
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert node_checks.run_node_check(check("memory://bucket/runs", None)).faults == []


def test_the_driver_refuses_a_storage_path_that_is_a_file(tmp_path):
    (tmp_path / "runs").touch()
    with pytest.raises(NotADirectoryError, match="runs is a file"), node_checks.marker_file(tmp_path / "runs"):
        pass


def test_versions_that_differ_are_named_with_both_values():
    ours = {"Python": "3.11.7", "torch": "2.13.0", "crmuons": "0.1.0 (source aaaa)"}
    assert node_checks.compare_versions(ours, dict(ours)) == []
    theirs = ours | {"torch": "2.12.0"}
    del theirs["Python"]
    python, torch = node_checks.compare_versions(ours, theirs)
    assert python == "Python is missing, the driver's is 3.11.7; install the same on all nodes"
    assert torch == "torch is 2.12.0, the driver's is 2.13.0; install the same on all nodes"


def test_what_has_to_be_the_same_is_independent_of_torchs_build(monkeypatch):
    version = {"ray": "2.60.0", "torch": "2.13.0+cpu", "crmuons": "0.1.0"}
    monkeypatch.setattr("importlib.metadata.version", version.__getitem__)
    on_cpu = node_checks.versions()
    version["torch"] = "2.13.0+cu128"
    assert node_checks.versions() == on_cpu
    version["torch"] = "2.12.0+cu128"
    assert node_checks.versions() != on_cpu


def test_a_fault_of_many_nodes_is_told_once():
    told = {f"n{number}": ["no data"] for number in range(5)} | {"other": ["no data", "old"], "good": []}
    assert node_checks.by_node(told) == ["on nodes n0, n1, n2 and 3 more: no data", "on node other: old"]


def test_workers_have_to_fit_on_nodes_not_in_the_sum_of_the_cluster():
    nodes = [{"CPU": 3.0}, {"CPU": 3.0}, {"GPU": 1.0}]
    node_checks.check_fit("workers", 6, {"CPU": 1.0, "GPU": 0.0}, nodes)
    node_checks.check_fit("workers", 6, {"CPU": 1 - 1e-12}, nodes)
    node_checks.check_fit("workers", 3, {"CPU": 1 / 3}, [{"CPU": 1.0}])
    with pytest.raises(
        ValueError,
        match=r"3 workers of 2 CPU each do not fit: the nodes have at most 3 CPU each and room for 2 workers; ask",
    ):
        node_checks.check_fit("workers", 3, {"CPU": 2.0}, nodes)
    with pytest.raises(ValueError, match="1 workers of 1 CPU and 1 GPU each"):  # No node has both.
        node_checks.check_fit("workers", 1, {"CPU": 1.0, "GPU": 1.0}, nodes)


@contextmanager
def server(status, body):
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST  # noqa: N815 - the name that http.server looks for

        def log_message(self, *_):
            pass

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.server_address[1]}"
    finally:
        listening.shutdown()
        listening.server_close()


def test_a_tracking_server_is_asked_as_the_run_will_ask_it():
    with server(200, b"{}") as uri:
        assert unreachable_reason(uri) is None
    assert re.search("refused|reset", unreachable_reason(uri))  # It has gone.
    with server(401, b"who are you?") as uri:
        assert "401" in unreachable_reason(uri)
    assert unreachable_reason("sqlite:////nowhere/mlflow.db") is None
