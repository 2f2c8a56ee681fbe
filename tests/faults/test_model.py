"""Random calls of several organizations, in random order and with faults in between, match a simple model."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

import asyncpg
import httpx2
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from relay.values.uuid7 import Uuid7Clock
from tests.conftest import Commands, Databases
from tests.faults.model import Endpoint, Event, Organization
from tests.support.api import Api

PATIENCE_S = 20.0
TYPES = ("order.created", "order.paid", "user.gone")
FILTERS: tuple[list[str], ...] = ([], ["order.*"], ["user.gone"], ["order.paid", "user.gone"])
URLS = ("http://127.0.0.1:9/a", "http://127.0.0.1:9/b")

organizations = st.integers(0, 1)
types = st.sampled_from(TYPES)
kinds = st.sampled_from("di-")
keys = st.sampled_from(("one", "two", "three"))
# Few, so that a key comes back with the same payload and with another.
payloads = st.integers(0, 2)
places = st.integers(0, 1000)


class World:
    """The API under test, called from a thread while its processes are kept on the event loop."""

    def __init__(self, api: Api, database_url: str, loop: asyncio.AbstractEventLoop) -> None:
        self.api = api
        self._database_url = database_url
        self._loop = loop
        #: Of an organization that no model looks at.
        self.spare = ""

    def call(self, method: str, path: str, key: str, **options: Any) -> httpx2.Response:
        headers = {"X-API-Key": key, **options.pop("headers", {})}
        request = self.api.request(method, path, headers=headers, **options)
        return asyncio.run_coroutine_threadsafe(request, self._loop).result(60)

    def new_key(self) -> str:
        return asyncio.run_coroutine_threadsafe(self.api.tenant(), self._loop).result(60).key

    def restart(self) -> None:
        asyncio.run_coroutine_threadsafe(self._restart(), self._loop).result(60)

    async def _restart(self) -> None:
        assert self.api.child is not None
        os.kill(self.api.pid, signal.SIGKILL)
        await self.api.child.wait()
        await self.api.child.start()

    def terminate_backends(self) -> None:
        asyncio.run_coroutine_threadsafe(self._terminate(), self._loop).result(60)

    async def _terminate(self) -> None:
        connection = await asyncpg.connect(self._database_url)
        try:
            await connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
            )
        finally:
            await connection.close()


class Calls(RuleBasedStateMachine):
    world: World

    @initialize()
    def sign_up(self) -> None:
        self.models = [Organization(), Organization()]
        self.keys = [self.world.new_key() for _ in self.models]

    def call(self, who: int, method: str, path: str, **options: Any) -> httpx2.Response:
        answer = self.world.call(method, path, self.keys[who], **options)
        assert answer.status_code < 500, answer.text
        return answer

    # Posting

    @rule(who=organizations, type_=types, payload=payloads, kind=kinds, key=keys)
    def post(self, who: int, type_: str, payload: int, kind: str, key: str) -> None:
        event = Event(type_, payload, key if kind == "d" else None)
        body = {"type": type_, "payload": payload, **({"dedup_id": key} if kind == "d" else {})}
        headers = {"Idempotency-Key": key} if kind == "i" else {}
        answer = self.call(who, "POST", "/api/events", json=body, headers=headers)
        status, named = self.models[who].post(event, kind, key)
        assert answer.status_code == status, answer.text
        said = answer.json()
        if named is event:
            event.id = said["id"]
            self.models[who].accepted(event, kind, key)
        elif status == 422:
            assert said["code"] == "idempotency_key_reused"
        else:
            assert said["id"] == named.id
            differs = (named.type, named.payload) != (type_, payload)
            assert ("conflict" in said) == (kind == "d" and differs)
            assert ("idempotent-replayed" in answer.headers) == (kind == "i")

    @rule(who=organizations, items=st.lists(st.tuples(types, payloads, st.sampled_from("d-"), keys), max_size=4))
    def post_a_batch(self, who: int, items: list[tuple[str, int, str, str]]) -> None:
        bodies = [
            {"type": type_, "payload": payload, **({"dedup_id": key} if kind == "d" else {})}
            for type_, payload, kind, key in items
        ]
        answer = self.call(who, "POST", "/api/events/batch", json=[*bodies, {"type": ""}])
        assert answer.status_code == 200, answer.text
        *results, wrong = answer.json()["results"]
        assert wrong["status"] == "invalid"
        for (type_, payload, kind, key), result in zip(items, results, strict=True):
            event = Event(type_, payload, key if kind == "d" else None)
            status, named = self.models[who].post(event, kind, key)
            assert result["status"] == ("accepted" if status == 201 else "duplicate")
            if named is event:
                event.id = result["id"]
                self.models[who].accepted(event, kind, key)
            assert result["id"] == named.id

    # Reading

    @rule(
        who=organizations,
        status=st.sampled_from(("pending", "delivered", "failed", "all")),
        type_=st.sampled_from((None, "order.*", *TYPES)),
        order=st.sampled_from(("asc", "desc")),
        limit=st.sampled_from((1, 2, 7, 1000)),
    )
    def read_the_inbox(self, who: int, status: str, type_: str | None, order: str, limit: int) -> None:
        expected = self.models[who].page(status, type_)
        self.compare(who, "/api/inbox", expected, {"status": status, "type": type_, "order": order, "limit": limit})

    @rule(
        who=organizations,
        dedup_id=st.one_of(st.none(), keys),
        status=st.sampled_from((None, "pending", "delivered")),
        order=st.sampled_from(("asc", "desc")),
    )
    def read_the_events(self, who: int, dedup_id: str | None, status: str | None, order: str) -> None:
        expected = self.models[who].page(status or "all", dedup_id=dedup_id)
        self.compare(who, "/api/events", expected, {"dedup_id": dedup_id, "status": status, "order": order})

    def compare(self, who: int, path: str, expected: list[Event], asked: dict[str, object]) -> None:
        parameters = {name: value for name, value in asked.items() if value is not None}
        wanted = [(event.id, event.type, event.payload, event.dedup_id, event.status) for event in expected]
        if asked["order"] == "desc":
            wanted.reverse()

        def found() -> list[tuple[object, ...]]:
            return [
                (row["id"], row["type"], row["payload"], row["dedup_id"], row["status"])
                for row in self.walk(who, path, parameters)
            ]

        # Going forward, a reader waits for transactions that are still open anywhere on the server.
        self.eventually(found, wanted) if asked["order"] == "asc" else self.equal(found(), wanted)

    def walk(self, who: int, path: str, parameters: dict[str, object]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            page = self.call(who, "GET", path, params={**parameters, **({"cursor": cursor} if cursor else {})}).json()
            found = next(value for value in page.values() if isinstance(value, list))
            rows += found
            cursor = page["next_cursor"]
            if cursor is None or (parameters.get("order") == "asc" and not found):
                return rows

    def equal(self, found: object, wanted: object) -> None:
        assert found == wanted

    def eventually(self, look: Callable[[], object], wanted: object) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while (found := look()) != wanted and time.monotonic() < deadline:
            time.sleep(0.05)
        assert found == wanted

    @rule(who=organizations, place=places)
    def read_one_event(self, who: int, place: int) -> None:
        if not self.models[who].events:
            return
        event = self.models[who].events[place % len(self.models[who].events)]
        shown = self.call(who, "GET", f"/api/events/{event.id}").json()
        assert (shown["type"], shown["payload"], shown["status"]) == (event.type, event.payload, event.status)
        assert self.call(1 - who, "GET", f"/api/events/{event.id}").status_code == 404

    # Acknowledging and sending again

    @rule(who=organizations, chosen=st.lists(places, max_size=3), many=st.booleans())
    def acknowledge(self, who: int, chosen: list[int], many: bool) -> None:
        model = self.models[who]
        events = list({model.events[place % len(model.events)] for place in chosen}) if model.events else []
        if many:
            stranger = str(Uuid7Clock().new())
            body = {"ids": [*(event.id for event in events), stranger]}
            answer = self.call(who, "POST", "/api/ack", json=body)
            assert answer.json() == {"acknowledged": len(events), "not_found": [stranger]}
        else:
            for event in events:
                assert self.call(1 - who, "POST", f"/api/ack/{event.id}").status_code == 404
                assert self.call(who, "POST", f"/api/ack/{event.id}").json() == {"success": True}
        for event in events:
            model.acknowledge(event)

    @rule(who=organizations, place=places)
    def replay(self, who: int, place: int) -> None:
        model = self.models[who]
        if not model.events:
            return
        event = model.events[place % len(model.events)]
        answer = self.call(who, "POST", f"/api/events/{event.id}/replay")
        if count := model.open(event):
            assert (answer.status_code, answer.json()) == (202, {"deliveries": count})
        else:
            assert answer.status_code == 409

    @rule(who=organizations, place=places)
    def retry(self, who: int, place: int) -> None:
        model = self.models[who]
        if not model.deliveries:
            return
        event_id, endpoint_id = list(model.deliveries)[place % len(model.deliveries)]
        delivery_id = UUID(int=UUID(event_id).int ^ (UUID(endpoint_id).int & ((1 << 62) - 1)))
        assert self.call(1 - who, "POST", f"/api/deliveries/{delivery_id}/retry").status_code == 404
        answer = self.call(who, "POST", f"/api/deliveries/{delivery_id}/retry")
        assert answer.status_code == 202, answer.text
        assert (answer.json()["event_id"], answer.json()["endpoint_id"]) == (event_id, endpoint_id)
        model.deliveries[event_id, endpoint_id] = True

    @rule(who=organizations)
    def read_the_deliveries(self, who: int) -> None:
        model = self.models[who]
        rows = self.walk(who, "/api/deliveries", {"limit": 3})
        shown = {
            (row["event_id"], row["endpoint_id"]): row["status"] in ("pending", "held")
            for row in rows
            if row["endpoint_id"] in model.endpoints
        }
        assert shown == model.deliveries

    # Endpoints

    @rule(who=organizations, url=st.sampled_from(URLS), wants=st.sampled_from(FILTERS), enabled=st.booleans())
    def make_an_endpoint(self, who: int, url: str, wants: list[str], enabled: bool) -> None:
        body = {"url": url, "event_types": wants, "enabled": enabled}
        answer = self.call(who, "POST", "/api/endpoints", json=body)
        assert answer.status_code == 201, answer.text
        self.models[who].endpoints[answer.json()["id"]] = Endpoint(url, wants, enabled)

    @rule(who=organizations, url=st.sampled_from(URLS))
    def set_the_default_endpoint(self, who: int, url: str) -> None:
        said = self.call(who, "POST", "/api/webhook/config", json={"webhook_url": url}).json()
        model = self.models[who]
        present = [endpoint_id for endpoint_id, endpoint in model.endpoints.items() if endpoint.is_default]
        assert present in ([], [said["endpoint_id"]])
        if present:
            model.endpoints[present[0]].url = url
        else:
            model.endpoints[said["endpoint_id"]] = Endpoint(url, [], True, is_default=True)

    @rule(who=organizations, place=places, wants=st.sampled_from(FILTERS), description=st.sampled_from(("", "é")))
    def change_an_endpoint(self, who: int, place: int, wants: list[str], description: str) -> None:
        if (endpoint_id := self.endpoint(who, place)) is None:
            return
        body = {"event_types": wants, "description": description}
        assert self.call(1 - who, "PATCH", f"/api/endpoints/{endpoint_id}", json=body).status_code == 404
        assert self.call(who, "PATCH", f"/api/endpoints/{endpoint_id}", json=body).status_code == 200
        endpoint = self.models[who].endpoints[endpoint_id]
        endpoint.event_types, endpoint.description = wants, description

    @rule(who=organizations, place=places)
    def delete_an_endpoint(self, who: int, place: int) -> None:
        if (endpoint_id := self.endpoint(who, place)) is None:
            return
        assert self.call(1 - who, "DELETE", f"/api/endpoints/{endpoint_id}").status_code == 404
        assert self.call(who, "DELETE", f"/api/endpoints/{endpoint_id}").status_code == 204
        assert self.call(who, "DELETE", f"/api/endpoints/{endpoint_id}").status_code == 404
        self.models[who].forget(endpoint_id)

    def endpoint(self, who: int, place: int) -> str | None:
        made = list(self.models[who].endpoints)
        return made[place % len(made)] if made else None

    @rule(who=organizations)
    def read_the_endpoints(self, who: int) -> None:
        rows = self.walk(who, "/api/endpoints", {"limit": 2})
        shown = {
            row["id"]: (row["url"], row["event_types"], row["enabled"], row["description"], row["is_default"])
            for row in rows
        }
        assert len(shown) == len(rows)
        assert shown == {
            endpoint_id: (each.url, each.event_types, each.enabled, each.description, each.is_default)
            for endpoint_id, each in self.models[who].endpoints.items()
        }

    # Keys and faults

    @rule(who=organizations)
    def rotate_the_key(self, who: int) -> None:
        old = self.keys[who]
        answer = self.call(who, "POST", "/api/keys/rotate", json={})
        assert answer.status_code == 200, answer.text
        self.keys[who] = answer.json()["api_key"]
        self.eventually(lambda: self.world.call("GET", "/api/keys", old).status_code, 401)
        assert len(self.call(who, "GET", "/api/keys").json()["keys"]) == 1

    @rule()
    def kill_the_api(self) -> None:
        self.world.restart()
        self.settle()

    @rule()
    def end_every_connection_to_the_database(self) -> None:
        self.world.terminate_backends()
        self.settle()

    def settle(self) -> None:
        """Tolerate 503 for a limited time."""
        deadline = time.monotonic() + PATIENCE_S
        well = 0
        while well < 3:
            assert time.monotonic() < deadline
            codes = [
                self.world.call("GET", "/api/inbox", self.keys[0]).status_code,
                self.world.call("POST", f"/api/ack/{Uuid7Clock().new()}", self.keys[0]).status_code,
                self.world.call("POST", "/api/events", self.world.spare, json={"type": "a", "payload": 0}).status_code,
            ]
            well = well + 1 if codes == [200, 404, 201] else 0
            assert well or 503 in codes, codes


@pytest.mark.slow
async def test_any_calls_in_any_order_show_what_the_model_says(
    commands: Commands, databases: Databases, request: pytest.FixtureRequest
) -> None:
    url = await databases.create()
    api = await commands.serve(url, RELAY_RATE_LIMIT_ENTERPRISE="1000000000")
    Calls.world = World(api, url, asyncio.get_running_loop())
    Calls.world.spare = (await api.tenant()).key
    bounded = settings(
        max_examples=100 if request.config.getoption("long") else 8,
        stateful_step_count=20,
        suppress_health_check=list(HealthCheck),
        # Each example has processes killed in it: to make one that fails smaller would take the rest of the hour.
        phases=(Phase.explicit, Phase.reuse, Phase.generate),
    )
    await asyncio.to_thread(run_state_machine_as_test, Calls, settings=bounded)
