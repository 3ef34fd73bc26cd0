"""Starting a local cluster that does not start at once."""

import subprocess
import sys

import pytest
import ray

from crmuons.ray_backend import cluster

LATE = "The current node timed out during startup. This could happen because some of the raylet failed to startup."


@pytest.fixture
def starting(monkeypatch):
    """Makes `ray.init` raise these errors in turn (None: succeed), and returns the processes that each start left."""
    left = []

    def fail_with(*errors):
        todo = iter(errors)

        def init(address, **_):
            assert address == "local"
            left.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
            if (error := next(todo)) is not None:
                raise error

        monkeypatch.setattr(ray, "init", init)
        return left

    yield fail_with
    for process in left:
        process.kill()
        process.wait()


@pytest.mark.parametrize("dashboard", [False, True])
def test_a_dashboard_is_started_where_it_is_asked_for(monkeypatch, dashboard):
    given = {}
    monkeypatch.setattr(ray, "init", lambda _, **options: given.update(options))
    with cluster.cluster(dashboard=dashboard):
        assert given["include_dashboard"] == dashboard


def test_a_start_that_takes_too_long_is_begun_again_and_leaves_nothing(starting):
    left = starting(Exception(LATE), None)
    with cluster.cluster():
        first, second = left
        assert first.wait(timeout=60) < 0
        assert second.poll() is None


def test_after_three_starts_that_fail_an_error_is_raised(starting):
    left = starting(*[Exception(LATE)] * 3)
    with pytest.raises(TimeoutError, match="try again when the machine is less busy"), cluster.cluster():
        pass
    assert len(left) == 3


def test_another_error_is_not_caught(starting):
    left = starting(Exception("no room for sockets"))
    with pytest.raises(Exception, match="no room for sockets"), cluster.cluster():
        pass
    assert len(left) == 1
