"""A client of the API that checks every response against the OpenAPI document."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, Self

import httpx2
from jsonschema import Draft202012Validator

from relay.local.processes import PythonChild
from tests.support.sign_up import SignUp

_TIMEOUT_S = 30.0


class Tenant:
    """An organization, with its key."""

    def __init__(self, api: Api, key: str, organization_id: str) -> None:
        self.api = api
        self.key = key
        self.organization_id = organization_id

    async def request(self, method: str, path: str, **options: Any) -> httpx2.Response:
        headers = {"X-API-Key": self.key, **options.pop("headers", {})}
        return await self.api.request(method, path, headers=headers, **options)

    async def get(self, path: str, **options: Any) -> httpx2.Response:
        return await self.request("GET", path, **options)

    async def post(self, path: str, **options: Any) -> httpx2.Response:
        return await self.request("POST", path, **options)

    async def send(self, body: bytes, **headers: str) -> httpx2.Response:
        """Post bytes as an event."""
        return await self.post("/api/events", content=body, headers={"Content-Type": "application/json", **headers})

    async def accept(self, type_: str = "order.created", payload: object = None, **members: object) -> str:
        """Post an event that is accepted, and return its id."""
        answer = await self.post("/api/events", json={"type": type_, "payload": payload, **members})
        assert answer.status_code == 201, answer.text
        event_id: str = answer.json()["id"]
        return event_id

    async def inbox(self, **parameters: object) -> dict[str, Any]:
        answer = await self.get("/api/inbox", params=parameters)
        assert answer.status_code == 200, answer.text
        page: dict[str, Any] = answer.json()
        return page

    async def walk(self, **parameters: object) -> list[str]:
        """Return the ids on all pages."""
        ids: list[str] = []
        page = await self.inbox(**parameters)
        while True:
            ids += [event["id"] for event in page["events"]]
            if page["next_cursor"] is None or (parameters.get("order") == "asc" and not page["events"]):
                return ids
            page = await self.inbox(**{**parameters, "cursor": page["next_cursor"]})


class Api:
    """A running `relay serve`."""

    def __init__(self, base: str, child: PythonChild | None = None, admin_token: str | None = None) -> None:
        self.base = base
        self.authorization = {"Authorization": f"Bearer {admin_token}"} if admin_token else {}
        self.child = child
        self.client = httpx2.AsyncClient(base_url=base, timeout=_TIMEOUT_S, trust_env=False)
        #: Another way than through the API to make an organization, or None.
        self.sign_up: SignUp | None = None
        self._contract: Contract | None = None

    @property
    def port(self) -> int:
        return int(self.base.rpartition(":")[2])

    @property
    def pid(self) -> int:
        assert self.child is not None
        assert self.child.pid is not None
        return self.child.pid

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()

    async def request(self, method: str, path: str, **options: Any) -> httpx2.Response:
        answer = await self.client.request(method, path, **options)
        contract = await self.contract()
        contract.check(method, path, answer)
        return answer

    async def metrics(self, **headers: str) -> str:
        """What `/metrics` says by now: it is rendered once a second, and counts its own requests, so that a page which
        differs from the first was rendered after it was asked for.
        """
        first = (await self.request("GET", "/metrics", headers=headers)).text
        async with asyncio.timeout(_TIMEOUT_S):
            while (text := (await self.request("GET", "/metrics", headers=headers)).text) == first:
                await asyncio.sleep(0.05)
        return text

    async def contract(self) -> Contract:
        if self._contract is None:
            document = await self.client.get("/openapi.json")
            self._contract = Contract(document.json())
        return self._contract

    async def tenant(self, tier: str = "enterprise", name: str = "test") -> Tenant:
        """Create an organization."""
        if self.sign_up is not None:
            new = await self.sign_up(name, tier)
            return Tenant(self, new.api_key, str(new.organization_id))
        answer = await self.request(
            "POST",
            "/api/keys/generate",
            json={"organization_name": name, "tier": tier},
            headers=self.authorization,
        )
        assert answer.status_code == 201, answer.text
        made = answer.json()
        return Tenant(self, made["api_key"], made["organization_id"])


class Contract:
    """An OpenAPI document to check responses against."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self._paths = [
            (re.compile(re.sub(r"\{\w+\}", "[^/]+", path)), operations)
            for path, operations in document["paths"].items()
        ]
        # One for each schema: most of the time of a validator goes into finding what its references lead to.
        self._validators: dict[int, Draft202012Validator] = {}

    def _validator(self, schema: dict[str, Any]) -> Draft202012Validator:
        if (made := self._validators.get(id(schema))) is None:
            made = Draft202012Validator({**schema, "components": self.document["components"]})
            self._validators[id(schema)] = made
        return made

    def check(self, method: str, path: str, answer: httpx2.Response) -> None:
        """Fail if the document does not describe this response."""
        assert "x-request-id" in answer.headers
        operations = next((found for pattern, found in self._paths if pattern.fullmatch(path.partition("?")[0])), None)
        if operations is None or method.lower() not in operations:
            assert answer.status_code in (404, 405), f"{method} {path} is not in the document"
            return
        responses = operations[method.lower()]["responses"]
        assert str(answer.status_code) in responses, f"{method} {path}: {answer.status_code} {answer.text}"
        described = responses[str(answer.status_code)]
        if "content" in described:
            media = answer.headers["content-type"].partition(";")[0]
            assert media in described["content"]
            value = json.loads(answer.text, parse_int=float) if media == "application/json" else answer.text
            self._validator(described["content"][media]["schema"]).validate(value)
        # Without a tenant there is no rate limit to tell of, and a 500 may come before that is known.
        if {"ApiKeyAuth": []} in operations[method.lower()].get("security", ()) and answer.status_code not in (
            401,
            500,
            503,
        ):
            assert "ratelimit-limit" in answer.headers
