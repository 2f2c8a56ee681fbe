"""Who may come in, and how often."""

from __future__ import annotations

from relay.auth import Guard, Tenant
from relay.errors import ApiError, Detail
from relay.http.exchange import Exchange
from relay.limits import Limiter


class Door:
    """Key first, then the limit: both before a byte of the body is read."""

    def __init__(self, guard: Guard, limiter: Limiter) -> None:
        self._guard = guard
        self._limiter = limiter

    async def admit(self, exchange: Exchange, needs: str | None) -> Tenant:
        """The caller, whose request has been paid for.

        Args:
            exchange: the request.
            needs: the scope that the route needs; None for any.

        Raises:
            ApiError: `missing_api_key`, `invalid_api_key`, `insufficient_scope`, `rate_limited`,
                `database_unavailable`.
        """
        key = exchange.headers.get(b"x-api-key")
        tenant = self._guard.known(key) if key is not None else None
        if tenant is None:
            tenant = await self._guard.admit(key, None)
        exchange.tenant = tenant
        allowance = self._limiter.spend(tenant.organization_id, tenant.tier)
        exchange.limit_headers = allowance.headers
        if not allowance.allowed:
            raise ApiError("rate_limited", retry_after_s=allowance.retry_after_s)
        if needs is not None and needs not in tenant.scopes:
            raise ApiError("insufficient_scope")
        return tenant

    def charge(self, exchange: Exchange, tenant: Tenant, events: int) -> None:
        """Pay for the events of a batch, the first of which has been paid for at the door.

        Raises:
            ApiError: `batch_over_limit` when even a full allowance would not do, `rate_limited`.
        """
        allowance = self._limiter.spend(tenant.organization_id, tenant.tier, events - 1)
        exchange.limit_headers = allowance.headers
        if events > allowance.limit:
            raise ApiError("batch_over_limit", details=(Detail("body", f"At most {allowance.limit} events."),))
        if not allowance.allowed:
            raise ApiError("rate_limited", retry_after_s=allowance.retry_after_s)
