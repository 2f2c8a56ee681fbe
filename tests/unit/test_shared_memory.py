from __future__ import annotations

import os
import subprocess
import sys

import pytest

from relay.runtime.shared_memory import LIMITS_BYTES, PAGE_BYTES, SharedMemory


def test_a_child_writes_a_page_that_its_parent_reads_and_another_goes_on_with_it() -> None:
    shared_memory = SharedMemory.create(3)
    program = (
        "import sys; from relay.runtime.shared_memory import SharedMemory\n"
        "shared_memory = SharedMemory.inherit(sys.argv[1]); page = shared_memory.page_of(shared_memory.page)\n"
        "page[0] += 1; shared_memory.limits[-1] += 1"
    )
    for _ in range(2):
        subprocess.run(
            [sys.executable, "-c", program, shared_memory.for_child(2)], pass_fds=(shared_memory.fd,), check=True
        )
    assert shared_memory.page_of(2)[0] == 2
    assert shared_memory.page_of(1)[0] == 0
    assert shared_memory.limits[LIMITS_BYTES - 1] == 2


def test_pages_are_apart() -> None:
    shared_memory = SharedMemory.create(2)
    shared_memory.page_of(0)[PAGE_BYTES - 1] = 7
    shared_memory.limits[0] = 1
    assert not any(shared_memory.page_of(1))
    assert len(shared_memory.page_of(1)) == PAGE_BYTES


@pytest.mark.parametrize("page", [-1, 2])
def test_a_page_that_is_not_there_is_refused(page: int) -> None:
    shared_memory = SharedMemory.create(2)
    with pytest.raises(ValueError, match="there are 2 pages"):
        SharedMemory(os.dup(shared_memory.fd), page)
