"""tests/service/jobs/test_again.py, on the servers of this folder."""

from tests.service.jobs.test_again import *  # noqa: F403
