from __future__ import annotations

import subprocess
import sys
from ipaddress import ip_network
from pathlib import Path

import pytest

from relay.config.environment import BadSetting, describe, load
from relay.config.parsers import STANDARD_RETRY_SCHEDULE
from relay.config.settings import Rate
from relay.config.variables import SETTINGS

BAD = {
    "DATABASE_URL": ["mysql://u:hunter2hunter2@h/d", "hunter2hunter2"],
    "DATABASE_DIRECT_URL": ["http://u:hunter2hunter2@h/d"],
    "RELAY_SECRET_KEY": ["hunter2hunter2", f"{'k' * 32},hunter2hunter2"],
    "RELAY_DATA_DIR": [],
    "HOST": ["a b", "höst", "a\nb"],
    "PORT": ["0", "65536", "-1", "80.5", "1e3", "eighty", "٨٠", "9" * 5000],
    "RELAY_OPS_PORT": ["0", "65536", "x"],
    "RELAY_WORKERS": ["0", "257", "two"],
    "RELAY_ADMIN_TOKEN": ["hunter2 hunter2 hunter2", "hunter2hunter2hu\u200b", "hunter2hunter2h"],
    "RELAY_OPEN_SIGNUP": ["maybe", "2"],
    "RELAY_SIGNUP_MAX_TIER": ["gold", "Free"],
    "RELAY_ALLOWED_NETWORKS": ["10.0.0.1/8", "all", "10.0.0.0/33"],
    "RELAY_KEEP_ALIVE_S": ["0.9", "3601", "nan", "inf", "long"],
    "RELAY_LEASE_S": ["0", "3601", "nan", "inf", "soon"],
    "RELAY_DEDUP_WINDOW_S": ["0", "2592001"],
    "RELAY_COMMIT_TIMEOUT_S": ["0", "61"],
    "RELAY_DELIVERY_TIMEOUT_S": ["0", "301"],
    "RELAY_MAX_IN_FLIGHT": ["0", "100001"],
    "RELAY_QUEUE_MB": ["0", "4097"],
    "RELAY_DELIVERY_MB": ["3", "65537"],
    "RELAY_DB_POOL_MAX": ["7", "10001"],
    "RELAY_DB_MAX_LIFETIME_S": ["0", "86401"],
    "RELAY_BREAKER_FAILURES": ["0", "10001", "many"],
    "RELAY_BREAKER_WINDOW_S": ["-1", "86401"],
    "RELAY_ENDPOINT_DISABLE_AFTER_S": ["0", "31536001"],
    "RELAY_RETRY_SCHEDULE": ["1,two", "1,,2", "-1", "604801", ",".join(["1"] * 51), "weekly"],
    "RELAY_MAX_ATTEMPTS": ["0", "51"],
    "RELAY_RETENTION_DAYS": ["0", "36501", "1.5"],
    "RELAY_RETENTION_MAX_DAYS": ["0", "36501"],
    "REDIS_URL": ["hunter2:6379", "http://hunter2"],
    "RELAY_CORS_ORIGINS": ["app.example.com"],
    "RELAY_TRUSTED_PROXIES": ["10.0.0.1/8", "all"],
    "RELAY_LOG_SAMPLE": ["-0.1", "1.1", "nan"],
    "RELAY_METRICS_TOKEN": ["fifteen-letters", "hunter2 hunter2 hunter2"],
    "RELAY_LOG_LEVEL": ["loud", "INFO"],
    "RELAY_SCHEMA": ["Relay", "pg_relay", "a-b", "1a", 'a"b', "a" * 42],
    **{f"RELAY_MAX_ENDPOINTS_{tier}": ["-1", "10001", "some"] for tier in ("FREE", "PRO", "BUSINESS", "ENTERPRISE")},
    **{f"RELAY_RATE_{what}_{tier}": ["0", "-1", "many"]
       for what in ("LIMIT", "BURST") for tier in ("FREE", "PRO", "BUSINESS", "ENTERPRISE")},
}  # fmt: skip


def test_every_setting_has_its_bad_values_here() -> None:
    assert set(BAD) == {setting.variable for setting in SETTINGS}


@pytest.mark.parametrize(("variable", "value"), [(name, value) for name in BAD for value in BAD[name]])
def test_a_bad_value_is_one_line_that_names_the_variable_and_what_it_may_be(variable: str, value: str) -> None:
    setting = next(setting for setting in SETTINGS if setting.variable == variable)

    with pytest.raises(BadSetting) as raised:
        load({variable: value})

    line = str(raised.value)
    assert line.startswith(f"{variable}: ")
    assert line.endswith(setting.allowed)
    assert len(line.splitlines()) == 1
    if setting.secret:
        assert "hunter2" not in line
    else:
        assert repr(value) in line


