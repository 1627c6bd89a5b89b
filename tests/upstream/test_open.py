"""A git host's settings make one pool for all, or one for each identity; unreadable files are reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.config import UpstreamSettings, UserCertificateSettings
from relay.errors import ConfigError
from relay.events import Observer
from relay.upstream.hostkeys import HostKeys
from relay.upstream.identities import IdentityPools
from relay.upstream.open import open_pool, read_login
from relay.upstream.pool import Pool
from tests.support.keys import make_key


@pytest.fixture
def host_key(tmp_path: Path) -> str:
    return make_key(tmp_path, "host").host_line


def test_one_pool_for_everybody(tmp_path: Path, host_key: str) -> None:
    key = make_key(tmp_path, "upstream_ed25519")
    upstream = UpstreamSettings(addresses=["127.0.0.1:22", "[::1]:22"], host_keys=[host_key])
    pool = open_pool("main", upstream, str, tmp_path, Observer())
    assert isinstance(pool, Pool) and pool.of("alice").members is pool.members
    assert [member.address for member in pool.members] == ["127.0.0.1:22", "[::1]:22"]
    login = read_login(upstream, str, tmp_path, HostKeys({}), [])
    assert login is not None and (login.user, login.private_key, login.credentials) == ("git", key.private.read_bytes(), None)


def test_one_for_each_identity(tmp_path: Path, host_key: str) -> None:
    make_key(tmp_path, "relay_ca")
    certificate = UserCertificateSettings(ca_key="relay_ca", user="{identity}", check_identity="nobody")
    upstream = UpstreamSettings(addresses=["127.0.0.1:22"], host_keys=[host_key], user_certificate=certificate)
    pools = open_pool("main", upstream, str, tmp_path, Observer())
    assert isinstance(pools, IdentityPools), "and no private key is asked for"
    login = read_login(upstream, str, tmp_path, HostKeys({}), [])
    assert login is not None and login.user == "nobody" and login.credentials is not None


def test_every_problem_is_told(tmp_path: Path) -> None:
    plain = UpstreamSettings(addresses=["127.0.0.1:22"], host_keys=["junk"])
    for upstream, where in ((plain, "private_key"), (_certified("none"), "user_certificate.ca_key")):
        with pytest.raises(ConfigError) as told:
            open_pool("main", upstream, "relay.toml: upstreams.main.{}".format, tmp_path, Observer())
        assert [": ".join(line.split(": ")[:2]) for line in told.value.problems] == [
            "relay.toml: upstreams.main.host_keys",
            f"relay.toml: upstreams.main.{where}",
        ]


def _certified(ca_key: str) -> UpstreamSettings:
    return UpstreamSettings(addresses=["127.0.0.1:22"], host_keys=["junk"], user_certificate=UserCertificateSettings(ca_key=ca_key))
