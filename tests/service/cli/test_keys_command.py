"""`relay keys` from the shell: create, list, rotate, revoke."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from relay.auth import KeyListing
from relay.local.discovery import find
from relay.local.postgres import EmbeddedPostgres
from tests.conftest import SECRET_KEY, Commands, Databases, environment, free_port
from tests.support.auth_harness import Node, running, until

KEY = re.compile(r"rly_live_[a-z0-9]{2}[a-z2-7]{26}_[a-z2-7]{60}\n")
NOBODY = "018f1b1e-7c1a-7b1a-8b1a-0123456789ab"


class Ended(NamedTuple):
    code: int
    said: str
    complained: str

    @property
    def object(self) -> Any:
        return json.loads(self.said)


@pytest.fixture(scope="module")
async def shared(databases: Databases) -> str:
    return await databases.create()


@pytest.fixture
async def node(shared: str) -> AsyncIterator[Node]:
    """An API process on the same database."""
    async with running(shared) as made:
        yield made


class Shell:
    """Runs `relay keys` on one database."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def __call__(self, *arguments: str, env: Mapping[str, str] | None = None) -> Ended:
        usual = environment(self._url, free_port(), RELAY_DATA_DIR="/nonexistent")
        settings = {name: value for name, value in {**usual, **(env or {})}.items() if value}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "relay", "keys", *arguments),
            env=settings,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(30):
            said, complained = await process.communicate()
        assert process.returncode is not None
        assert b"Traceback" not in complained, complained
        return Ended(process.returncode, said.decode(), complained.decode())


@pytest.fixture
def shell(shared: str) -> Shell:
    return Shell(shared)


async def test_a_new_organizations_key_stands_alone_on_stdout_and_works(shell: Shell, node: Node) -> None:
    ended = await shell("create", "--organization", "Acme", "--tier", "pro")

    assert (ended.code, bool(KEY.fullmatch(ended.said))) == (0, True), ended.complained
    tenant = await node.guard.authenticate(ended.said.strip().encode())
    assert tenant.tier == "pro"
    assert ended.complained.splitlines() == [
        f"key_id: {tenant.key_id}",
        f"organization_id: {tenant.organization_id}",
        "organization_name: Acme",
        "tier: pro",
    ]


async def test_a_further_key_has_what_it_was_asked_to_have(shell: Shell, node: Node) -> None:
    first = (await shell("create", "--organization", "Acme", "--json")).object
    ended = await shell(
        *("create", "--organization-id", first["organization_id"], "--name", "shop", "--scope", "ingest"),
        *("--scope", "consume", "--expires-at", "2999-01-02T04:04:05+01:00", "--json"),
    )

    made = ended.object
    assert (ended.code, ended.complained, first["tier"]) == (0, "", "free")
    assert made | {"api_key": "", "key_id": ""} == {
        "api_key": "",
        "key_id": "",
        "organization_id": first["organization_id"],
        "name": "shop",
        "scopes": ["ingest", "consume"],
        "expires_at": "2999-01-02T03:04:05.000000Z",
    }
    tenant = await node.guard.authenticate(made["api_key"].encode())
    assert (str(tenant.key_id), str(tenant.organization_id)) == (made["key_id"], first["organization_id"])
    assert await node.refusal(made["api_key"].encode(), "manage") == "insufficient_scope"


async def test_a_rotated_key_and_a_revoked_one_are_refused_by_a_running_process(shell: Shell, node: Node) -> None:
    first = (await shell("create", "--organization", "Acme", "--json")).object
    old = first["api_key"].encode()
    assert await node.refusal(old) == ""

    rotated = await shell("rotate", first["key_id"])
    assert (rotated.code, bool(KEY.fullmatch(rotated.said))) == (0, True), rotated.complained
    new = rotated.said.strip().encode()
    await until(lambda: node.guard.known(old) is None, within_s=1.0)
    assert (await node.refusal(old), await node.refusal(new)) == ("invalid_api_key", "")

    further = (await shell("create", "--organization-id", first["organization_id"], "--name", "a", "--json")).object
    key = further["api_key"].encode()
    assert await node.refusal(key) == ""
    revoked = await shell("revoke", further["key_id"])
    assert revoked == (0, "", f"revoked {further['key_id']}\n")
    await until(lambda: node.guard.known(key) is None, within_s=1.0)
    assert await node.refusal(key) == "invalid_api_key"


