"""Listing and reading pelican:// on a real XRootD federation, with faults injected on the way."""

import concurrent.futures
import multiprocessing
import operator
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crmuons.storage import files, pelican
from crmuons.storage.pelican import federation as client
from crmuons.storage.pelican import servers
from tests.integration.pelican.federation.federation import Federation, what_is_missing
from tests.integration.pelican.sample import RUN_DIRECTORIES, content, events, expected, one_file, read

MISSING = what_is_missing()
pytestmark = [pytest.mark.pelican, pytest.mark.skipif(bool(MISSING), reason=MISSING)]


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


SURVIVED = {
    "503 on every third request": (Federation.caches, {"status": 503, "every": 3}),
    "503 that asks for a pause": (Federation.caches, {"status": 503, "every": 9, "headers": {"Retry-After": "1"}}),
    "429 at one cache": (Federation.caches[:1], {"status": 429, "headers": {"Retry-After": "30"}}),
    "connection resets": (Federation.caches, {"reset": True, "every": 3}),
    "bodies cut in the middle": (Federation.caches, {"cut": 3000, "every": 3}),
    "bodies short but consistent": (Federation.caches, {"short": 3000, "every": 3}),
    "every body of every cache short": (Federation.caches, {"short": 20000}),
    "a stalled cache": (Federation.caches[:1], {"stall": 3000}),
    "a cache that loses files": (Federation.caches[:1], {"status": 404}),
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
    fed.advertise_bare(Federation.caches[0])
    files.open_file(file.url, file.size).read(10)
    fed.kill(Federation.caches[0])
    fed.advertise_bare(Federation.caches[1])
    try:
        assert files.open_file(file.url, file.size).read() == content(fed)
    finally:
        fed.start_cache(Federation.caches[0])


def test_a_killed_cache_is_left_in_the_middle_of_a_file(fed: Federation) -> None:
    fed.advertise_bare(*Federation.caches)
    file = one_file(fed)
    parquet = pq.ParquetFile(files.open_file(file.url, file.size), pre_buffer=True)
    before = parquet.read_row_group(0)
    fed.kill(Federation.caches[0])
    try:
        after = [parquet.read_row_group(i) for i in range(1, parquet.num_row_groups)]
    finally:
        fed.start_cache(Federation.caches[0])
    assert pa.concat_tables([before, *after]).equals(events(0))


def test_reading_goes_on_once_caches_are_back(fed: Federation, caplog: pytest.LogCaptureFixture) -> None:
    file = one_file(fed)
    fed.fault(*Federation.caches, reset=True)
    back = threading.Timer(4, lambda: fed.fault(*Federation.caches))
    back.start()
    began = time.monotonic()
    read_bytes = files.read_bytes(file.url)
    back.join()
    assert read_bytes == content(fed)
    assert time.monotonic() - began > 3.5


def test_patience_ends_with_url_cause_and_remedy(fed: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRMUONS_PELICAN_PATIENCE_S", "1")
    file = one_file(fed)
    fed.fault(*Federation.caches, status=503)
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
    fed.fault(*Federation.caches, reset=True, every=3)
    fs.get("/public/sim", str(tmp_path / "copy"), recursive=True)
    copied = sorted(path for path in (tmp_path / "copy").rglob("*") if path.is_file())
    originals = sorted((fed.data / "public/sim").rglob("*.parquet"))
    assert [path.read_bytes() for path in copied] == [path.read_bytes() for path in originals]
    together = fs.cat(fs.find("/public/sim"))
    assert list(together.values()) == [path.read_bytes() for path in originals]
    assert fs.du("/public/sim") == sum(path.stat().st_size for path in originals)
