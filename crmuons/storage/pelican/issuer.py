"""Talk to a token issuer: discovery (RFC 8414), registration (RFC 7591), device flow (RFC 8628), refresh (RFC 6749)."""

import base64
import http.client
import json
import logging
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import quote, urlencode, urlsplit

logger = logging.getLogger(__name__)

DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
TIMEOUT_S = 30.0
MAX_ANSWER_BYTES = 2**20  # The longest metadata of issuers have 10 kB.
DEFAULT_INTERVAL_S = 5.0  # Time between polls if the issuer gives no interval (RFC 8628, 3.2).
DEFAULT_LIFETIME_S = 1200.0
LONGEST_INTERVAL_S = 60.0
MAX_SHOWN = 1000  # Most letters of a page's URL and a code together; a QR code holds 2,900.


@dataclass(frozen=True)
class Client:
    """Our registration at an issuer; `secret` is empty if the issuer gave none."""

    id: str
    secret: str


@dataclass(frozen=True)
class Issuer:
    """A token issuer.

    Attributes:
        url: the issuer's URL, as in the tokens' `iss` claim.
        metadata: its endpoints, by their names in RFC 8414.
    """

    url: str
    metadata: Mapping[str, Any]

    @classmethod
    def discover(cls, url: str) -> "Issuer":
        """Ask an issuer for its endpoints.

        Raises:
            OSError: if no issuer answers at the URL, with the addresses that were asked.
        """
        parts = urlsplit(url)
        # OpenID Connect puts `.well-known` after the issuer's path, RFC 8414 puts it between host and path. Issuers serve one
        # of these addresses, or both.
        addresses = (
            f"{url.rstrip('/')}/.well-known/openid-configuration",
            f"{parts.scheme}://{parts.netloc}/.well-known/oauth-authorization-server{parts.path.rstrip('/')}",
        )
        for address in addresses:
            status, metadata = _call(address)
            # The document must name the issuer itself (RFC 8414, 3.3); otherwise anyone could answer for another issuer.
            if status == 200 and str(metadata.get("issuer", "")).rstrip("/") == url.rstrip("/"):
                return cls(url, metadata)
        msg = f"{url} is no token issuer: neither {' nor '.join(addresses)} describes it"
        raise OSError(msg)

    def register(self, scope: str) -> Client:
        """Register as a client of the issuer.

        Raises:
            OSError: if it does not let new clients register.
        """
        registration = {
            "client_name": "crmuons",
            "grant_types": [DEVICE_GRANT, "refresh_token"],
            "response_types": [],
            # The device flow sends nothing back to a browser.
            "redirect_uris": [],
            "token_endpoint_auth_method": "client_secret_basic",
            "scope": scope,
        }
        status, answer = _call(
            self.endpoint("registration_endpoint"), json.dumps(registration).encode(), "application/json"
        )
        if "client_id" not in answer:
            msg = f"{self.url} does not let new clients register (HTTP {status}{_reason(answer)}): ask who runs it"
            raise OSError(msg)
        return Client(str(answer["client_id"]), str(answer.get("client_secret", "")))

    def device_login(self, client: Client, scope: str, show: Callable[[str, str], None]) -> Mapping[str, Any]:
        """Ask the user to approve the login in any browser, and wait for it.

        Args:
            client: our registration.
            scope: the scopes to ask for, separated by spaces.
            show: shows the user the URL to open and the code to confirm.

        Returns:
            The issuer's answer, with `access_token` and `refresh_token`.

        Raises:
            PermissionError: if the user denies, or the issuer does not grant the scope.
            TimeoutError: if the user does not approve in time.
        """
        status, device = self._post("device_authorization_endpoint", client, {"scope": scope})
        if "device_code" not in device:
            msg = f"{self.url} begins no login for the scopes '{scope}' (HTTP {status}{_reason(device)})"
            raise PermissionError(msg)
        # The complete URL contains the code, so the user need not type it.
        show(*self._page_and_code(device))
        # The issuer gives the interval; it answers slow_down to more frequent requests.
        interval_s = min(seconds(device, "interval", DEFAULT_INTERVAL_S), LONGEST_INTERVAL_S)
        deadline = time.monotonic() + seconds(device, "expires_in", DEFAULT_LIFETIME_S)
        while time.monotonic() < deadline:
            time.sleep(interval_s)
            form = {"grant_type": DEVICE_GRANT, "device_code": str(device["device_code"])}
            try:
                status, answer = self._post("token_endpoint", client, form)
            except OSError as error:  # The issuer may come back while the user is still typing.
                logger.info("%s", error)
                continue
            if "access_token" in answer:
                return answer
            if answer.get("error") == "slow_down":
                interval_s += 5.0  # RFC 8628, 3.5.
            elif answer.get("error") != "authorization_pending" and status < 500:
                msg = f"{self.url} refused the login (HTTP {status}{_reason(answer)}); log in again, or ask for less"
                raise PermissionError(msg)
        msg = f"nobody approved the login at {self.url} in time; log in again"
        raise TimeoutError(msg)

    def refresh(self, client: Client, refresh_token: str) -> Mapping[str, Any]:
        """Exchange a refresh token for new tokens.

        Raises:
            PermissionError: if the issuer does not accept it any more.
            OSError: if the issuer cannot be reached.
        """
        form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
        status, answer = self._post("token_endpoint", client, form)
        if "access_token" in answer:
            return answer
        msg = f"{self.url} did not renew the login (HTTP {status}{_reason(answer)}); log in again with 'crmuons login'"
        # A broken server may renew it later; a refusal stays, and needs a new login.
        raise OSError(msg) if status >= 500 else PermissionError(msg)

    def endpoint(self, name: str) -> str:
        """Return the address of an endpoint.

        Raises:
            OSError: if the issuer has no such endpoint.
        """
        if name not in self.metadata:
            msg = (
                f"{self.url} has no {name.replace('_', ' ')}, which the device flow needs; ask who runs it for a token"
            )
            raise OSError(msg)
        return str(self.metadata[name])

    def _page_and_code(self, device: Mapping[str, Any]) -> tuple[str, str]:
        """Return the page and the code that a login begins with; both are shown on the user's terminal."""
        page, code = (
            str(device.get("verification_uri_complete", device.get("verification_uri", ""))),
            str(device.get("user_code", "")),
        )
        if not page.startswith("https://") or not (page + code).isprintable() or len(page + code) > MAX_SHOWN:
            msg = f"{self.url} begins the login with no https page of at most {MAX_SHOWN} letters ({page[:80]!r}); ask who runs it"
            raise OSError(msg)
        return page, code

    def _post(self, endpoint: str, client: Client, form: dict[str, str]) -> tuple[int, dict[str, Any]]:
        headers = {}
        if client.secret:
            pair = f"{quote(client.id, safe='')}:{quote(client.secret, safe='')}"  # RFC 6749, 2.3.1.
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        body = urlencode({**form, "client_id": client.id}).encode()
        return _call(self.endpoint(endpoint), body, "application/x-www-form-urlencoded", headers)


