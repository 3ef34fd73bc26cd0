"""Web servers: what they send wrongly costs time or one sentence, never a wrong byte; directories and globs are listed."""

from dataclasses import replace

import numpy as np
import pytest
from fsspec.asyn import sync

from crmuons.data import arrow, reader
from crmuons.data.sampler import cut_files
from crmuons.data.selection import Selection
from crmuons.storage import files
from crmuons.storage.http import reading, site, sources, whole
from crmuons.storage.staging.cache_dir import CacheDir
from crmuons.storage.staging.download import Staging
from tests.integration.http.faulty_web import FAULTS, serving


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """A client of its own with short waits, and no proxy."""
    monkeypatch.setenv("CRMUONS_HTTP_READ_S", "0.2")
    monkeypatch.setattr(sources, "FIRST_WAIT_S", 0.005)
    monkeypatch.setattr(sources, "LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(site, "_instances", {})
    yield
    for made in site._instances.values():
        if made.web._session is not None:
            sync(made.loop, made.web._session.close)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def parquet(tmp_path_factory, toy_events):
    """Two files of events by their paths on the server."""
    folder = tmp_path_factory.mktemp("events")
    for name, seed in (("a", 1), ("b", 2)):
        arrow.write_events(folder / name, [arrow.to_table(toy_events(60, seed=seed))], row_group_rows=60)
    return {f"/data/{name}.parquet": (folder / name).read_bytes() for name in ("a", "b")}


def give_up_soon():
    """Let the client give up where it would wait for half a minute. A busy machine may need that for a right answer."""
    web = site.web_files().web
    web.waits = replace(web.waits, start_s=0.1, patience_s=0.1)


def read_all(url):
    """Return the ids, counts and muons of all events below a URL."""
    parts = [reader.read_slice(part, Selection("all"))[0] for part in cut_files(files.list_files(url))]
    return [np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "counts", "muons")]


def equal(one, other):
    return all(np.array_equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def right(parquet, tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    for name, content in parquet.items():
        (folder / name.rpartition("/")[2]).write_bytes(content)
    return read_all(str(folder))


def is_data(request):
    return request.method == "GET" and request.range != "bytes=0-0"


def test_faults_that_pass_cost_no_row(parquet, tmp_path):
    """Every third answer with data is wrong, in each way that is known."""
    one_file = {"/data/a.parquet": parquet["/data/a.parquet"]}
    (tmp_path / "a.parquet").write_bytes(one_file["/data/a.parquet"])
    right = read_all(str(tmp_path))
    for fault in FAULTS:
        seen = []

        def every_third(request, seen=seen, fault=fault):
            seen.append(is_data(request))
            return fault if seen[-1] and sum(seen) % 3 == 2 else None

        with serving(one_file, fault=every_third) as web:
            if fault == "redirect to a file":
                with pytest.raises(OSError, match=r"127\.0\.0\.1.* redirects to file://, which is not followed"):
                    read_all(f"{web.url}/data")
            else:
                assert equal(read_all(f"{web.url}/data"), right), fault
        assert sum(seen) >= 2, fault


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("status 400", "cannot be read: the server answered HTTP 400"),
        ("status 410", r"no such file or directory at the server \(HTTP 410\)"),
        ("status 503", "nothing came for .* the last fault was http://127.* HTTP 503, a fault"),
        ("reset", "nothing came for .* Connection reset"),
        ("silent close", "nothing came for .* Server disconnected"),
        ("garbage", "nothing came for .* Bad status line"),
        ("cut early", "nothing came for"),
        ("page", "answers with a web page in place of the file"),
        ("other etag", "has changed while in use: ETag .* now; list it again"),
        ("redirect loop", "redirects in a loop of 1 addresses; .*give the URL of the file itself"),
    ],
)
def test_a_fault_that_stays_is_said_in_one_sentence_with_the_file(parquet, fault, says):
    with serving(parquet) as web:
        (listed, _) = files.list_files(f"{web.url}/data")
        web.fault = lambda _request: fault
        give_up_soon()
        with pytest.raises(OSError, match=says) as caught:
            reader.read_slice(cut_files([listed])[0], Selection("all"))
    assert f"{web.url}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_without_ranges_sends_each_file_once(parquet, right, tmp_path):
    with serving(parquet, ranges=False) as web:
        assert equal(read_all(f"{web.url}/data"), right)
        assert sum(is_data(request) and request.path.endswith("parquet") for request in web.requests) == 2
        staging = Staging(CacheDir(tmp_path, 10**9, 100), 1)
        (first, _) = files.list_files(f"{web.url}/data")
        with staging.open(first, whole=True) as opened:
            assert opened.read() == parquet["/data/a.parquet"]
        assert any(path.suffix == "" and path.stat().st_size == first.size for path in tmp_path.iterdir())


def test_only_the_newest_whole_copies_are_kept(parquet, monkeypatch):
    monkeypatch.setattr(whole, "MAX_BYTES", 1)
    with serving(parquet, ranges=False) as web:
        for name, content in parquet.items():
            with files.open_file(web.url + name) as opened:
                assert opened.read() == content
        assert len(site.web_files().reader.whole._copies) == 1


