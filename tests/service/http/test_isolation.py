"""Nobody sees or touches what is another's: every operation of the document, with every id and cursor of a neighbour.

What a route takes is read from the OpenAPI document. A new path with an id, a new parameter or a new member must be
named in one of the tables below, else a test here fails: that is what they are for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx2
import pytest

from tests.support.api import Tenant
from tests.support.api_harness import Stage
from tests.support.event_stream import EventStream
from tests.support.furnished import Furnished, books_of, furnish, members, names_something

# Whose ids stand in a path: the kind of thing, by what the path begins with.
IN_PATHS = {
    "/api/ack/{id}": "event",
    "/api/events/{id}": "event",
    "/api/deliveries/{id}": "delivery",
    "/api/endpoints/{id}": "endpoint",
    "/api/jobs/{id}": "job",
    "/api/keys/{key_id}": "key",
    "/api/consumers/{name}": "consumer",
}
# Parameters and members that name a thing.
NAMING = {
    "consumer": "consumer",
    "endpoint_id": "endpoint",
    "event_id": "event",
    "ids": "event",
    "receipts": "receipt",
}
# A receipt is good for one of these: the lease ends with the first two.
RECEIPTS = ("POST /api/ack", "POST /api/nack", "POST /api/extend")
# Those that hold a place in a list, or a key of the tenant's own choice: tested by themselves below.
BY_ITSELF = {"cursor", "dedup_id"}
# Those that name nothing.
INNOCENT = {
    "catch_up_since",
    "dead",
    "delay_s",
    "description",
    "enabled",
    "error_class",
    "event_types",
    "expires_at",
    "from",
    "headers",
    "lease_s",
    "limit",
    "max_attempts",
    "max_in_flight",
    "name",
    "order",
    "overlap_s",
    "payload",
    "rate_limit_per_second",
    "retry_schedule",
    "scopes",
    "signature",
    "since",
    "status",
    "timeout_s",
    "type",
    "until",
    "url",
    "wait",
    "webhook_url",
}
# What an operation with a body needs besides ids, so that it is not refused for that.
BODIES: dict[str, dict[str, Any]] = {
    "PATCH /api/endpoints/{id}": {"description": "changed"},
    "POST /api/endpoints/{id}/replay": {"since": "2020-01-01T00:00:00Z"},
    "POST /api/extend": {"lease_s": 43_200},
}
# Waits for a delivery process, of which there is none: 503, but only for what is one's own.
WAITS = "POST /api/endpoints/{id}/test"


class Asked(NamedTuple):
    """An operation of the document that takes a key."""

    method: str
    path: str
    described: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def streams(self) -> bool:
        """Whether its response does not end: tested by itself below."""
        return "text/event-stream" in self.described["responses"].get("200", {}).get("content", {})

    def parameters(self, place: str) -> list[dict[str, Any]]:
        return [found for found in self.described["parameters"] if found["in"] == place]


class Neighbours(NamedTuple):
    """Me, and whose things I am after."""

    stage: Stage
    mine: Furnished
    theirs: Furnished
    document: dict[str, Any]

    def operations(self) -> list[Asked]:
        """What ends. What destroys comes last, so that there is something left to ask for."""
        return [asked for asked in self.every_operation() if not asked.streams]

    def every_operation(self) -> list[Asked]:
        found = [
            Asked(method.upper(), path, described)
            for path, methods in self.document["paths"].items()
            for method, described in methods.items()
            if {"ApiKeyAuth": []} in described["security"]
        ]
        return sorted(found, key=lambda asked: asked.method == "DELETE")

    def body(self, asked: Asked) -> dict[str, Any] | None:
        return BODIES.get(asked.name, {}) if "requestBody" in asked.described else None

    def members(self, asked: Asked) -> Iterator[tuple[str, dict[str, Any]]]:
        """The members of the request's body."""
        for content in asked.described.get("requestBody", {}).get("content", {}).values():
            yield from members(content["schema"], self.document)


@pytest.fixture(scope="module")
async def two(stage: Stage) -> Neighbours:
    document = (await stage.api.contract()).document
    return Neighbours(stage, await furnish(stage), await furnish(stage), document)


async def ask(tenant: Tenant, asked: Asked, path: str, body: object = None, **query: str) -> httpx2.Response:
    options: dict[str, Any] = {"params": query} if query else {}
    if body is not None:
        options["json"] = body
    return await tenant.request(asked.method, path, **options)


def kind_in(path: str) -> str:
    """What a path with an id in it is about."""
    beginning = re.match(r"[^}]*}", path)
    assert beginning is not None
    assert path.count("{") == 1, f"{path} holds two ids: teach this test"
    assert beginning[0] in IN_PATHS, f"whose id is in {path}? Name it in IN_PATHS"
    return IN_PATHS[beginning[0]]


def filled(path: str, id_: str) -> str:
    return re.sub(r"\{\w+\}", id_, path)


