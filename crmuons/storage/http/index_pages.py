"""Parse the pages with which web servers list a directory (Apache, nginx, Python, aiohttp, S3 browsers and others)."""

from html.parser import HTMLParser
from urllib.parse import unquote

from yarl import URL


def entries(html: str, page: URL) -> dict[str, bool]:
    """Return the entries of a directory that its page links to.

    Links to other directories or hosts, and links with a query (Apache's columns to sort by), are left out.

    Args:
        html: the page.
        page: its URL, the directory's.

    Returns:
        For each entry, by its encoded name in the URL: whether the page shows it as a directory.
    """
    links = _Links()
    links.feed(html)
    # Relative links start from the page's last slash, so a directory without one gets it.
    folder = page.with_query(None).with_fragment(None)
    if not folder.raw_path.endswith("/"):
        folder = folder.with_path(f"{folder.raw_path}/", encoded=True)
    found: dict[str, bool] = {}
    for href, text in links.found:
        try:
            target = folder.join(URL(href.strip()))
        except ValueError:  # No URL at all.
            continue
        # This leaves out the parent directory, the server's other pages, and links of strangers.
        if not _is_inside(target, folder):
            continue
        # Names stay encoded: decoding and encoding again would change some of them.
        name, slash, deeper = target.raw_path[len(folder.raw_path) :].partition("/")
        # A name that decodes to a path would be elsewhere in the data set, or outside it.
        if deeper or unquote(name) in ("", ".", "..") or "/" in unquote(name) or "\\" in unquote(name):
            continue
        # A page may have two links to the same entry, for its icon and for its name.
        found[name] = found.get(name, False) or bool(slash) or text.strip().endswith("/")
    return found


def _is_inside(target: URL, folder: URL) -> bool:
    return (
        target.scheme == folder.scheme
        and target.authority == folder.authority
        and not target.raw_query_string
        and target.raw_path.startswith(folder.raw_path)
    )


class _Links(HTMLParser):
    """The links of a page: for each its `href` and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href")
        if tag == "a" and href is not None:
            self.found.append((href, ""))
            self._inside = True

    def handle_data(self, data: str) -> None:
        if self._inside:
            href, text = self.found[-1]
            # Text comes in parts, because the parser may cut it anywhere.
            self.found[-1] = (href, text + data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "a":
            self._inside = False
