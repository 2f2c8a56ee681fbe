"""Organizations with some of everything, and a mark that shows the owner."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

from tests.support.api import Tenant
from tests.support.api_harness import Stage, walk_deliveries

EVENTS = 4
# Events of this type go to consumers too, and so many of them are leased.
CONSUMED = "consumed"
LEASED = 3


class Furnished:
    """A tenant with events, endpoints, consumers, leases, deliveries in every state, jobs and a key.

    Args:
        mark: stands in all that this tenant has written, and nowhere else.
        ids: ids of its things by their kind, two or more of those that lists page through.
    """

    def __init__(self, tenant: Tenant, mark: str, ids: dict[str, list[str]], secret: str) -> None:
        self.tenant = tenant
        self.mark = mark
        self.ids = ids
        self.secret = secret

    @property
    def all_ids(self) -> set[str]:
        return {id_ for ids in self.ids.values() for id_ in ids}

    def shown_in(self, text: str, sent: str = "") -> list[str]:
        """Return the parts of this tenant's data that occur in a response to a request that contained `sent`."""
        signs = {self.mark, self.secret, self.tenant.key, *self.all_ids}
        return sorted(sign for sign in signs if sign in text and sign not in sent)


async def furnish(stage: Stage) -> Furnished:
    """Create a tenant with some of everything."""
    mark = f"mark-{uuid4().hex}"
    tenant = await stage.api.tenant(name=mark)
    configured = await tenant.post("/api/webhook/config", json={"webhook_url": f"https://{mark}.example.com/"})
    assert configured.status_code == 200, configured.text
    first = configured.json()
    made = await tenant.post(
        "/api/endpoints", json={"url": f"https://{mark}.example.com/2", "description": mark, "headers": {mark: mark}}
    )
    assert made.status_code == 201, made.text
    second = made.json()
    endpoints = [first["endpoint_id"], second["id"]]
    events = [await tenant.accept(mark, payload=mark, dedup_id=f"{mark}-{number}") for number in range(EVENTS)]
    await stage.end(UUID(endpoints[0]), "failed", *events[:2])
    await stage.end(UUID(endpoints[1]), "delivered", *events[:2])
    jobs = []
    for _ in range(2):
        begun = await tenant.post("/api/deliveries/retry", json={"status": "cancelled"})
        assert begun.status_code == 202, begun.text
        jobs.append(begun.json()["job_id"])
    await stage.tried(tenant, events, endpoints, mark)
    consumers = [mark, f"{mark}.2"]
    for name in consumers:
        created = await tenant.post("/api/consumers", json={"name": name, "event_types": [CONSUMED]})
        assert created.status_code == 201, created.text
    consumed = [await tenant.accept(CONSUMED, payload=mark) for _ in range(LEASED + 2)]
    lease = {"consumer": mark, "limit": LEASED + 1, "lease_s": 43_200}
    leased = (await tenant.post("/api/inbox/lease", json=lease)).json()["events"]
    receipts = [event["receipt"] for event in leased]
    dead = await tenant.post("/api/nack", json={"receipts": [receipts.pop()], "dead": True})
    assert dead.json()["returned"] == 1
    keys = (await tenant.get("/api/keys")).json()
    ids = {
        "organization": [tenant.organization_id],
        "event": events,
        "endpoint": endpoints,
        # Those that were tried come first.
        "delivery": [
            delivery["id"]
            for delivery in sorted(await walk_deliveries(tenant), key=lambda each: each["event_id"] not in events)
        ],
        "job": jobs,
        "key": [key["key_id"] for key in keys["keys"]],
        "consumer": consumers,
        "receipt": receipts,
    }
    assert len(ids["delivery"]) == 2 * EVENTS + 4 * len(consumed)
    return Furnished(tenant, mark, ids, first["secret"])


async def books_of(stage: Stage, organization_id: str) -> dict[str, Any]:
    """Return every row of an organization, by table. Another organization's requests must not change them."""
    tables = await stage.read(
        "select c.relname, a.attname from pg_class c join pg_attribute a on a.attrelid = c.oid"
        " where c.relnamespace = 'relay'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition"
        " and (a.attname = 'organization_id' or c.relname = 'organizations' and a.attname = 'id')"
    )
    assert len(tables) >= 9
    found = {}
    for table, column in tables:
        # When a key was last used is written some time after: the only thing that may differ.
        query = (
            f"select (to_jsonb(t) - 'last_used_at')::text as row from relay.{table} t where {column} = $1 order by 1"  # noqa: S608 - names of the catalog
        )
        rows = await stage.read(query, UUID(organization_id))
        found[table] = [row["row"] for row in rows]
    return found


def members(schema: dict[str, Any], document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the names and schemas of a body's members, including those of array items."""
    for form in forms(schema, document):
        yield from form.get("properties", {}).items()
        if "items" in form:
            yield from members(form["items"], document)


def forms(schema: dict[str, Any], document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the alternatives of a schema, with references resolved."""
    if "$ref" in schema:
        yield from forms(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], document)
        return
    yield schema
    for kind in ("anyOf", "oneOf", "allOf"):
        for alternative in schema.get(kind, ()):
            yield from forms(alternative, document)


def names_something(schema: dict[str, Any], document: dict[str, Any]) -> bool:
    """Return whether a member or parameter is an id, or a list of ids."""
    return any(
        form.get("format") == "uuid" or ("items" in form and names_something(form["items"], document))
        for form in forms(schema, document)
    )
