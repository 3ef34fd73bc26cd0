"""Reading, listing and writing pelican:// against a real XRootD federation, with faults injected on the way."""

import concurrent.futures
import json
import logging
import multiprocessing
import operator
import os
import pickle
import re
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crmuons.cli import main
from crmuons.data.arrow import to_table, write_events
from crmuons.data.events import EventArrays
from crmuons.storage import artifacts, files, pelican
from crmuons.storage.pelican import federation as client
from crmuons.storage.pelican import login, servers
from crmuons.storage.pelican.scopes import scopes_by_issuer
from tests.integration.pelican.federation.federation import Federation, federation, what_is_missing, write_private

MISSING = what_is_missing()
pytestmark = [pytest.mark.pelican, pytest.mark.skipif(bool(MISSING), reason=MISSING)]

RUN_DIRECTORIES = ("0000000-0000999", "0001000-0001999", "0002000-0002999")
WAITS = {"CONNECT_S": "5", "READ_S": "1.5", "PATIENCE_S": "20", "START_S": "3", "TOKEN_S": "3"}


def events(seed: int) -> pa.Table:
    """2000 legal events, about 100 kB each as a file."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 8, 2000)
    primaries = rng.uniform((1e3, 0, 0.9, 1500), (1e7, 1.5, 56, 2500), (2000, 4)).astype(np.float32)
    ids = np.stack([np.full(2000, seed), np.arange(2000)], axis=1).astype(np.uint64)
    muons = rng.uniform((1, -50, -50), (1e4, 50, 50), (counts.sum(), 3)).astype(np.float32)
    return to_table(EventArrays(ids, primaries, counts.astype(np.int64), muons))


@pytest.fixture(scope="module")
def running() -> Iterator[Federation]:
    with (
        pytest.MonkeyPatch.context() as patch,
        federation(lifetime_s=70) as running,
    ):
        patch.setenv("SSL_CERT_FILE", str(running.ca))
        for name, value in WAITS.items():
            patch.setenv(f"CRMUONS_PELICAN_{name}", value)
        for namespace in ("public", "private"):
            for seed, runs in enumerate(RUN_DIRECTORIES):
                folder = running.data / namespace / "sim" / runs
                folder.mkdir(parents=True)
                for part in range(2):
                    write_events(folder / f"part{part}.parquet", [events(10 * seed + part)], row_group_rows=500)
        yield running


@pytest.fixture
def fed(running: Federation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Federation:
    """The federation without faults, and a client that knows nothing of it and has no token."""
    running.clear()
    monkeypatch.setattr(client, "_federations", {})
    for name in ("BEARER_TOKEN", "BEARER_TOKEN_FILE", "_CONDOR_CREDS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return running


def read(url: str) -> pa.Table:
    """All files of a pattern, a row group at a time, as the training reads them."""
    groups = []
    for file in files.list_files(url):
        parquet = pq.ParquetFile(files.open_file(file.url, file.size), pre_buffer=True)
        groups += [parquet.read_row_group(i) for i in range(parquet.num_row_groups)]
    return pa.concat_tables(groups)


def expected(fed: Federation, namespace: str = "public") -> pa.Table:
    return pa.concat_tables(pq.read_table(file.url) for file in files.list_files(str(fed.data / namespace / "sim")))


def content(fed: Federation, namespace: str = "public") -> bytes:
    return (fed.data / namespace / "sim" / RUN_DIRECTORIES[0] / "part0.parquet").read_bytes()


def one_file(fed: Federation, namespace: str = "public") -> files.File:
    return files.list_files(fed.url(f"/{namespace}/sim/{RUN_DIRECTORIES[0]}/part0.parquet"))[0]


@pytest.mark.parametrize(
    ("pattern", "num_files"),
    [
        ("/public/sim", 6),
        ("/public/sim/", 6),
        ("/public/sim/*/*.parquet", 6),
        ("/public/**/*.parquet", 6),
        ("/public/sim/**/part0.parquet", 3),
        ("/public/sim/*/part[!0].parquet", 3),
        ("/public/sim/000[01]*/part?.parquet", 4),
        ("/public/sim/{0000000-0000999,0002000-0002999}/*", 4),
        ("/public/sim/000{1..2}000-*/*.parquet", 4),
        ("/public/sim/0000000-0000999/part1.parquet", 1),
    ],
)
def test_patterns_list_what_they_match_with_sizes(fed: Federation, pattern: str, num_files: int) -> None:
    found = files.list_files(fed.url(pattern))
    assert len(found) == num_files
    assert [file.size for file in found] == [(fed.data / file.url.split("/", 3)[3]).stat().st_size for file in found]


def test_names_may_hold_any_character(fed: Federation) -> None:
    folder = fed.data / "public" / "names"
    folder.mkdir(exist_ok=True)
    names = [
        "a b",
        "ünï-Ω",
        "hash#1",
        "plus+x",
        "quo'te",
        "br[1]",
        "semi;x",
        "amp&x",
        "co,ma",
        "back\\x",
    ]
    for name in names:
        (folder / f"{name}.bin").write_text(name)
    listed = files.list_files(fed.url("/public/names/*.bin"))
    assert [files.read_bytes(file.url).decode() for file in listed] == sorted(names)
    assert [files.open_file(file.url, file.size).read().decode() for file in listed] == sorted(names)
    (folder / "per%20cent").write_text("per%20cent")  # In a listing XRootD 5.5 does not tell it from a blank.
    for name in ("semi;x.bin", "co,ma.bin", "per%20cent"):  # Also where the director is asked of such a path.
        client._federations.clear()
        assert files.read_bytes(fed.url(f"/public/names/{name}")) == (folder / name).read_bytes()


def test_a_glob_lists_only_folders_that_can_hold_a_match(fed: Federation) -> None:
    files.list_files(fed.url("/public/sim/0000*/*.parquet"))
    listed = [entry["path"] for entry in fed.log("origin")]
    assert listed == ["/public/sim", "/public/sim", "/public/sim/0000000-0000999"]


def test_a_file_read_through_the_federation_is_the_file(fed: Federation) -> None:
    assert read(fed.url("/public/sim")).equals(expected(fed))


def test_a_warm_file_costs_one_request_for_the_footer_and_one_per_row_group(fed: Federation) -> None:
    file = one_file(fed)
    read(file.url)
    fed.clear()
    parquet = pq.ParquetFile(files.open_file(file.url, file.size), pre_buffer=True)
    for group in range(parquet.num_row_groups):
        parquet.read_row_group(group)
    requests = fed.log()
    assert {entry["method"] for entry in requests} == {"GET"}
    assert len(requests) == 1 + parquet.num_row_groups


def test_many_threads_on_a_cold_client_ask_the_director_once(fed: Federation) -> None:
    url, size = fed.url(f"/public/sim/{RUN_DIRECTORIES[0]}/part0.parquet"), one_file(fed).size
    client._federations.clear()
    fed.clear()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        read_by_threads = list(pool.map(lambda _: files.open_file(url, size).read(100), range(16)))
    assert set(read_by_threads) == {content(fed)[:100]}
    assert len(fed.log("discovery")) == len(fed.log("director")) == 1


CACHES = Federation.caches
SURVIVED = {
    "503 on every third request": (CACHES, {"status": 503, "every": 3}),
    "503 that asks for a pause": (CACHES, {"status": 503, "every": 9, "headers": {"Retry-After": "1"}}),
    "429 at one cache": (CACHES[:1], {"status": 429, "headers": {"Retry-After": "30"}}),
    "connection resets": (CACHES, {"reset": True, "every": 3}),
    "bodies cut in the middle": (CACHES, {"cut": 3000, "every": 3}),
    "bodies short but consistent": (CACHES, {"short": 3000, "every": 3}),
    "every body of every cache short": (CACHES, {"short": 20000}),
    "a stalled cache": (CACHES[:1], {"stall": 3000}),
    "a cache that loses files": (CACHES[:1], {"status": 404}),
    "an origin that is overloaded while listing": (("origin",), {"status": 503, "every": 2}),
    "a director that fails": (("director",), {"status": 500, "first": 2}),
    "a director that asks for a pause": (("director",), {"status": 429, "first": 1, "headers": {"Retry-After": "1"}}),
    "a discovery that fails": (("discovery",), {"status": 503, "first": 2}),
}


@pytest.mark.parametrize("fault", SURVIVED)
def test_faults_change_no_byte(fed: Federation, fault: str) -> None:
    where, what = SURVIVED[fault]
    fed.fault(*where, **what)
    assert read(fed.url("/public/sim")).equals(expected(fed))
    assert any(entry["fault"] for entry in fed.log(*where))


def test_a_director_that_hangs_holds_up_nobody_who_knows_the_caches(
    fed: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = one_file(fed)
    read(file.url)
    monkeypatch.setattr(servers, "NAMESPACE_GOOD_FOR_S", 0.0)
    fed.fault("director", delay=8.0, status=500)
    began = time.monotonic()
    assert files.read_bytes(file.url) == content(fed)
    assert time.monotonic() - began < 6.0  # less than the director hangs


def test_caches_that_the_director_names_later_are_found(fed: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "SECONDS_BETWEEN_REFRESHES", 0.1)
    file = one_file(fed)
    fed.advertise_bare(CACHES[0])
    files.open_file(file.url, file.size).read(10)
    fed.kill(CACHES[0])
    fed.advertise_bare(CACHES[1])
    try:
        assert files.open_file(file.url, file.size).read() == content(fed)
    finally:
        fed.start_cache(CACHES[0])


def test_a_killed_cache_is_left_in_the_middle_of_a_file(fed: Federation) -> None:
    fed.advertise_bare(*CACHES)
    file = one_file(fed)
    parquet = pq.ParquetFile(files.open_file(file.url, file.size), pre_buffer=True)
    before = parquet.read_row_group(0)
    fed.kill(CACHES[0])
    try:
        after = [parquet.read_row_group(i) for i in range(1, parquet.num_row_groups)]
    finally:
        fed.start_cache(CACHES[0])
    assert pa.concat_tables([before, *after]).equals(events(0))


def test_reading_goes_on_once_caches_are_back(fed: Federation, caplog: pytest.LogCaptureFixture) -> None:
    file = one_file(fed)
    fed.fault(*CACHES, reset=True)
    back = threading.Timer(4, lambda: fed.fault(*CACHES))
    back.start()
    began = time.monotonic()
    read_bytes = files.read_bytes(file.url)
    back.join()
    assert read_bytes == content(fed)
    assert time.monotonic() - began > 3.5


def test_patience_ends_with_url_cause_and_remedy(fed: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRMUONS_PELICAN_PATIENCE_S", "1")
    file = one_file(fed)
    fed.fault(*CACHES, status=503)
    with pytest.raises(
        ConnectionError, match=r"503.*servers are up.*wait longer with CRMUONS_PELICAN_PATIENCE_S"
    ) as raised:
        files.read_bytes(file.url)
    assert str(raised.value).startswith(file.url)


def test_a_file_that_was_replaced_is_not_mixed_from_two_versions(fed: Federation) -> None:
    path = fed.data / "public" / "replaced.parquet"
    path.write_bytes(b"a" * 1000)
    url = fed.url("/public/replaced.parquet")
    assert files.open_file(url, 1000).read(10) == b"a" * 10
    with pytest.raises(OSError, match="has changed while in use: 2000 bytes when it was listed, 1000 now"):
        files.open_file(url, 2000).read()


def test_missing_files_are_missing_once_the_origin_says_so(fed: Federation) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing to read at .*/public/nothing"):
        files.list_files(fed.url("/public/nothing"))
    with pytest.raises(FileNotFoundError, match=r"pelican://.*/public/nothing.parquet: no such file .* check the path"):
        pq.ParquetFile(files.open_file(fed.url("/public/nothing.parquet"), 1000))
    with pytest.raises(FileNotFoundError, match=r"nothing to read at .*/elsewhere"):
        files.list_files(fed.url("/elsewhere/x"))
    assert "PROPFIND" in {entry["method"] for entry in fed.log("origin")}


def test_a_namespace_without_listings_gives_files_by_name(fed: Federation) -> None:
    (fed.data / "unlisted/x.parquet").write_bytes(content(fed))
    assert read(fed.url("/unlisted/x.parquet")).equals(events(0))
    with pytest.raises(FileNotFoundError, match=r"nothing to read at .*/unlisted/y.parquet': no such file"):
        files.list_files(fed.url("/unlisted/y.parquet"))
    with pytest.raises(OSError, match=r"/unlisted gives no listings; name the files themselves"):
        files.list_files(fed.url("/unlisted/*/x.parquet"))


def test_without_caches_the_origin_is_read(fed: Federation) -> None:
    file = one_file(fed)
    fed.fault("director", status=404, first=1)
    assert files.open_file(file.url, file.size).read() == content(fed)
    assert "GET" in {entry["method"] for entry in fed.log("origin")}


def test_a_host_that_is_no_federation_is_named(fed: Federation) -> None:
    with pytest.raises(
        ConnectionError, match=r"pelican://localhost:9: .*cannot connect.*host's name.*CRMUONS_PELICAN_START_S"
    ):
        files.list_files("pelican://localhost:9/public/x")


def test_an_unknown_authority_is_named_with_the_variable_that_helps(
    fed: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(ConnectionError, match=r"certificate is not trusted .* SSL_CERT_FILE"):
        files.list_files(fed.url("/public/sim"))


def test_a_token_is_found_and_used(fed: Federation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    good, stale = fed.token(), fed.token(lifetime_s=-60)
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    write_private(tmp_path / f"bt_u{os.geteuid()}", stale)
    write_private(credentials / "other.use", fed.token(issuer="https://elsewhere.org"))
    write_private(credentials / "ours.use", f'{{"access_token": "{good}"}}')
    monkeypatch.setenv("_CONDOR_CREDS", str(credentials))
    assert read(fed.url("/private/sim")).equals(expected(fed, "private"))
    monkeypatch.setenv("BEARER_TOKEN", fed.token())
    assert len(files.list_files(fed.url("/private/sim"))) == 6


@pytest.mark.parametrize("meanwhile", ["expired", "garbage", "half", "gone"])
def test_renewal_reaches_a_file_that_is_open(
    fed: Federation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, meanwhile: str
) -> None:
    token = tmp_path / "token"
    write_private(token, fed.token())
    monkeypatch.setenv("BEARER_TOKEN_FILE", str(token))
    file = one_file(fed, "private")
    parquet = pq.ParquetFile(files.open_file(file.url, file.size), pre_buffer=True)
    before = parquet.read_row_group(0)
    if meanwhile == "gone":
        token.unlink()
    else:
        stale = fed.token(lifetime_s=-60)
        write_private(token, {"expired": stale, "garbage": "garbage", "half": fed.token()[:-20]}[meanwhile])
    renewal = threading.Timer(1.5, lambda: write_private(token, fed.token()))
    renewal.start()
    after = [parquet.read_row_group(i) for i in range(1, parquet.num_row_groups)]
    renewal.join()
    assert pa.concat_tables([before, *after]).equals(events(0))
    assert 403 in {entry["status"] for entry in fed.log(*CACHES)}


REFUSED = {
    "no token": (
        None,
        "takes a token of https://localhost:.*looked in BEARER_TOKEN .not set.*crmuons login pelican://",
    ),
    "a token of another issuer": (
        {"issuer": "https://elsewhere.org"},
        "takes a token of https://localhost:.*found the token from BEARER_TOKEN .*issued by https://elsewhere.org",
    ),
    "a token for another folder": (
        {"scope": "storage.read:/other"},
        "permission denied .*HTTP 403.*storage.read:/other",
    ),
    "an expired token that nobody renews": ({"lifetime_s": -60}, "permission denied .*which expired at .*not renewed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_names_url_token_and_remedy(fed: Federation, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    token, message = REFUSED[case]
    if token is not None:
        monkeypatch.setenv("BEARER_TOKEN", fed.token(**token))
    began = time.monotonic()
    with pytest.raises(PermissionError, match=message) as raised:
        files.list_files(fed.url("/private/sim"))
    assert str(raised.value).startswith(fed.url("/private/sim"))
    assert "crmuons login" in str(raised.value)
    assert time.monotonic() - began < 8


def test_a_token_shows_in_no_log_pickle_or_error(
    fed: Federation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    token = fed.token()
    secret = token.rpartition(".")[2]
    monkeypatch.setenv("BEARER_TOKEN", token)
    file = one_file(fed, "private")
    opened = files.open_file(file.url, file.size)
    opened.read(100)
    fed.fault(*CACHES, cut=100)
    opened.read(1000)
    monkeypatch.setenv("CRMUONS_PELICAN_PATIENCE_S", "0.5")
    client._federations.clear()
    shown = [repr(opened), repr(vars(opened))]
    for fault in ({"cut": 0}, {"reset": True}, {"status": 403}, {"status": 503}, {"stall": 1}):
        fed.fault(*CACHES, **fault)
        with pytest.raises(OSError, match="pelican://") as raised:
            files.open_file(file.url, file.size).read(1000)
        shown += [
            repr(raised.value),
            "".join(traceback.format_exception(raised.value)),
            repr(pickle.dumps(raised.value)),
        ]
    pickles = pickle.dumps([opened, pelican.filesystem(file.url)])
    assert secret not in "".join(shown)
    assert secret not in caplog.text
    assert secret.encode() not in pickles
    assert caplog.text  # Something was logged at all.


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Forking with threads is what is tested.
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_other_processes_read_with_a_file_system_of_their_own(fed: Federation, method: str) -> None:
    file = one_file(fed)
    here = files.read_bytes(file.url)
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context(method)) as pool:
        assert set(pool.map(files.read_bytes, [file.url] * 4, timeout=60)) == {here}
        cat_file = operator.methodcaller("cat_file", pelican.split_url(file.url)[1])
        assert pool.submit(cat_file, pelican.filesystem(file.url)).result(60) == here


def test_arrow_takes_the_file_system(fed: Federation) -> None:
    fs = pelican.filesystem(fed.url("/public/sim"))
    assert (
        pq.read_table("/public/sim", filesystem=fs)
        .sort_by("primary_major_id")
        .equals(expected(fed).sort_by("primary_major_id"))
    )


def test_folders_are_copied_and_many_files_read_at_once(fed: Federation, tmp_path: Path) -> None:
    fs = pelican.filesystem(fed.url("/public/sim"))
    fed.fault(*CACHES, reset=True, every=3)
    fs.get("/public/sim", str(tmp_path / "copy"), recursive=True)
    copied = sorted(path for path in (tmp_path / "copy").rglob("*") if path.is_file())
    originals = sorted((fed.data / "public/sim").rglob("*.parquet"))
    assert [path.read_bytes() for path in copied] == [path.read_bytes() for path in originals]
    together = fs.cat(fs.find("/public/sim"))
    assert list(together.values()) == [path.read_bytes() for path in originals]
    assert fs.du("/public/sim") == sum(path.stat().st_size for path in originals)


def test_a_file_is_written_once(fed: Federation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BEARER_TOKEN", fed.token("storage.read:/ storage.create:/ storage.modify:/"))
    local = tmp_path / "local"
    local.write_bytes(os.urandom(3_000_000))
    url = fed.url("/private/results/run-1/model.pt")
    files.check_writable(url)
    files.put(local, url)
    assert (fed.data / "private/results/run-1/model.pt").read_bytes() == local.read_bytes() == files.read_bytes(url)
    with pytest.raises(FileExistsError, match=r"model.pt exists.*take a new name"):
        files.put(local, url)


def test_a_folder_of_results_goes_there_and_back(
    fed: Federation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BEARER_TOKEN", fed.token("storage.read:/ storage.create:/"))
    (tmp_path / "run/checkpoints/step-5").mkdir(parents=True)
    for name in ("config.json", "checkpoints/step-5/weights.pt"):
        (tmp_path / "run" / name).write_text(name)
    url = fed.url("/private/results/tree")
    assert len(files.put_tree(tmp_path / "run", url)) == 2
    assert files.put_tree(tmp_path / "run", url) == []
    files.get_tree(url, tmp_path / "back")
    assert (tmp_path / "back/checkpoints/step-5/weights.pt").read_text() == "checkpoints/step-5/weights.pt"


@pytest.mark.parametrize("scope", ["create", "modify"])
@pytest.mark.parametrize(
    "fault",
    [{"status": 503}, {"reset": True}, {"lost": True}, {"break_upload": 100_000}, {"stall_upload": 100_000}],
    ids=str,
)
def test_writing_survives_faults(
    fed: Federation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: dict[str, object], scope: str
) -> None:
    # With "create" nothing is overwritten: a file that arrived must be known for it, and half a one takes another name.
    monkeypatch.setenv("BEARER_TOKEN", fed.token(f"storage.read:/ storage.{scope}:/"))
    (tmp_path / "folder").mkdir()
    local = tmp_path / "folder" / "local"
    local.write_bytes(os.urandom(300_000))
    url = fed.url(f"/private/results/{scope}-{'-'.join(fault)}")
    fed.fault("origin", methods=["PUT"], first=1, **fault)
    name = artifacts.upload(url, local.parent, "x", {})
    assert any(entry["fault"] for entry in fed.log("origin"))
    artifacts.download(url, name, tmp_path / "back")
    assert (tmp_path / "back/local").read_bytes() == local.read_bytes()


def test_what_broke_off_is_not_taken_for_the_file(
    fed: Federation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BEARER_TOKEN", fed.token("storage.read:/ storage.create:/"))
    local = tmp_path / "local"
    local.write_bytes(os.urandom(300_000))
    url = fed.url("/private/results/broken")
    fed.fault("origin", methods=["PUT"], break_upload=100_000, first=1)
    with pytest.raises(FileExistsError, match=r"broken holds \d+ bytes of an interrupted upload, .* take a new name"):
        files.put(local, url)


def test_a_place_is_tried_where_no_scope_tells(fed: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEARER_TOKEN", fed.token(""))
    url = fed.url("/private/results/tried")
    with pytest.raises(PermissionError, match=f"'{url}' cannot be written: PermissionError: .*permission denied"):
        files.check_writable(url)
    assert 403 in {entry["status"] for entry in fed.log("origin")}


def test_a_folder_is_removed_with_the_scope_that_covers_it(fed: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEARER_TOKEN", fed.token("storage.read:/ storage.create:/"))
    url = fed.url("/private/results/removed")
    files.put(fed.ca, f"{url}/a/b")
    with pytest.raises(PermissionError, match=r"a/b cannot be removed with the token .* storage\.modify"):
        files.remove_tree(url)
    monkeypatch.setenv("BEARER_TOKEN", fed.token("storage.read:/ storage.modify:/"))
    files.remove_tree(url)
    assert not (fed.data / "private/results/removed").exists()
    files.remove_tree(url)


@pytest.mark.parametrize("scope", ["storage.read:/", "storage.read:/ storage.modify:/elsewhere"])
def test_writing_without_the_scope_is_refused_before_any_upload(
    fed: Federation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scope: str
) -> None:
    monkeypatch.setenv("BEARER_TOKEN", fed.token(scope))
    url = fed.url("/private/results/refused")
    for attempt in (lambda: files.check_writable(url), lambda: files.put(fed.ca, url)):
        with pytest.raises(PermissionError, match=rf"{url} cannot be written with .*{scope}.*crmuons login --write"):
            attempt()
    assert "PUT" not in {entry["method"] for entry in fed.log()}


def log_in(fed: Federation, read: list[str], write: list[str]) -> None:
    """Do what `crmuons login` does, with a user who approves at once."""
    for issuer, scopes in scopes_by_issuer(read, write).items():
        login.log_in(issuer, scopes, lambda _, code: fed.approve(code))


def test_a_login_reads_and_writes_what_it_was_made_for(fed: Federation, tmp_path: Path) -> None:
    log_in(fed, [fed.url("/private/sim/*/*.parquet")], [fed.url("/private/runs")])
    assert read(fed.url("/private/sim")).equals(expected(fed, "private"))
    files.put(fed.ca, fed.url("/private/runs/logged-in"))
    with pytest.raises(PermissionError, match="cannot be written with the token from crmuons login"):
        files.check_writable(fed.url("/private/elsewhere/x"))
    assert [path.stat().st_mode & 0o777 for path in login.store().parent.iterdir()] == [0o600, 0o600]


def test_a_login_is_renewed_once_however_many_ask(fed: Federation) -> None:
    log_in(fed, [fed.url("/private/sim")], [])
    first = json.loads(login.store().read_text())[fed.issuer]
    login.store().write_text(json.dumps({fed.issuer: {**first, "expires_at": 0}}))
    together = threading.Barrier(8)

    def ask(_: int) -> str:
        together.wait()
        return login.stored_tokens([fed.issuer])[0].value

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        tokens = set(pool.map(ask, range(8)))
    # The issuer takes each refresh token once: had two used the same, one would have been left with the old token.
    assert len(tokens) == 1
    assert tokens != {first["access_token"]}
    assert json.loads(login.store().read_text())[fed.issuer]["refresh_token"] != first["refresh_token"]
    assert len(files.list_files(fed.url("/private/sim"))) == 6


def test_a_login_that_is_denied_says_so(fed: Federation) -> None:
    with pytest.raises(PermissionError, match=r"refused the login .*access_denied.*log in again"):
        login.log_in(fed.issuer, ["storage.read:/"], lambda _, code: fed.approve(code, deny=True))
    assert not login.store().exists()


def test_the_command_shows_where_to_confirm_and_keeps_the_login(
    fed: Federation, capfd: pytest.CaptureFixture[str]
) -> None:
    url = fed.url("/private/sim/*.parquet")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        command = pool.submit(main, ["login", url])
        shown = ""
        deadline = time.monotonic() + 20
        while (code := re.search(r"confirm the code (\S+)", shown)) is None and time.monotonic() < deadline:
            time.sleep(0.1)
            shown += capfd.readouterr().out
        assert code is not None, shown
        fed.approve(code[1])
        assert command.result(20) == 0
    assert "storage.read:/sim" in shown
    assert "▄" in shown  # The QR code.
    assert len(files.list_files(fed.url("/private/sim"))) == 6
    secrets = json.loads(login.store().read_text())[fed.issuer]
    assert secrets["access_token"] not in shown + "".join(capfd.readouterr())


def test_the_command_without_urls_says_what_to_give(fed: Federation, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["login"]) == 1
    message = "no pelican:// URL given; name the URLs to read, or the URLs to write after --write"
    assert capsys.readouterr().err == f"crmuons login: {message}\n"
