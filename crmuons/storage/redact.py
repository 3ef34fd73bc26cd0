"""Make text safe to store and to show: without the secrets of URLs, which are refused where they come in, and control characters."""

import re

# Families of signed URLs (Amazon, Google, Azure) as wholes: their parts together are the secret.
_NAMES = (
    r"authz|auth|authorization|access_?token|refresh_?token|id_?token|private_?token|deploy_?token|job_?token|token|jwt"
    r"|passw(?:or)?d|pass|pwd|secret|client_?secret|api_?key|apikey|access_?key|credentials?|session"
    r"|sig|signature|X-Amz-[\w-]+|X-Goog-[\w-]+|AWSAccessKeyId|GoogleAccessId|Key-Pair-Id"
)
_USERINFO = re.compile(r'(?<=://)[^/\s?#"]*@')
_QUERY_SECRET = re.compile(rf'([?&;#](?:{_NAMES})=)[^&;\s"#\']+', re.IGNORECASE)
_PASSWORD = re.compile(r'(?<!\w)(\w[\w+.-]*)://[^/\s?#"@:]*:[^/\s?#"]*@|https?://[^/\s?#"]+@', re.IGNORECASE)


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    """Return the text with control characters written out, which a terminal would obey: tabs and ends of lines stay.

    Names of files, columns and servers' words may be a stranger's; an escape sequence in them could hide or change lines.
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def without_credentials(text: str) -> str:
    """Return the text with user, password and tokens removed from the URLs in it."""
    return _QUERY_SECRET.sub(r"\1***", _USERINFO.sub("", text))


def refuse_secrets(text: str) -> None:
    """Refuse a URL, or text with URLs in it, that carries a secret: files, logs and messages would keep it.

    Raises:
        ValueError: with the place of the secret, and where it belongs.
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
