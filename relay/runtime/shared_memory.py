"""Memory that the processes of one command share: what they have counted, and what tenants have used up."""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import Final, Self

#: The part that all processes write: who is how far ahead of its rate.
LIMITS_BYTES: Final = 2 * 1024 * 1024
#: The part that one process writes and all read: what it has counted.
PAGE_BYTES: Final = 256 * 1024


class SharedMemory:
    """Anonymous memory, reached through an inherited file descriptor: whoever dies leaves nothing behind, no file
    system is written to, and what is never touched takes no memory.

    A page belongs to a place and not to a process: who is started again in the place of a process that died goes on
    with its page.

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
            raise ValueError(f"there are {self.pages} pages, and {page} is none of them")
        self._memory = memoryview(mmap.mmap(fd, size))

    @classmethod
    def create(cls, pages: int) -> Self:
        """New memory, all zeros, for so many processes; this one has the first page."""
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("relay")
        else:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        os.ftruncate(fd, LIMITS_BYTES + pages * PAGE_BYTES)
        return cls(fd, 0)

    @classmethod
    def inherit(cls, named: str) -> Self:
        """What `for_child` named in the process that started this one.

        Raises:
            ValueError: it is not what `for_child` gives.
        """
        fd, _, page = named.partition(":")
        return cls(int(fd), int(page))

    def for_child(self, page: int) -> str:
        """What a child, which inherits `fd`, needs to know to write this page."""
        return f"{self.fd}:{page}"

    @property
    def limits(self) -> memoryview:
        """What all processes write; lock `fd` at the byte that stands for a row."""
        return self._memory[:LIMITS_BYTES]

    def page_of(self, page: int) -> memoryview:
        """The page with this number; only its owner writes it."""
        start = LIMITS_BYTES + page * PAGE_BYTES
        return self._memory[start : start + PAGE_BYTES]
