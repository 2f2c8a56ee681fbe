"""URLs of databases as providers, libpq and other libraries write them."""

from __future__ import annotations

import socket

import pytest

from relay.config.environment import BadSetting, describe, load
from relay.values.database_url import BadUrl, DatabaseUrl, masked


def test_what_libpq_knows_is_understood_and_what_asyncpg_would_send_to_the_server_is_left_out() -> None:
    url = DatabaseUrl.read(
        "postgresql://owner:hunter2@ep-cool.eu.aws.example/app"
        "?sslmode=require&channel_binding=require&connect_timeout=10&keepalives=1&keepalives_idle=30"
        "&application_name=x&pgbouncer=true&sslrootcert=/etc/ssl/root.pem"
    )

    assert url.dsn == (
        "postgresql://owner:hunter2@ep-cool.eu.aws.example/app?sslmode=require&sslrootcert=/etc/ssl/root.pem"
    )
    assert (url.connect_timeout_s, url.binds_channel, url.pooled) == (10.0, True, True)
    assert url.socket_options[0] == (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    assert url.shown == "owner@ep-cool.eu.aws.example/app"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://u:p%40ss@db.example:5433/a", "u@db.example:5433/a"),
        ("postgres:///relay?host=/run/postgresql&user=u&password=hunter2", "u@/run/postgresql/relay"),
        ("postgresql://u@[::1]:5432/a", "u@[::1]:5432/a"),
        ("postgresql://u@a:1,b:2/x?target_session_attrs=read-write", "u@a:1,b:2/x"),
        ("postgresql://h?port=6432&dbname=d", "h:6432/d"),
    ],
)
def test_messages_name_user_host_port_and_database(text: str, shown: str) -> None:
    assert DatabaseUrl.read(text).shown == shown


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("postgresql+asyncpg://u:hunter2@h/d", "write postgresql://"),
        ("mysql://u:hunter2@h/d", "not a postgresql:// URL"),
        ("postgresql://u:hunter2@h:99999/d", "port"),
        ("postgresql://u:hunter2@h:54x2/d", "port"),
        ("postgresql://u:hunter2@h/d?port=0", "port"),
        ("postgresql://u:hun@ter2@h/d", "%40"),
        ("postgresql://u:hun#ter2@h/d", "%23"),
        ("postgresql://u:hun/ter2@h/d", "port"),
        ("postgresql://u:hun%ter2@h/d", "%25"),
        ("postgresql://u:hunter2@[::1/d", "malformed"),
        ("postgresql://u:hunter2@::1/d", "brackets"),
        ("postgresql://u:hunter2@h/d?sslmode", "name=value"),
        ("postgresql://u:hunter2@h/d?sslmode=always", "verify-full"),
        ("postgresql://u:hunter2@h/d?connect_timeout=soon", "connect_timeout"),
        ("postgresql://u:hunter2@h/d?channel_binding=yes", "channel_binding"),
        ("postgresql://u:hunter2@h/d?keepalives=yes", "keepalives is not a number from 0 to 1"),
        ("postgresql://u:hunter2@h/d?keepalives_idle=99999", "keepalives_idle is not a number from 0 to 32767"),
        ("postgresql://u:hunter2@h/d?connection_limit=5", "'connection_limit' is not supported"),
    ],
)
def test_what_cannot_be_understood_is_said_without_the_password(text: str, said: str) -> None:
    with pytest.raises(BadUrl, match=r".+") as refused:
        DatabaseUrl.read(text)
    with pytest.raises(BadSetting) as bad:
        load({"DATABASE_URL": text})

    assert said in str(refused.value)
    assert str(bad.value) == f"DATABASE_URL: {refused.value}"
    assert "hun" not in str(bad.value)


@pytest.mark.parametrize(
    ("query", "options"),
    [
        ("", {}),
        ("?keepalives=0&keepalives_idle=7", {socket.SO_KEEPALIVE: 0}),
        ("?keepalives_count=3", {socket.SO_KEEPALIVE: 1, socket.TCP_KEEPCNT: 3}),
        ("?keepalives=1&keepalives_interval=0", {socket.SO_KEEPALIVE: 1}),
    ],
)
def test_keepalives_are_what_libpq_makes_of_them(query: str, options: dict[int, int]) -> None:
    found = DatabaseUrl.read(f"postgresql://h/d{query}").socket_options
    assert {name: value for _, name, value in found} == options


@pytest.mark.parametrize(("text", "seconds"), [("0", 300.0), ("-1", 300.0), ("1", 2.0), ("7", 7.0), ("9999", 300.0)])
def test_the_time_to_connect_is_what_libpq_makes_of_it(text: str, seconds: float) -> None:
    assert DatabaseUrl.read(f"postgresql://h/d?connect_timeout={text}").connect_timeout_s == seconds


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("postgresql://u:hunter2@h:5432/d?sslmode=require", "postgresql://u:****@h:5432/d?sslmode=require"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
        ("postgresql:///d?host=/run&password=hunter2&user=u", "postgresql:///d?host=/run&password=****&user=u"),
        ("rediss://:hunter2@h:6379/0", "rediss://:****@h:6379/0"),
    ],
)
def test_the_settings_in_force_show_everything_but_the_password(text: str, seen: str) -> None:
    assert masked(text) == seen
    variable = "REDIS_URL" if text.startswith("redis") else "DATABASE_URL"
    assert dict(describe(load({variable: text})))[variable] == seen
