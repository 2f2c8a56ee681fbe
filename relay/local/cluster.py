"""A PostgreSQL cluster on disk, created once and atomically, and its settings."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import SIGKILL
from typing import Final
from urllib.parse import quote

from relay.local.errors import StartupError
from relay.local.files import sync, write_whole
from relay.local.processes import launch, tell
from relay.local.users import User

ROLE: Final = "relay"
DATABASE: Final = "relay"
#: The socket's name in its folder.
SOCKET: Final = ".s.PGSQL.5432"
SHARED_BUFFERS: Final = "128MB"

_INITDB: Final = (
    f"--username={ROLE}",
    "--auth=scram-sha-256",
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    # In MB. A commit that needs a new segment waits until that is zero-filled and on disk.
    "--wal-segsize=4",
    # Synced once at the end, together with the writes of the single-user server.
    "--no-sync",
)

# The pg_hba.conf of `initdb` also allows TCP and replication.
_HBA: Final = "local all all scram-sha-256\n"

# ALTER SYSTEM may change the rest. The settings for durability are explicit although all three are defaults.
_SETTINGS: Final[Mapping[str, str]] = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "password_encryption": "scram-sha-256",
    "max_connections": "100",
    "shared_buffers": SHARED_BUFFERS,
    "huge_pages": "try",
    # Forty partitions of four tables. It is also the size of the fast path, which keeps their locks cheap.
    "max_locks_per_transaction": "256",
    "jit": "off",
    "wal_buffers": "16MB",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    "checkpoint_completion_target": "0.9",
    # The table of open deliveries turns over in seconds. With the default of a minute it bloats.
    "autovacuum_naptime": "5s",
    "autovacuum_vacuum_cost_limit": "2000",
    # Saves a process: there is no replication.
    "max_logical_replication_workers": "0",
    # With origins each checkpoint rewrites a file. If the disk is too full for that, PostgreSQL stops, and stops again
    # at every start.
    "max_active_replication_origins": "0",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_destination": "stderr",
    "log_line_prefix": "%m postgres[%p] ",
    "log_min_messages": "warning",
    # Details quote rows, and statements of migrations are long.
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
    # Otherwise every checkpoint logs a line.
    "log_checkpoints": "off",
}

# PostgreSQL's programs need nothing from our environment. PGHOST or PGPASSWORD would mislead them.
ENVIRONMENT: Final[Mapping[str, str]] = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


def url(sockets: Path, password: str) -> str:
    """Return the URL of the database `relay` as its owner, for asyncpg and libpq.

    Args:
        sockets: the folder of the server's socket.
        password: the password of the role.
    """
    return f"postgresql://{ROLE}:{password}@/{DATABASE}?host={quote(str(sockets), safe='/')}"


def write_settings(folder: Path, sockets: Path, settings: Mapping[str, str]) -> list[str]:
    """Write the server's two configuration files into `folder`, and return the arguments that name them.

    They are outside the cluster because root writes nothing into a folder that the server's user owns.

    Args:
        folder: owned by us, readable by the server.
        sockets: where the server listens.
        settings: override those of this module.
    """
    every = {**_SETTINGS, "unix_socket_directories": f'"{sockets}"', **settings}
    lines = [f"{name} = '{value.replace(chr(39), chr(39) * 2)}'\n" for name, value in every.items()]
    write_whole(folder / "postgresql.conf", "".join(lines), mode=0o644)
    write_whole(folder / "pg_hba.conf", _HBA, mode=0o644)
    return [f"--config_file={folder / 'postgresql.conf'}", f"--hba_file={folder / 'pg_hba.conf'}"]


async def make(cluster: Path, *, programs: Path, password: str, user: User | None) -> None:
    """Create a cluster with the role and the database `relay`.

    It is created in a temporary folder and renamed when it is complete and on disk. Measured: 0.5 s.

    Args:
        cluster: the folder to create; remains of an earlier, interrupted attempt are removed.
        programs: the folder of `initdb` and `postgres`.
        password: the password of the role.
        user: the owner; None for the current user.

    Raises:
        StartupError: a program failed.
    """
    prefix = f".{cluster.name}-"
    for remains in cluster.parent.glob(f"{prefix}*"):
        shutil.rmtree(remains, ignore_errors=True)
    parts = Path(tempfile.mkdtemp(prefix=prefix, dir=cluster.parent))
    made, secret = parts / "made", parts / "password"
    secret.touch(mode=0o600)
    secret.write_text(password)
    if user is not None:
        os.chown(secret, user.uid, user.gid)
        os.chown(parts, user.uid, user.gid)
    initdb = str(programs / "initdb")
    await _run([initdb, *_INITDB, f"--pwfile={secret}", f"--pgdata={made}"], user)
    create = f"create database {DATABASE}\n".encode()
    said = await _run([str(programs / "postgres"), "--single", "-F", "-D", str(made), "postgres"], user, create)
    if "ERROR:" in said:
        # The single-user server exits with 0 even so.
        raise StartupError(f"postgres could not create the database {DATABASE}: {said.strip()}")
    await _run([initdb, "--sync-only", f"--pgdata={made}"], user)
    made.rename(cluster)
    sync(cluster.parent)
    shutil.rmtree(parts)


async def _run(program: Sequence[str], user: User | None, typed: bytes = b"") -> str:
    """Run one of PostgreSQL's programs to its end, and return its stderr."""
    process: Process = await launch(
        program,
        env=ENVIRONMENT,
        user=user,
        death_signal=SIGKILL,
        folder="/",
        stdin=PIPE if typed else DEVNULL,
        stdout=DEVNULL,
        stderr=PIPE,
    )
    try:
        _, written = await process.communicate(typed or None)
    except asyncio.CancelledError:
        tell(process, SIGKILL)
        await process.wait()
        raise
    said = written.decode(errors="replace")
    if process.returncode:
        # initdb ends with its cleanup. The failure itself is in a line before that.
        lines = said.splitlines()
        told = next((line for line in lines if "error:" in line or "FATAL:" in line), "".join(lines[-1:]))
        raise StartupError(f"{Path(program[0]).name} ended with code {process.returncode}: {told}")
    return said
