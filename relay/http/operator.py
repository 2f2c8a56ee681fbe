"""Gates, which admit requests without an API key: the operator's tokens, and signing up."""

from __future__ import annotations

import hmac
import logging
from typing import ClassVar

from relay.errors import ApiError
from relay.http.exchange import Exchange, Scope
from relay.http.proxies import TrustedProxies, client_network
from relay.limits import SignupLimiter
from relay.telemetry.metrics import Counter, Metrics

_log = logging.getLogger("relay.http")


class BearerToken:
    """Admits callers with a token. After 60 wrong ones in a minute an address gets 429 for any, and learns nothing.

    Args:
        token: the right one.
        clients: tells who sent a request.
        attempts: counts wrong tokens by address.
        rejected: counts them in all.
    """

    _error: ClassVar[str]
    _event: ClassVar[str]
    _counted_for: ClassVar[str]

    def __init__(self, token: str, clients: TrustedProxies, attempts: SignupLimiter, rejected: Counter) -> None:
        self._token = token
        self._clients = clients
        self._attempts = attempts
        self._rejected = rejected

    def __call__(self, scope: Scope) -> None:
        """Admit a request with the token.

        Raises:
            ApiError: `invalid_admin_token` or `invalid_metrics_token`; `too_many_wrong_tokens`.
        """
        address = self._clients.address_of(scope)
        # Apart from other counts of the address in the same memory.
        caller = f"{self._counted_for} {client_network(address)}"
        if self._attempts.spend(caller, 0).remaining < 1:
            raise ApiError("too_many_wrong_tokens", retry_after_s=1)
        if _bears(scope["relay"], self._token):
            return
        self._attempts.spend(caller)
        self._rejected.add()
        _log.warning(self._event, extra={"client": address or None})
        raise ApiError(self._error)


class OperatorToken(BearerToken):
    """RELAY_ADMIN_TOKEN."""

    _error = "invalid_admin_token"
    _event = "admin_token_refused"
    _counted_for = "token"

    def __init__(self, token: str, clients: TrustedProxies, attempts: SignupLimiter, metrics: Metrics) -> None:
        rejected = metrics.counter(
            "relay_admin_tokens_refused", "Requests that did not carry the operator's token where it is needed."
        )
        super().__init__(token, clients, attempts, rejected)


class MetricsToken(BearerToken):
    """RELAY_METRICS_TOKEN."""

    _error = "invalid_metrics_token"
    _event = "metrics_token_refused"
    _counted_for = "metrics"

    def __init__(self, token: str, clients: TrustedProxies, attempts: SignupLimiter, metrics: Metrics) -> None:
        rejected = metrics.counter(
            "relay_metrics_tokens_refused", "Requests for the metrics that did not carry their token."
        )
        super().__init__(token, clients, attempts, rejected)


class MetricsGate:
    """Admits a request for the metrics.

    Args:
        token: None admits everyone.
    """

    def __init__(self, token: MetricsToken | None) -> None:
        self._token = token

    def __call__(self, scope: Scope) -> None:
        """Admit a request.

        Raises:
            ApiError: as the token.
        """
        if self._token is not None:
            self._token(scope)


class SignUp:
    """Admits a request that signs up an organization: from the operator, or without a token at a limited rate.

    Args:
        operator: the operator's token; None if sign-up is open.
        signups: limits sign-ups by client network.
        clients: tells who sent a request.
    """

    def __init__(self, operator: OperatorToken | None, signups: SignupLimiter, clients: TrustedProxies) -> None:
        self._operator = operator
        self._signups = signups
        self._clients = clients

    def __call__(self, scope: Scope) -> None:
        """Admit a request.

        Raises:
            ApiError: `too_many_signups`, or as the operator's token.
        """
        if self._operator is not None:
            self._operator(scope)
            return
        decision = self._signups.spend(client_network(self._clients.address_of(scope)))
        if not decision.allowed:
            raise ApiError("too_many_signups", retry_after_s=decision.retry_after_s)


def _bears(exchange: Exchange, token: str) -> bool:
    """Return whether a request carries `token` as its bearer token (RFC 6750, section 2.1)."""
    scheme, _, given = exchange.headers.get(b"authorization", b"").partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), token.encode())
