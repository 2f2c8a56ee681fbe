from __future__ import annotations

import asyncio

import pytest

from relay.runtime import service as services
from relay.runtime.service import Service


class Stumbling(Service):
    """Fails the first time, goes on the second."""

    def __init__(self) -> None:
        self.begun = 0
        self.going = asyncio.Event()

    async def run(self) -> None:
        self.begun += 1
        if self.begun == 1:
            raise KeyError("a mistake")
        self.going.set()
        await asyncio.Event().wait()


async def test_a_mistake_is_logged_and_the_service_begins_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(services, "_RESTART_PAUSE_S", 0.0)
    async with asyncio.timeout(5), Stumbling() as service:
        await service.going.wait()
    assert service.begun == 2
    assert [record.getMessage() for record in caplog.records] == ["background_failed"]


async def test_leaving_ends_the_task() -> None:
    async with Stumbling() as service:
        service.begun = 1
        await service.going.wait()
        task = service._task
    assert task is not None
    assert task.cancelled()
