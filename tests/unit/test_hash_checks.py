"""Pending hash checks: organizations take turns, each key is checked once, and the queue is bounded."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from relay.auth import Hasher
from relay.auth.hash_checks import MAX_PER_ORGANIZATION, MAX_WAITING, HashCheck, HashChecks

pytestmark = pytest.mark.anyio


def check(organization: int, key: int) -> HashCheck:
    return HashCheck(b"%d/%d" % (organization, key), UUID(int=organization), UUID(int=key), bytes(32), "no hash")


async def test_organizations_take_turns_and_each_key_is_verified_once() -> None:
    failed: list[HashCheck] = []
    async with Hasher() as hasher:
        checks = HashChecks(hasher, failed.append)
        for key in range(3):
            assert checks.add(check(1, key))
            assert checks.add(check(1, key))
        assert checks.add(check(2, 0))
        assert checks.add(check(3, 0))
        assert len(checks) == 5
        async with checks, asyncio.timeout(10):
            while len(checks):
                await asyncio.sleep(0.001)

    assert failed == [check(1, 0), check(2, 0), check(3, 0), check(1, 1), check(1, 2)]


async def test_one_organization_cannot_take_all_places() -> None:
    async with Hasher() as hasher:
        checks = HashChecks(hasher, lambda _: None)
        added = [checks.add(check(1, key)) for key in range(MAX_PER_ORGANIZATION + 5)]
        assert added.count(True) == MAX_PER_ORGANIZATION
        assert checks.add(check(2, 0))


async def test_there_are_never_more_than_the_cache_holds() -> None:
    async with Hasher() as hasher:
        checks = HashChecks(hasher, lambda _: None)
        for organization in range(MAX_WAITING // 100 + 5):
            for key in range(100):
                checks.add(check(organization, key))
        assert len(checks) == MAX_WAITING
