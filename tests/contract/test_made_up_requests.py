"""Valid and invalid requests generated from the OpenAPI document get only responses that the document describes."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.conftest import Commands, Databases
from tests.support.api import Api

pytestmark = pytest.mark.slow


# What a request breaks must be refused, and what it keeps must be taken, where the document can say which is which.
_CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
    "ignored_auth",
)

_ROTATE = "/api/keys/rotate"
# What is made up may be the key that all of this is asked with.
_KEY = "/api/keys/{key_id}"
# Waits for a delivery process, which would send to whatever URL was made up.
_PING = "/api/endpoints/{id}/test"
# Does not end.
_STREAM = "/api/inbox/stream"
# An empty inbox keeps a request that may wait, longer than schemathesis does.
_HOOKS = """
import schemathesis

def shortened(found):
    if isinstance(found, dict) and isinstance(found.get("wait"), (int, float)) and 0 < found["wait"] <= 30:
        found["wait"] = 0.1
    return found

@schemathesis.hook
def map_query(context, query):
    return shortened(query)

@schemathesis.hook
def map_body(context, body):
    return shortened(body)
"""


# Of each operation, for each phase that makes some up at random.
EXAMPLES, LONG_EXAMPLES = 3, 30


async def fuzz(api: Api, folder: Path, *more: str, key: str) -> tuple[int, str]:
    """Run schemathesis, and return its exit code and output."""
    (folder / "hooks.py").write_text(_HOOKS)
    command = (
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{api.base}/openapi.json"),
        *("--header", f"X-API-Key: {key}", "--header", f"Authorization: {api.authorization['Authorization']}"),
        *("--checks", ",".join(_CHECKS), "--generation-deterministic", "--continue-on-failure", "--warnings", "off"),
        *("--phases", "examples,coverage,fuzzing", "--suppress-health-check", "all", "--no-color"),
        *more,
    )
    home = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env={**home, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(folder)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


async def test_made_up_requests_get_answers_that_the_document_has(
    commands: Commands, databases: Databases, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    examples = str(LONG_EXAMPLES if request.config.getoption("long") else EXAMPLES)
    unlimited = {"RELAY_RATE_LIMIT_ENTERPRISE": "1000000000"}
    api = await commands.serve(await databases.create(), RELAY_SIGNUP_MAX_TIER="enterprise", **unlimited)
    tenant, other = await api.tenant(), await api.tenant()
    left_out = [word for path in (_ROTATE, _PING, _KEY, _STREAM) for word in ("--exclude-path", path)]
    code, said = await fuzz(api, tmp_path, "--max-examples", examples, *left_out, key=tenant.key)
    assert code == 0, said[-6000:]
    # The key was good to the end, and some of what was made up was right.
    assert (await tenant.inbox())["events"]
    # Here it is not: a request that is right spends it, at once or after the overlap that was made up.
    code, said = await fuzz(api, tmp_path, "--max-examples", examples, "--include-path", _ROTATE, key=other.key)
    assert code == 0, said[-6000:]
    answer = await other.get("/api/keys")
    assert answer.status_code == 401 or len(answer.json()["keys"]) > 1
