"""Credentials taken out of URLs before text is kept or shown."""

import re

_USERINFO = re.compile(r'(?<=://)[^/\s?#"]*@')


_QUERY_SECRET = re.compile(
    r'([?&](?:authz|access_token|token|password|sig|signature|X-Amz-\w[\w-]*)=)[^&\s"#]+', re.IGNORECASE
)


def without_credentials(text: str) -> str:
    """The text with user, password and tokens taken out of the URLs in it."""
    return _QUERY_SECRET.sub(r"\1***", _USERINFO.sub("", text))
