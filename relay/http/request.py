"""A request as handlers see it: admitted, and with its query, path and body decoded."""

from __future__ import annotations

from typing import Generic, TypeVar
from uuid import UUID

from relay.auth import Tenant
from relay.http.exchange import Exchange, Scope
from relay.store.idempotency import IdempotencyKey

Query = TypeVar("Query")
Body = TypeVar("Body")


class Request(Generic[Query, Body]):
    """One admitted request.

    Args:
        scope: the ASGI scope.
        exchange: the state of the request.
        query: the query string as the operation's `query` type; None if it has none.
        path_id: the id in the path; None if the operation has none.
        body: the body as the operation's `body` type; None if it has none, or if an optional body is empty.
        idempotency_key: the Idempotency-Key with the digest of the request; None without that header.
        page_bytes: the size limit of a page, reserved for this request; 0 if the operation declares none.
    """

    __slots__ = ("_path_id", "body", "exchange", "idempotency_key", "page_bytes", "query", "scope")

    def __init__(
        self,
        scope: Scope,
        exchange: Exchange,
        query: Query,
        path_id: UUID | None,
        body: Body,
        idempotency_key: IdempotencyKey | None,
        page_bytes: int,
    ) -> None:
        self.scope = scope
        self.exchange = exchange
        self.query = query
        self._path_id = path_id
        self.body = body
        self.idempotency_key = idempotency_key
        self.page_bytes = page_bytes

    @property
    def tenant(self) -> Tenant:
        """Return the caller. Only operations that require a key have one."""
        tenant = self.exchange.tenant
        assert tenant is not None  # noqa: S101 - admission sets it for every operation with a scope
        return tenant

    @property
    def organization_id(self) -> UUID:
        """Return the caller's organization."""
        return self.tenant.organization_id

    @property
    def path_name(self) -> str:
        """Return the name in the path."""
        name: str = self.scope["path_params"]["name"]
        return name

    @property
    def id(self) -> UUID:
        """Return the id in the path."""
        assert self._path_id is not None  # noqa: S101 - the dispatcher sets it for every operation with `path_noun`
        return self._path_id
