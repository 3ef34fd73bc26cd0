"""Parse the URLs of a federation."""

import re

OSDF = "osg-htc.org"
HOST = re.compile(r"[\w.-]+(:\d+)?|\[[0-9a-fA-F:.]+\](:\d+)?")


def split_url(url: str) -> tuple[str, str]:
    """Split a `pelican://HOST[:PORT]/path` or `osdf:///path` URL into the federation's host and the path.

    Raises:
        ValueError: if the URL has no path, or carries a token, which logs would show.
    """
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    if scheme == "osdf":
        host, path = OSDF, f"{host}/{path}"
    if re.search(r"[?&](authz|access_token)=", path):
        msg = f"a URL of {scheme}://{host} carries a token, which logs would show; put it in a file and name that file in BEARER_TOKEN_FILE"
        raise ValueError(msg)
    port = int(host.rpartition(":")[2]) if re.search(r":\d+$", host) else 1
    if scheme not in ("pelican", "osdf") or not HOST.fullmatch(host) or not 0 < port < 2**16 or not path.strip("/"):
        msg = f"'{url}' is no address in a federation; write pelican://HOST/namespace/path or pelican://HOST:PORT/namespace/path"
        raise ValueError(msg)
    return host, "/" + re.sub("/+", "/", path).strip("/")