def test_a_file_that_changes_between_two_requests_is_named(parquet):
    name = "/data/a.parquet"
    with serving(parquet) as web:
        with files.open_file(web.url + name) as opened:
            opened.read(100)
            web.files[name] = web.files[name][::-1]  # The same size, another ETag.
            with pytest.raises(
                reading.ChangedError, match=r"a\.parquet has changed while in use: ETag .* list it again"
            ):
                opened.read(100)
        web.files[name] = parquet[name] + b"more"
        (listed,) = files.list_files(web.url + name)
        web.files[name] = parquet[name]
        with (
            pytest.raises(
                reading.ChangedError, match=rf"{listed.size} bytes when it was listed, {listed.size - 4} now"
            ),
            files.open_file(listed.url, listed.size) as opened,
        ):
            opened.read(100)


@pytest.mark.parametrize("slash", [True, False])
def test_directories_and_globs_are_listed_as_on_a_disk(parquet, slash):
    a, b = parquet.values()
    tree = {
        "/top/a.parquet": a, "/top/x y#1.parquet": b, "/top/deep/er/b.parquet": b, "/top/_temporary/c.parquet": b, "/top/notes.txt": b"t",
        "/top/spark.parquet/part-0.parquet": a, "/other/d.parquet": b,
    }  # fmt: skip
    links = '<a href="/other/d.parquet">d</a> <a href="http://127.0.0.1:9/top/e.parquet">e</a> <a href="javascript:x">j</a> <a href="..%2fother">o</a>'
    with serving(tree, slash=slash, extra_links=links) as web:

        def names(pattern):
            return {file.url.removeprefix(web.url) for file in files.list_files(web.url + pattern)}

        everything = {
            "/top/a.parquet",
            "/top/x%20y%231.parquet",
            "/top/deep/er/b.parquet",
            "/top/spark.parquet/part-0.parquet",
        }
        assert names("/top") == names("/top/") == everything
        assert names("/top/**/*.parquet") == everything
        assert names("/top/*.parquet") == everything - {"/top/deep/er/b.parquet"}
        assert names("/top/x y#*.parquet") == {"/top/x%20y%231.parquet"}
        assert names("/top/d*/*/[a-c].parquet") == {"/top/deep/er/b.parquet"}
        assert names("/top/a.parquet?download=1") == {"/top/a.parquet?download=1"}
        assert names("/top/?.parquet") == {"/top/a.parquet"}
        assert names("/t{op,en}/a.parquet") == {"/top/a.parquet"}
        assert {file.size for file in files.list_files(f"{web.url}/top/x%20y%231.parquet")} == {len(b)}


def test_what_does_not_exist_or_is_not_listed_is_said_in_one_sentence(parquet):
    with serving(parquet) as web:
        with pytest.raises(FileNotFoundError, match=r"nothing to read at .*/no\.parquet"):
            files.list_files(f"{web.url}/no.parquet")
        with pytest.raises(
            FileNotFoundError, match=r"no\.parquet: no such file or directory at the server \(HTTP 404\)"
        ):
            files.read_bytes(f"{web.url}/no.parquet")
        web.index = False
        with pytest.raises(PermissionError, match=r"/data: the server refuses \(HTTP 403\)"):
            files.list_files(f"{web.url}/data")
        web.fault = lambda _request: "page"
        with pytest.raises(
            OSError, match=r"a\.parquet answers with a web page that names no file below it, perhaps to log in"
        ):
            files.list_files(f"{web.url}/data/a.parquet")
    give_up_soon()
    with pytest.raises(
        ConnectionError, match=r"http://127\.0\.0\.1:9/a\.parquet: nothing came .*cannot connect.*CRMUONS_HTTP_START_S"
    ):
        files.list_files("http://127.0.0.1:9/a.parquet")
    with pytest.raises(PermissionError, match="web servers are read only"):
        files.check_writable("http://127.0.0.1:9/out")


def test_user_and_password_come_from_netrc_and_go_to_no_other_host(parquet, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login u password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    with serving(parquet, password="Basic dTpzZWNyZXQ=") as web, serving(parquet) as other:  # u:secret
        with pytest.raises(
            PermissionError, match=r"HTTP 401.* write 'machine 127\.0\.0\.1 login USER password PASSWORD' in ~/\.netrc"
        ):
            files.read_bytes(f"{web.url}/data/a.parquet")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        assert files.read_bytes(f"{web.url}/data/a.parquet") == parquet["/data/a.parquet"]
        local = other.url.replace("127.0.0.1", "localhost")
        web.files.clear()
        web.files["/data/a.parquet"] = b"-"
        handler_redirect = f"{local}/data/a.parquet"
        web.fault = lambda _request: f"to {handler_redirect}"
        assert files.read_bytes(f"{web.url}/data/a.parquet") == parquet["/data/a.parquet"]
        assert other.requests
        assert not any("Authorization" in request.headers for request in other.requests)


def test_a_proxy_of_the_environment_is_asked_except_for_the_hosts_of_no_proxy(parquet, monkeypatch):
    with serving({"/data/a.parquet": b"by the proxy"}) as proxy, serving(parquet) as web:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert files.read_bytes("http://unknown.invalid/data/a.parquet") == b"by the proxy"
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert files.read_bytes(f"{web.url}/data/a.parquet") == parquet["/data/a.parquet"]
    give_up_soon()
    with pytest.raises(
        ConnectionError, match=r"cannot connect to the proxy 127\.0\.0\.1:\d+ of https_proxy or http_proxy"
    ):
        files.read_bytes("http://unknown2.invalid/data/a.parquet")
