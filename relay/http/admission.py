"""Who may come in, and how often."""

from __future__ import annotations

from typing import Final

from relay.auth import Authenticator, Tenant
from relay.errors import ApiError, Detail
from relay.http.bulkhead import Bulkheads
from relay.http.exchange import NO_STORE, Exchange
from relay.limits import Decision, Limits
from relay.telemetry.metrics import Metrics

#: A rejected request costs a token for each so many bytes of its body.
CHARGED_BYTES: Final = 4096


class Admission:
    """Key first, then the limit, then what the organization has under way: all before a byte of the body is read.

    Args:
        guard: knows keys.
        limiter: knows limits.
        crowd: knows what is under way.
        metrics: where to count the limiter's decisions.
    """

    def __init__(self, guard: Authenticator, limiter: Limits, bulkheads: Bulkheads, metrics: Metrics) -> None:
        self._guard = guard
        self._limiter = limiter
        self._bulkheads = bulkheads
        decisions = metrics.counter(
            "relay_limit_decisions", "Decisions on the rate limits of organizations: allowed, limited.", "decision"
        )
        self._allowed, self._limited = decisions.labels("allowed"), decisions.labels("limited")

    async def admit(self, exchange: Exchange, needs: str | None, *, turn: bool = True) -> Tenant:
        """The caller, whose request has been paid for.

        Args:
            exchange: the request.
            needs: the scope that the route needs; None for any.
            turn: whether the route uses the pool of connections, and so waits for a turn of its organization; it has it
                until its answer. Not for what commits with others, nor for what waits for somebody else.

        Raises:
            ApiError: `missing_api_key`, `invalid_api_key`, `insufficient_scope`, `rate_limited`,
                `too_many_requests_waiting`, `database_unavailable`.
        """
        key = exchange.headers.get(b"x-api-key")
        tenant = self._guard.known(key) if key is not None else None
        if tenant is None:
            tenant = await self._guard.admit(key, None)
        exchange.tenant = tenant
        allowance = self._limiter.try_spend(tenant.organization_id, tenant.tier)
        if allowance is None:
            allowance = await self._limiter.spend(tenant.organization_id, tenant.tier)
        headers = allowance.headers
        # Of the other methods' answers caches keep nothing that does not tell them to (RFC 9111, section 3).
        exchange.limit_headers = headers if exchange.method == "POST" else (*headers, NO_STORE)
        if not allowance.allowed:
            self._limited.add()
            raise ApiError("rate_limited", retry_after_s=allowance.retry_after_s)
        self._allowed.add()
        if needs is not None and needs not in tenant.scopes:
            raise ApiError("insufficient_scope")
        exchange.bulkhead = self._bulkheads.enter(tenant.organization_id)
        if turn:
            await exchange.bulkhead.take_turn()
            exchange.has_turn = True
        return tenant

    async def charge_refused(self, exchange: Exchange) -> None:
        """Charge a request that is rejected for what was read of its body, beyond what it has paid for: a token for
        each 4 KiB. Where fewer are left, all of them: the next request waits, and not for longer than one of its own
        rate would.
        """
        tenant, size = exchange.tenant, exchange.body_read_bytes
        exchange.body_read_bytes = 0
        if tenant is None or size <= CHARGED_BYTES:
            return
        left = await self._spend(tenant, 0)
        allowance = await self._spend(tenant, min((size - 1) // CHARGED_BYTES, left.remaining))
        exchange.limit_headers = allowance.headers

    async def _spend(self, tenant: Tenant, cost: int) -> Decision:
        allowance = self._limiter.try_spend(tenant.organization_id, tenant.tier, cost)
        return allowance or await self._limiter.spend(tenant.organization_id, tenant.tier, cost)

    async def charge(self, exchange: Exchange, tenant: Tenant, events: int) -> None:
        """Pay for the events of a batch, the first of which has been paid for at the door.

        Raises:
            ApiError: `batch_over_limit` when even a full allowance would not do, `rate_limited`.
        """
        allowance = await self._spend(tenant, events - 1)
        exchange.limit_headers = allowance.headers
        (self._allowed if allowance.allowed else self._limited).add()
        if events > allowance.limit:
            raise ApiError("batch_over_limit", details=(Detail("body", f"At most {allowance.limit} events."),))
        if not allowance.allowed:
            raise ApiError("rate_limited", retry_after_s=allowance.retry_after_s)
