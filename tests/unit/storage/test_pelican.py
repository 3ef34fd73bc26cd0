"""Failover and time limits, and the parsing of listings and headers; tests/integration has real servers."""

import asyncio
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from crmuons.storage.http.globs import split_pattern
from crmuons.storage.http.sources import LONGEST_WAIT_S, Fault, Patience, Sources, retry_after_s
from crmuons.storage.pelican.addresses import split_url
from crmuons.storage.pelican.director import Namespace, linked_urls
from crmuons.storage.pelican.issuer import Issuer
from crmuons.storage.pelican.scopes import folder, scope_path
from crmuons.storage.pelican.waits import Waits
from crmuons.storage.pelican.webdav import parse_listing


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def sources(clock: Clock, *urls: str) -> Sources:
    made = Sources.of(urls)
    made.clock = clock
    return made


def test_the_first_server_is_asked_until_it_fails(clock: Clock) -> None:
    near_and_far = sources(clock, "near", "far")
    near = near_and_far.best()
    assert near.url == "near"
    near_and_far.failed(Fault(near, "HTTP 503"))
    assert near_and_far.best().url == "far"
    clock.now += 3600
    assert near_and_far.best().url == "far"  # Keep a server that works.
    near_and_far.failed(Fault(near_and_far.best(), "HTTP 503"))
    clock.now += 3600
    assert near_and_far.best().url == "near"


def test_waits_grow_to_a_limit_and_end_with_success(clock: Clock) -> None:
    lone = sources(clock, "lone")
    waits = []
    for _ in range(12):
        lone.failed(Fault(lone.best(), "reset"))
        waits.append(lone.best().ready_at - clock.now)
    assert 0.125 <= waits[0] <= 0.375  # 0.25 s, with a jitter of half of it.
    assert LONGEST_WAIT_S / 2 <= waits[-1] <= LONGEST_WAIT_S * 1.5
    assert lone.all_failing()
    lone.worked(lone.best())
    assert lone.best().ready_at <= clock.now
    assert not lone.all_failing()


def test_a_server_that_asks_for_a_pause_gets_it(clock: Clock) -> None:
    lone = sources(clock, "lone")
    lone.failed(Fault(lone.best(), "HTTP 429", retry_after_s=77.0))
    assert lone.best().ready_at - clock.now == 77.0


def test_known_servers_keep_their_record_when_the_director_is_asked_again(clock: Clock) -> None:
    before = sources(clock, "a", "b")
    before.failed(Fault(before.best(), "reset"))
    after = Sources.of(["a", "c"], before)
    assert [source.failures for source in after.sources] == [1, 0]


def test_patience_ends_without_progress_and_begins_anew_with_it(clock: Clock) -> None:
    async def fail_until(patience: Patience) -> None:
        lone = sources(clock, "https://cache")
        lone.failed(fault := Fault(lone.best(), "HTTP 503"))
        patience.last_fault = fault
        clock.now += 9
        assert (await patience.next(lone)).url == "https://cache"
        patience.progress()
        clock.now += 9
        await patience.next(lone)
        clock.now += 9
        await patience.next(lone)

    with pytest.raises(
        ConnectionError, match=r"^pelican://f/x: nothing came for 18 s; the last fault was https://cache: HTTP 503"
    ):
        asyncio.run(fail_until(Patience(10, "pelican://f/x", clock=clock)))


