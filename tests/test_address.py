"""Addresses as people write them, right and wrong."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.address import format_address, is_example, parse_address, parse_network, plain_address, real_address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.5:22", ("10.0.0.5", 22)),
        ("git.internal:2222", ("git.internal", 2222)),
        ("git_host:1", ("git_host", 1)),
        ("[::1]:22", ("::1", 22)),
        ("[2001:DB8::0:1]:65535", ("2001:db8::1", 65535)),
        ("[fe80::1%eth0]:22", ("fe80::1%eth0", 22)),
    ],
)
def test_an_address_is_taken_apart(text: str, expected: tuple[str, int]) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("", "must be host:port"),
        ("git.internal", "must be host:port"),
        (":22", "must be host:port"),
        ("git.internal:", "a port from 1 to 65535"),
        ("git.internal:0", "a port from 1 to 65535"),
        ("git.internal:65536", "a port from 1 to 65535"),
        ("git.internal:+22", "a port from 1 to 65535"),
        ("git.internal:２２", "a port from 1 to 65535"),
        ("git.internal: 22", "a port from 1 to 65535"),
        ("::1:22", "brackets"),
        ("[::1", "brackets"),
        ("[10.0.0.5]:22", "IPv6 address between the brackets"),
        ("10.0.0.256:22", "four numbers"),
        ("10.0.5:22", "four numbers"),
        ("git host:22", "host name"),
        ("git@host:22", "host name"),
        ("-oProxyCommand=x:22", "host name"),
        ("a" * 254 + ":22", "host name"),
    ],
)
def test_what_is_no_address_says_what_is_allowed(text: str, allowed: str) -> None:
    with pytest.raises(ValueError, match=allowed):
        parse_address(text)


def test_the_systems_choice_of_port_is_for_listening_only() -> None:
    assert parse_address("127.0.0.1:0", any_port=True) == ("127.0.0.1", 0)


@given(st.ip_addresses(), st.integers(1, 65_535))
def test_formatting_and_parsing_are_inverse(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> None:
    assert parse_address(format_address(str(address), port)) == (str(address), port)


@given(st.text(max_size=300))
def test_any_text_is_parsed_or_refused_in_words(text: str) -> None:
    try:
        host, port = parse_address(text)
    except ValueError as error:
        assert str(error).startswith("must ")
    else:
        assert host
        assert 1 <= port <= 65_535


def test_networks() -> None:
    assert parse_network("10.0.0.0/8") == ipaddress.ip_network("10.0.0.0/8")
    assert parse_network("192.0.2.1") == ipaddress.ip_network("192.0.2.1/32")
    assert parse_network("2001:db8::/32") == ipaddress.ip_network("2001:db8::/32")


@pytest.mark.parametrize(
    ("text", "allowed"),
    [("10.0.0.1/8", "must be 10.0.0.0/8 or a single address"), ("balancer", "an IP address or a network"), ("", "an IP address")],
)
def test_what_is_no_network_says_what_is_allowed(text: str, allowed: str) -> None:
    with pytest.raises(ValueError, match=allowed):
        parse_network(text)


def test_a_network_of_ipv4_mapped_addresses_is_an_ipv4_network() -> None:
    assert parse_network("::ffff:172.16.0.0/108") == ipaddress.ip_network("172.16.0.0/12")
    assert parse_network("::ffff:0:0/96") == ipaddress.ip_network("0.0.0.0/0")
    assert parse_network("::/0") == ipaddress.ip_network("::/0")


def test_names_reserved_for_examples() -> None:
    assert all(map(is_example, ["git.example.com", "EXAMPLE.org", "git.invalid", "example", "git.example.com."]))
    assert not any(map(is_example, ["git.myexample.com", "example.com.internal", "10.0.0.5"]))


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::FFFF:c000:0207", "192.0.2.7"),
        ("2001:DB8:0:0::7", "2001:db8::7"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:192.0.2.7%3", "192.0.2.7"),
        ("::1", "::1"),
        ("unknown", "unknown"),
        ("", ""),
    ],
)
def test_an_address_has_one_form(text: str, plain: str) -> None:
    assert plain_address(text) == plain
    assert plain_address(plain) == plain


def test_the_address_that_is_compared_with_networks() -> None:
    assert str(real_address("::ffff:10.0.0.1")) == "10.0.0.1"
    assert str(real_address("fe80::1%eth0")) == "fe80::1"
    assert real_address("unknown") is None
