"""The client of a request behind proxies."""

from __future__ import annotations

import pytest

from relay.config.parsers import networks
from relay.http.exchange import Scope
from relay.http.proxies import TrustedProxies, client_network

TRUSTED = networks("10.0.0.0/8, 127.0.0.1, 2001:db8:1::/48")


def scope(peer: str | None, **headers: str | list[str]) -> Scope:
    lines = [
        (name.replace("_", "-").encode(), value.encode("latin-1"))
        for name, values in headers.items()
        for value in (values if isinstance(values, list) else [values])
    ]
    return {"client": None if peer is None else (peer, 1234), "headers": lines}


def address(peer: str | None, forwarded: str | list[str] | None = None) -> str:
    headers = {} if forwarded is None else {"x_forwarded_for": forwarded}
    return TrustedProxies(TRUSTED).address_of(scope(peer, **headers))


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ("198.51.100.7", "198.51.100.7"),
        # What the client made up stands left of what the proxy saw.
        ("203.0.113.1, 198.51.100.7", "198.51.100.7"),
        ("127.0.0.1, 10.0.0.1, 198.51.100.7", "198.51.100.7"),
        ("198.51.100.7, 10.1.2.3, 10.0.0.1", "198.51.100.7"),
        (["203.0.113.1", "198.51.100.7, 10.0.0.1"], "198.51.100.7"),
        (["198.51.100.7", "10.0.0.1"], "198.51.100.7"),
        ("10.1.1.1, 10.2.2.2", "10.1.1.1"),
        ("198.51.100.7:5678", "198.51.100.7"),
        ("2001:db8:2::1", "2001:db8:2::1"),
        ("2001:DB8:2:0:0:0:0:1", "2001:db8:2::1"),
        ("[2001:db8:2::1]", "2001:db8:2::1"),
        ("[2001:db8:2::1]:5678", "2001:db8:2::1"),
        ('"[2001:db8:2::1]:5678"', "2001:db8:2::1"),
        ("198.51.100.7, [2001:db8:1::5]:80", "198.51.100.7"),
        ("::ffff:198.51.100.7", "198.51.100.7"),
        ("198.51.100.7, ::ffff:10.0.0.1", "198.51.100.7"),
        ("  198.51.100.7  ,\t10.0.0.1 ", "198.51.100.7"),
    ],
)
def test_behind_trusted_proxies_the_rightmost_stranger_is_the_client(forwarded: str | list[str], client: str) -> None:
    assert address("10.0.0.9", forwarded) == client
    assert address("::ffff:10.0.0.9", forwarded) == client


@pytest.mark.parametrize("peer", ["198.51.100.1", "2001:db8:2::9", "::ffff:198.51.100.1", "11.0.0.1"])
def test_strangers_are_not_believed(peer: str) -> None:
    assert address(peer, "203.0.113.1") == peer.removeprefix("::ffff:")
    assert TrustedProxies(()).address_of(scope(peer, x_forwarded_for="203.0.113.1")) == peer.removeprefix("::ffff:")
    assert not TrustedProxies(TRUSTED).is_secure(scope(peer, x_forwarded_proto="https"))


@pytest.mark.parametrize(
    "forwarded",
    [
        "",
        ",",
        "unknown",
        "_hidden",
        "198.51.100.7; drop",
        "198.51.100",
        "198.51.100.300",
        "198.51.100.07",
        "fe80::1%eth0",
        "198.51.100.7:port",
        "198.51.100.7:123456",
        "[198.51.100.7",
        "café",
        "1" * 5000,
        "\x00",
    ],
)
def test_a_hop_that_is_no_address_is_not_believed_nor_what_stands_behind_it(forwarded: str) -> None:
    assert address("10.0.0.9", forwarded) == "10.0.0.9"
    assert address("10.0.0.9", f"203.0.113.1, {forwarded}") == "10.0.0.9"
    assert address("10.0.0.9", f"203.0.113.1, {forwarded}, 10.0.0.3") == "10.0.0.3"


def test_an_endless_list_is_looked_at_from_its_end_only() -> None:
    assert address("10.0.0.9", ["203.0.113.1", "10.0.0.1, " * 50_000 + "10.0.0.2"]) == "10.0.0.1"


def test_without_a_peer_there_is_no_address() -> None:
    assert address(None, "203.0.113.1") == ""
    assert not TrustedProxies(TRUSTED).is_secure(scope(None, x_forwarded_proto="https"))


@pytest.mark.parametrize(
    ("proto", "secure"),
    [
        (["https"], True),
        (["HTTPS"], True),
        (["https, https"], True),
        (["https", "https"], True),
        (["http"], False),
        (["https, http"], False),
        (["http", "https"], False),
        ([""], False),
        (["https,"], False),
        (["httpsx"], False),
        ([], False),
    ],
)
def test_a_connection_is_secure_when_a_trusted_proxy_says_so_of_every_hop(proto: list[str], secure: bool) -> None:
    clients = TrustedProxies(TRUSTED)
    for _ in range(2):
        assert clients.is_secure(scope("10.0.0.9", x_forwarded_proto=proto)) == secure


def test_what_is_remembered_of_peers_is_bounded() -> None:
    clients = TrustedProxies(TRUSTED)
    for number in range(3000):
        clients.is_secure(scope(f"198.51.{number // 256}.{number % 256}", x_forwarded_proto="https"))
    assert len(clients._known) <= 1024
    assert clients.is_secure(scope("10.0.0.9", x_forwarded_proto="https"))


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("198.51.100.7", "198.51.100.8", False),
        ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("", "198.51.100.7", False),
    ],
)
def test_an_ipv6_network_of_64_bits_counts_as_one_client(first: str, second: str, same: bool) -> None:
    assert (client_network(first) == client_network(second)) == same
