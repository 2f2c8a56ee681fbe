"""The environment variables that set settings: names, defaults, parsers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from relay.config.parsers import (
    choice,
    flag,
    integer,
    integer_or_none,
    long_token,
    networks,
    number,
    origins,
    postgres_url,
    redis_url,
    schedule,
    schema,
    secrets,
    token,
)
from relay.config.settings import TIERS

_TIER_ENDPOINTS: Final = {"free": 10, "pro": 50, "business": 500, "enterprise": 500}
_TIER_RATES: Final = {"free": 100, "pro": 1_000, "business": 10_000, "enterprise": 100_000}


@dataclass(frozen=True, slots=True)
class Setting:
    """An environment variable.

    Args:
        variable: its name.
        field: the field of `Settings` that it sets.
        default: its value if it is not set.
        parse: parses its text, and raises ValueError.
        allowed: the allowed values, as the error message names them.
        secret: masked wherever settings are shown.
    """

    variable: str
    field: str
    default: str
    parse: Callable[[str], Any]
    allowed: str
    secret: bool = False


SETTINGS: Final = (
    Setting("DATABASE_URL", "database_url", "", postgres_url, "a postgresql:// URL", secret=True),
    Setting("DATABASE_DIRECT_URL", "database_direct_url", "", postgres_url, "a postgresql:// URL", secret=True),
    Setting(
        "RELAY_SECRET_KEY",
        "secret_keys",
        "",
        secrets,
        "one or more secrets of at least 32 characters, separated by commas",
        secret=True,
    ),
    Setting("RELAY_DATA_DIR", "data_dir", "", Path, "a folder"),
    Setting("HOST", "host", "", token, "an address to listen on"),
    Setting("PORT", "port", "8080", integer(1, 65535), "a port from 1 to 65535"),
    Setting("RELAY_OPS_PORT", "ops_port", "9464", integer(1, 65535), "a port from 1 to 65535"),
    Setting("RELAY_WORKERS", "workers", "1", integer(1, 256), "a number from 1 to 256"),
    Setting(
        "RELAY_ADMIN_TOKEN",
        "admin_token",
        "",
        long_token,
        "at least 16 visible ASCII characters",
        secret=True,
    ),
    Setting("RELAY_OPEN_SIGNUP", "open_signup", "", flag, "1 or 0"),
    Setting("RELAY_SIGNUP_MAX_TIER", "signup_max_tier", "free", choice(*TIERS), "one of " + ", ".join(TIERS)),
    Setting(
        "RELAY_ALLOWED_NETWORKS",
        "allowed_networks",
        "",
        networks,
        "networks such as 10.0.0.0/8, separated by commas",
    ),
    Setting("RELAY_RETENTION_DAYS", "retention_days", "30", integer(1, 36_500), "a number from 1 to 36500"),
    Setting("RELAY_RETENTION_MAX_DAYS", "retention_max_days", "37", integer(1, 36_500), "a number from 1 to 36500"),
    Setting("RELAY_LEASE_S", "lease_s", "30", number(1, 3600), "seconds from 1 to 3600"),
    Setting("RELAY_DEDUP_WINDOW_S", "dedup_window_s", "86400", number(1, 2_592_000), "seconds from 1 to 2592000"),
    Setting("RELAY_COMMIT_TIMEOUT_S", "commit_timeout_s", "5", number(0.1, 60), "seconds from 0.1 to 60"),
    Setting("RELAY_DELIVERY_TIMEOUT_S", "delivery_timeout_s", "10", number(0.1, 300), "seconds from 0.1 to 300"),
    Setting("RELAY_MAX_IN_FLIGHT", "max_in_flight", "1000", integer(1, 100_000), "a number from 1 to 100000"),
    Setting("RELAY_QUEUE_MB", "queue_mb", "32", integer(1, 4096), "a number from 1 to 4096"),
    Setting("RELAY_DELIVERY_MB", "delivery_mb", "64", integer(4, 65_536), "a number from 4 to 65536"),
    Setting("RELAY_DB_POOL_MAX", "db_pool_max", "50", integer(8, 10_000), "a number from 8 to 10000"),
    Setting("RELAY_DB_MAX_LIFETIME_S", "db_max_lifetime_s", "540", number(1, 86_400), "seconds from 1 to 86400"),
    Setting("RELAY_KEEP_ALIVE_S", "keep_alive_s", "75", number(1, 3600), "seconds from 1 to 3600"),
    Setting("RELAY_BREAKER_FAILURES", "breaker_failures", "20", integer(1, 10_000), "a number from 1 to 10000"),
    Setting("RELAY_BREAKER_WINDOW_S", "breaker_window_s", "30", number(0, 86_400), "seconds from 0 to 86400"),
    Setting(
        "RELAY_ENDPOINT_DISABLE_AFTER_S",
        "endpoint_disable_after_s",
        "432000",
        number(1, 31_536_000),
        "seconds from 1 to 31536000",
    ),
    Setting(
        "RELAY_RETRY_SCHEDULE",
        "retry_schedule",
        "1,2,4,8",
        schedule,
        "1 to 50 waits in seconds separated by commas, or `standard`",
    ),
    Setting("RELAY_MAX_ATTEMPTS", "max_attempts", "", integer(1, 50), "a number from 1 to 50"),
    Setting("REDIS_URL", "redis_url", "", redis_url, "a redis:// URL", secret=True),
    Setting(
        "RELAY_CORS_ORIGINS",
        "cors_origins",
        "",
        origins,
        "origins such as https://app.example.com, separated by commas",
    ),
    Setting(
        "RELAY_TRUSTED_PROXIES",
        "trusted_proxies",
        "",
        networks,
        "networks such as 10.0.0.0/8, separated by commas",
    ),
    Setting(
        "RELAY_METRICS_TOKEN",
        "metrics_token",
        "",
        long_token,
        "at least 16 visible ASCII characters",
        secret=True,
    ),
    Setting(
        "RELAY_LOG_LEVEL",
        "log_level",
        "info",
        choice("debug", "info", "warning", "error"),
        "one of debug, info, warning, error",
    ),
    Setting("RELAY_LOG_SAMPLE", "log_sample", "0", number(0, 1), "a share from 0 to 1"),
    Setting("RELAY_SCHEMA", "schema", "relay", schema, "a lower-case PostgreSQL name of up to 41 characters"),
    *(
        Setting(
            f"RELAY_RATE_LIMIT_{tier.upper()}",
            f"rate_{tier}",
            str(rate),
            integer_or_none(1, 10**9),
            "a number from 1, or `none`",
        )
        for tier, rate in _TIER_RATES.items()
    ),
    *(
        Setting(
            f"RELAY_MAX_ENDPOINTS_{tier.upper()}",
            f"endpoints_{tier}",
            str(most),
            integer(0, 10_000),
            "a number to 10000",
        )
        for tier, most in _TIER_ENDPOINTS.items()
    ),
    *(
        Setting(f"RELAY_RATE_BURST_{tier.upper()}", f"burst_{tier}", "", integer(1, 10**9), "a number from 1")
        for tier in TIERS
    ),
)
