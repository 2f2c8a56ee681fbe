"""What a batch is answered with when some of it was not committed."""

from __future__ import annotations

import pytest

from relay.errors import ApiError
from relay.http.resources.batch import results_of
from relay.ingest import Accepted, Duplicate, parse_array
from relay.ingest.outcome import Outcome
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
    assert [result.status for result in results] == ["accepted", "invalid", "duplicate"]
