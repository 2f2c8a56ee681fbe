"""tests/service/ingest/test_batch.py, on the servers of this folder."""

from tests.service.ingest.test_batch import *  # noqa: F403
