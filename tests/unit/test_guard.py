"""Which addresses webhooks may reach."""

from __future__ import annotations

import ipaddress
import socket

import pytest

from relay.delivery.guard import Blocked, Guard, is_public

PUBLIC = (
    "1.1.1.1",
    "8.8.8.8",
    "93.184.216.34",
    "172.15.255.255",
    "172.32.0.1",
    "2606:4700::1111",
    "2a00:1450:4001:81b::200e",
    # IPv6 around a public IPv4 address.
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
    "2002:808:808::1",
)
PRIVATE = (
    "0.0.0.0",  # noqa: S104
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.9",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "233.252.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::808:808",
    "64:ff9b:1::7f00:1",
    "100::1",
    "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:2::1",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "2002:7f00:1::1",
    "2002:a00:1::1",
    "2002:c0a8:101::1",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_permitted(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PRIVATE)
def test_every_other_address_is_refused(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    assert not Guard(()).permits((address, 80))


@pytest.mark.parametrize(
    "sockaddr",
    [("fe80::1%eth0", 80, 0, 0), ("2606:4700::1111%eth0", 80, 0, 0), ("2606:4700::1111", 80, 0, 3), ("name", 80)],
)
def test_zones_and_what_is_no_address_are_refused(sockaddr: tuple[object, ...]) -> None:
    assert not Guard((ipaddress.ip_network("::/0"), ipaddress.ip_network("0.0.0.0/0"))).permits(sockaddr)


def test_an_allowed_network_is_opened_and_no_other() -> None:
    guard = Guard((ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd00::/8")))
    assert guard.permits(("10.1.2.3", 80))
    assert guard.permits(("::ffff:10.1.2.3", 80, 0, 0))
    assert guard.permits(("fd12::1", 80, 0, 0))
    assert guard.permits(("8.8.8.8", 80))
    assert not guard.permits(("10.2.0.1", 80))
    assert not guard.permits(("127.0.0.1", 80))


def test_a_socket_is_made_for_permitted_addresses_only() -> None:
    guard = Guard((ipaddress.ip_network("127.0.0.0/8"),))
    with guard((socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", 80))) as made:
        assert made.family == socket.AF_INET
    with pytest.raises(Blocked):
        guard((socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("10.0.0.1", 80)))
