"""Remove credentials from URLs before text is stored or shown."""

import re

_USERINFO = re.compile(r'(?<=://)[^/\s?#"]*@')


_QUERY_SECRET = re.compile(
    r'([?&](?:authz|access_token|token|password|sig|signature|X-Amz-\w[\w-]*)=)[^&\s"#]+', re.IGNORECASE
)


def without_credentials(text: str) -> str:
    """Return the text with user, password and tokens removed from the URLs in it."""
    return _QUERY_SECRET.sub(r"\1***", _USERINFO.sub("", text))
