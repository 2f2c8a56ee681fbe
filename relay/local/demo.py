"""The demo organization of `relay up`, set up over the API like any other."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from relay.local.data_dir import DataDir
from relay.local.errors import StartupError

_log: Final = logging.getLogger("relay.local")

_TIMEOUT_S: Final = 15.0
_HEALTH_TIMEOUT_S: Final = 15.0
_HEALTH_PAUSE_S: Final = 0.01
_ORGANIZATION: Final = "demo"
_TIER: Final = "enterprise"


class Answer(NamedTuple):
    """A response of the API."""

    status: int
    body: Any


class Api:
    """A client of the API on this machine. It ignores proxies in the environment.

    Args:
        host: the host to connect to.
        port: the port to connect to.
        admin_token: sent with calls that create a key.
    """

    def __init__(self, host: str, port: int, admin_token: str | None) -> None:
        self._host = host
        self._port = port
        self._admin_token = admin_token

    async def until_healthy(self) -> None:
        """Wait until GET /health returns 200.

        Raises:
            StartupError: it does not, within the time that a database needs to start.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _HEALTH_TIMEOUT_S
        while True:
            try:
                if (await self._call("GET", "/health")).status == 200:
                    return
                complaint = StartupError("the API does not reach its database")
            except StartupError as unable:
                # The process reports that it is ready just before its port is open.
                complaint = unable
            if loop.time() > deadline:
                raise complaint
            await asyncio.sleep(_HEALTH_PAUSE_S)

    async def demo_key(self, data: DataDir) -> str:
        """Return the stored API key of the demo organization if it is valid, else that of a new organization.

        Raises:
            StartupError: the API returns none.
        """
        kept = data.demo_key()
        if kept and (await self._call("GET", "/api/keys", {"X-API-Key": kept})).status == 200:
            return kept
        headers = {"Authorization": f"Bearer {self._admin_token}"} if self._admin_token else {}
        wanted = {"organization_name": _ORGANIZATION, "tier": _TIER}
        answer = await self._call("POST", "/api/keys/generate", headers, wanted)
        if answer.status == 422:
            # The operator's RELAY_SIGNUP_MAX_TIER is lower.
            answer = await self._call("POST", "/api/keys/generate", headers, {"organization_name": _ORGANIZATION})
        if answer.status != 201:
            raise StartupError(f"cannot create the demo key: POST /api/keys/generate returned {answer.status}")
        key = str(answer.body["api_key"])
        data.keep_demo_key(key)
        return key

    async def send_webhooks_to(self, url: str, key: str) -> str | None:
        """Set the organization's endpoint and return its secret, or None if the API rejects the URL."""
        answer = await self._call("POST", "/api/webhook/config", {"X-API-Key": key}, {"webhook_url": url})
        if answer.status != 200:
            # RELAY_ALLOWED_NETWORKS lacks loopback. Everything but the demo works.
            _log.warning("demo_endpoint_refused", extra={"status": answer.status})
            return None
        return str(answer.body["secret"])

    async def _call(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: object = None
    ) -> Answer:
        return await asyncio.to_thread(self._blocking_call, method, path, dict(headers or {}), body)

    def _blocking_call(self, method: str, path: str, headers: dict[str, str], body: object) -> Answer:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_S)
        try:
            sent = None
            if body is not None:
                headers["Content-Type"] = "application/json"
                sent = json.dumps(body)
            connection.request(method, path, sent, headers)
            response = connection.getresponse()
            received = response.read()
            return Answer(response.status, json.loads(received) if received else None)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise StartupError(f"the API does not respond to {method} {path} ({type(error).__name__})") from error
        finally:
            connection.close()
