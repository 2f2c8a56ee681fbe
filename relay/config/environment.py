"""Read the settings from the environment, and show them."""

from __future__ import annotations

import difflib
import os
import pwd
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from relay.config.parsers import postgres_url, redis_url
from relay.config.settings import TIERS, Rate, Settings
from relay.config.variables import SETTINGS, Setting
from relay.values.database_url import BadUrl, masked

_PREFIX: Final = "RELAY_"
# How much longer a partition with open deliveries is kept, unless the operator sets it.
_GRACE_DAYS: Final = 7

_EMPTY: Final[Mapping[str, Any]] = {
    "secret_keys": (),
    "open_signup": False,
    "cors_origins": (),
    "trusted_proxies": (),
}


class BadSetting(ValueError):
    """An invalid setting. The message is one line: the variable, its value, the allowed values."""


def default_data_dir(environ: Mapping[str, str]) -> str:
    """Return the default data folder of `relay up`: the XDG data folder, or /var/lib/relay for root."""
    if os.geteuid() == 0:
        return "/var/lib/relay"
    home = environ.get("XDG_DATA_HOME") or str(Path(environ.get("HOME", "/")) / ".local" / "share")
    return str(Path(home) / "relay")


def load(environ: Mapping[str, str]) -> Settings:
    """Read all settings from `environ`.

    Raises:
        BadSetting: a value is invalid. The message masks secrets.
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
    rates = {tier: _rate(values[f"rate_{tier}"], values[f"burst_{tier}"]) for tier in TIERS}
    max_endpoints = {tier: values[f"endpoints_{tier}"] for tier in TIERS}
    for tier in TIERS:
        del values[f"rate_{tier}"], values[f"burst_{tier}"], values[f"endpoints_{tier}"]
    return Settings(rates=rates, max_endpoints=max_endpoints, **values)


def _rate(per_minute: int | None, burst: int | None) -> Rate | None:
    return None if per_minute is None else Rate(per_minute, burst or per_minute)


def _names_no_user(url: str, environ: Mapping[str, str]) -> bool:
    """Return True if PostgreSQL's user would be named after ours, and our user id has no name, as in containers."""
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
    # Compared without the prefix, which would make all names similar.
    bare = {name.removeprefix(_PREFIX): name for name in names}
    # Kubernetes describes services to containers: one called relay by RELAY_SERVICE_HOST, RELAY_PORT and more.
    services = [name.removesuffix("SERVICE_HOST") for name in environ if name.endswith("_SERVICE_HOST")]
    of_services = tuple(f"{service}{part}" for service in services for part in ("SERVICE_", "PORT"))
    found: dict[str, str | None] = {}
    for name in sorted(environ):
        if name.startswith(_PREFIX) and name not in names and not name.startswith(of_services):
            nearest = difflib.get_close_matches(name.removeprefix(_PREFIX), bare, n=1)
            found[name] = bare[nearest[0]] if nearest else None
    return found


def describe(settings: Settings) -> list[tuple[str, str]]:
    """Return the settings in force as (variable, value) pairs with secrets masked, as `relay config` prints them."""
    return [(setting.variable, _shown(setting, settings)) for setting in SETTINGS]


def _shown(setting: Setting, settings: Settings) -> str:
    kind, _, tier = setting.field.partition("_")
    if tier in TIERS:
        if kind == "endpoints":
            return str(settings.max_endpoints[tier])
        rate = settings.rates[tier]
        if rate is None:
            return "none" if kind == "rate" else ""
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