async def test_an_overlap_keeps_the_old_key_good(shell: Shell, node: Node) -> None:
    first = (await shell("create", "--organization", "Acme", "--json")).object

    rotated = (await shell("rotate", first["key_id"], "--overlap", "3600", "--json")).object

    assert rotated["previous_key_id"] == first["key_id"]
    for key in (first["api_key"], rotated["api_key"]):
        assert await node.refusal(key.encode(), "manage") == ""


async def test_the_list_is_aligned_for_people_and_an_object_a_line_for_programs(databases: Databases) -> None:
    shell = Shell(await databases.create())
    assert await shell("list") == (0, "", "")
    acme = (await shell("create", "--organization", "Ac\u200bme \x1b[31m\u65e5\u672c", "--json")).object
    other = (await shell("create", "--organization", "Other", "--tier", "business", "--json")).object
    for name in ("\u65e5\u672c\u8a9e", "a much longer name", "e\u0301"):
        made = await shell("create", "--organization-id", acme["organization_id"], "--name", name, "--scope", "ingest")
        assert made.code == 0, made.complained

    table = (await shell("list")).said
    lines = [json.loads(line) for line in (await shell("list", "--json")).said.splitlines()]
    one = await shell("list", "--organization-id", other["organization_id"], "--json")

    heads, *rows = table.splitlines()
    assert "\x1b" not in table
    assert f"{acme['organization_id']}  free  Ac\\u200bme \\x1b[31m\u65e5\u672c" in rows
    assert f"{other['organization_id']}  business  Other" in rows
    column = heads.index("SCOPES")
    for row in rows:
        if row.startswith("  "):
            # Each of these letters takes two columns, the accent none.
            wide = sum(letter in "\u65e5\u672c\u8a9e" for letter in row) - row.count("\u0301")
            assert re.match("ingest", row[column - wide :]), table
    assert [line["name"] for line in lines] == ["first", "\u65e5\u672c\u8a9e", "a much longer name", "e\u0301", "first"]
    assert {line["organization_name"] for line in lines} == {"Ac\u200bme \x1b[31m\u65e5\u672c", "Other"}
    assert [json.loads(line) for line in one.said.splitlines()] == lines[-1:]
    assert lines[-1] | {"created_at": ""} == {
        "organization_id": other["organization_id"],
        "organization_name": "Other",
        "tier": "business",
        "key_id": other["key_id"],
        "name": "first",
        "scopes": ["ingest", "consume", "manage"],
        "created_at": "",
        "last_used_at": None,
        "expires_at": None,
    }
    for made in (acme, other):
        assert made["api_key"] not in table


async def test_the_list_of_more_keys_than_a_page_holds_all_of_them_once(databases: Databases) -> None:
    url = await databases.create()
    async with running(url) as node:
        for _ in range(23):
            made = await node.keys.create_organization("many", "free")
            further = [node.cell.clock.new() for _ in range(99)]
            await asyncio.gather(
                *(
                    node.cell.fetch(
                        "create_key", made.organization_id, key_id, "a", ["ingest"], bytes(32), "no hash", None
                    )
                    for key_id in further
                )
            )
        pages = [page async for page in KeyListing(node.cell).pages()]

    held = [holding.key.key_id for page in pages for holding in page]
    assert [len(page) for page in pages] == [1000, 1000, 300]
    assert len(set(held)) == 2300


