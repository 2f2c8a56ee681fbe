"""Memory that the processes of one command share: metrics, and the rate limits of organizations."""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import Final, Self

#: The part that all processes write: the table of rate limits.
LIMITS_BYTES: Final = 2 * 1024 * 1024
#: The part that one process writes and all read: its metrics.
PAGE_BYTES: Final = 256 * 1024


class SharedMemory:
    """Anonymous memory behind an inherited file descriptor. It is not a file, so a process that dies leaves nothing
    behind, and pages that are never written take no memory.

    A process that replaces a dead one gets its page.

    Args:
        fd: of the memory.
        page: the number of the page that this process writes.
    """

    def __init__(self, fd: int, page: int) -> None:
        size = os.fstat(fd).st_size
        self.fd = fd
        self.page = page
        self.pages: Final = (size - LIMITS_BYTES) // PAGE_BYTES
        if not 0 <= page < self.pages:
            raise ValueError(f"page {page} does not exist: there are {self.pages} pages")
        self._memory = memoryview(mmap.mmap(fd, size))

    @classmethod
    def create(cls, pages: int) -> Self:
        """Create memory for a number of processes, all zeros. This process has the first page."""
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("relay")
        else:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        os.ftruncate(fd, LIMITS_BYTES + pages * PAGE_BYTES)
        return cls(fd, 0)

    @classmethod
    def inherit(cls, named: str) -> Self:
        """Open the memory that the parent process described with `for_child`.

        Raises:
            ValueError: the text does not come from `for_child`.
        """
        fd, _, page = named.partition(":")
        return cls(int(fd), int(page))

    def for_child(self, page: int) -> str:
        """Return the text that a child, which inherits `fd`, passes to `inherit` to write this page."""
        return f"{self.fd}:{page}"

    @property
    def limits(self) -> memoryview:
        """The memory that all processes write. To change a row, lock the byte of `fd` that stands for it."""
        return self._memory[:LIMITS_BYTES]

    def page_of(self, page: int) -> memoryview:
        """Return the page with this number. Only its owner writes it."""
        start = LIMITS_BYTES + page * PAGE_BYTES
        return self._memory[start : start + PAGE_BYTES]
