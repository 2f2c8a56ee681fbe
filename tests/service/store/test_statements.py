"""Every named statement is prepared against the migrated schema, so a wrong column fails here and not in production."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

import relay
from relay.store.statements import Statement, Statements, in_schema, read, sql_folder

# Statements that PostgreSQL cannot prepare; the migrations' own tests run them.
UNPREPARED = {"create_schema", "create_migrations_table", "lock_migrations"}
TYPES = {
    "int": "int4",
    "uuid": "uuid",
    "text": "text",
    "bytea": "bytea",
    "float8": "float8",
    "timestamptz": "timestamptz",
    "date": "date",
}
TYPES |= {"int2": "int2", "int4": "int4", "int8": "int8", "bool": "bool", "void": "void"}
TYPES |= {f"{name}[]": f"{kind}[]" for name, kind in list(TYPES.items())}


def statements() -> list[Statement]:
    files = sorted((sql_folder() / "queries").glob("*.sql"))
    return [statement for path in files for statement in read(path.read_text(encoding="utf-8"))]


def said_parameters(comment: str) -> Iterator[str]:
    """The type of each parameter, from lines such as `$1 claim_token uuid, $2 batch int`."""
    begin = next((line for line in comment.splitlines() if re.match(r"\$1\b", line)), None)
    if begin is None:
        return
    words = comment[comment.index(begin) :].partition("gives:")[0].replace("\n", " ")
    for number, said in enumerate(re.split(r"\$\d+ ", words)[1:], 1):
        kind = next((word for word in re.split(r"[ ,:;]+", said) if word in TYPES), None)
        assert kind is not None, f"${number} says no type: {said}"
        yield TYPES[kind]


def said_columns(comment: str) -> list[tuple[str, str]]:
    """Name and type of each column, from the line that begins with `gives:`."""
    said = comment.partition("gives:")[2].replace("\n", " ").strip()
    return [(name, kind) for name, _, kind in (part.strip().partition(" ") for part in said.split(",") if part)]


@pytest.fixture
async def connection(database: str) -> asyncpg.Connection:
    return await asyncpg.connect(database)


async def test_every_statement_is_what_its_comment_says(connection: asyncpg.Connection) -> None:
    for statement in statements():
        if statement.name in UNPREPARED:
            continue
        prepared = await connection.prepare(statement.text)
        parameters = [kind.name for kind in prepared.get_parameters()]
        columns = [(column.name, column.type.name) for column in prepared.get_attributes()]
        assert list(said_parameters(statement.comment)) == parameters, statement.name
        assert said_columns(statement.comment) == columns, statement.name
    await connection.close()


async def test_every_statement_explains_itself_and_is_used() -> None:
    names = [statement.name for statement in statements()]
    assert len(names) == len(set(names))
    code = "".join(path.read_text(encoding="utf-8") for path in Path(relay.__file__).parent.rglob("*.py"))
    for statement in statements():
        assert len(statement.comment) > 20, statement.name
        assert f'"{statement.name}"' in code, f"nobody calls {statement.name}"


def test_another_schema_changes_names_of_tables_and_no_other_text() -> None:
    names = re.compile(r"(?:to_regclass|pg_relation_size|format)\(\s*$|^::regclass")
    files = [*(sql_folder() / "queries").glob("*.sql"), *(sql_folder() / "migrations").glob("*.sql")]
    for path in files:
        text = re.sub(r"--.*", "", path.read_text(encoding="utf-8"))
        for literal in re.finditer(r"'[^']*'", text):
            if in_schema(literal[0], "another") != literal[0] and "%I" not in literal[0]:
                around = text[: literal.start()], text[literal.end() :]
                assert any(names.search(each) for each in around), f"{path.name}: {literal[0]} is not a name of a table"


async def test_every_column_that_code_reads_is_given_by_some_statement() -> None:
    given = {name for statement in statements() for name, _ in said_columns(statement.comment)}
    for path in Path(relay.__file__).parent.rglob("*.py"):
        if "local" in path.parts:
            continue
        for name in re.findall(
            r"\b(?:row|walked|last|attempt|holder|event)\[\"(\w+)\"\]", path.read_text(encoding="utf-8")
        ):
            assert name in given, f"{path.name} reads {name}"


async def test_hot_statements_read_no_table_from_end_to_end(connection: asyncpg.Connection) -> None:
    """With the planner settings of our connections, whatever it thinks of empty tables."""
    await connection.execute("set enable_seqscan = off; set enable_bitmapscan = off; set jit = off")
    texts = Statements()
    literals = {
        "uuid": "'018f1b1e-7c1a-7b1a-8b1a-0123456789ab'::uuid", "int4": "1", "int8": "1", "int2": "1::int2",
        "text": "'a'", "float8": "1.0", "bytea": "'a'::bytea", "timestamptz": "now()", "bool": "true",
    }  # fmt: skip
    for name in (
        "commit_event", "commit_events", "commit_events_with_keys", "commit_events_again",
        "first_holders", "claim_due", "renew_leases", "record_attempts",
        "inbox_pending_asc", "inbox_pending_desc", "inbox_all_asc", "inbox_all_desc", "event_by_id",
        "deliveries_of_event", "attempts_of_event", "acknowledge", "keys_by_id", "note_keys_used", "position_bounds",
        "deliveries_open",
        "deliveries_ended", "deliveries_any", "deliveries_near", "send_again", "answer_kept", "count_ended",
        "jobs_page", "job_by_id", "stop_job", "take_job", "keep_job", "leave_job", "fail_job", "not_attempted",
        "reopen_batch", "catch_up_batch", "hold_batch", "release_batch", "cancel_batch", "forget_jobs",
        "forget_answers", "organizations_with_open", "open_of_day", "forget_open", "dead_letters_of_day",
        "forget_dedup_keys", "lose_claims", "lead", "stats_of_events", "stats_of_endpoints",
    ):  # fmt: skip
        prepared = await connection.prepare(texts[name])
        text = texts[name]
        for number, kind in reversed(list(enumerate(prepared.get_parameters(), 1))):
            base = kind.name.removesuffix("[]")
            literal = f"array[{literals[base]}]::{base}[]" if kind.name.endswith("[]") else literals[base]
            text = text.replace(f"${number}::", f"{literal}::")
        plan = "\n".join(row[0] for row in await connection.fetch(f"explain {text}"))
        scanned = set(re.findall(r"Seq Scan on (\w+)", plan)) - {"cell"}
        assert not scanned, f"{name} scans {scanned}:\n{plan}"
    await connection.close()


def test_another_schema_is_the_only_text_that_is_substituted() -> None:
    assert in_schema("select * from relay.events; create schema if not exists relay;", "blue") == (
        'select * from "blue".events; create schema if not exists "blue";'
    )
    for statement in statements():
        assert in_schema(statement.text, "relay") == statement.text
        assert "relay." not in in_schema(statement.text, "blue").replace('"blue".', "")
