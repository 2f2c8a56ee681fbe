"""GET /api/events and GET /api/deliveries: filters, pages, time ranges, isolation."""

from __future__ import annotations

import datetime
from uuid import UUID

import pytest

from relay.inbox import DeliveriesQuery, InboxQuery, TimeRange, read_deliveries, read_page
from relay.values import uuid7
from relay.values.times import read_rfc3339, rfc3339
from relay.values.uuid7 import Uuid7Clock
from tests.support.api import Tenant
from tests.support.api_harness import Stage, deliveries, events, walk_deliveries
from tests.support.flush import flush_of


@pytest.fixture
async def tenant(stage: Stage) -> Tenant:
    return await stage.api.tenant()


def ids(page: dict[str, list[dict[str, str]]]) -> list[str]:
    return [event["id"] for event in page["events"]]


async def test_an_event_is_found_by_its_dedup_id_beside_any_number_of_others(stage: Stage, tenant: Tenant) -> None:
    wanted = await tenant.accept(dedup_id="wanted")
    # More than one request examines.
    await stage.accept_many(tenant, 10_100)
    page = await events(tenant, dedup_id="wanted")
    assert (ids(page), page["next_cursor"]) == ([wanted], None)
    assert page["events"][0]["dedup_id"] == "wanted"
    for narrowed, found in (
        ({"type": "order.*", "status": "pending"}, [wanted]),
        ({"type": "other"}, []),
        ({"status": "delivered"}, []),
        ({"since": "2999-01-01T00:00:00Z"}, []),
        ({"until": "2001-01-01T00:00:00Z"}, []),
        ({"since": "2001-01-01T00:00:00Z", "until": "2999-01-01T00:00:00Z"}, [wanted]),
    ):
        page = await events(tenant, dedup_id="wanted", **narrowed)
        assert (ids(page), page["next_cursor"]) == (found, None), narrowed


async def test_events_that_had_the_dedup_id_before_its_window_are_on_the_pages_after(
    stage: Stage, tenant: Tenant
) -> None:
    organization_id = UUID(tenant.organization_id)
    older = await tenant.accept(dedup_id="again")
    await stage.accept_many(tenant, 10_100)
    # As if the window had ended: the key is free.
    await stage.read(
        "update relay.dedup set expires_at = now() - interval '1 second' where organization_id = $1", organization_id
    )
    newer = await tenant.accept(dedup_id="again")
    await stage.read(
        "update relay.dedup set expires_at = now() + interval '1 microsecond' where organization_id = $1",
        organization_id,
    )
    found, mark, pages = [], None, 0
    while pages == 0 or mark is not None:
        page = await events(tenant, dedup_id="again", **({"cursor": mark} if mark else {}))
        found += ids(page)
        mark, pages = page["next_cursor"], pages + 1
        assert found[0] == newer
    assert found == [newer, older]
    # The first page leaves out what the window rules out: with the whole of it, the older one is too young to be there.
    await stage.read(
        "update relay.dedup set expires_at = now() + interval '1 day' where organization_id = $1", organization_id
    )
    page = await events(tenant, dedup_id="again")
    assert (ids(page), page["next_cursor"]) == ([newer], None)


async def test_events_are_listed_in_every_state_and_in_both_orders(stage: Stage, tenant: Tenant) -> None:
    endpoint_id = await stage.endpoint(tenant)
    failed, delivered, pending = [await tenant.accept() for _ in range(3)]
    await stage.end(endpoint_id, "failed", failed)
    await stage.end(endpoint_id, "delivered", delivered)
    page = await events(tenant)
    assert ids(page) == [pending, delivered, failed]
    assert [event["status"] for event in page["events"]] == ["pending", "delivered", "failed"]
    assert page["next_cursor"] is None
    page = await events(tenant, order="asc", limit=2)
    assert ids(page) == [failed, delivered]
    assert ids(await events(tenant, order="asc", limit=2, cursor=page["next_cursor"])) == [pending]
    for status, event_id in (("failed", failed), ("delivered", delivered), ("pending", pending)):
        assert ids(await events(tenant, status=status)) == [event_id]


