"""The verifications of `v1a` that docs/webhooks.md shows hold what they say, in each of their languages."""

from __future__ import annotations

import base64
import datetime
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from relay.delivery.transport.request import SigningKeys, message_of
from relay.values.ed25519 import private_key, public_key
from relay.values.uuid7 import Uuid7Clock

PAGE = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text(encoding="utf-8")
SECRET, OLD = b"s" * 32, b"o" * 32

# Each reads a list of cases and writes what `verify` says of each.
MAINS = {
    "python": """
import json, sys
said = [verify(c["key"], c["headers"], base64.b64decode(c["body"])) for c in json.load(sys.stdin)]
print(json.dumps(said))
""",
    "javascript": """
const cases = JSON.parse(require("node:fs").readFileSync(0));
console.log(JSON.stringify(cases.map((c) => verify(c.key, c.headers, Buffer.from(c.body, "base64")))));
""",
    "go": """
package main

import (
	"encoding/json"
	"net/http"
	"os"
)

func main() {
	var cases []struct {
		Key     string
		Headers map[string]string
		Body    []byte
	}
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	said := []bool{}
	for _, c := range cases {
		headers := http.Header{}
		for name, value := range c.Headers {
			headers.Set(name, value)
		}
		said = append(said, verify(c.Key, headers, c.Body))
	}
	json.NewEncoder(os.Stdout).Encode(said)
}
""",
}


def case(at: datetime.datetime, **changed: str) -> dict[str, object]:
    keys = SigningKeys(private_key(SECRET), private_key(OLD), at + datetime.timedelta(hours=1))
    message = message_of(Uuid7Clock().new(), "order.created", '{"a":"ü"}'.encode(), 1, at, keys)
    lines = message.lines.decode("ascii").strip().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    body = base64.b64encode(b"".join(message.body)).decode("ascii")
    return {"key": public_key(SECRET), "headers": {**headers, **changed}, "body": body}


def cases() -> list[tuple[dict[str, object], bool]]:
    now = datetime.datetime.now(datetime.UTC)
    good = case(now)
    return [
        (good, True),
        ({**good, "key": public_key(OLD)}, True),
        ({**good, "key": public_key(b"x" * 32)}, False),
        ({**good, "body": base64.b64encode(b"{}").decode("ascii")}, False),
        (case(now, **{"webhook-id": "another"}), False),
        (case(now, **{"webhook-signature": "v1a,AAAA"}), False),
        (case(now, **{"webhook-signature": ""}), False),
        (case(now - datetime.timedelta(minutes=6)), False),
        (case(now + datetime.timedelta(minutes=6)), False),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("language", "program"), [("python", sys.executable), ("javascript", "node"), ("go", "go")])
def test_the_example_accepts_what_is_signed_and_nothing_else(language: str, program: str, tmp_path: Path) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not here")
    (example,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    if language == "go":
        (tmp_path / "verify.go").write_text(example)
        (tmp_path / "main.go").write_text(MAINS[language])
        command = [program, "run", "verify.go", "main.go"]
    else:
        (tmp_path / "example").write_text(example + MAINS[language])
        command = [program, "example"]
    asked, expected = zip(*cases(), strict=True)
    done = subprocess.run(
        command, cwd=tmp_path, input=json.dumps(asked), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == list(expected)
