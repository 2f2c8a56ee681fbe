"""Replace this process with another program, in its own session, as another user, with a parent-death signal.

Run by path: `python -I -S spawn.py PARENT SIGNAL USER UID GID -- PROGRAM ARGUMENT...`. It is a separate program because
this has to happen between fork and exec, where Python code in the parent's copy is not safe.
"""

import ctypes
import os
import sys
from typing import NoReturn

_PR_SET_PDEATHSIG = 1


def become(parent: int, death_signal: int, user: str, uid: int, gid: int, program: list[str]) -> NoReturn:
    """Set up the session, the user and the signal, then exec `program`.

    Args:
        parent: the expected parent. If it has died, exit.
        death_signal: sent by the kernel when the parent dies.
        user: the login name to switch to, or `-` to keep the current one; with `uid` and `gid`.
        program: its path, then its arguments.
    """
    os.setsid()
    if user != "-":
        os.initgroups(user, gid)
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        # After the change of user, which clears the signal.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    if os.getppid() != parent:
        # The parent died before the line above, so no signal will be sent.
        os._exit(1)
    os.execv(program[0], program)  # noqa: S606 - no shell is the point


def main() -> NoReturn:
    """Parse the command line and run the program."""
    parent, death_signal, user, uid, gid, _, *program = sys.argv[1:]
    try:
        become(int(parent), int(death_signal), user, int(uid), int(gid), program)
    except OSError as error:
        print(f"relay: {program[0]}: {error.strerror}", file=sys.stderr)
        os._exit(127)


if __name__ == "__main__":
    main()