async def test_events_are_found_by_type_dedup_id_and_endpoint(stage: Stage, tenant: Tenant) -> None:
    first = await stage.endpoint(tenant, types=["order.paid"])
    plain = await tenant.accept("order.created", dedup_id="a")
    paid = await tenant.accept("order.paid", dedup_id="b")
    ended = await tenant.accept("order.paid")
    await stage.end(first, "cancelled", ended)
    assert ids(await events(tenant, type="order.created")) == [plain]
    assert ids(await events(tenant, type="order.*")) == [ended, paid, plain]
    assert ids(await events(tenant, dedup_id="b")) == [paid]
    assert ids(await events(tenant, dedup_id="c")) == []
    assert ids(await events(tenant, endpoint_id=str(first))) == [ended, paid]
    assert ids(await events(tenant, endpoint_id=str(first), status="pending", order="asc")) == [paid, ended]
    assert ids(await events(tenant, endpoint_id=str(Uuid7Clock().new()))) == []


async def test_a_span_holds_its_beginning_and_not_its_end(stage: Stage, tenant: Tenant) -> None:
    await stage.endpoint(tenant)
    made = [await tenant.accept() for _ in range(4)]
    times = [event["created_at"] for event in (await events(tenant, order="asc"))["events"]]
    span = {"since": times[1], "until": times[3]}
    assert ids(await events(tenant, **span)) == made[2:0:-1]
    assert ids(await events(tenant, **span, order="asc")) == made[1:3]
    assert ids(await events(tenant, **span, status="pending")) == made[2:0:-1]
    assert ids(await events(tenant, since="1970-01-01T00:00:00Z", until="9999-12-31T23:59:59Z")) == made[::-1]
    assert ids(await events(tenant, since="0001-01-01T00:00:00Z", until="1969-01-01T00:00:00+01:00")) == []
    for status in ("pending", None):
        asked = {**span, **({"status": status} if status else {})}
        assert [found["event_id"] for found in await walk_deliveries(tenant, **asked)] == made[2:0:-1]


async def test_a_span_in_the_past_is_found_at_once(stage: Stage, tenant: Tenant) -> None:
    """Newer events are not walked through one by one, nor older ones: the first page has it all, and is the last."""
    organization_id = UUID(tenant.organization_id)
    now = Uuid7Clock().new()
    old = [uuid7.shifted(now, -3600 * 4 + n) for n in range(3)]
    for made in (
        [uuid7.shifted(now, -3600 * 8 - n) for n in range(10_050)],
        old,
        [uuid7.shifted(now, -n) for n in range(900)],
    ):
        count = len(made)
        await stage.cell.fetch(
            "commit_events", *flush_of([organization_id] * count, made, ["a"] * count, [b"1"] * count)
        )
    span = TimeRange(uuid7.created_at(old[0]), uuid7.created_at(old[-1]) + datetime.timedelta(seconds=1))
    for order, expected in (("desc", old[::-1]), ("asc", old)):
        query = InboxQuery(organization_id, "all", None, order, 1000, None, "events", span=span)  # type: ignore[arg-type]
        page = await read_page(stage.cell, query)
        assert [row["event_id"] for row in page.events] == expected
        assert (page.next_cursor is None) is (order == "desc")


@pytest.mark.parametrize(
    "parameters",
    [
        {"limit": 0}, {"limit": 1001}, {"status": "held"}, {"status": "all"}, {"order": "up"}, {"type": ""},
        {"endpoint_id": "x"}, {"endpoint_id": "018f1b1e-7c1a-4b1a-8b1a-0123456789ab"}, {"dedup_id": ""},
        {"dedup_id": "d" * 256}, {"since": "yesterday"}, {"since": "2026-01-01"}, {"since": "2026-01-01T00:00:00"},
        {"until": "1735689600"}, {"until": ""}, {"until": "2026-02-30T00:00:00Z"}, {"cursor": "A" * 48}, {"cursor": ""},
        {"error_class": "http"}, {"wait": 1}, {"since": "0001-01-01T00:00:00+23:59"},
    ],
)  # fmt: skip
async def test_bad_questions_about_events_are_refused(tenant: Tenant, parameters: dict[str, object]) -> None:
    assert (await tenant.get("/api/events", params=parameters)).status_code == 422


@pytest.mark.parametrize(
    "parameters",
    [
        {"limit": 0}, {"limit": 1001}, {"status": "all"}, {"status": ""}, {"order": "asc"}, {"type": "a"},
        {"endpoint_id": "x"}, {"endpoint_id": "018f1b1e-7c1a-4b1a-8b1a-0123456789ab"}, {"error_class": "none"},
        {"since": "2026-01-01T00:00:00"}, {"until": "x"},
        {"cursor": "A" * 48}, {"cursor": "A" * 72}, {"cursor": "\u00e9"},
    ],
)  # fmt: skip
async def test_bad_questions_about_deliveries_are_refused(tenant: Tenant, parameters: dict[str, object]) -> None:
    assert (await tenant.get("/api/deliveries", params=parameters)).status_code == 422


