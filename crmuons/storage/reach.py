"""Find out in seconds whether a server can be reached at all, because its library would try for minutes."""

import socket
import threading
import urllib.request
from urllib.parse import urlsplit

CONNECT_S = 5.0  # A connection across the world takes 0.3 s; a lost packet is sent again after 1 s and after 3 s.
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}


def unreachable_reason(url: str, seconds: float = CONNECT_S) -> str | None:
    """Return why the host of a web server's or a database's URL cannot be reached, in one line; None if it can.

    Behind a proxy nothing is tried, because only the proxy can tell.
    """
    parts = urlsplit(url)
    scheme = parts.scheme.partition("+")[0]  # postgresql+psycopg names a driver too.
    if parts.hostname is None or scheme not in PORTS or _has_proxy(scheme, parts.netloc):
        return None
    place = (parts.hostname, parts.port or PORTS[scheme])
    found: list[str | None] = []

    def connect() -> None:
        try:
            socket.create_connection(place, timeout=seconds).close()
            found.append(None)
        except OSError as error:
            found.append(error.strerror or str(error))

    # In a thread, because looking up a name has no time limit.
    thread = threading.Thread(target=connect, name="reach", daemon=True)
    thread.start()
    thread.join(seconds)
    reason = found[0] if found else f"no answer in {seconds:.0f} s"
    return None if reason is None else f"cannot connect to {place[0]}:{place[1]}: {reason}"


def _has_proxy(scheme: str, netloc: str) -> bool:
    return scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(netloc)
