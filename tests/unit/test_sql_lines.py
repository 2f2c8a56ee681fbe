"""SQL is read in a terminal and in review: no line is longer than 120 columns."""

from __future__ import annotations

from relay.store.statements import sql_folder

MAX_COLUMNS = 120
# Applied migrations never change, and these were applied before lines were checked.
APPLIED = {
    "0001_first.sql",
    "0002_delivery.sql",
    "0004_retention.sql",
    "0006_event_status_within.sql",
    "0009_turns.sql",
    "0009c_process_leases.sql",
    "0009d_retention_days.sql",
    "0010_epochs.sql",
    "0011_key_changes.sql",
}


def test_no_line_of_sql_is_too_long() -> None:
    files = sorted(path for folder in ("queries", "migrations") for path in (sql_folder() / folder).glob("*.sql"))
    assert {path.parent.name for path in files} == {"queries", "migrations"}
    too_long = [
        f"{path.name}:{number}"
        for path in files
        if path.name not in APPLIED
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > MAX_COLUMNS
    ]
    assert not too_long