async def test_a_cursor_is_good_for_its_own_list_alone(stage: Stage, tenant: Tenant) -> None:
    await stage.endpoint(tenant)
    neighbour = await stage.api.tenant()
    for _ in range(3):
        await tenant.accept()
    mark = (await events(tenant, limit=1))["next_cursor"]
    for path, parameters in (
        ("/api/events", {"order": "asc"}), ("/api/events", {"since": "2026-01-01T00:00:00Z"}),
        ("/api/events", {"status": "pending"}), ("/api/events", {"dedup_id": "a"}),
        ("/api/inbox", {"status": "all"}), ("/api/deliveries", {}), ("/api/jobs", {}),
    ):  # fmt: skip
        assert (await tenant.get(path, params={"cursor": mark, **parameters})).status_code == 422, (path, parameters)
    assert (await neighbour.get("/api/events", params={"cursor": mark})).status_code == 422
    mark = (await deliveries(tenant, limit=1))["next_cursor"]
    assert len((await deliveries(tenant, cursor=mark, limit=9))["deliveries"]) == 2
    for parameters in ({"status": "pending"}, {"error_class": "http"}, {"until": "2036-01-01T00:00:00Z"}):
        assert (await tenant.get("/api/deliveries", params={"cursor": mark, **parameters})).status_code == 422
    assert (await neighbour.get("/api/deliveries", params={"cursor": mark})).status_code == 422


async def test_deliveries_are_listed_in_every_state(stage: Stage, tenant: Tenant) -> None:
    first, second = await stage.endpoint(tenant), await stage.endpoint(tenant)
    made = [await tenant.accept() for _ in range(4)]
    await stage.end(first, "failed", made[0])
    await stage.end(first, "delivered", made[1], attempts=2)
    await stage.end(first, "cancelled", made[2], attempts=0, error="dns")
    await stage.enable(second, False)
    both = sorted((first, second), reverse=True)
    everything = await walk_deliveries(tenant)
    assert [(d["event_id"], d["endpoint_id"]) for d in everything] == [
        (event_id, str(endpoint_id)) for event_id in made[::-1] for endpoint_id in both
    ]
    failed = next(d for d in everything if d["status"] == "failed")
    assert failed == {
        "id": str(uuid7.delivery_id(UUID(made[0]), first)),
        "event_id": made[0],
        "endpoint_id": str(first),
        "consumer": None,
        "status": "failed",
        "attempts": 5,
        "next_attempt_at": None,
        "last_error_class": "http",
        "created_at": rfc3339(uuid7.created_at(UUID(made[0]))),
    }
    by_status = {
        "pending": [(made[3], first)],
        "held": [(event_id, second) for event_id in made[::-1]],
        "failed": [(made[0], first)],
        "delivered": [(made[1], first)],
        "cancelled": [(made[2], first)],
    }
    for status, expected in by_status.items():
        for limit in (1, 100):
            found = await walk_deliveries(tenant, status=status, limit=limit)
            assert [(d["event_id"], d["endpoint_id"]) for d in found] == [(e, str(p)) for e, p in expected], status
            assert {d["status"] for d in found} == {status}
            assert all((d["next_attempt_at"] is not None) is (status == "pending") for d in found)
    for limit in (1, 3, 8, 9):
        assert await walk_deliveries(tenant, limit=limit) == everything


async def test_deliveries_are_found_by_endpoint_and_error_class(stage: Stage, tenant: Tenant) -> None:
    first, second = await stage.endpoint(tenant), await stage.endpoint(tenant)
    made = [await tenant.accept() for _ in range(3)]
    await stage.end(first, "failed", made[0], error="dns")
    await stage.end(first, "failed", made[1], error="http")
    await stage.end(second, "failed", made[1], error="dns")
    assert len(await walk_deliveries(tenant, endpoint_id=str(first))) == 3
    assert [d["event_id"] for d in await walk_deliveries(tenant, endpoint_id=str(second), status="failed")] == [made[1]]
    assert [d["event_id"] for d in await walk_deliveries(tenant, error_class="dns")] == [made[1], made[0]]
    assert [d["event_id"] for d in await walk_deliveries(tenant, error_class="http", status="failed")] == [made[1]]
    assert await walk_deliveries(tenant, error_class="http", status="pending") == []


