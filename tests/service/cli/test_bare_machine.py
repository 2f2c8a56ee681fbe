"""The files of deploy/ for a bare machine: relay behind nginx and Caddy, and with systemd's restrictions."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import ssl
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import ADMIN_TOKEN, Commands, Databases, environment, free_port
from tests.support.api import Api
from tests.support.certificates import Authority
from tests.support.delivery_harness import until

DEPLOY = Path(__file__).parents[3] / "deploy"
HOST = "relay.example.com"
# prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN): what MemoryDenyWriteExecute=yes does where the kernel has it.
REFUSE_EXEC_GAIN = (
    "import ctypes, os, sys\n"
    "if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0): sys.exit(77)\n"
    "os.execv(sys.executable, [sys.executable, '-m', 'relay', *sys.argv[1:]])"
)


def nginx_command() -> str | None:
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


def nginx(folder: Path, port: int, relay: int, certificate: Path) -> list[str]:
    """The command that runs nginx with the file of deploy/, on a port and with a certificate of the test's."""
    text = (DEPLOY / "nginx" / "relay.conf").read_text(encoding="utf-8")
    text = re.sub(r"listen \[::\].*\n", "\n", text)
    text = text.replace("listen 80;", f"listen 127.0.0.1:{free_port()};").replace(
        "listen 443", f"listen 127.0.0.1:{port}"
    )
    text = text.replace("127.0.0.1:8080", f"127.0.0.1:{relay}")
    text = re.sub(r"/etc/letsencrypt/\S+\.pem", str(certificate), text)
    places = "".join(
        f"{name}_temp_path {folder / name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    # Its workers would else be a user who may not enter the folder.
    user = "user root;" if os.geteuid() == 0 else ""
    head = f"{user} daemon off; pid {folder}/pid; error_log stderr;\nevents {{}}\n"
    whole = f"{head}http {{ access_log off;\n{places}{text}}}\n"
    (folder / "nginx.conf").write_text(whole, encoding="utf-8")
    return [nginx_command() or "", "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]


def caddy(folder: Path, port: int, relay: int, certificate: Path) -> list[str]:
    """The same for Caddy."""
    text = (DEPLOY / "caddy" / "Caddyfile").read_text(encoding="utf-8").replace("127.0.0.1:8080", f"127.0.0.1:{relay}")
    text = text.replace(f"{HOST} {{", f"https://{HOST}:{port} {{\n\tbind 127.0.0.1\n\ttls {certificate} {certificate}")
    (folder / "Caddyfile").write_text(f"{{\n\tadmin off\n\tauto_https disable_redirects\n}}\n{text}", encoding="utf-8")
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]


@asynccontextmanager
async def running(command: list[str], folder: Path) -> AsyncIterator[Process]:
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    process = await asyncio.create_subprocess_exec(*command, cwd=folder, env=env)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def presented(authority: Authority, host: str) -> Path:
    """Return the file with a certificate for the host, and its key."""
    authority.presents(host)
    (made,) = (path for path in authority.path.parent.glob("*.pem") if path != authority.path)
    return made


PROXIES = [
    pytest.param(nginx, marks=pytest.mark.skipif(nginx_command() is None, reason="no nginx here")),
    pytest.param(caddy, marks=pytest.mark.skipif(shutil.which("caddy") is None, reason="no Caddy here")),
]


@pytest.mark.parametrize("proxy", PROXIES)
async def test_behind_a_tls_proxy_it_answers_as_it_does_alone(
    proxy: Callable[[Path, int, int, Path], list[str]], commands: Commands, database: str, tmp_path: Path
) -> None:
    env = dict(re.findall(r"^(RELAY_TRUSTED_PROXIES)=(.*)$", (DEPLOY / "systemd" / "relay.env").read_text(), re.M))
    assert env
    api = await commands.serve(database, **env)
    tenant = await api.tenant()
    authority, port = Authority(tmp_path, "authority"), free_port()
    certificate = presented(authority, HOST)
    trusting = ssl.create_default_context(cafile=str(authority.path))
    async with (
        running(proxy(tmp_path, port, api.port, certificate), tmp_path) as process,
        httpx2.AsyncClient(base_url=f"https://127.0.0.1:{port}", verify=trusting, trust_env=False) as client,
    ):
        # By address, as there is no such name; by name for the certificate and for who answers.
        named: dict[str, Any] = {"headers": {"Host": HOST}, "extensions": {"sni_hostname": HOST}}

        async def answers() -> bool:
            assert process.returncode is None
            try:
                return (await client.get("/health", **named)).status_code == 200
            except httpx2.TransportError:
                return False

        await until(answers, 20.0)
        keyed: dict[str, Any] = {**named, "headers": {"Host": HOST, "X-API-Key": tenant.key}}
        answer = await client.post("/api/events", json={"type": "order.created", "payload": 1}, **keyed)
        assert answer.status_code == 201
        # It believes the proxy that the client speaks TLS.
        assert answer.headers["strict-transport-security"].startswith("max-age=")
        large = await client.post("/api/events/batch", content=b"[" + b" " * 5_000_000 + b"]", **keyed)
        assert (large.status_code, large.json()["code"]) == (413, "body_too_large")
        assert (await client.get("/metrics", **named)).status_code == 404
        assert (await client.get(f"{api.base}/metrics")).status_code == 200


async def test_it_needs_no_memory_that_is_written_and_executed(
    databases: Databases, commands: Commands, tmp_path: Path
) -> None:
    if sys.platform != "linux":
        pytest.skip("Linux only")
    port = free_port()
    env = environment(await databases.create(migrated=False), port, RELAY_OPS_PORT=str(free_port()))

    async def start(*arguments: str) -> Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", REFUSE_EXEC_GAIN, *arguments), cwd=tmp_path, env=env, stderr=PIPE
        )

    process = await start("migrate")
    _, complained = await process.communicate()
    if process.returncode == 77:
        pytest.skip("this kernel has no PR_SET_MDWE")
    assert process.returncode == 0, complained.decode()
    for command, sign in (("serve", b'"serving"'), ("deliver", b'"delivering"')):
        process = await start(command)
        assert process.stderr is not None
        said = b""
        async with asyncio.timeout(30):
            while sign not in said and (line := await process.stderr.readline()):
                said += line
        assert sign in said, said.decode()
        if command == "serve":
            async with Api(f"http://127.0.0.1:{port}", admin_token=ADMIN_TOKEN) as api:
                # Argon2, encryption, the encoder: what has code of its own.
                assert await (await api.tenant()).accept()
        process.terminate()
        await process.communicate()
        assert process.returncode == 0
