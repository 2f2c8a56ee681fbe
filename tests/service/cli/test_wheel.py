"""The wheel of a release is complete, and works in an empty virtual environment, from an empty folder."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import httpx2
import pytest

from relay import __version__
from relay.store.migrations import migrations
from tests.conftest import ADMIN_TOKEN, Databases, environment, free_port
from tests.support.api import Api
from tests.support.delivery_harness import until

pytestmark = pytest.mark.slow


ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the source archive, and the wheel that was made from that."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return built / f"relay_events-{__version__}-py3-none-any.whl"


def test_it_has_the_statements_and_the_migrations_and_none_of_what_only_we_need(built: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for path in (ROOT / "sql").rglob("*.sql"):
            assert archive.read(f"relay/_sql/{path.relative_to(ROOT / 'sql')}") == path.read_bytes()
        metadata = archive.read(f"relay_events-{__version__}.dist-info/METADATA").decode()
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "relay").rglob("*.py")}
    assert ours <= names
    assert "relay/http/swagger/swagger-ui-bundle.js" in names
    assert {name.split("/")[0] for name in names} == {"relay", f"relay_events-{__version__}.dist-info"}
    assert "\nName: relay-events\n" in metadata
    assert f"\nVersion: {__version__}\n" in metadata
    assert "\nRequires-Python: >=3.11\n" in metadata
    with tarfile.open(built / f"relay_events-{__version__}.tar.gz") as source:
        assert f"relay_events-{__version__}/sql/migrations/{migrations()[0].name}.sql" in source.getnames()


@pytest.fixture(scope="module")
def relay(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of an environment that has the wheel and nothing else of ours.

    What the wheel depends on comes from the environment of the tests, whose lock has it: where the suite runs there
    need be no package index. Our own folder is not on that way: only its .pth leads there, which PYTHONPATH ignores.
    """
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    uv = Path(sysconfig.get_path("scripts")) / "uv"
    command = [str(uv), "pip", "install", "--quiet", "--offline", "--no-cache", "--no-deps", "--python", str(folder)]
    subprocess.run([*command, str(wheel)], check=True)
    return folder / "bin" / "relay"


async def test_it_migrates_and_serves_from_an_empty_folder(relay: Path, databases: Databases, tmp_path: Path) -> None:
    port = free_port()
    env = {
        **environment(await databases.create(migrated=False), port),
        "PYTHONPATH": os.pathsep.join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}),
    }

    async def run(*arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            relay, *arguments, cwd=tmp_path, env=env, stdout=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(60):
            said, _ = await process.communicate()
        assert process.returncode == 0
        return said.decode()

    where = await asyncio.create_subprocess_exec(
        *(relay.with_name("python"), "-c", "import relay; print(relay.__file__)"),
        cwd=tmp_path,
        env=env,
        stdout=asyncio.subprocess.PIPE,
    )
    found, _ = await where.communicate()
    assert found.decode().startswith(str(relay.parents[1]))

    assert await run("--version") == f"relay {__version__}\n"
    assert await run("migrate") == "".join(f"applied {migration.name}\n" for migration in migrations())
    process = await asyncio.create_subprocess_exec(relay, "serve", cwd=tmp_path, env=env)
    try:
        async with Api(f"http://127.0.0.1:{port}", admin_token=ADMIN_TOKEN) as api:

            async def healthy() -> bool:
                assert process.returncode is None
                try:
                    return (await api.client.get("/health")).status_code == 200
                except httpx2.TransportError:
                    return False

            await until(healthy, 60.0)
            tenant = await api.tenant()
            event_id = await tenant.accept()
            assert [event["id"] for event in (await tenant.inbox())["events"]] == [event_id]
            assert (await api.client.get("/docs")).status_code == 200
    finally:
        process.terminate()
        async with asyncio.timeout(30):
            assert await process.wait() == 0
    assert os.listdir(tmp_path) == []
