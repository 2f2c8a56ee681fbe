"""python -m bench.generator OUT: reads a plan from stdin, runs it, writes the result to OUT. Both are JSON."""

# locust first: it replaces blocking calls of the standard library by gevent's when it is imported.
import locust  # noqa: F401, I001

import sys
from pathlib import Path

import msgspec

from bench.generator.plan import Plan
from bench.generator.user import run

if __name__ == "__main__":
    result = run(msgspec.json.decode(sys.stdin.buffer.read(), type=Plan))
    Path(sys.argv[1]).write_bytes(msgspec.json.encode(result))
