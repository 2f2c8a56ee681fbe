"""What operations declare, held against their handlers."""

from __future__ import annotations

import dataclasses
import typing
from functools import partial
from types import UnionType
from typing import Any, get_type_hints

import pytest

from relay.config.environment import load
from relay.errors import KINDS
from relay.http.dispatcher import Dispatcher
from relay.http.operations import Operation, RawHandler
from relay.http.resources.batch import PostBatch
from relay.http.resources.events import PostEvent
from relay.http.resources.system import get_index
from relay.http.routes import operations
from relay.http.schemas.system import Index
from relay.http.services import Services
from relay.telemetry.metrics import Metrics
from tests.conftest import open_cell


@pytest.fixture
async def table() -> list[Operation]:
    names = [field.name for field in dataclasses.fields(Services)]
    given = {"settings": load({}), "cell": open_cell("postgresql:///nowhere"), "metrics": Metrics()}
    return operations(Services(**{**dict.fromkeys(names, typing.cast(Any, None)), **given}))


async def test_handlers_expect_the_query_and_the_body_that_their_operation_declares(table: list[Operation]) -> None:
    for operation in table:
        handler: Any = operation.handler
        if isinstance(handler, RawHandler):
            continue
        while isinstance(handler, partial):
            handler = handler.func
        query, body = typing.get_args(get_type_hints(handler)["request"])
        assert query is (operation.query or type(None)), operation.id
        declared = operation.body or type(None)
        assert body == (declared | None if operation.body_optional else declared), operation.id
        assert isinstance(body, UnionType) is operation.body_optional


async def test_only_the_two_operations_that_post_events_are_written_by_hand(table: list[Operation]) -> None:
    raw = {type(operation.handler): operation.path for operation in table if isinstance(operation.handler, RawHandler)}
    assert raw == {PostEvent: "/api/events", PostBatch: "/api/events/batch"}
    assert {operation.path for operation in table if operation.posts_events} == set(raw.values())


async def test_every_operation_is_described_and_its_errors_exist(table: list[Operation]) -> None:
    for operation in table:
        noun = operation.path_noun or operation.path_name
        codes = [*operation.errors, *([f"{noun}_not_found"] if noun else [])]
        assert [code for code in codes if code not in KINDS] == [], operation.id
        assert (operation.path_parameter is None) or noun or not operation.listed, operation.id
        if operation.listed:
            assert operation.id, operation.path
            assert operation.tag, operation.path


async def test_operations_under_api_need_a_key_but_for_signing_up(table: list[Operation]) -> None:
    without = {operation.path for operation in table if operation.path.startswith("/api/") and operation.scope is None}
    assert without == {"/api/keys/generate"}
    assert all(operation.gate is not None for operation in table if operation.path in without)


async def test_an_operation_that_could_not_be_enforced_is_an_error_at_startup() -> None:
    with_key = Operation("GET", "/", get_index, scope="any", success={200: Index})
    with_body = Operation("POST", "/", get_index, scope=None, success={200: Index}, body=Index)
    for operation in (with_key, with_body):
        with pytest.raises(ValueError, match="needs"):
            Dispatcher().endpoint(operation)
