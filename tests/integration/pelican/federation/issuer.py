"""A token issuer for the test federation: device flow (RFC 8628), refresh with rotation, dynamic registration (RFC 7591).

Built on Authlib's server side, so that the project's client is tested against an implementation that is not its own.

usage: python -m tests.integration.pelican.federation.issuer PKI PORT LIFETIME_S
Approve a pending code, as the user's browser would: POST /device user_code=XXXX-XXXX [deny=1]
"""

import secrets
import sys
import time
from pathlib import Path
from typing import Any

from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.oauth2.rfc6749 import ClientMixin, TokenMixin, grants
from authlib.oauth2.rfc8628 import (
    DEVICE_CODE_GRANT_TYPE,
    DeviceAuthorizationEndpoint,
    DeviceCodeGrant,
    DeviceCredentialDict,
)
from flask import Flask, jsonify, request
from werkzeug.serving import run_simple

from tests.integration.pelican.federation.pki import make_token

PKI, PORT, LIFETIME_S = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
ISSUER = f"https://localhost:{PORT}"
AUTHENTICATION = ["client_secret_basic", "client_secret_post", "none"]

clients: dict[str, "Client"] = {}
device_codes: dict[str, DeviceCredentialDict] = {}
approvals: dict[str, bool | None] = {}
refresh_tokens: dict[str, "RefreshToken"] = {}


class Client(ClientMixin):
    """A registered client."""

    def __init__(self) -> None:
        self.identifier = f"client-{secrets.token_hex(6)}"
        self.secret = secrets.token_urlsafe(24)

    def get_client_id(self) -> str:
        return self.identifier

    def get_default_redirect_uri(self) -> None:
        return None

    def get_allowed_scope(self, scope: str) -> str:
        return scope

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        return False

    def check_client_secret(self, client_secret: str) -> bool:
        return secrets.compare_digest(client_secret or "", self.secret)

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method in AUTHENTICATION

    def check_response_type(self, response_type: str) -> bool:
        return False

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type in (DEVICE_CODE_GRANT_TYPE, "refresh_token")


class RefreshToken(dict[str, Any], TokenMixin):
    """A refresh token that has not been used."""

    def check_client(self, client: Client) -> bool:
        return client.identifier == self["client_id"]

    def get_scope(self) -> str:
        return str(self["scope"])

    def get_expires_in(self) -> int:
        return 86400

    def is_expired(self) -> bool:
        return False

    def is_revoked(self) -> bool:
        return False

    def get_user(self) -> str:
        return str(self["user"])

    def get_client(self) -> Client:
        return clients[self["client_id"]]


class Refresh(grants.RefreshTokenGrant):
    """Each refresh token is good once: whoever refreshes must keep the new one."""

    TOKEN_ENDPOINT_AUTH_METHODS = AUTHENTICATION
    INCLUDE_NEW_REFRESH_TOKEN = True

    def authenticate_refresh_token(self, refresh_token: str) -> RefreshToken | None:
        self.used = refresh_token
        return refresh_tokens.get(refresh_token)

    def authenticate_user(self, refresh_token: RefreshToken) -> str:
        return str(refresh_token["user"])

    def revoke_old_credential(self, refresh_token: RefreshToken) -> None:
        del refresh_tokens[self.used]


class DeviceEndpoint(DeviceAuthorizationEndpoint):
    """Hands out device codes."""

    INTERVAL = 1

    def get_verification_uri(self) -> str:
        return f"{ISSUER}/device"

    def save_device_credential(self, client_id: str, scope: str, data: dict[str, Any]) -> None:
        expires_at = time.time() + data["expires_in"]
        device_codes[data["device_code"]] = DeviceCredentialDict(
            {**data, "client_id": client_id, "scope": scope, "expires_at": expires_at}
        )
        approvals[data["user_code"]] = None


class Device(DeviceCodeGrant):
    """Turns an approved device code into tokens."""

    TOKEN_ENDPOINT_AUTH_METHODS = AUTHENTICATION

    def query_device_credential(self, device_code: str) -> DeviceCredentialDict | None:
        return device_codes.get(device_code)

    def query_user_grant(self, user_code: str) -> tuple[str, bool] | None:
        approved = approvals.get(user_code)
        return None if approved is None else ("tester", approved)

    def should_slow_down(self, credential: DeviceCredentialDict) -> bool:
        return False


def tokens(
    grant_type: str, client: Client, user: str | None = None, scope: str | None = None, **_: object
) -> dict[str, Any]:
    """An access token for the storage scopes asked for, and a refresh token."""
    granted = " ".join(word for word in (scope or "").split() if word.startswith("storage."))
    refresh = secrets.token_urlsafe(32)
    refresh_tokens[refresh] = RefreshToken(client_id=client.identifier, scope=scope, user=user)
    return {
        "token_type": "Bearer",
        "access_token": make_token(PKI, ISSUER, granted, LIFETIME_S),
        "expires_in": int(LIFETIME_S),
        "scope": granted,
        "refresh_token": refresh,
    }


app = Flask(__name__)
server = AuthorizationServer(app, query_client=clients.get, save_token=lambda *_: None)
server.register_token_generator("default", tokens)
server.register_grant(Refresh)
server.register_grant(Device)
server.register_endpoint(DeviceEndpoint(server))


@app.get("/.well-known/openid-configuration")
def metadata() -> Any:
    return jsonify(
        issuer=ISSUER,
        token_endpoint=f"{ISSUER}/token",
        jwks_uri=f"{ISSUER}/jwks",
        device_authorization_endpoint=f"{ISSUER}/device_authorization",
        registration_endpoint=f"{ISSUER}/register",
        grant_types_supported=[DEVICE_CODE_GRANT_TYPE, "refresh_token"],
    )


@app.get("/jwks")
def jwks() -> Any:
    return app.response_class((PKI / "jwks.json").read_text(), mimetype="application/json")


@app.post("/register")
def register() -> Any:
    client = Client()
    clients[client.identifier] = client
    return jsonify({**request.get_json(), "client_id": client.identifier, "client_secret": client.secret}), 201


@app.post("/device_authorization")
def device_authorization() -> Any:
    return server.create_endpoint_response("device_authorization")


@app.post("/device")
def device() -> Any:
    user_code = request.form.get("user_code", "")
    if user_code not in approvals:
        return "unknown code", 404
    approvals[user_code] = "deny" not in request.form
    return "ok"


@app.post("/token")
def token() -> Any:
    return server.create_token_response()


if __name__ == "__main__":
    run_simple("127.0.0.1", PORT, app, ssl_context=(str(PKI / "host.pem"), str(PKI / "host.key")), threaded=True)