async def test_every_path_parameter_and_member_is_known_to_these_tests(two: Neighbours) -> None:
    operations = two.every_operation()
    assert len(operations) >= 20
    for asked in operations:
        if "{" in asked.path:
            assert kind_in(asked.path) in two.theirs.ids
        named = [(found["name"], found["schema"]) for found in asked.parameters("query")] + list(two.members(asked))
        for name, schema in named:
            where = f"{name} of {asked.name}"
            if names_something(schema, two.document):
                assert name in NAMING, f"{where} is an id: name its kind in NAMING"
            else:
                assert name in INNOCENT | BY_ITSELF | set(NAMING), (
                    f"{where}: does it name something? Put it into one of the tables"
                )
        for found in asked.parameters("path"):
            assert found["name"] in ("id", "key_id", "name"), (
                f"{found['name']} in {asked.path} is no id: teach this test"
            )


def place_of(asked: Asked, owner: Furnished) -> str:
    """The path, with something of the owner's in it."""
    return filled(asked.path, owner.ids[kind_in(asked.path)][0]) if "{" in asked.path else asked.path


async def test_every_id_of_a_neighbour_is_404_in_every_path(two: Neighbours) -> None:
    before = await books_of(two.stage, two.theirs.tenant.organization_id)
    tried = 0
    for asked in two.operations():
        if "{" not in asked.path:
            continue
        body = two.body(asked)
        for id_ in sorted(two.theirs.all_ids):
            answer = await ask(two.mine.tenant, asked, filled(asked.path, id_), body)
            assert answer.status_code == 404, f"{asked.name} with {id_}: {answer.status_code} {answer.text}"
            assert two.theirs.shown_in(answer.text, id_) == []
            tried += 1
    assert tried >= 10 * 10
    assert await books_of(two.stage, two.theirs.tenant.organization_id) == before


async def test_the_same_requests_work_with_ids_of_ones_own(stage: Stage, two: Neighbours) -> None:
    own = two._replace(mine=await furnish(stage))
    for asked in own.operations():
        if "{" not in asked.path or asked.name == WAITS:
            continue
        id_ = own.mine.ids[kind_in(asked.path)][0]
        answer = await ask(own.mine.tenant, asked, filled(asked.path, id_), own.body(asked))
        # The last key that can manage stays.
        assert answer.status_code in (200, 202, 204, 409), f"{asked.name}: {answer.status_code} {answer.text}"
        assert own.theirs.shown_in(answer.text) == []


def empty(answer: httpx2.Response) -> bool:
    """Whether an answer says that there is nothing of the kind."""
    if answer.status_code in (404, 422):
        return True
    said = answer.json()
    lists = [value for name, value in said.items() if isinstance(value, list) and name != "not_found"]
    counts = [value for value in said.values() if isinstance(value, int) and not isinstance(value, bool)]
    return not any(lists) and not any(counts) and bool(lists or counts)


async def test_every_id_of_a_neighbour_in_a_query_or_a_body_finds_nothing(two: Neighbours) -> None:
    before = await books_of(two.stage, two.theirs.tenant.organization_id)
    tried = 0
    for asked in two.operations():
        path = filled(asked.path, two.mine.ids[kind_in(asked.path)][-1]) if "{" in asked.path else asked.path
        in_query = {found["name"] for found in asked.parameters("query")} & set(NAMING)
        in_body = {name for name, _ in two.members(asked)} & set(NAMING)
        for name in sorted(in_query | in_body):
            for id_ in sorted(two.theirs.all_ids):
                answer = await ask_with(two, asked, path, name, id_, in_query=name in in_query)
                assert empty(answer), f"{asked.name} with {name} {id_}: {answer.status_code} {answer.text}"
                assert two.theirs.shown_in(answer.text, id_) == []
                tried += 1
            own = two.mine.ids[NAMING[name]][RECEIPTS.index(asked.name) if name == "receipts" else 0]
            answer = await ask_with(two, asked, path, name, own, in_query=name in in_query)
            assert answer.status_code < 300, answer.text
            assert not empty(answer), f"{asked.name} finds nothing with {name} of one's own: the test above is no test"
    assert tried >= 4 * 10
    assert await books_of(two.stage, two.theirs.tenant.organization_id) == before


async def ask_with(two: Neighbours, asked: Asked, path: str, name: str, id_: str, *, in_query: bool) -> httpx2.Response:
    if in_query:
        return await ask(two.mine.tenant, asked, path, None, **{name: id_})
    value = [id_] if name in ("ids", "receipts") else id_
    return await ask(two.mine.tenant, asked, path, {**(two.body(asked) or {}), name: value})


def lists(two: Neighbours) -> list[tuple[Asked, dict[str, str]]]:
    """Every list that has cursors, in both of its orders."""
    found = []
    for asked in two.operations():
        names = {parameter["name"] for parameter in asked.parameters("query")}
        if "cursor" in names:
            status = {"status": "all"} if asked.path == "/api/inbox" else {}
            orders: list[dict[str, str]] = [{"order": "asc"}, {"order": "desc"}] if "order" in names else [{}]
            found += [(asked, {**status, **order}) for order in orders]
    return found


