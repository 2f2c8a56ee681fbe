"""The operator's tokens, and a limit on wrong ones from one address."""

from __future__ import annotations

import hmac
import logging
from typing import ClassVar

from relay.errors import ApiError
from relay.http import exchange as exchanges
from relay.http.exchange import Exchange, Scope
from relay.http.proxies import TrustedProxies, client_network
from relay.limits import SignupLimiter
from relay.telemetry.metrics import Counter, Metrics

_log = logging.getLogger("relay.http")


def bears(exchange: Exchange, token: str) -> bool:
    """Return True if a request carries `token` as its bearer token (RFC 6750, section 2.1)."""
    scheme, _, given = exchange.headers.get(b"authorization", b"").partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), token.encode())


class BearerToken:
    """Compare tokens. After 60 wrong ones in a minute an address gets 429, right or wrong, so that it learns nothing.

    Args:
        token: the right one.
        clients: finds the address of a request.
        attempts: counts wrong tokens by address.
        refused: counts them in all.
    """

    _error: ClassVar[str]
    _event: ClassVar[str]
    _counted_for: ClassVar[str]

    def __init__(self, token: str, clients: TrustedProxies, attempts: SignupLimiter, refused: Counter) -> None:
        self._token = token
        self._clients = clients
        self._attempts = attempts
        self._refused = refused

    def require(self, scope: Scope) -> None:
        """Let a request with the token pass.

        Raises:
            ApiError: `invalid_admin_token` or `invalid_metrics_token`; `too_many_wrong_tokens`.
        """
        address = self._clients.address_of(scope)
        # Apart from other counts of the address in the same memory.
        caller = f"{self._counted_for} {client_network(address)}"
        if self._attempts.spend(caller, 0).remaining < 1:
            raise ApiError("too_many_wrong_tokens", retry_after_s=1)
        if bears(exchanges.of(scope), self._token):
            return
        self._attempts.spend(caller)
        self._refused.add()
        _log.warning(self._event, extra={"client": address or None})
        raise ApiError(self._error)


class OperatorToken(BearerToken):
    """RELAY_ADMIN_TOKEN."""

    _error = "invalid_admin_token"
    _event = "admin_token_refused"
    _counted_for = "token"

    def __init__(self, token: str, clients: TrustedProxies, attempts: SignupLimiter, metrics: Metrics) -> None:
        refused = metrics.counter(
            "relay_admin_tokens_refused", "Requests that did not carry the operator's token where it is needed."
        )
        super().__init__(token, clients, attempts, refused)


class MetricsToken(BearerToken):
    """RELAY_METRICS_TOKEN."""

    _error = "invalid_metrics_token"
    _event = "metrics_token_refused"
    _counted_for = "metrics"

    def __init__(self, token: str, clients: TrustedProxies, attempts: SignupLimiter, metrics: Metrics) -> None:
        refused = metrics.counter(
            "relay_metrics_tokens_refused", "Requests for the metrics that did not carry their token."
        )
        super().__init__(token, clients, attempts, refused)
