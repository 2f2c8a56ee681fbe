"""The rules for the members of an endpoint."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.endpoints.validation import check_catch_up, check_headers, filters_of
from relay.http.resources.endpoints import changes_of
from relay.http.schemas.endpoints import EndpointUpdate
from relay.values.document_errors import InvalidMember

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)


def test_filters_are_told_apart_and_kept_once() -> None:
    assert filters_of(["a", "order.*", "b", "a", "order.*", "relay.endpoint.disabled", "x*", "*.y"]) == (
        ["a", "order.*", "b", "relay.endpoint.disabled", "x*", "*.y"],
        ["order."],
    )


@given(st.lists(st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=20)))
def test_filters_read_back_are_those_that_were_given(event_types: list[str]) -> None:
    if {"*", ".*"} & set(event_types):
        return
    filters, prefixes = filters_of(event_types)
    assert filters == list(dict.fromkeys(event_types))
    assert [f"{prefix}*" for prefix in prefixes] == [text for text in filters if text.endswith(".*")]


@pytest.mark.parametrize("text", ["*", ".*", "a\nb", "\x00", "order.\x85*", "a\x7f"])
def test_a_filter_that_can_mean_nothing_is_refused_in_its_place(text: str) -> None:
    with pytest.raises(InvalidMember) as refused:
        filters_of(["fine", text])
    assert refused.value.field == "event_types[1]"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Tenant", "acme"),
        ("Authorization", "Bearer abc.def=="),
        ("x", ""),
        ("a" * 100, "b" * 1024),
        ("!#$%&'*+-.^_`|~09azAZ", "inner spaces\tand tabs"),
        ("X-Event-Source", "1"),
        ("webhook", "1"),
        ("proxy", "1"),
    ],
)
def test_a_header_of_ones_own_is_taken(name: str, value: str) -> None:
    check_headers({name: value})


@pytest.mark.parametrize(
    "name",
    [
        "Connection",
        "KEEP-ALIVE",
        "Proxy-Authorization",
        "proxy-connection",
        "TE",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
        "Host",
        "Content-Length",
        "Content-Type",
        "Content-Encoding",
        "User-Agent",
        "Expect",
        "webhook-id",
        "Webhook-Signature",
        "webhook-anything",
        "X-Event-ID",
        "x-event-type",
        "X-Delivery-Attempt",
        "Traceparent",
    ],
)
def test_a_header_that_frames_or_signs_the_request_is_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidMember) as refused:
        check_headers({name: "1"})
    assert refused.value.field == f"headers.{name}"


@pytest.mark.parametrize(
    "name", ["", "a" * 101, "a b", "a:b", "a\r\nb", "\u00fc", "a\x00", "a\n", "(a)", '"a"', "a/b", "a=b"]
)
def test_what_is_no_header_name_is_refused_and_not_repeated(name: str) -> None:
    with pytest.raises(InvalidMember) as refused:
        check_headers({name: "1"})
    assert refused.value.field == "headers"


@pytest.mark.parametrize(
    "value",
    [
        "hidden\r\nX-Injected: 1",
        "hidden\n",
        "\n",
        "hidden\rb",
        "hidden\x00b",
        " hidden",
        "hidden ",
        "\thidden",
        " ",
        "hidden\u00fc",
        "hidden\x7f",
        "hidden" * 171,
    ],
)
def test_a_header_value_that_could_say_something_else_is_refused_and_not_repeated(value: str) -> None:
    with pytest.raises(InvalidMember) as refused:
        check_headers({"X-Secret": value})
    assert refused.value.field == "headers.X-Secret"
    assert "hidden" not in str(refused.value)


def test_names_are_one_without_regard_to_case() -> None:
    with pytest.raises(InvalidMember) as refused:
        check_headers({"X-A": "1", "x-a": "2"})
    assert refused.value.field == "headers.x-a"


def test_a_member_that_is_not_given_is_told_from_a_null() -> None:
    said = changes_of(EndpointUpdate(timeout_s=None, description=""), ())
    assert said.given == {"timeout_s", "description"}
    assert (said.timeout_s, said.description) == (None, "")
    assert (said.url, said.event_types, said.enabled, said.headers) == (None, None, None, None)


def test_standard_names_the_schedule_of_standard_webhooks() -> None:
    said = changes_of(EndpointUpdate(retry_schedule="standard"), ())
    assert said.retry_schedule is not None
    assert (len(said.retry_schedule), said.retry_schedule[0], sum(said.retry_schedule) > 86_400) == (9, 5.0, True)


def test_catching_up_begins_in_the_past() -> None:
    check_catch_up(NOW, NOW)
    with pytest.raises(InvalidMember):
        check_catch_up(NOW + datetime.timedelta(microseconds=1), NOW)
