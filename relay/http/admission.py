"""Admission: API key, rate limit, scope and bulkhead, before the body is read."""

from __future__ import annotations

from typing import Final

from relay.auth import Authenticator, Tenant
from relay.errors import ApiError, Detail
from relay.http.bulkhead import Bulkheads
from relay.http.exchange import NO_STORE, Exchange
from relay.limits import Decision, Limits
from relay.telemetry.metrics import Metrics

#: A rejected request costs one token for each of this many bytes of its body.
CHARGED_BYTES: Final = 4096


class Admission:
    """Checks the key, then the rate limit, then the scope and the bulkhead.

    Args:
        authenticator: verifies keys.
        limiter: decides on rate limits.
        bulkheads: limit what is in progress.
        metrics: where to count the limiter's decisions.
    """

    def __init__(self, authenticator: Authenticator, limiter: Limits, bulkheads: Bulkheads, metrics: Metrics) -> None:
        self._authenticator = authenticator
        self._limiter = limiter
        self._bulkheads = bulkheads
        decisions = metrics.counter(
            "relay_limit_decisions", "Decisions on the rate limits of organizations: allowed, limited.", "decision"
        )
        self._allowed, self._limited = decisions.labels("allowed"), decisions.labels("limited")

    async def admit(self, exchange: Exchange, scope: str | None, *, permit: bool = True) -> Tenant:
        """Admit a request, and return its caller. The request is charged.

        Args:
            exchange: the state of the request.
            scope: the scope that the operation requires; None for any.
            permit: True waits for a permit of the organization for the connection pool, held until the response. False
                for what commits in groups, and for what waits for something else.

        Raises:
            ApiError: `insufficient_scope`, `rate_limited`, `too_many_requests_waiting`.
            AuthError: the key is missing or rejected.
            DatabaseUnavailable: the key has to be looked up and the lookup fails.
        """
        key = exchange.headers.get(b"x-api-key")
        tenant = self._authenticator.known(key) if key is not None else None
        if tenant is None:
            tenant = await self._authenticator.authenticate(key)
        exchange.tenant = tenant
        decision = self._limiter.try_spend(tenant.organization_id, tenant.tier)
        if decision is None:
            decision = await self._limiter.spend(tenant.organization_id, tenant.tier)
        headers = decision.headers
        # Caches store responses to POST only if told to (RFC 9111, section 3).
        exchange.limit_headers = headers if exchange.method == "POST" else (*headers, NO_STORE)
        if not decision.allowed:
            self._limited.add()
            raise ApiError("rate_limited", retry_after_s=decision.retry_after_s)
        self._allowed.add()
        if scope is not None and scope not in tenant.scopes:
            raise ApiError("insufficient_scope")
        exchange.bulkhead = self._bulkheads.enter(tenant.organization_id)
        if permit:
            await exchange.take_permit()
        return tenant

    async def charge_rejected(self, exchange: Exchange) -> None:
        """Charge a rejected request for what was read of its body: a token for each 4 KiB after the first.

        If fewer tokens are left, they are all spent. The next request then waits as it would at the rate limit.
        """
        tenant, size = exchange.tenant, exchange.body_read_bytes
        exchange.body_read_bytes = 0
        if tenant is None or size <= CHARGED_BYTES:
            return
        left = await self._spend(tenant, 0)
        decision = await self._spend(tenant, min((size - 1) // CHARGED_BYTES, left.remaining))
        exchange.limit_headers = decision.headers

    async def _spend(self, tenant: Tenant, cost: int) -> Decision:
        decision = self._limiter.try_spend(tenant.organization_id, tenant.tier, cost)
        return decision or await self._limiter.spend(tenant.organization_id, tenant.tier, cost)

    async def charge(self, exchange: Exchange, tenant: Tenant, events: int) -> None:
        """Charge the events of a batch. The first was charged by `admit`.

        Raises:
            ApiError: `batch_over_limit` if the batch exceeds the burst of the rate limit, or `rate_limited`.
        """
        decision = await self._spend(tenant, events - 1)
        exchange.limit_headers = decision.headers
        (self._allowed if decision.allowed else self._limited).add()
        if events > decision.limit:
            raise ApiError("batch_over_limit", details=(Detail("body", f"At most {decision.limit} events."),))
        if not decision.allowed:
            raise ApiError("rate_limited", retry_after_s=decision.retry_after_s)