def seconds(answer: Mapping[str, Any], key: str, otherwise: float) -> float:
    """Return a time in an issuer's answer; a value that is not a time of at most a year is replaced by `otherwise`."""
    try:
        value = float(answer.get(key, otherwise))
    except (TypeError, ValueError):
        return otherwise
    return value if 0 <= value <= 3.2e7 else otherwise


class _OwnOrigin(urllib.request.HTTPRedirectHandler):
    """Follows redirects within an origin. urllib would send the client's secret and the refresh token to another origin."""

    def redirect_request(  # noqa: PLR0917  as in urllib
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if _origin(req.full_url) != _origin(newurl):
            text = f"{_origin(req.full_url)} redirects to {_origin(newurl)}, which is not followed: secrets go to the issuer alone"
            raise OSError(text)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2].lower()}"


def _call(
    url: str, body: bytes | None = None, content_type: str = "", headers: Mapping[str, str] | None = None
) -> tuple[int, dict[str, Any]]:
    """Send a request; return the status and the JSON object of the answer, empty if the body is no JSON object.

    Raises:
        OSError: if no answer comes in TIMEOUT_S, it is too long, or it redirects to another origin.
        ValueError: if the URL is not https.
    """
    if not url.startswith("https://"):
        msg = f"'{url}' is not an https URL; tokens are only sent encrypted"
        raise ValueError(msg)
    sent = {"Accept": "application/json", **({"Content-Type": content_type} if content_type else {}), **(headers or {})}
    request = urllib.request.Request(url, body, sent)  # noqa: S310  https, checked above
    tls = urllib.request.HTTPSHandler(context=ssl.create_default_context())
    try:
        with urllib.request.build_opener(tls, _OwnOrigin).open(request, timeout=TIMEOUT_S) as answer:
            return answer.status, _object(_read(url, answer))
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _object(_read(url, error))
    except urllib.error.URLError as error:
        # `from None`, because the request in the cause holds the client's secret.
        msg = f"{url} cannot be asked: {error.reason}"
        raise OSError(msg) from None
    except (TimeoutError, http.client.HTTPException) as error:
        msg = f"{url} cannot be asked: {error or type(error).__name__}"
        raise OSError(msg) from None


def _read(url: str, answer: Any) -> bytes:
    """Return the body of an answer; refuse a body that is too long or too slow."""
    body, deadline = b"", time.monotonic() + TIMEOUT_S
    while piece := answer.read1(MAX_ANSWER_BYTES):
        body += piece
        if len(body) > MAX_ANSWER_BYTES or time.monotonic() > deadline:
            msg = f"{url} cannot be asked: its answer has no end (more than {MAX_ANSWER_BYTES} bytes, or {TIMEOUT_S:.0f} s)"
            raise OSError(msg)
    if answer.length:  # read1 does not distinguish a broken connection from the end.
        msg = f"{url} cannot be asked: its answer broke off"
        raise OSError(msg)
    return body


def _object(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _reason(answer: Mapping[str, Any]) -> str:
    words = [str(answer[key]) for key in ("error", "error_description") if key in answer]
    return f", {': '.join(words)}" if words else ""
