"""The settings of an endpoint apply to its deliveries: URL, signature, slots, rate, timeout."""

from __future__ import annotations

import asyncio
import base64
import datetime
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from relay.delivery.capacity.claim_budget import ClaimBudget
from relay.delivery.claims import Claimer
from relay.delivery.ownership.buckets import EVERYTHING
from relay.store import Cell
from relay.telemetry.metrics import Metrics
from relay.values.ed25519 import private_key
from relay.values.encryption import Vault
from relay.values.signature import written
from tests.support.delivery_harness import SECRET, VAULT, Books, delivering, until
from tests.support.receiver import Received, Receiver, hang, reply


@pytest.fixture
async def books(cell: Cell, database: str) -> AsyncIterator[Books]:
    connection = await asyncpg.connect(database)
    yield Books(cell, connection)
    await connection.close()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as entered:
        yield entered


def count_of(metrics: Metrics, name: str) -> float:
    return float(metrics.render().decode().partition(f"\n{name} ")[2].split("\n")[0])


async def test_nothing_is_leased_for_an_endpoint_that_is_disabled_or_gone(cell: Cell, books: Books) -> None:
    disabled, first = await books.endpoint("http://127.0.0.1/")
    gone, second = await books.endpoint("http://127.0.0.1/")
    organization_id, third = await books.endpoint("http://127.0.0.1/")
    for each in (disabled, gone, organization_id):
        await books.accept(each, 2)
    await books.change(first, enabled=False)
    await books.read("delete from relay.endpoints where id = $1", second)
    claim = await Claimer(cell.owned_connection(), 30.0).claim(ClaimBudget(100, [], [], 4), EVERYTHING)
    assert [delivery.claim.endpoint_id for delivery in claim.deliveries] == [third, third]
    leased = await books.read("select endpoint_id from relay.open where claim_token is not null")
    assert [row["endpoint_id"] for row in leased] == [third, third]


async def test_a_first_claim_takes_no_more_than_an_endpoint_allows(cell: Cell, books: Books) -> None:
    allowed: dict[UUID, int] = {}
    for column, value, taken in (
        ("max_in_flight", 2, 2),
        ("max_in_flight", 100, 4),
        ("rate_limit_per_second", 3, 3),
        ("broken_since", datetime.datetime.now(datetime.UTC), 1),
    ):
        organization_id, endpoint_id = await books.endpoint("http://127.0.0.1/")
        await books.change(endpoint_id, **{column: value})
        await books.accept(organization_id, 10)
        allowed[endpoint_id] = taken
    claim = await Claimer(cell.owned_connection(), 30.0).claim(ClaimBudget(100, [], [], 4), EVERYTHING)
    assert Counter(delivery.claim.endpoint_id for delivery in claim.deliveries) == allowed


async def test_a_change_of_an_endpoint_holds_for_what_is_claimed_after_it(
    cell: Cell, books: Books, receiver: Receiver
) -> None:
    organization_id, endpoint_id = await books.endpoint(receiver.url)
    async with Receiver() as other, delivering(cell):
        await books.accept(organization_id)
        await receiver.until(1)
        await books.change(endpoint_id, url=other.url)
        await books.accept(organization_id)
        await other.until(1)
    assert len(receiver.received) == 1