async def test_no_cursor_of_a_neighbour_is_good_for_any_list(two: Neighbours) -> None:
    pages = lists(two)
    assert len({asked.path for asked, _ in pages}) >= 5
    cursors = {}
    for owner in (two.theirs, two.mine):
        for asked, query in pages:
            page = await ask(owner.tenant, asked, place_of(asked, owner), **query, limit="1")
            cursor = page.json()["next_cursor"]
            assert cursor is not None, f"{asked.name} {query} has one page: furnish more, or the test is none"
            cursors[owner.mark, asked.path, json.dumps(query)] = cursor
    for (mark, path, query_of), cursor in cursors.items():
        for asked, query in pages:
            answer = await ask(two.mine.tenant, asked, place_of(asked, two.mine), **query, limit="1", cursor=cursor)
            same = (path, query_of) == (asked.path, json.dumps(query))
            if mark == two.mine.mark and same:
                assert answer.status_code == 200
            else:
                assert (answer.status_code, answer.json()["code"]) == (422, "invalid_cursor"), (asked.name, path)
                assert two.theirs.shown_in(answer.text, cursor) == []


async def test_every_list_shows_ones_own_and_nothing_else(two: Neighbours) -> None:
    walked = 0
    for asked in two.operations():
        if asked.method != "GET" or "{" in asked.path:
            continue
        orders = [query for found, query in lists(two) if found.path == asked.path] or [{}]
        for order in orders:
            query = dict(order)
            shown = ""
            for _ in range(100):
                answer = await ask(two.mine.tenant, asked, asked.path, **query)
                assert answer.status_code == 200, answer.text
                shown += answer.text
                page = answer.json()
                if page.get("next_cursor") is None or not any(page[name] for name in page if name != "next_cursor"):
                    break
                query["cursor"] = page["next_cursor"]
            assert two.theirs.shown_in(shown) == []
            assert two.mine.shown_in(shown) != [], f"{asked.name} shows nothing: the test above is no test"
            walked += 1
    assert walked >= 8


async def test_a_stream_shows_ones_own_and_takes_no_cursor_of_a_neighbour(two: Neighbours) -> None:
    (asked,) = (asked for asked in two.every_operation() if asked.streams)
    assert asked.path == "/api/inbox/stream"
    page = await two.theirs.tenant.inbox(order="asc", status="all", limit=1)
    for parameters, headers in (({"cursor": page["next_cursor"]}, {}), ({}, {"Last_Event_ID": page["next_cursor"]})):
        async with EventStream(two.mine.tenant, parameters, **headers) as stream:
            assert (await stream.begin()).status == 422
    own = await two.mine.tenant.inbox(order="asc", status="all", limit=1)
    async with EventStream(two.mine.tenant, {"cursor": own["next_cursor"]}) as stream:
        await stream.begin()
        await two.theirs.tenant.accept(payload=two.theirs.mark)
        event_id = await two.mine.tenant.accept(payload=two.mine.mark)
        shown = ""
        while event_id not in shown:
            block = await stream.block()
            assert block is not None
            shown += f"{block.id} {block.data}\n"
        assert two.theirs.shown_in(shown) == []
        assert two.mine.shown_in(shown) != []


async def test_keys_of_ones_own_choice_are_ones_own(two: Neighbours) -> None:
    mine, theirs = two.mine, two.theirs
    dedup_id, event = f"{theirs.mark}-0", {"type": "a", "payload": 1}
    assert (await mine.tenant.get("/api/events", params={"dedup_id": dedup_id})).json()["events"] == []
    own = await mine.tenant.post("/api/events", json={**event, "dedup_id": dedup_id})
    assert own.status_code == 201, "their dedup_id is not taken here"
    batch = await mine.tenant.post("/api/events/batch", json=[{**event, "dedup_id": f"{theirs.mark}-1"}])
    assert batch.json()["results"][0]["status"] == "accepted"
    for path, body in (
        ("/api/events", event),
        ("/api/events/batch", [event]),
        ("/api/deliveries/retry", {"status": "cancelled"}),
    ):
        key = {"Idempotency-Key": f"key-of-{theirs.mark}"}
        first = await theirs.tenant.post(path, json=body, headers=key)
        second = await mine.tenant.post(path, json=body, headers=key)
        again = await theirs.tenant.post(path, json=body, headers=key)
        assert first.status_code == second.status_code < 300
        assert first.json() == again.json() != second.json()
        assert "idempotent-replayed" not in second.headers


async def test_without_a_key_there_is_nothing_anywhere(two: Neighbours) -> None:
    for asked in two.every_operation():
        for id_ in ("event", "endpoint", "delivery", "job", "key"):
            path = filled(asked.path, two.theirs.ids[id_][0])
            answer = await two.stage.api.request(asked.method, path, json={})
            assert (answer.status_code, answer.json()["code"]) == (401, "missing_api_key"), asked.name
            assert two.theirs.shown_in(answer.text) == []
