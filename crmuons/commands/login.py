"""Get a token for pelican:// URLs."""

import argparse

from crmuons.storage.redact import printable


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Log in with a browser, on any machine, to the token issuer of these URLs. The login renews itself. It is stored "
        "in a file that only you can read; every node of a run must be able to read it (docs/pelican.md)."
    )
    from crmuons.config.options import Place, option

    parser.add_argument(
        "read", type=option(Place), nargs="*", metavar="URL", help="URLs to read: files, directories or globs"
    )
    parser.add_argument(
        "--write", type=option(Place), nargs="+", default=[], metavar="URL", help="URLs to write results to"
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    import segno

    from crmuons.storage.pelican.login import log_in
    from crmuons.storage.pelican.scopes import federations_of, scopes_by_issuer

    def show(url: str, code: str) -> None:
        segno.make(url).terminal(compact=True)
        print(printable(f"open {url} in any browser and confirm the code {code}"), flush=True)

    issuers = scopes_by_issuer(arguments.read, arguments.write)
    if not issuers:
        msg = "no pelican:// URL given; name the URLs to read, or the URLs to write after --write"
        raise ValueError(msg)
    for issuer, scopes in issuers.items():
        federations = federations_of(issuer, [*arguments.read, *arguments.write])
        print(printable(f"logging in to {issuer} for {' '.join(scopes)} at {' and '.join(federations)}"))
        print(printable(f"logged in; the login is stored in {log_in(issuer, scopes, show, federations)}"))
