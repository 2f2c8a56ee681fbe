"""The hosts that webhooks may be sent to."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yarl import URL

from relay.values.addresses import Network, host_problem, is_permitted, is_public

# Each at the edge of what is refused, where there is one.
PUBLIC = (
    "1.1.1.1",
    "8.8.8.8",
    "93.184.216.34",
    "172.15.255.255",
    "172.32.0.1",
    "2606:4700::1111",
    "2a00:1450:4001:81b::200e",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.1",
    "169.253.255.255",
    "169.255.0.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    # IPv6 around a public IPv4 address.
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
    "2002:808:808::1",
)
PRIVATE = (
    "0.0.0.0",  # noqa: S104
    "0.1.2.3",
    "0.255.255.255",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.0.1",
    "168.63.129.16",
    "169.254.169.254",
    "169.254.255.255",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.9",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.0",
    "192.168.255.255",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "233.252.0.1",
    "240.0.0.1",
    "255.255.255.254",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:10.0.0.1",
    "::ffff:100.64.0.1",
    "::ffff:0.0.0.0",
    "::ffff:0:7f00:1",
    "64:ff9b::7f00:1",
    "64:ff9b::a00:1",
    "64:ff9b::6440:1",
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
    "fdff:ffff::1",
    "fd00:ec2::254",
    "fe80::1",
    "febf::1",
    "fec0::1",
    "feff::1",
    "ff01::1",
    "ff02::1",
    "ff05::2",
    "ff0e::1",
    "ffff::1",
)


EVERYTHING: Sequence[Network] = (ipaddress.ip_network("::/0"), ipaddress.ip_network("0.0.0.0/0"))
OURS: Sequence[Network] = (ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd00::/8"))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_may_be_reached(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))
    assert host_problem(address, ()) is None


@pytest.mark.parametrize("address", PRIVATE)
def test_every_other_address_is_refused_until_it_is_allowed(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    problem = host_problem(address, ())
    assert problem == "Webhooks may not reach this address, unless RELAY_ALLOWED_NETWORKS contains it."
    assert host_problem(address, EVERYTHING) is None


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "localhost.", "hook.localhost", "a.b.localhost."])
def test_localhost_is_refused_until_this_machine_is_allowed(host: str) -> None:
    problem = host_problem(host, OURS)
    assert problem is not None
    assert "RELAY_ALLOWED_NETWORKS" in problem
    for network in ("127.0.0.0/8", "127.0.0.1/32", "::1/128", "::/0"):
        assert host_problem(host, (ipaddress.ip_network(network),)) is None


def test_an_allowed_network_opens_itself_and_no_other() -> None:
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "fd12::1", "8.8.8.8"):
        assert host_problem(address, OURS) is None
    # What stands for 10.1.2.3 behind a translator is not in our network.
    for address in ("10.2.0.1", "127.0.0.1", "::1", "64:ff9b::a01:203", "2002:a01:203::"):
        assert host_problem(address, OURS) is not None


@pytest.mark.parametrize("address", ["fe80::1%eth0", "2606:4700::1111%eth0", "fe80::1%25eth0", "::ffff:8.8.8.8%1"])
def test_an_address_with_a_zone_is_refused_whatever_is_allowed(address: str) -> None:
    assert host_problem(address, EVERYTHING) is not None
    assert not is_permitted(ipaddress.ip_address(address), EVERYTHING)


@pytest.mark.parametrize("host", ["::1::", "1:2", ":", "12345::", "name:80", "::127.1", "::ffff:0x7f.0.0.1", "[::1]"])
def test_what_only_looks_like_an_ipv6_address_is_refused(host: str) -> None:
    assert host_problem(host, EVERYTHING) is not None


@pytest.mark.parametrize(
    "host",
    [
        *(
            "example.com",
            "example.com.",
            "localhost.example",
            "a",
            "hooks",
            "1password.com",
            "3com",
            "1.2.3.4.com",
            "a.1b",
        ),
        *(
            "xn--mnchen-3ya.de",
            "m\u00fcnchen.de",
            "m\u00fcnchen\u3002de",
            "\u4f8b\u3048.jp",
            "fa\u00df.de",
            "i\u2764.ws",
        ),
        *("_dmarc.example.com", "a_b.example.com", "a--b.example", "0xg", "0x7f.example", "x" * 63 + ".example"),
        ".".join(["x" * 63] * 3 + ["x" * 61]),
        ".".join(["x" * 63] * 3 + ["x" * 61]) + ".",
    ],
)
def test_names_are_accepted_without_being_looked_up(host: str) -> None:
    assert host_problem(host, ()) is None


@pytest.mark.parametrize(
    "host",
    [
        *(
            "",
            ".",
            "..",
            "a..b",
            ".a",
            "a.b..",
            "a b",
            " a",
            "a\n",
            "a%41",
            "a%2eb",
            "a@b",
            "a/b",
            "a\\b",
            "a?b",
            "a#b",
        ),
        *("-a.example", "a-.example", "a.-", "*.example", "a,b", "a'b", "a\x00b", "\u00ad", "\u200b.example"),
        *("a\u00ad", "a\u00adb.example", "a\u200db.example", "i\u2764\ufe0f.ws", "a\U000e0001.example"),
        *("x" * 64 + ".example", "\u00fc" * 60 + ".example", "\u00fc" * 100_000, "\ud800.example"),
        ".".join(["x" * 63] * 3 + ["x" * 62]),
    ],
)
def test_what_is_no_name_is_refused(host: str) -> None:
    assert host_problem(host, EVERYTHING) == "The host is not a valid name."


@pytest.mark.parametrize(
    "host",
    [
        *("2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.1", "127.0.1", "1", "0", "00", "0x", "0X7F.0.0.1"),
        *("127.0.0.01", "127.0.0.0x1", "256.0.0.1", "1.2.3.4.5", "8.8.8.8.", "127.0.0.1.", "4294967296", "example.1"),
        *("example.0x7f", "\uff11\uff12\uff17.1", "127\u30021", "99999999999999999999"),
    ],
)
def test_a_number_in_disguise_is_refused_whatever_is_allowed(host: str) -> None:
    assert host_problem(host, EVERYTHING) == "The host is a number. Write an IPv4 address as four decimal numbers."


@given(st.integers(0, 2**32 - 1) | st.integers(0, 2**128 - 1))
def test_an_address_is_a_problem_when_the_guard_refuses_it(number: int) -> None:
    address = ipaddress.ip_address(number)
    assert (host_problem(str(address), OURS) is None) == is_permitted(address, OURS)


@given(st.text("0123456789.xXabcf\uff10\uff11\u3002", max_size=20) | st.text(max_size=40))
@example("0x7f.0.0.1")
@example("1.65793")
def test_nothing_is_accepted_that_anybody_reads_as_an_address_that_is_not_permitted(host: str) -> None:
    if ":" in host or host_problem(host, ()) is not None:
        return
    try:
        asked = URL.build(scheme="http", host=host).raw_host or ""
        found = socket.getaddrinfo(asked, 80, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, ValueError):
        # No address, or nothing that the client would ask for.
        return
    assert all(is_permitted(ipaddress.ip_address(info[4][0]), ()) for info in found)


@given(st.lists(st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True), max_size=6))
def test_every_name_by_the_book_is_accepted(labels: list[str]) -> None:
    assert host_problem(".".join([*labels, "example"]), ()) is None