async def test_a_claim_whose_endpoints_cannot_be_read_is_given_back(
    cell: Cell, books: Books, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    organization_id, _ = await books.endpoint(receiver.url)
    await books.accept(organization_id, 3)
    await books.read("alter table relay.endpoints rename headers_seal to mislaid")
    async with delivering(cell):
        await until(lambda: asyncio.sleep(0, "statement_rejected" in caplog.messages))
        free = "select 1 where not exists (select from relay.open where claim_token is not null)"
        await until(lambda: books.read(free))
        assert receiver.received == []
        await books.read("alter table relay.endpoints rename mislaid to headers_seal")
        await until(books.is_empty)
    assert len(receiver.received) == 3


async def test_own_headers_are_sent_and_never_in_place_of_ours(cell: Cell, books: Books, receiver: Receiver) -> None:
    organization_id, endpoint_id = await books.endpoint(receiver.url)
    headers = {"Authorization": "Bearer hushhush", "webhook-ID": "forged", "Host": "elsewhere"}
    await books.change(endpoint_id, headers_seal=VAULT.seal(json.dumps(headers).encode(), endpoint_id.bytes))
    (event_id,) = await books.accept(organization_id)
    async with delivering(cell):
        await until(books.is_empty)
    (request,) = receiver.received
    assert request.headers["authorization"] == "Bearer hushhush"
    assert request.headers["webhook-id"] == str(event_id)
    assert request.headers["host"] == f"127.0.0.1:{receiver.port}"


@pytest.mark.parametrize("sealed", [b"[1]", b'{"a": 1}', b"\xff", None])
async def test_headers_that_cannot_be_opened_are_not_left_out_and_stop_nobody_else(
    cell: Cell, books: Books, receiver: Receiver, caplog: pytest.LogCaptureFixture, sealed: bytes | None
) -> None:
    locked, endpoint_id = await books.endpoint(receiver.url)
    elsewhere = Vault(["another key of at least thirty-two characters"]).seal(b"{}", endpoint_id.bytes)
    seal = elsewhere if sealed is None else VAULT.seal(sealed, endpoint_id.bytes)
    await books.change(endpoint_id, headers_seal=seal)
    await books.accept(locked)
    organization_id, _ = await books.endpoint(receiver.url)
    (event_id,) = await books.accept(organization_id)
    async with delivering(cell):
        await until(books.deliveries)
    assert [request.headers["webhook-id"] for request in receiver.received] == [str(event_id)]
    assert "endpoint_secret_cannot_be_opened" in caplog.messages
    assert len(await books.open()) == 1


async def test_the_secret_before_signs_too_until_its_time_is_over(cell: Cell, books: Books, receiver: Receiver) -> None:
    organization_id, endpoint_id = await books.endpoint(receiver.url)
    old = b"old secret of thirty-two bytes.."
    in_a_moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=0.7)
    await books.change(endpoint_id, old_secret_seal=VAULT.seal(old, endpoint_id.bytes), old_secret_until=in_a_moment)
    async with delivering(cell):
        await books.accept(organization_id)
        await receiver.until(1)
        # Nothing about the endpoint changes.
        await until(lambda: asyncio.sleep(0, datetime.datetime.now(datetime.UTC) > in_a_moment))
        await books.accept(organization_id)
        before, after = await receiver.until(2)
    for secret in (SECRET, old):
        assert Webhook(written(secret)).verify(before.body, before.headers)
    assert Webhook(written(SECRET)).verify(after.body, after.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(written(old)).verify(after.body, after.headers)


async def test_an_old_secret_that_cannot_be_opened_is_done_without(
    cell: Cell, books: Books, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    organization_id, endpoint_id = await books.endpoint(receiver.url)
    tomorrow = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
    await books.change(endpoint_id, old_secret_seal=b"\x01nothing", old_secret_until=tomorrow)
    await books.accept(organization_id)
    async with delivering(cell):
        await until(books.is_empty)
    (request,) = receiver.received
    assert Webhook(written(SECRET)).verify(request.body, request.headers)
    assert "old_endpoint_secret_cannot_be_opened" in caplog.messages


async def test_an_endpoint_may_have_its_requests_signed_with_ed25519(
    cell: Cell, books: Books, receiver: Receiver
) -> None:
    organization_id, endpoint_id = await books.endpoint(receiver.url)
    await books.change(endpoint_id, signature="v1a")
    await books.accept(organization_id)
    async with delivering(cell):
        await until(books.is_empty)
    (request,) = receiver.received
    scheme, _, signature = request.headers["webhook-signature"].partition(",")
    assert scheme == "v1a"
    signed = f"{request.headers['webhook-id']}.{request.headers['webhook-timestamp']}.".encode() + request.body
    private_key(SECRET).public_key().verify(base64.b64decode(signature), signed)


async def test_an_endpoint_has_a_timeout_of_its_own(cell: Cell, books: Books, receiver: Receiver) -> None:
    organization_id, endpoint_id = await books.endpoint(receiver.url)
    await books.change(endpoint_id, timeout_s=0.1, retry_schedule=[])
    await books.accept(organization_id)
    receiver.script = hang
    async with delivering(cell, delivery_timeout_s=60.0):
        await until(books.is_empty)
    assert [row["last_error_class"] for row in await books.deliveries()] == ["timeout"]


@pytest.mark.parametrize("schedule", [[], [0.01], [0.01, 0.01, 0.01, 0.01, 0.01, 0.01]])
async def test_an_endpoints_schedule_says_how_often_it_is_tried(
    cell: Cell, books: Books, receiver: Receiver, schedule: list[float]
) -> None:
    organization_id, endpoint_id = await books.endpoint(receiver.url)
    await books.change(endpoint_id, retry_schedule=schedule)
    await books.accept(organization_id)
    receiver.script = reply(500)
    async with delivering(cell, max_attempts=3):
        await until(books.is_empty)
    (delivery,) = await books.deliveries()
    assert (delivery["status"], delivery["attempts"]) == ("failed", len(schedule) + 1)


async def test_a_fresh_schedule_begins_anew_and_the_numbers_go_on(cell: Cell, books: Books, receiver: Receiver) -> None:
    organization_id, _ = await books.endpoint(receiver.url)
    await books.accept(organization_id)
    await books.read("update relay.open set attempts = 5, attempts_before = 5")
    receiver.script = reply(500)
    async with delivering(cell):
        await until(books.is_empty)
    assert [request.headers["x-delivery-attempt"] for request in receiver.received] == ["6", "7", "8", "9", "10"]
    (delivery,) = await books.deliveries()
    assert (delivery["status"], delivery["attempts"]) == ("failed", 10)


async def test_no_more_is_on_the_wire_than_an_endpoint_allows(cell: Cell, books: Books, receiver: Receiver) -> None:
    organization_id, endpoint_id = await books.endpoint(receiver.url)
    await books.change(endpoint_id, max_in_flight=2)
    await books.accept(organization_id, 40)
    at_once, most = 0, 0

    async def count(request: Received, writer: asyncio.StreamWriter) -> bool:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.002)
        at_once -= 1
        return await reply()(request, writer)

    receiver.script = count
    async with delivering(cell):
        await until(books.is_empty)
    assert most == 2


async def test_a_rate_is_kept_without_looking_again_and_again(
    cell: Cell, books: Books, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing is found by polling.
    monkeypatch.setattr("relay.delivery.claim_loop._POLL_S", 60.0)
    organization_id, endpoint_id = await books.endpoint(receiver.url)
    await books.change(endpoint_id, rate_limit_per_second=10)
    await books.accept(organization_id, 100)
    metrics = Metrics()
    loop = asyncio.get_running_loop()
    async with delivering(cell, metrics):
        begun = loop.time()
        await receiver.until(20)
        passed_s = loop.time() - begun
        received = len(receiver.received)
        claims = count_of(metrics, "relay_delivery_claims_total")
    # Ten at once, and ten more in a second: never more than that, however slow this machine is.
    assert received <= 10 + 10 * passed_s + 1
    # Each token is claimed for once, and looked for after that once more at most.
    assert claims <= 2 * received + 4


async def test_an_endpoint_that_waits_for_tokens_or_a_probe_does_not_delay_another(
    cell: Cell, books: Books, receiver: Receiver
) -> None:
    limited, first = await books.endpoint(receiver.url)
    await books.change(first, rate_limit_per_second=1)
    failing, second = await books.endpoint(receiver.url)
    await books.change(second, broken_since=datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1))
    organization_id, _ = await books.endpoint(receiver.url)
    for each in (limited, failing):
        await books.accept(each, 200)
    broken_ids = {
        str(row["event_id"]) for row in await books.read("select * from relay.open") if row["endpoint_id"] == second
    }

    async def script(request: Received, writer: asyncio.StreamWriter) -> bool:
        return await reply(500 if request.headers["webhook-id"] in broken_ids else 200)(request, writer)

    receiver.script = script
    async with delivering(cell):
        ids = await books.accept(organization_id, 100)
        done = "select 1 where (select count(*) from relay.deliveries where organization_id = $1) = 100"
        await until(lambda: books.read(done, organization_id))
    assert {str(id_) for id_ in ids} <= {request.headers["webhook-id"] for request in receiver.received}
    assert len([row for row in await books.open() if row["endpoint_id"] == second]) == 200


async def test_no_log_names_a_secret_or_a_header(
    cell: Cell, books: Books, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    organization_id, endpoint_id = await books.endpoint(receiver.url)
    headers = VAULT.seal(b'{"X-Key": "hushhush", "X-Bad": 1}', endpoint_id.bytes)
    await books.change(endpoint_id, headers_seal=headers)
    await books.accept(organization_id)
    async with delivering(cell):
        await until(lambda: asyncio.sleep(0, "endpoint_secret_cannot_be_opened" in caplog.messages))
    assert "hushhush" not in repr([vars(record) for record in caplog.records])
