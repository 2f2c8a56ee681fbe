"""POST /api/webhook/config: where the organization's events are pushed to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from relay.delivery.endpoints import Endpoints
from relay.http import exchange as exchanges
from relay.http import schemas
from relay.http.body import SMALL_BODY_BYTES, BodyClock, decode
from relay.http.door import Door
from relay.http.exchange import NO_STORE, Receive, Scope, Send
from relay.http.query import refuse_query
from relay.http.urls import check_webhook_url
from relay.values import signature
from relay.values.addresses import Network

_config: Final = msgspec.json.Decoder(schemas.WebhookConfig)


class PostWebhookConfig:
    """Set the organization's default endpoint."""

    def __init__(self, door: Door, bodies: BodyClock, endpoints: Endpoints, allowed: Sequence[Network]) -> None:
        self._door = door
        self._bodies = bodies
        self._endpoints = endpoints
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchanges.of(scope)
        tenant = await self._door.admit(exchange, "manage")
        refuse_query(scope)
        asked: schemas.WebhookConfig = decode(await self._bodies.read(exchange, SMALL_BODY_BYTES), _config)
        check_webhook_url(asked.webhook_url, self._allowed, "webhook_url")
        endpoint_id, secret = await self._endpoints.set_default(tenant.organization_id, tenant.tier, asked.webhook_url)
        await exchange.answer_json(
            200,
            schemas.WebhookConfigResponse(success=True, endpoint_id=str(endpoint_id), secret=signature.written(secret)),
            NO_STORE,
        )
