"""tests/service/ingest/test_events.py, on the servers of this folder."""

from tests.service.ingest.test_events import *  # noqa: F403
