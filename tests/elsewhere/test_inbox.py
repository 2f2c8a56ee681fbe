"""tests/service/test_inbox.py, on the servers of this folder."""

from tests.service.test_inbox import *  # noqa: F403
