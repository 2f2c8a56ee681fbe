"""tests/service/test_again.py, on the servers of this folder."""

from tests.service.test_again import *  # noqa: F403
