"""Get a token for pelican:// URLs."""

import argparse


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.description = (
        "Log in, in a browser anywhere, to the issuer of the namespaces of these URLs. The login is renewed by "
        "itself; it lies in a file that only you can read, which every node of a run must see (docs/pelican.md)."
    )
    parser.add_argument("read", nargs="*", metavar="URL", help="what will be read: files, directories or globs")
    parser.add_argument("--write", nargs="+", default=[], metavar="URL", help="where results will be written")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    import segno

    from crmuons.storage.pelican.login import log_in
    from crmuons.storage.pelican.scopes import scopes_by_issuer

    def show(url: str, code: str) -> None:
        segno.make(url).terminal(compact=True)
        print(f"open {url} in any browser and confirm the code {code}", flush=True)

    wanted = scopes_by_issuer(arguments.read, arguments.write)
    if not wanted:
        msg = "name the pelican:// URLs to read, or those to write with --write"
        raise ValueError(msg)
    for issuer, scopes in wanted.items():
        print(f"logging in to {issuer} for {' '.join(scopes)}")
        print(f"logged in; the login is in {log_in(issuer, scopes, show)}")
