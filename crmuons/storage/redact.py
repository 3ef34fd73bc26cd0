"""Make text safe to store and to show: refuse URLs with secrets, remove credentials, and escape control characters."""

import logging
import re

# For signed URLs (Amazon, Google, Azure) all their parameters, because only together they are the secret.
_NAMES = (
    r"authz|auth|authorization|access_?token|refresh_?token|id_?token|private_?token|deploy_?token|job_?token|token|jwt"
    r"|passw(?:or)?d|pass|pwd|secret|client_?secret|api_?key|apikey|access_?key|credentials?|session"
    r"|sig|signature|X-Amz-[\w-]+|X-Goog-[\w-]+|AWSAccessKeyId|GoogleAccessId|Key-Pair-Id"
)
_USERINFO = re.compile(r'(?<=://)[^/\s?#"]*@')
_QUERY_SECRET = re.compile(rf'([?&;#](?:{_NAMES})=)[^&;\s"#\']+', re.IGNORECASE)
_PASSWORD = re.compile(r'(?<!\w)(\w[\w+.-]*)://[^/\s?#"@:]*:[^/\s?#"]*@|https?://[^/\s?#"]+@', re.IGNORECASE)


MAX_LINE = 2000  # Letters of a line in a message: a column or key of a stranger's file may have a million letters.
LINE_END = 600  # Letters that are kept at the end of a long line, because the remedy is there.


def printable(text: object) -> str:
    """Return the text with an escape for each character that a terminal obeys or does not show; tabs and newlines stay.

    Names of files and columns and answers of servers may come from a stranger. An escape sequence in them could hide or change
    lines, and a character that changes the direction of reading could make a name look like another.
    """
    # isprintable is false of control and format characters, surrogates, and spaces other than the plain one.
    return "".join(
        letter if letter.isprintable() or letter in "\t\n" else letter.encode("unicode_escape").decode()
        for letter in str(text)
    )


def message(text: object) -> str:
    """Return a text for the screen: printable, without credentials of URLs, and with at most MAX_LINE letters in a line."""
    lines = printable(without_credentials(str(text))).split("\n")
    return "\n".join(map(_shortened, lines))


class MessageFormatter(logging.Formatter):
    """Formats log records with `message`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        return message(super().format(record))


def _shortened(line: str) -> str:
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - LINE_END]} [...] {line[-LINE_END:]}"


def without_credentials(text: str) -> str:
    """Return the text with user, password and tokens removed from the URLs in it."""
    return _QUERY_SECRET.sub(r"\1***", _USERINFO.sub("", text))


def refuse_secrets(text: str) -> None:
    """Refuse a URL, or text with URLs, that carries a secret, because files, logs and messages would keep it.

    Raises:
        ValueError: with the name of the secret, and the place where it belongs.
    """
    if "://" not in text:
        return
    secret = _QUERY_SECRET.search(text)
    if secret is not None:
        what = f"a secret ({secret[1].strip('?&;#=')}=...)"
    elif _PASSWORD.search(text):
        what = "a user or a password"
    else:
        return
    msg = (
        f"'{without_credentials(text)}' carries {what}, which files and logs would keep; take it out of the URL, and put it"
        " into ~/.netrc (https://), a file that BEARER_TOKEN_FILE names (pelican://), or FSSPEC_<SCHEME>_<OPTION> (others);"
        " a signed link is downloaded first"
    )
    raise ValueError(msg)