def test_a_pause_that_passes_5_s_is_spoken_of_before_it_begins(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """What waits longer than 5 s says for what, and until when: a pause of 10 s would otherwise pass in silence."""

    async def fail_at(seconds: float) -> None:
        lone, patience = sources(clock, "https://cache"), Patience(300, "pelican://f/x", clock=clock)
        clock.now += seconds
        patience.record(lone, Fault(lone.best(), "HTTP 503"))
        lone.best().ready_at = clock.now + 0.2
        await patience.next(lone)

    asyncio.run(fail_at(4.7))
    assert not caplog.records
    asyncio.run(fail_at(4.9))
    assert caplog.messages == ["pelican://f/x: waiting for at most 295 s more: https://cache: HTTP 503"]


@pytest.mark.parametrize(
    ("header", "seconds"), [("120", 120.0), (" 3 ", 3.0), (None, None), ("soon", None), ("-5", None)]
)
def test_retry_after_in_seconds(header: str | None, seconds: float | None) -> None:
    assert retry_after_s(header) == seconds


def test_retry_after_as_a_date() -> None:
    now = datetime.now(UTC)
    assert retry_after_s(format_datetime(now + timedelta(seconds=60), usegmt=True)) == pytest.approx(60, abs=2)
    assert retry_after_s(format_datetime(now - timedelta(seconds=60), usegmt=True)) == 0


LISTING = b"""<?xml version="1.0"?><D:multistatus xmlns:D="DAV:">
<D:response><D:href>/data/</D:href><D:propstat><D:prop>
  <D:resourcetype><D:collection/></D:resourcetype></D:prop></D:propstat></D:response>
<D:response xmlns:x="DAV:"><D:href>https://origin:8443/data/a%20b.parquet</D:href><D:propstat><D:prop>
  <x:getcontentlength>12</x:getcontentlength><x:getlastmodified>Sun, 22 Nov 2026 17:58:25 GMT</x:getlastmodified>
  <D:resourcetype/></D:prop></D:propstat></D:response></D:multistatus>"""


def test_a_listing_of_files_and_of_folders_without_a_size() -> None:
    assert parse_listing(LISTING) == [
        {"name": "/data", "type": "directory", "size": 0},
        {
            "name": "/data/a b.parquet",
            "type": "file",
            "size": 12,
            "mtime": datetime(2026, 11, 22, 17, 58, 25, tzinfo=UTC),
        },
    ]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"not found", "the listing is not XML"),
        (b"<html/>", "the listing is a <html>, not a WebDAV multistatus"),
        (LISTING.replace(b"12<", b"<"), "the listing gives no size for '/data/a b.parquet'"),
    ],
)
def test_a_listing_that_cannot_be_trusted_is_refused(answer: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_listing(answer)


@pytest.mark.parametrize(
    ("url", "host", "path"),
    [
        ("pelican://osg-htc.org/icecube/x", "osg-htc.org", "/icecube/x"),
        ("pelican://localhost:9443//a//b/", "localhost:9443", "/a/b"),
        ("pelican://host/a/b?.parquet", "host", "/a/b?.parquet"),
        ("osdf:///icecube/x", "osg-htc.org", "/icecube/x"),
    ],
)
def test_urls_name_a_federation_and_a_path(url: str, host: str, path: str) -> None:
    assert split_url(url) == (host, path)


@pytest.mark.parametrize(
    "url",
    ["pelican://localhost:abc/x", "pelican://localhost:99999/x", "pelican://a b/x", "pelican:///x", "pelican://h:1"],
)
def test_what_is_no_address_is_named(url: str) -> None:
    with pytest.raises(ValueError, match=f"'{url}' is no address in a federation; write pelican://HOST/"):
        split_url(url)


def test_names_in_a_listing_keep_their_characters() -> None:
    names = ("/a b", "/tab%09x", "/tab\tx", "/per%2520cent", "/hash%231", "/q%3Fx")
    responses = "".join(
        f"<response><href>{name}</href><getcontentlength>1</getcontentlength></response>" for name in names
    )
    found = parse_listing(f'<multistatus xmlns="DAV:">{responses}</multistatus>'.encode())
    assert [entry["name"] for entry in found] == ["/a b", "/tab\tx", "/tab\tx", "/per%20cent", "/hash#1", "/q?x"]


def test_the_servers_that_a_director_names_come_by_priority_whatever_the_path() -> None:
    header = '<https://b/x,y;z>; rel="duplicate"; pri=2; depth=1, <https://a/x,y;z>; rel="duplicate"; pri=1; depth=1'
    assert linked_urls(header) == ["https://a/x,y;z", "https://b/x,y;z"]
    assert linked_urls("") == []


def test_patterns_are_matched_from_the_first_wildcard_on() -> None:
    assert split_pattern("/data/sim/*/x[0-9].parquet") == ("/data/sim", ["*", "x[0-9].parquet"])
    assert split_pattern("/data/**/x.parquet") == ("/data", ["**", "x.parquet"])
    with pytest.raises(ValueError, match=r"'\*\*' must stand alone between slashes"):
        split_pattern("/data/run**/x.parquet")


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("pelican://h/ns/data/sim/*/x.parquet", "pelican://h/ns/data/sim"),
        ("pelican://h/ns/data/sim/{a,b}", "pelican://h/ns/data/sim"),
        ("pelican://h/ns/data/x.parquet", "pelican://h/ns/data"),
        ("pelican://h/ns/runs", "pelican://h/ns/runs"),
    ],
)
def test_scopes_are_asked_for_the_folder_that_holds_all_of_a_url(url: str, wanted: str) -> None:
    assert folder(url) == wanted


