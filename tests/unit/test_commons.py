from __future__ import annotations

import os
import subprocess
import sys

import pytest

from relay.runtime.shared_memory import LIMITS_BYTES, PAGE_BYTES, Commons


def test_a_child_writes_a_page_that_its_parent_reads_and_another_goes_on_with_it() -> None:
    commons = Commons.create(3)
    program = (
        "import sys; from relay.runtime.shared_memory import Commons\n"
        "commons = Commons.inherit(sys.argv[1]); page = commons.page_of(commons.page)\n"
        "page[0] += 1; commons.limits[-1] += 1"
    )
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program, commons.for_child(2)], pass_fds=(commons.fd,), check=True)
    assert commons.page_of(2)[0] == 2
    assert commons.page_of(1)[0] == 0
    assert commons.limits[LIMITS_BYTES - 1] == 2


def test_pages_are_apart() -> None:
    commons = Commons.create(2)
    commons.page_of(0)[PAGE_BYTES - 1] = 7
    commons.limits[0] = 1
    assert not any(commons.page_of(1))
    assert len(commons.page_of(1)) == PAGE_BYTES


@pytest.mark.parametrize("page", [-1, 2])
def test_a_page_that_is_not_there_is_refused(page: int) -> None:
    commons = Commons.create(2)
    with pytest.raises(ValueError, match="there are 2 pages"):
        Commons(os.dup(commons.fd), page)
