"""Settings: one frozen object, read from the environment once."""

from __future__ import annotations

import difflib
import os
import pwd
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from relay.config.parsers import (
    choice,
    flag,
    integer,
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
from relay.values.addresses import Network
from relay.values.database_url import BadUrl, masked

TIERS: Final = ("free", "pro", "business", "enterprise")


#: A test delivery waits no longer than this for its response, whatever the endpoint's timeout.
LONGEST_TEST_S: Final = 30.0


class BadSetting(ValueError):
    """A setting that stops the start: one line naming the variable, what it was and what it may be."""


@dataclass(frozen=True, slots=True)
class Rate:
    """What a tier may do: a rate in requests a minute, and how many may come at once."""

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
    rates: Mapping[str, Rate]
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
        """How many attempts a delivery gets before it is a dead letter: one more than there are waits."""
        return self.max_attempts or len(self.retry_schedule) + 1


@dataclass(frozen=True, slots=True)
class Setting:
    """One environment variable: what it sets, what it is without a value, how its text is read."""

    variable: str
    field: str
    default: str
    parse: Callable[[str], Any]
    allowed: str
    secret: bool = False


def default_data_dir(environ: Mapping[str, str]) -> str:
    """Where `relay up` keeps its database: the XDG data folder, or /var/lib/relay as root."""
    if os.geteuid() == 0:
        return "/var/lib/relay"
    home = environ.get("XDG_DATA_HOME") or str(Path(environ.get("HOME", "/")) / ".local" / "share")
    return str(Path(home) / "relay")


_TIER_ENDPOINTS: Final = {"free": 10, "pro": 50, "business": 500, "enterprise": 500}
_PREFIX: Final = "RELAY_"
_TIER_RATES: Final = {"free": 100, "pro": 1_000, "business": 10_000, "enterprise": 100_000}

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
    Setting("RELAY_METRICS_TOKEN", "metrics_token", "", token, "visible ASCII characters", secret=True),
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
        Setting(f"RELAY_RATE_LIMIT_{tier.upper()}", f"rate_{tier}", str(rate), integer(1, 10**9), "a number from 1")
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

# What a partition with open deliveries waits for them beyond its time, unless the operator says.
_GRACE_DAYS: Final = 7

_EMPTY: Final[Mapping[str, Any]] = {
    "secret_keys": (),
    "open_signup": False,
    "cors_origins": (),
    "trusted_proxies": (),
}


def load(environ: Mapping[str, str]) -> Settings:
    """Read all settings from `environ`.

    Raises:
        BadSetting: a value is not what its variable may be; secrets are masked in the message.
    """
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        given = environ.get(setting.variable)
        if given is not None and setting.field == "allowed_networks" and not given.strip():
            values[setting.field] = ()
            continue
        text = (given or "").strip() or setting.default
        if not text and setting.field == "data_dir":
            text = default_data_dir(environ)
        if not text:
            values[setting.field] = _EMPTY.get(setting.field)
            continue
        try:
            values[setting.field] = setting.parse(text)
        except BadUrl as bad:
            raise BadSetting(f"{setting.variable}: {bad}") from None
        except ValueError:
            shown = "the value given" if setting.secret else repr(text)
            raise BadSetting(f"{setting.variable}: {shown} is not {setting.allowed}") from None
        if setting.parse is postgres_url and _names_no_user(text, environ):
            raise BadSetting(
                f"{setting.variable}: it names no user, and the user id {os.geteuid()} has no name on this machine: "
                "write postgresql://USER@host/database"
            )
    if not environ.get("RELAY_RETENTION_MAX_DAYS", "").strip():
        values["retention_max_days"] = max(values["retention_max_days"], values["retention_days"] + _GRACE_DAYS)
    if values["retention_max_days"] < values["retention_days"]:
        raise BadSetting(
            f"RELAY_RETENTION_MAX_DAYS: {values['retention_max_days']} is less than RELAY_RETENTION_DAYS, "
            f"which is {values['retention_days']}"
        )
    rates = {tier: Rate(values[f"rate_{tier}"], values[f"burst_{tier}"] or values[f"rate_{tier}"]) for tier in TIERS}
    max_endpoints = {tier: values[f"endpoints_{tier}"] for tier in TIERS}
    for tier in TIERS:
        del values[f"rate_{tier}"], values[f"burst_{tier}"], values[f"endpoints_{tier}"]
    return Settings(rates=rates, max_endpoints=max_endpoints, **values)


def _names_no_user(url: str, environ: Mapping[str, str]) -> bool:
    """Whether PostgreSQL's user would be called as ours, which has no name, as in a container with an id of its own."""
    parts = urlsplit(url)
    named = (parts.username, *parse_qs(parts.query).get("user", ()), environ.get("PGUSER"))
    if any(named) or any(environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
        return False
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        return True
    return False


def unknown(environ: Mapping[str, str]) -> dict[str, str | None]:
    """Return the variables with our prefix that are no settings, each with the name of the nearest one."""
    names = {setting.variable for setting in SETTINGS}
    # Compared without the prefix, which would make anything near.
    bare = {name.removeprefix(_PREFIX): name for name in names}
    # Kubernetes tells each container of each service: of one called relay by RELAY_SERVICE_HOST, RELAY_PORT and more.
    services = [name.removesuffix("SERVICE_HOST") for name in environ if name.endswith("_SERVICE_HOST")]
    of_services = tuple(f"{service}{part}" for service in services for part in ("SERVICE_", "PORT"))
    found: dict[str, str | None] = {}
    for name in sorted(environ):
        if name.startswith(_PREFIX) and name not in names and not name.startswith(of_services):
            nearest = difflib.get_close_matches(name.removeprefix(_PREFIX), bare, n=1)
            found[name] = bare[nearest[0]] if nearest else None
    return found


def describe(settings: Settings) -> list[tuple[str, str]]:
    """The settings in force as (variable, value) pairs, secrets masked: what `relay config` prints."""
    return [(setting.variable, _shown(setting, settings)) for setting in SETTINGS]


def _shown(setting: Setting, settings: Settings) -> str:
    kind, _, tier = setting.field.partition("_")
    if tier in TIERS:
        if kind == "endpoints":
            return str(settings.max_endpoints[tier])
        rate = settings.rates[tier]
        return str(rate.per_minute if kind == "rate" else rate.burst)
    value = getattr(settings, setting.field)
    if value is None or value == ():
        return ""
    if setting.parse in (postgres_url, redis_url):
        return masked(value)
    if setting.secret:
        return "****"
    if isinstance(value, tuple):
        return ",".join(f"{part:g}" if isinstance(part, float) else str(part) for part in value)
    if isinstance(value, bool):
        return "1" if value else "0"
    return f"{value:g}" if isinstance(value, float) else str(value)