def test_without_variables_the_defaults_of_the_contract_hold() -> None:
    settings = load({"HOME": "/home/somebody"})

    assert settings.database_url is None
    assert settings.secret_keys == ()
    assert (settings.host, settings.port, settings.ops_port, settings.workers) == (None, 8080, 9464, 1)
    assert (settings.open_signup, settings.signup_max_tier, settings.admin_token) == (False, "free", None)
    assert settings.allowed_networks is None
    assert (settings.lease_s, settings.dedup_window_s, settings.commit_timeout_s) == (30, 86400, 5)
    assert (settings.max_in_flight, settings.queue_mb, settings.db_pool_max) == (1000, 32, 50)
    assert settings.retry_schedule == (1.0, 2.0, 4.0, 8.0)
    assert settings.attempts == 5
    assert settings.rates == {
        "free": Rate(100, 100),
        "pro": Rate(1_000, 1_000),
        "business": Rate(10_000, 10_000),
        "enterprise": Rate(100_000, 100_000),
    }
    assert (settings.log_level, settings.schema) == ("info", "relay")


def test_the_data_directory_follows_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert load({"HOME": "/home/a"}).data_dir == Path("/home/a/.local/share/relay")
    assert load({"HOME": "/home/a", "XDG_DATA_HOME": "/data"}).data_dir == Path("/data/relay")

    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert load({"HOME": "/root"}).data_dir == Path("/var/lib/relay")


def test_an_empty_value_is_the_empty_list_for_a_list_and_off_for_a_flag() -> None:
    settings = load({"RELAY_ALLOWED_NETWORKS": "", "RELAY_OPEN_SIGNUP": "", "PORT": ""})

    assert settings.allowed_networks == ()
    assert settings.open_signup is False
    assert settings.port == 8080


def test_lists_and_rates_are_read_as_they_are_written() -> None:
    settings = load(
        {
            "RELAY_ALLOWED_NETWORKS": "10.0.0.0/8, ::1/128",
            "RELAY_RETRY_SCHEDULE": "standard",
            "RELAY_SECRET_KEY": f"{'a' * 32}, {'b' * 32}",
            "RELAY_RATE_LIMIT_FREE": "7",
            "RELAY_RATE_BURST_FREE": "9",
            "RELAY_RATE_LIMIT_PRO": "5",
        }
    )

    assert settings.allowed_networks == (ip_network("10.0.0.0/8"), ip_network("::1/128"))
    assert settings.retry_schedule == STANDARD_RETRY_SCHEDULE
    assert settings.attempts == len(STANDARD_RETRY_SCHEDULE) + 1
    assert settings.secret_keys == ("a" * 32, "b" * 32)
    assert settings.rates["free"] == Rate(7, 9)
    assert settings.rates["pro"] == Rate(5, 5)


def test_a_tier_may_have_no_limit_whatever_its_burst() -> None:
    given = {"RELAY_RATE_LIMIT_PRO": "none", "RELAY_RATE_BURST_PRO": "9", "RELAY_RATE_LIMIT_ENTERPRISE": "None"}
    settings = load(given)

    assert (settings.rates["pro"], settings.rates["enterprise"]) == (None, None)
    assert settings.rates["free"] == Rate(100, 100)
    described = dict(describe(settings))
    assert (described["RELAY_RATE_LIMIT_PRO"], described["RELAY_RATE_BURST_PRO"]) == ("none", "")
    with pytest.raises(BadSetting, match="RELAY_RATE_LIMIT_PRO: 'unlimited' is not a number from 1, or `none`"):
        load({"RELAY_RATE_LIMIT_PRO": "unlimited"})


def test_a_description_read_again_gives_the_same_settings_and_shows_no_secret() -> None:
    secrets = {
        "DATABASE_URL": "postgresql://u:hunter2@h/d",
        "DATABASE_DIRECT_URL": "postgresql://u:hunter2@h/e",
        "RELAY_SECRET_KEY": "hunter2" * 5,
        "RELAY_ADMIN_TOKEN": "hunter2" * 3,
        "RELAY_METRICS_TOKEN": "hunter2-hunter2-",
    }
    settings = load({**secrets, "RELAY_RETRY_SCHEDULE": "0.5,2", "RELAY_OPEN_SIGNUP": "yes"})

    described = dict(describe(settings))

    assert list(described) == [setting.variable for setting in SETTINGS]
    assert "hunter2" not in str(described)
    assert all("****" in described[name] for name in secrets)
    again = {name: value for name, value in described.items() if value and "****" not in value}
    assert load({**again, **secrets}) == settings


