"""tests/service/test_events.py, on the servers of this folder."""

from tests.service.test_events import *  # noqa: F403
