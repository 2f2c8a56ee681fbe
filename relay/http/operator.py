"""The operator's token, and how often an address may be wrong about it."""

from __future__ import annotations

import hmac
import logging

from relay.errors import ApiError
from relay.http import exchange as exchanges
from relay.http.exchange import Exchange, Scope
from relay.http.proxies import TrustedProxies, client_network
from relay.limits import SignupLimiter
from relay.telemetry.metrics import Metrics

_log = logging.getLogger("relay.http")


def bears(exchange: Exchange, token: str) -> bool:
    """Whether a request carries `token` as its bearer token (RFC 6750, section 2.1)."""
    scheme, _, given = exchange.headers.get(b"authorization", b"").partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), token.encode())


class OperatorToken:
    """Compares tokens. Past 60 wrong ones a minute an address is not heard, right or wrong, so that it learns nothing.

    Args:
        token: RELAY_ADMIN_TOKEN.
        clients: tells who sent a request.
        attempts: counts wrong ones by address.
        metrics: where to count them.
    """

    def __init__(self, token: str, clients: TrustedProxies, attempts: SignupLimiter, metrics: Metrics) -> None:
        self._token = token
        self._clients = clients
        self._attempts = attempts
        self._refused = metrics.counter(
            "relay_admin_tokens_refused", "Requests that did not carry the operator's token where it is needed."
        )

    def require(self, scope: Scope) -> None:
        """Let the operator pass.

        Raises:
            ApiError: `invalid_admin_token` or `too_many_wrong_tokens`.
        """
        address = self._clients.address_of(scope)
        # Apart from the sign-ups of the address, which the same memory holds.
        caller = f"token {client_network(address)}"
        if self._attempts.spend(caller, 0).remaining < 1:
            raise ApiError("too_many_wrong_tokens", retry_after_s=1)
        if bears(exchanges.of(scope), self._token):
            return
        self._attempts.spend(caller)
        self._refused.add()
        _log.warning("admin_token_refused", extra={"client": address or None})
        raise ApiError("invalid_admin_token")
