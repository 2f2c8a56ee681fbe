"""The settings of an installation, as one frozen object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from relay.values.addresses import Network

TIERS: Final = ("free", "pro", "business", "enterprise")
#: The longest wait for the response to a test delivery, whatever the endpoint's timeout.
LONGEST_TEST_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Rate:
    """The rate limit of a tier: requests a minute, and the largest burst."""

    per_minute: int
    burst: int


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything an operator can set. Times are seconds, sizes bytes unless the name says otherwise."""

    database_url: str | None
    database_direct_url: str | None
    secret_keys: tuple[str, ...]
    data_dir: Path
    host: str | None
    port: int
    ops_port: int
    workers: int
    admin_token: str | None
    open_signup: bool
    signup_max_tier: str
    allowed_networks: tuple[Network, ...] | None
    retention_days: int
    retention_max_days: int
    lease_s: float
    dedup_window_s: float
    commit_timeout_s: float
    delivery_timeout_s: float
    max_in_flight: int
    queue_mb: int
    delivery_mb: int
    db_pool_max: int
    db_max_lifetime_s: float
    keep_alive_s: float
    breaker_failures: int
    breaker_window_s: float
    endpoint_disable_after_s: float
    retry_schedule: tuple[float, ...]
    max_attempts: int | None
    #: By tier; None is no limit.
    rates: Mapping[str, Rate | None]
    max_endpoints: Mapping[str, int]
    redis_url: str | None
    cors_origins: tuple[str, ...]
    trusted_proxies: tuple[Network, ...]
    metrics_token: str | None
    log_level: str
    log_sample: float
    schema: str

    @property
    def attempts(self) -> int:
        """The attempts of a delivery before it is a dead letter: one more than there are waits."""
        return self.max_attempts or len(self.retry_schedule) + 1
