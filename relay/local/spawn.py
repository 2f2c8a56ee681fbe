"""Becomes another program: with a session and a user of its own, and a signal for when its parent dies.

Run by path: `python -I -S spawn.py PARENT SIGNAL USER UID GID -- PROGRAM ARGUMENT...`. A program of its own
because all this has to happen between fork and exec, where Python code in the parent's copy is not safe.
"""

import ctypes
import os
import sys
from typing import NoReturn

_PR_SET_PDEATHSIG = 1


def become(parent: int, death_signal: int, user: str, uid: int, gid: int, program: list[str]) -> NoReturn:
    """Take the session, the user and the signal, then exec `program`.

    Args:
        parent: the process that shall be our parent; if it is gone by now, so are we.
        death_signal: what the kernel sends us when the parent dies.
        user: a login name to become, or `-` to stay who we are; with `uid` and `gid`.
        program: its path, then its arguments.
    """
    os.setsid()
    if user != "-":
        os.initgroups(user, gid)
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        # After the change of user, which clears it.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    if os.getppid() != parent:
        # It died before the line above: no signal will come.
        os._exit(1)
    os.execv(program[0], program)  # noqa: S606 - no shell is the point


def main() -> NoReturn:
    """Read the command line and become what it says."""
    parent, death_signal, user, uid, gid, _, *program = sys.argv[1:]
    try:
        become(int(parent), int(death_signal), user, int(uid), int(gid), program)
    except OSError as error:
        print(f"relay: {program[0]}: {error.strerror}", file=sys.stderr)
        os._exit(127)


if __name__ == "__main__":
    main()
