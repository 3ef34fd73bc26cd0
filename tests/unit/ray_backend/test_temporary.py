"""A cluster's directory: nobody else can enter it, its path is short enough, and what a stranger left there is not used."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from crmuons import provenance
from crmuons.ray_backend import temporary

NOBODY = 65534
ENVIRONMENT = Path(__file__).parents[3] / "cluster" / "environment.sh"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as a second user")


@pytest.fixture
def base(monkeypatch):
    """A short directory as /tmp is: everybody may write, and rename what is their own."""
    with temporary.tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        Path(folder).chmod(0o1777)
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield Path(folder)


def from_python(_: Path) -> Path:
    return temporary.private_directory()


def from_script(home: Path) -> Path:
    code = f'set -euo pipefail; source {ENVIRONMENT}; make_private_folder; echo "$folder"'
    environment = os.environ | {"HOME": str(home)}
    return Path(
        subprocess.run(["bash", "-c", code], env=environment, check=True, capture_output=True, text=True).stdout.strip()
    )


@pytest.fixture(params=[from_python, from_script])
def make(request, tmp_path):
    return lambda: request.param(tmp_path)


def as_nobody(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import os; os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY}); {code}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_only_its_owner_can_enter_and_it_is_used_again(make, base):
    folder = make()
    assert folder.parent == base
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)  # As an older version may have left it.
    assert make() == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@needs_root
def test_another_user_can_neither_read_nor_change_what_ray_opens_to_all(make, base):
    session = make() / "ray" / "session" / "runtime_resources"
    session.mkdir(parents=True)
    for folder in (session.parent.parent, session.parent, session):
        folder.chmod(0o777)  # As Ray does, whatever the umask.
    code = session / "helper.py"
    code.write_text("original")
    code.chmod(0o666)
    for attempt in (f"open({str(code)!r})", f"open({str(code)!r}, 'w')", f"os.listdir({str(session)!r})",
                    f"os.rename({str(session.parents[2])!r}, {str(base / 'x')!r})"):  # fmt: skip
        done = as_nobody(attempt)
        assert "PermissionError" in done.stderr, attempt
    assert code.read_text() == "original"
    assert not temporary.is_open_to_others(session)
    session.parents[2].chmod(0o755)
    assert temporary.is_open_to_others(session)
    assert as_nobody(f"open({str(code)!r}, 'w')").returncode == 0  # The attempts above can succeed.


@needs_root
@pytest.mark.parametrize("left", ["directory", "link", "file"])
def test_what_a_stranger_made_ready_is_not_used(make, base, tmp_path, left):
    place = base / f"ray-{os.getuid()}"
    if left == "directory":
        place.mkdir()
        os.chown(place, NOBODY, NOBODY)
    elif left == "link":
        (
            base / "own"
        ).mkdir()  # A link of the stranger to a directory of this user: the stranger may point it elsewhere.
        place.symlink_to(base / "own")
        os.lchown(place, NOBODY, NOBODY)
    else:
        place.touch()
        os.chown(place, NOBODY, NOBODY)
    folder = make()
    assert folder != place
    assert (folder.lstat().st_uid, stat.S_IMODE(folder.lstat().st_mode)) == (os.getuid(), 0o700)


def test_a_path_that_is_too_long_for_sockets_is_refused_if_chosen_and_passed_over_if_not(base, tmp_path, monkeypatch):
    long = base / ("long" * 10)
    long.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    with pytest.raises(OSError, match=r"its path is \d+ characters too long for a socket.* set RAY_TMPDIR to"):
        temporary.private_directory()
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr(temporary, "ELSEWHERE", (str(base),))
    assert temporary.private_directory().parent == base


def test_the_longest_accepted_path_holds_a_socket(base, monkeypatch):
    room = temporary.MAX_SOCKET_PATH - len(f"{base}//ray-{os.getuid()}-xxxxxxxx{temporary.RAY_NAME}")
    fits = base / ("x" * room)
    fits.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(fits))
    place = Path(f"{temporary.private_directory()}-xxxxxxxx{temporary.RAY_NAME}")
    place.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(place))
    fits.with_name("x" * (room + 1)).mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(fits) + "x")
    with pytest.raises(OSError, match="1 characters too long"):
        temporary.private_directory()


def test_a_directory_where_others_may_replace_names_is_refused(base, monkeypatch):
    base.chmod(0o777)
    with pytest.raises(OSError, match="every user may replace what is in it"):
        temporary.private_directory()


def test_a_long_tmpdir_is_replaced_for_python_and_a_short_one_stays(base, monkeypatch):
    monkeypatch.setattr(temporary.tempfile, "tempdir", "/x" * 40)
    monkeypatch.setenv("TMPDIR", "/x" * 40)
    temporary.shorten_tmpdir(base)
    assert os.environ["TMPDIR"] == temporary.tempfile.gettempdir() == str(base)
    temporary.shorten_tmpdir(base / "other")
    assert os.environ["TMPDIR"] == str(base)


def test_a_user_without_a_name_has_one(monkeypatch):
    """As `docker run --user 54321`, OpenShift and pools start it: no entry in /etc/passwd, no USER, perhaps no HOME."""
    for name in ("USER", "LOGNAME", "LNAME", "USERNAME", "HOME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # KeyError for every uid, as for one that is in no list.
    assert provenance.user_name() == f"uid-{os.getuid()}"
    provenance.complete_environment()
    assert (os.environ["USER"], os.environ["HOME"]) == (f"uid-{os.getuid()}", "/")