def relay(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-m", "relay", *arguments],
        env={"PYTHONPATH": root, "HOME": "/tmp", **environ},  # noqa: S108
        capture_output=True,
        text=True,
        check=False,
    )


def test_relay_config_prints_the_settings_in_force() -> None:
    done = relay("config", PORT="9999", RELAY_ADMIN_TOKEN="hunter2" * 3)

    assert (done.returncode, done.stderr) == (0, "")
    assert "PORT=9999" in done.stdout.splitlines()
    assert "RELAY_ADMIN_TOKEN=****" in done.stdout.splitlines()


@pytest.mark.parametrize("command", ["config", "migrate", "up"])
def test_a_bad_setting_is_one_line_on_stderr_and_exit_code_2(command: str) -> None:
    done = relay(command, PORT="eighty")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "relay: PORT: 'eighty' is not a port from 1 to 65535\n"


@pytest.mark.parametrize("arguments", [["nonsense"], ["config", "--nonsense"]])
def test_bad_usage_is_one_line_on_stderr_and_exit_code_2(arguments: list[str]) -> None:
    done = relay(*arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("relay: No such ")
    assert done.stderr.count("\n") == 1


def test_migrate_needs_a_database() -> None:
    done = relay("migrate")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("relay: DATABASE_URL is not set")


def test_help_lists_the_commands_and_the_version_is_told() -> None:
    bare, asked, version = relay(), relay("--help"), relay("--version")

    assert bare.returncode == asked.returncode == version.returncode == 0
    assert bare.stdout == asked.stdout
    assert all(f"  {name} " in bare.stdout for name in ("up", "serve", "deliver", "migrate", "config"))
    assert version.stdout.startswith("relay 0.")


def test_retention_waits_for_open_deliveries_a_week_longer_unless_the_operator_says() -> None:
    assert load({}).retention_max_days == 37
    assert load({"RELAY_RETENTION_DAYS": "90"}).retention_max_days == 97
    assert load({"RELAY_RETENTION_DAYS": "5"}).retention_max_days == 37
    assert load({"RELAY_RETENTION_DAYS": "5", "RELAY_RETENTION_MAX_DAYS": "5"}).retention_max_days == 5
    with pytest.raises(
        BadSetting, match=r"^RELAY_RETENTION_MAX_DAYS: 4 is less than RELAY_RETENTION_DAYS, which is 5$"
    ):
        load({"RELAY_RETENTION_DAYS": "5", "RELAY_RETENTION_MAX_DAYS": "4"})


@pytest.mark.parametrize(
    "text",
    [
        "app.example.com",
        "https://app.example.com/",
        "ftp://a",
        "https://",
        "null",
        "https://App.example.com",
        "https://app.example.com:443",
        "http://app.example.com:80",
        "https://app.example.com:",
        "https://app.example.com:99999",
        "https://me@app.example.com",
        "https://*.example.com",
        "https://app.example.com?",
        "https://bücher.example",
    ],
)
def test_what_is_no_web_origin_is_refused(text: str) -> None:
    with pytest.raises(BadSetting, match=r"^RELAY_CORS_ORIGINS: "):
        load({"RELAY_CORS_ORIGINS": text})


def test_web_origins_are_a_list() -> None:
    assert load({"RELAY_CORS_ORIGINS": "https://a.example, http://localhost:3000"}).cors_origins == (
        "https://a.example",
        "http://localhost:3000",
    )
    assert load({"RELAY_CORS_ORIGINS": "https://a.example:80"}).cors_origins == ("https://a.example:80",)
    assert load({"RELAY_CORS_ORIGINS": "http://[::1]:3000"}).cors_origins == ("http://[::1]:3000",)
    assert load({"RELAY_CORS_ORIGINS": "*"}).cors_origins == ("*",)
    assert load({"RELAY_CORS_ORIGINS": ""}).cors_origins == ()


@pytest.mark.parametrize("text", ["localhost:6379", "http://localhost", "redis://"])
def test_what_is_no_redis_url_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(BadSetting, match=r"^REDIS_URL: the value given is not a redis:// URL$"):
        load({"REDIS_URL": text})
