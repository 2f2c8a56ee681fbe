"""Clients made from the OpenAPI document by three generators, compiled and used against a running relay.

`make clients` runs it. It installs the generators and two linters of the document into a temporary folder, in the
versions that the files beside this one name: it needs pip, npm, go and their registries.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from tests.conftest import made_on, serving
from tests.support import servers
from tests.support.api import Api

_HERE: Final = Path(__file__).parent
_OAPI_CODEGEN: Final = "github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2"
_NEEDED: Final = ("npm", "node", "go")


class Failed(Exception):
    """A step that failed; what it printed is on the terminal."""


class Workshop:
    """A folder where clients are made.

    Args:
        folder: copies of the files beside this one go there.
        document: the OpenAPI document.
    """

    def __init__(self, folder: Path, document: bytes) -> None:
        self._folder = folder
        self.document = folder / "openapi.json"
        self.document.write_bytes(document)

    def room(self, name: str) -> Path:
        """Copy the folder of one generator."""
        return Path(shutil.copytree(_HERE / name, self._folder / name))

    def run(self, *command: str | Path, folder: Path, env: Mapping[str, str] | None = None) -> str:
        """Run a program to its end; what it says on stdout.

        Raises:
            Failed: its exit code is not 0.
        """
        done = subprocess.run(command, cwd=folder, env={**os.environ, **(env or {})}, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            print(done.stdout)
            raise Failed(f"{Path(command[0]).name} ended with {done.returncode}")
        return done.stdout


def lint(shop: Workshop, npm: Path) -> None:
    """Hold the document against the default rules of redocly and spectral.

    Raises:
        Failed: there is a finding, a warning too.
    """
    said = shop.run(npm / "redocly", "lint", "--format=json", shop.document, folder=npm)
    totals = json.loads(said)["totals"]
    if any(totals.values()):
        print(said)
        raise Failed(f"redocly: {totals}")
    rules = npm / "spectral.yaml"
    rules.write_text('extends: ["spectral:oas"]\n')
    shop.run(npm / "spectral", "lint", "--ruleset", rules, "--fail-severity", "hint", shop.document, folder=npm)
    print("redocly, spectral: no finding")


def typescript(shop: Workshop, env: Mapping[str, str]) -> None:
    """Make, compile and run a client with openapi-typescript; look at the document with linters."""
    room = shop.room("typescript")
    shop.run("npm", "install", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund", folder=room)
    programs = room / "node_modules" / ".bin"
    lint(shop, programs)
    shop.run(programs / "openapi-typescript", shop.document, "--output", "relay.d.ts", folder=room)
    shop.run(programs / "tsc", folder=room)
    print(shop.run("node", "scenario.js", folder=room, env=env), end="")


def python(shop: Workshop, env: Mapping[str, str]) -> None:
    """Make, compile and run a client with openapi-python-client."""
    room = shop.room("python")
    shop.run(sys.executable, "-m", "venv", "environment", folder=room)
    programs = room / "environment" / "bin"
    shop.run(programs / "python", "-m", "pip", "--quiet", "install", "-r", "requirements.txt", folder=room)
    generator = (programs / "openapi-python-client", "generate", "--meta", "none", "--path", shop.document)
    # It formats what it makes with ruff, which is ours.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    shop.run(*generator, "--output-path", "relay_generated", folder=room, env={"PATH": path})
    shop.run(programs / "python", "-m", "compileall", "-q", "relay_generated", folder=room)
    print(shop.run(programs / "python", "scenario.py", folder=room, env=env), end="")


def go(shop: Workshop, env: Mapping[str, str]) -> None:
    """Make, compile and run a client with oapi-codegen."""
    room = shop.room("go")
    shop.run("go", "install", _OAPI_CODEGEN, folder=room, env={"GOBIN": str(room)})
    generator = (room / "oapi-codegen", "-generate", "types,client", "-package", "main", "-o", "relay.go")
    shop.run(*generator, shop.document, folder=room)
    shop.run("go", "vet", ".", folder=room)
    shop.run("go", "build", "-o", "scenario", ".", folder=room)
    print(shop.run(room / "scenario", folder=room, env=env), end="")


async def use(api: Api, folder: Path) -> None:
    """Make each client and use it, each as an organization of its own."""
    shop = Workshop(folder, (await api.client.get("/openapi.json")).content)
    for make in (typescript, python, go):
        tenant = await api.tenant()
        await asyncio.to_thread(make, shop, {"RELAY_URL": api.base, "RELAY_API_KEY": tenant.key})


async def main(folder: Path) -> None:
    """Start a relay and make clients of it."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(servers.running("embedded", folder))
        api = await stack.enter_async_context(serving(await made_on(server)))
        await use(api, folder)


if __name__ == "__main__":
    if missing := [name for name in _NEEDED if shutil.which(name) is None]:
        sys.exit(f"make clients needs {', '.join(missing)}")
    with tempfile.TemporaryDirectory(prefix="relay-clients-") as made:
        # PostgreSQL's own user must be able to enter.
        Path(made).chmod(0o711)
        try:
            asyncio.run(main(Path(made)))
        except Failed as failed:
            sys.exit(str(failed))
