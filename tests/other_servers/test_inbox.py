"""tests/service/inbox/test_inbox.py, on the servers of this folder."""

from tests.service.inbox.test_inbox import *  # noqa: F403