@pytest.mark.parametrize(("depth", "path"), [(None, "/a/b/c/d"), (3, "/a/b/c"), (1, "/a")])
def test_scopes_are_relative_to_the_namespace_and_as_deep_as_allowed(depth: int | None, path: str) -> None:
    namespace = Namespace("/ns/x", True, [], ["/ns"], depth, None, None)
    assert scope_path("pelican://h/ns/a/b/c/d", namespace) == path


def test_waits_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRMUONS_PELICAN_PATIENCE_S", "900")
    assert Waits.from_environment() == Waits(patience_s=900.0)
    for wrong in ("0", "-1", "soon", "inf", "nan", "١٢", "1e300"):
        monkeypatch.setenv("CRMUONS_PELICAN_PATIENCE_S", wrong)
        with pytest.raises(ValueError, match=f"CRMUONS_PELICAN_PATIENCE_S is '{wrong}'; it takes a positive number"):
            Waits.from_environment()


def test_an_issuer_without_tls_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'http://issuer.org.* is not an https URL"):
        Issuer.discover("http://issuer.org")


def test_an_issuer_without_a_device_flow_says_what_it_lacks() -> None:
    with pytest.raises(OSError, match=r"https://issuer.org has no device authorization endpoint"):
        Issuer("https://issuer.org", {}).endpoint("device_authorization_endpoint")


# Python joins its pools of threads first and calls atexit's functions then, so this refresh looks a name up between the two.
REFRESH_AT_EXIT = """
import asyncio, atexit, gc, threading
from fsspec.asyn import get_loop, sync
from crmuons.storage.http.sources import Sources
from crmuons.storage.pelican.director import Namespace
from crmuons.storage.pelican.servers import Servers
from crmuons.storage.pelican.waits import Waits

begun, ending, ended = threading.Event(), threading.Event(), threading.Event()
servers = Servers("localhost:9", None, Waits())
servers._namespaces["/x"] = Namespace(
    "/x", False, [], ["/x"], None, None, Sources.of(["https://localhost:9"]), asked_at=-1e9
)

async def ask(*_words, **_options):
    begun.set()
    while not ending.is_set():
        await asyncio.sleep(0.01)
    await asyncio.get_running_loop().getaddrinfo("localhost", 9)

async def watch():
    await asyncio.wait(servers._refreshing)
    ended.set()

def end():
    ending.set()
    ended.wait(60)
    print("the refresh has ended")
    gc.collect()

servers._ask_director = ask
sync(get_loop(), servers.namespace, "/x/a", listing=False)
assert begun.wait(60)
asyncio.run_coroutine_threadsafe(watch(), get_loop())
atexit.register(end)
"""


def test_a_refresh_that_python_ends_in_says_nothing() -> None:
    """It said "cannot schedule new futures after interpreter shutdown", with a traceback, after the command's last line."""
    ran = subprocess.run([sys.executable, "-c", REFRESH_AT_EXIT], check=True, capture_output=True, text=True)
    assert ran.stdout == "the refresh has ended\n"
    assert ran.stderr == ""