async def test_an_event_without_an_endpoint_has_no_delivery(tenant: Tenant) -> None:
    await tenant.accept()
    for parameters in ({}, {"status": "pending"}, {"status": "held"}):
        assert await deliveries(tenant, **parameters) == {"deliveries": [], "next_cursor": None}


async def test_a_list_holds_only_its_own(stage: Stage, tenant: Tenant) -> None:
    neighbour = await stage.api.tenant()
    await stage.endpoint(neighbour)
    theirs = await neighbour.accept()
    assert await events(tenant) == {"events": [], "next_cursor": None}
    for status in ("pending", "failed", "delivered", None):
        assert await walk_deliveries(tenant, **({"status": status} if status else {})) == []
    assert ids(await events(neighbour)) == [theirs]


async def test_reading_events_needs_consume_and_deliveries_manage(stage: Stage) -> None:
    for scope in ("ingest", "consume", "manage"):
        tenant = await stage.api.tenant()
        organization_id = UUID(tenant.organization_id)
        await stage.read(
            "update relay.api_keys set scopes = array[$2] where organization_id = $1", organization_id, scope
        )
        for path, needed in (
            ("/api/events", "consume"), ("/api/deliveries", "manage"), ("/api/jobs", "manage"),
            ("/api/jobs/x", "manage"),
        ):  # fmt: skip
            refused = (await tenant.get(path)).status_code == 403
            assert refused is (scope != needed), (scope, path)
        for path in (
            "/api/deliveries/retry",
            "/api/deliveries/x/retry",
            "/api/events/x/replay",
            "/api/endpoints/x/replay",
        ):
            assert ((await tenant.post(path)).status_code == 403) is (scope != "manage"), (scope, path)


async def test_a_disabled_endpoint_holds_in_the_story_of_an_event_too(stage: Stage, tenant: Tenant) -> None:
    endpoint_id = await stage.endpoint(tenant)
    event_id = await tenant.accept()
    for enabled, status in ((True, "pending"), (False, "held"), (True, "pending")):
        await stage.enable(endpoint_id, enabled)
        (delivery,) = (await tenant.get(f"/api/events/{event_id}")).json()["deliveries"]
        assert (delivery["status"], delivery["next_attempt_at"] is not None) == (status, enabled)


@pytest.mark.parametrize("status", ["pending", "failed", "delivered", None])
async def test_one_request_examines_a_bounded_number_of_deliveries(
    stage: Stage, tenant: Tenant, status: str | None
) -> None:
    """10,000 that the filter drops end the page, with a cursor that goes on behind them."""
    wanted = await stage.endpoint(tenant, types=["wanted"])
    other = await stage.endpoint(tenant, types=["other"])
    (oldest,) = await stage.accept_many(tenant, 1, "wanted")
    await stage.accept_many(tenant, 10_050, "other")
    (newest,) = await stage.accept_many(tenant, 1, "wanted")
    if status in ("failed", "delivered"):
        for endpoint_id in (wanted, other):
            opened = await stage.read("select event_id from relay.open where endpoint_id = $1", endpoint_id)
            await stage.end(endpoint_id, status, *(str(row["event_id"]) for row in opened))
    found: list[UUID] = []
    pages = 0
    mark: str | None = None
    while pages == 0 or mark is not None:
        query = DeliveriesQuery(UUID(tenant.organization_id), status, wanted, None, None, TimeRange(), 10, mark)  # type: ignore[arg-type]
        page = await read_deliveries(stage.cell, query)
        found += [row["event_id"] for row in page.deliveries]
        mark = page.next_cursor
        pages += 1
    assert found == [newest, oldest]
    assert pages == 2


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05.000000Z"),
        ("2026-01-02T03:04:05.123456+02:00", "2026-01-02T01:04:05.123456Z"),
        ("2026-01-02T03:04:05", None),
        ("2026-01-02", None),
        ("1767323045", None),
        ("", None),
    ],
)
def test_times_are_read_as_rfc_3339_has_them(text: str, moment: str | None) -> None:
    read = read_rfc3339(text)
    assert (None if read is None else rfc3339(read)) == moment


async def test_null_in_a_query_is_a_word_and_not_a_filter_that_was_left_out(stage: Stage, tenant: Tenant) -> None:
    called_so = await tenant.accept("null", dedup_id="null")
    await tenant.accept()
    assert ids(await events(tenant, type="null")) == ids(await events(tenant, dedup_id="null")) == [called_so]
    for path in ("/api/events", "/api/deliveries", "/api/inbox"):
        answer = await tenant.get(path, params={"status": "null"})
        assert (answer.status_code, answer.json()["details"][0]["field"]) == (422, "status")