@pytest.mark.slow
async def test_what_cannot_be_done_is_one_line_and_a_code(shell: Shell) -> None:
    first = (await shell("create", "--organization", "Acme", "--json")).object
    ended = (await shell("create", "--organization", "Acme", "--json")).object
    await shell("rotate", ended["key_id"])
    further = ("create", "--organization-id", first["organization_id"], "--name")
    cases: list[tuple[tuple[str, ...], dict[str, str], int, str]] = [
        (("create",), {}, 2, "--organization"),
        (("create", "--organization", "a", "--organization-id", first["organization_id"]), {}, 2, "--organization"),
        (("create", "--organization", "a", "--scope", "ingest"), {}, 2, "--scope"),
        (("create", "--organization", "a", "--tier", "gold"), {}, 2, "--tier"),
        (("create", "--organization", ""), {}, 2, "organization_name"),
        (("create", "--organization-id", first["organization_id"]), {}, 2, "--name"),
        ((*further, "a", "--tier", "pro"), {}, 2, "--tier"),
        ((*further, "a\nb"), {}, 2, "name: "),
        ((*further, "a", "--scope", "fly"), {}, 2, "scopes: "),
        ((*further, "a", "--scope", "ingest", "--scope", "ingest"), {}, 2, "scopes: "),
        ((*further, "a", "--expires-at", "2020-01-01T00:00:00Z"), {}, 2, "expires_at: "),
        ((*further, "a", "--expires-at", "tomorrow"), {}, 2, "--expires-at"),
        (("create", "--organization-id", NOBODY, "--name", "a"), {}, 3, NOBODY),
        (("list", "--organization-id", NOBODY), {}, 3, NOBODY),
        (("rotate", NOBODY), {}, 3, NOBODY),
        (("revoke", NOBODY), {}, 3, NOBODY),
        (("rotate", ended["key_id"]), {}, 3, "revoked"),
        (("revoke", ended["key_id"]), {}, 3, "no such key"),
        (("revoke", first["key_id"]), {}, 1, "manage"),
        (("revoke", "x"), {}, 2, "KEY_ID"),
        (("rotate", first["key_id"], "--overlap", "604801"), {}, 2, "--overlap"),
        (("rotate",), {}, 2, "KEY_ID"),
        (("list", "more"), {}, 2, "more"),
        (("fly",), {}, 2, "fly"),
        (("create", "--organization", "a"), {"RELAY_SECRET_KEY": ""}, 2, "RELAY_SECRET_KEY"),
        (("create", "--organization", "a"), {"RELAY_SECRET_KEY": "x" * 40}, 2, "RELAY_SECRET_KEY"),
        (("list",), {"DATABASE_URL": ""}, 5, "DATABASE_URL: not set, and no `relay up` runs in /nonexistent"),
        (("list",), {"DATABASE_URL": "postgresql://u:hidden@127.0.0.1:1/none"}, 5, "DATABASE_URL"),
        (("list",), {"RELAY_SCHEMA": "elsewhere"}, 5, "relay migrate"),
    ]
    for arguments, env, code, named in cases:
        done = await shell(*arguments, env=env)
        assert (done.code, done.said, done.complained.count("\n")) == (code, "", 1), (arguments, done)
        assert done.complained.startswith("relay: ")
        assert named in done.complained
        assert "hidden" not in done.complained
        assert SECRET_KEY not in done.complained


async def test_the_embedded_database_is_found_also_where_the_path_is_too_long_for_a_socket(home: Path) -> None:
    data = home / ("a-long-name-" * 8)
    data.mkdir(mode=0o711)
    async with EmbeddedPostgres(data / "postgresql") as postgres:
        assert find(data).database_url == postgres.url
        await postgres.end_now()


async def test_a_key_from_the_shell_opens_a_running_service(commands: Commands, database: str) -> None:
    api = await commands.serve(database)
    made = await Shell(database)("create", "--organization", "Shell")
    answer = await api.request("GET", "/api/keys", headers={"X-API-Key": made.said.strip()})
    assert (answer.status_code, answer.json()["organization_name"]) == (200, "Shell")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", [("list",), ("list", "--json"), ("create", "--organization", "Full")])
async def test_where_stdout_takes_nothing_one_line_says_so(
    shell: Shell, shared: str, arguments: tuple[str, ...]
) -> None:
    await shell("create", "--organization", "Acme")
    full = os.open("/dev/full", os.O_WRONLY)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "relay", "keys", *arguments),
        env=environment(shared, free_port()),
        stdout=full,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(full)
    async with asyncio.timeout(30):
        _, complained = await process.communicate()
    assert (process.returncode, complained.decode()) == (1, "relay: cannot write: No space left on device\n")
