"""tests/service/test_batch.py, on the servers of this folder."""

from tests.service.test_batch import *  # noqa: F403
