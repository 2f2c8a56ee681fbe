"""The SSRF guard, with socket addresses as getaddrinfo returns them."""

from __future__ import annotations

import ipaddress
import socket

import pytest

from relay.delivery.transport.ssrf_guard import Blocked, SsrfGuard


@pytest.mark.parametrize(
    "sockaddr",
    [("fe80::1%eth0", 80, 0, 0), ("2606:4700::1111%eth0", 80, 0, 0), ("2606:4700::1111", 80, 0, 3), ("name", 80)],
)
def test_zones_and_what_is_no_address_are_refused(sockaddr: tuple[object, ...]) -> None:
    assert not SsrfGuard((ipaddress.ip_network("::/0"), ipaddress.ip_network("0.0.0.0/0"))).permits(sockaddr)


def test_an_allowed_network_is_opened_and_no_other() -> None:
    guard = SsrfGuard((ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd00::/8")))
    assert guard.permits(("10.1.2.3", 80))
    assert guard.permits(("::ffff:10.1.2.3", 80, 0, 0))
    assert guard.permits(("fd12::1", 80, 0, 0))
    assert guard.permits(("8.8.8.8", 80))
    assert not guard.permits(("10.2.0.1", 80))
    assert not guard.permits(("127.0.0.1", 80))


def test_a_socket_is_made_for_permitted_addresses_only() -> None:
    guard = SsrfGuard((ipaddress.ip_network("127.0.0.0/8"),))
    with guard((socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", 80))) as made:
        assert made.family == socket.AF_INET
    with pytest.raises(Blocked):
        guard((socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("10.0.0.1", 80)))
