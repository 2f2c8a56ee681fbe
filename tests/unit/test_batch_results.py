"""The response to a batch if some of its events were not committed."""

from __future__ import annotations

import msgspec
import pytest

from relay.errors import ApiError
from relay.http.resources.batch import response_of, results_of
from relay.http.schemas.events import BatchResponse
from relay.ingest import Accepted, Duplicate, parse_array
from relay.ingest.outcome import Outcome, Replayed
from relay.values.uuid7 import Uuid7Clock

NEW = Uuid7Clock().new
ACCEPTED = Accepted(NEW())
DUPLICATE = Duplicate(NEW(), False)
GONE, UNKNOWN = ApiError("database_unavailable"), ApiError("commit_unknown")


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ([GONE, GONE], "database_unavailable"),
        ([DUPLICATE, GONE], "database_unavailable"),
        ([GONE, UNKNOWN], "commit_unknown"),
        ([ACCEPTED, GONE], "commit_unknown"),
        ([GONE, ACCEPTED], "commit_unknown"),
    ],
)
def test_nothing_was_stored_is_said_only_where_nothing_was(outcomes: list[Outcome | ApiError], code: str) -> None:
    items = parse_array(b'[{"type":"a","payload":1},{"type":"a","payload":1}]')
    with pytest.raises(ApiError) as raised:
        results_of(items, outcomes)
    assert raised.value.kind.code == code


def test_each_item_has_its_own_result() -> None:
    items = parse_array(b'[{"type":"a","payload":1},{"payload":1},{"type":"a","payload":1}]')
    results = results_of(items, [ACCEPTED, DUPLICATE])
    assert [result["status"] for result in results] == ["accepted", "invalid", "duplicate"]


@pytest.mark.parametrize(
    "outcomes",
    [
        [ACCEPTED],
        [ACCEPTED, Accepted(NEW()), Accepted(NEW())],
        [ACCEPTED, Replayed(NEW())],
        [DUPLICATE, ACCEPTED],
        [Duplicate(NEW(), True)],
    ],
)
def test_a_response_is_the_same_text_whether_or_not_all_were_accepted(outcomes: list[Outcome | ApiError]) -> None:
    items = parse_array(b"[" + b",".join([b'{"type":"a","payload":1}'] * len(outcomes)) + b"]")
    expected = msgspec.json.encode(BatchResponse(results=results_of(items, outcomes)))
    assert response_of(items, outcomes) == expected
    # An invalid item beside them has its place.
    with_invalid = [*items, ApiError("too_deep")]
    assert len(msgspec.json.decode(response_of(with_invalid, outcomes))["results"]) == len(with_invalid)
    assert response_of([], []) == b'{"results":[]}'
